"""Label values and histogram buckets that several groups of metrics share."""

LATENCY = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
STAGES = ("upload", "decode", "queue", "inference")
INTERACTIVE, BACKGROUND = "interactive", "background"  # priorities, which explain delays


def priority(*, background: bool) -> str:
    """Return the label of a priority."""
    return BACKGROUND if background else INTERACTIVE
