"""What to do instead: the sentences of 404 and 405."""

import difflib
import re
from collections.abc import Collection, Sequence

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_CLASSIFY = "POST an image to /classify"
_OR = ", or ask by the Open Inference Protocol at /v2/models/NAME/infer"
_OTHERS = (
    (
        re.compile(r"/v1/models(/.*)?"),
        f"this is not TensorFlow Serving's API: {_CLASSIFY}{_OR}",
    ),
    (
        re.compile(r"/(predict|predictions|invocations|infer|inference|score)(/.*)?"),
        f"{_CLASSIFY}{_OR}",
    ),
    (
        re.compile(
            r"/(ping|health|healthz|healthcheck|status|live|ready|liveness|readiness)(/.*)?"
        ),
        "the probes are /livez, /readyz and /startupz",
    ),
)  # paths of other servers' APIs
_GENERAL = f"{_CLASSIFY}; /docs shows every path"


def not_found(path: str, known: Collection[str]) -> str:
    """Say what to do where a path is not one of those that are known."""
    return f"there is nothing at this path; {_instead(path, known)}"


def _instead(path: str, known: Collection[str]) -> str:
    for pattern, instead in _OTHERS:
        if pattern.fullmatch(path):
            return instead
    for one in known:
        if one != "/" and path.endswith(one):
            return f"if a proxy puts a prefix before {one}, have it remove that again"
    if near := difflib.get_close_matches(path.lower(), known, n=1, cutoff=0.75):
        return f"did you mean {near[0]}? /docs shows every path"
    return _GENERAL


def not_allowed(method: str, path: str, allowed: Sequence[str]) -> str:
    """Say which methods a path takes."""
    asked = method if method in METHODS else "this method"
    sentence = f"{asked} is not allowed here; use {' or '.join(allowed)}"
    if method == "PUT" and path in {"/classify", "/explain"}:
        return f"{sentence} (curl -T sends PUT: use -F file=@IMAGE instead)"
    return sentence
