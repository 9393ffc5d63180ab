"""Header fields: those that protect whoever shows an answer, and one that says what can wait."""

import re

from starlette.datastructures import MutableHeaders

# What the pages of /docs and /redoc load, and nothing else; nobody may put them into a frame.
_CDN = "https://cdn.jsdelivr.net"
_POLICY = "; ".join([
    "default-src 'none'",
    f"script-src 'unsafe-inline' {_CDN}",
    f"style-src 'unsafe-inline' {_CDN} https://fonts.googleapis.com",
    "font-src https://fonts.gstatic.com",
    "img-src 'self' data: https://fastapi.tiangolo.com https://cdn.redoc.ly",
    "connect-src 'self'",
    "worker-src blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
])  # fmt: skip

# What our own page needs: itself, and pictures that the browser already has. Nothing is inline,
# and no text becomes HTML.
OWN_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
}

_EVERY = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # an answer is of its moment, and may be nobody else's business
}
_PAGE = _EVERY | {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # for what does not know of frame-ancestors
}


PRIORITY = "priority"

_BACKGROUND = re.compile(r"(?:^|,)[ \t]*u=7[ \t]*(?:$|[,;])")


def is_bulk(priority: str | None) -> bool:
    """Tell whether a `Priority` (RFC 9218) says that nobody waits for the answer: urgency 7.

    What is no priority is ignored, as that standard has it.
    """
    return bool(_BACKGROUND.search(priority or ""))


def protect(headers: MutableHeaders) -> None:
    """Add what an answer does not say itself."""
    is_page = headers.get("content-type", "").startswith("text/html")
    for name, value in (_PAGE if is_page else _EVERY).items():
        headers.setdefault(name, value)
