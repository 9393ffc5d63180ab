"""Write the pages of reference/: settings, metrics, errors and alerts, as the code has them.

`python docs/reference.py` writes them all; a test compares them with what it would write.
"""

import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from pydantic.fields import FieldInfo

from service.api.statuses import STATUS
from service.errors import ClientError, ServiceError, Unavailable
from service.serving.metrics.metrics import Metrics
from service.settings import MEBIBYTE, Settings

HERE = Path(__file__).parent
ALERTS = HERE.parent / "deploy/prometheus/alerts.yml"
UNITS = ("seconds", "bytes", "pixels")  # that a setting's name may end with
MADE = "<!-- Written by docs/reference.py from the code; change it there. -->"

Row = Sequence[str]


def table(*rows: Row) -> str:
    """Lay out rows, the first of which is the head."""
    head, *body = rows
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(map(plain, row))} |" for row in (head, rule, *body))


def plain(text: str) -> str:
    """Keep a text within its cell."""
    return text.replace("|", r"\|")


def code(text: object) -> str:
    """Set a name or a value as code; nothing stays nothing."""
    return f"`{text}`" if text not in {None, ""} else ""


# Settings.


def settings() -> str:
    """Give the page of the settings."""
    rows = [
        (
            code(f"--{name.replace('_', '-')}"),
            code(f"GOOGLENET_{name.upper()}"),
            default(name, field),
            bounds(name, field),
            f"{field.description}",
        )
        for name, field in Settings.model_fields.items()
    ]
    return f"""\
# Settings

Give a setting as an option (`serve --max-batch 32`) or in the environment
(`GOOGLENET_MAX_BATCH=32`); an option comes before the environment. `googlenet-service serve --help`
has them, too. `serve` logs a warning for a `GOOGLENET_...` variable that is unknown, and exits with
status 2 instead if `--require-model` is set.

{table(("option", "in the environment", "default", "may be", "what it changes"), *rows)}
"""


def default(name: str, field: FieldInfo) -> str:
    """Give a setting's default, and large memory in MiB as well."""
    value = field.default
    if name.endswith("_bytes") and value >= MEBIBYTE:
        return f"`{value}` ({value // MEBIBYTE} MiB)"
    return code(value)


def bounds(name: str, field: FieldInfo) -> str:
    """Say what values a setting takes, where more than its description is known."""
    kind = field.annotation
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(code(choice) for choice in typing.get_args(kind))
    if kind is bool:
        return "`True`, `False`"
    given = {
        word: getattr(limit, word)
        for limit in field.metadata
        for word in ("gt", "ge", "le")
        if hasattr(limit, word)
    }
    low = f"over {given['gt']}" if "gt" in given else f"{given.get('ge', '')}"
    if not given:
        return ""
    spoken = f"{low} to {given['le']}" if "le" in given else f"{low} or more"
    spoken = spoken.replace("over 0 or more", "over 0")
    unit = next((unit for unit in UNITS if name.endswith(f"_{unit}")), "")
    return f"{spoken} {unit}".rstrip()


# Metrics.


def metrics() -> str:
    """Give the page of the metrics."""
    rows = sorted(
        (code(name(family)), family.type, ", ".join(map(code, labels)), family.documentation)
        for family, labels in described(Metrics().registry)
        if family.name.startswith("googlenet_")
    )
    return f"""\
# Metrics

`GET /metrics` has these, for Prometheus. Beside them it has `process_*` and `python_*` of the
process that serves HTTP, and `googlenet_worker_process_*` of each process that computes, as
Prometheus's own library has them. A histogram is three series: `_bucket` (with the label `le`),
`_sum` and `_count`.

{table(("metric", "type", "labels", "meaning"), *rows)}
"""


def described(registry: CollectorRegistry) -> Iterator[tuple[Metric, Sequence[str]]]:
    """Give every metric with its labels, which the library itself tells by samples only."""
    for collector in registry._collector_to_names:  # noqa: SLF001 - before there are samples
        is_ours = isinstance(collector, MetricWrapperBase)
        families: Iterable[Any] = collector.describe() if is_ours else collector.collect()
        for family in families:
            yield family, (collector if is_ours else family)._labelnames  # noqa: SLF001 - the same


def name(family: Metric) -> str:
    """Give the name that is scraped."""
    return f"{family.name}_total" if family.type == "counter" else family.name


# Errors.


def errors() -> str:
    """Give the page of the errors."""
    refused = [
        (f"{status.http}", code(error.code), status.grpc, when(error))
        for error, status in STATUS.items()
        if "code" in vars(error)  # else it is its parent, told apart by the service alone
    ]
    ended = [
        (code(error.__name__), f"{error.exit_status}", when(error))
        for error in below(ServiceError)
        if error not in STATUS and error not in {ClientError, Unavailable}
    ]
    return f"""\
# Errors

Every error of HTTP is `application/problem+json` (RFC 9457): one sentence that says what to do in
`detail`, and a word for machines in `code`. What may be tried again says in `Retry-After` and
`retry_after_ms` when. With several images the status is 200, and each result has its
`predictions` or its `error`. Under `/v2` the body is `{{"error": "the sentence"}}`, as its protocol
wants it.

{table(("status", "`code`", "of gRPC", "when"), *refused)}

A path that does not exist is a 404 (`not_found`), a wrong method a 405 (`method_not_allowed`), and
a mistake in the service itself a 500 (`{ServiceError.code}`), which is logged with its traceback.

## Errors of commands

A command that cannot go on prints one sentence and ends with a status. These are its own; it may
also meet one of those above (1).

{table(("error", "exit status", "when"), *ended)}
"""


def when(error: type[ServiceError]) -> str:
    """Give the sentences of an error's docstring, as one line."""
    return " ".join((error.__doc__ or "").split())


def below(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    """Give every kind of an error, in the order they are written in."""
    for kind in error.__subclasses__():
        yield kind
        yield from below(kind)


# Alerts.


def alerts() -> str:
    """Give the page of the alerts."""
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    rows = [
        (
            f"[{rule['alert']}](../runbook.md#{rule['alert'].lower()})",
            rule["labels"]["severity"],
            rule.get("for", "at once"),
            rule["annotations"]["description"],
        )
        for group in groups
        for rule in group["rules"]
    ]
    return f"""\
# Alerts

The alerts of `deploy/prometheus/alerts.yml`. A `page` is for now, a `ticket` for working hours.
Each name leads to its section of the [runbook](../runbook.md): what it means, where to look, what
to do.

{table(("alert", "severity", "when it holds for", "what has happened"), *rows)}
"""


PAGES: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metrics,
    "errors": errors,
    "alerts": alerts,
}


def pages() -> dict[Path, str]:
    """Give every page of the reference by its file."""
    return {HERE / f"reference/{name}.md": f"{MADE}\n\n{made()}" for name, made in PAGES.items()}


def main() -> None:
    """Write the pages."""
    for file, text in pages().items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
