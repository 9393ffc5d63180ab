"""Hints of what to request instead, for 404 and 405."""

import difflib
import re
from collections.abc import Collection, Sequence

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_CLASSIFY = "POST an image to /classify"
_OR = ", or use the Open Inference Protocol at /v2/models/NAME/infer"
_OTHER_APIS = (
    (
        re.compile(r"/v1/models(/.*)?"),
        f"{_CLASSIFY}{_OR}, or serve with --adapters kserve-v1",
    ),
    (
        re.compile(r"/predictions(/.*)?"),
        f"{_CLASSIFY}, or serve with --adapters torchserve",
    ),
    (re.compile(r"/(predict|invocations|infer|inference|score)(/.*)?"), f"{_CLASSIFY}{_OR}"),
    (
        re.compile(
            r"/(ping|health|healthz|healthcheck|status|live|ready|liveness|readiness)(/.*)?"
        ),
        "the probes are /livez, /readyz and /startupz",
    ),
)  # of other servers, by their paths
_GENERAL = f"{_CLASSIFY}; /docs shows every path"


def not_found(path: str, known: Collection[str]) -> str:
    """Give the sentence of a 404."""
    return f"there is nothing at this path; {_hint(path, known)}"


def _hint(path: str, known: Collection[str]) -> str:
    for pattern, hint in _OTHER_APIS:
        if pattern.fullmatch(path):
            return hint
    for template in known:
        if template != "/" and path.endswith(template):
            return f"if a proxy adds a prefix before {template}, have it remove that again"
    if near := difflib.get_close_matches(path.lower(), known, n=1, cutoff=0.75):
        return f"did you mean {near[0]}? /docs shows every path"
    return _GENERAL


def not_allowed(method: str, path: str, allowed: Sequence[str]) -> str:
    """Give the sentence of a 405."""
    shown = method if method in METHODS else "this method"
    sentence = f"{shown} is not allowed here; use {' or '.join(allowed)}"
    if method == "PUT" and path in {"/classify", "/explain", "/embed"}:
        return f"{sentence} (curl -T sends PUT: use -F file=@IMAGE instead)"
    return sentence
