"""Header fields: those that protect whoever shows an answer, and one that says what can wait."""

import re

from starlette.datastructures import MutableHeaders

# What our own page needs: itself, and images that the browser already has. Nothing is inline,
# and no text becomes HTML.
OWN_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
}

# What the pages of /docs and /redoc need: files of ours, the OpenAPI document, and the styles that
# their scripts put into the page. Nothing is loaded from another host.
DOCS_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
}

_EVERY = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # an answer is of its moment, and may be nobody else's business
}
_PAGE = _EVERY | {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # for what does not know of frame-ancestors
}


PRIORITY = "priority"

_BACKGROUND = re.compile(r"(?:^|,)[ \t]*u=7[ \t]*(?:$|[,;])")


def is_background(priority: str | None) -> bool:
    """Tell whether a `Priority` (RFC 9218) says that nobody waits for the answer: urgency 7.

    What is no priority is ignored, as that standard has it.
    """
    return bool(_BACKGROUND.search(priority or ""))


def protect(headers: MutableHeaders) -> None:
    """Add what an answer does not say itself."""
    is_page = headers.get("content-type", "").startswith("text/html")
    for name, value in (_PAGE if is_page else _EVERY).items():
        headers.setdefault(name, value)
