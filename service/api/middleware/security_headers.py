"""Header fields: security headers of responses, and the priority of requests."""

import re

from starlette.datastructures import MutableHeaders

# The playground needs its own files, and images that the browser already has. Nothing is inline,
# and no text becomes HTML.
OWN_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
}

# The pages of /docs and /redoc need their own files, the OpenAPI document, and inline styles of
# their scripts. Nothing is loaded from another host.
DOCS_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
}

_EVERY = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # a response is of its moment, and may be private
}
_PAGE = _EVERY | {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # for browsers without frame-ancestors
}


PRIORITY = "priority"

_BACKGROUND = re.compile(r"(?:^|,)[ \t]*u=7[ \t]*(?:$|[,;])")


def is_background(priority: str | None) -> bool:
    """Tell whether a `Priority` (RFC 9218) is background work, urgency 7.

    An invalid priority is ignored, as that standard has it.
    """
    return bool(_BACKGROUND.search(priority or ""))


def protect(headers: MutableHeaders) -> None:
    """Add the security headers that a response does not have."""
    is_page = headers.get("content-type", "").startswith("text/html")
    for name, value in (_PAGE if is_page else _EVERY).items():
        headers.setdefault(name, value)
