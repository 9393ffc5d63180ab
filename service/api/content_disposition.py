"""Parse the Content-Disposition of a multipart part."""

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from urllib.parse import unquote

from python_multipart.multipart import parse_options_header

_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_EXTENDED = re.compile(r";\s*filename\*\s*=\s*([A-Za-z0-9_-]+)'[^']*'([^;\s]*)", re.IGNORECASE)
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=")
_HTML_ESCAPE = re.compile("%(22|0D|0A)", re.IGNORECASE)  # all that browsers escape in names (HTML)


@dataclass(frozen=True, slots=True)
class Disposition:
    """A part's field name and file name; None if missing."""

    name: str | None
    filename: str | None


def parse(header: bytes) -> Disposition:
    """Parse a Content-Disposition; names that cannot be decoded stay encoded."""
    _, options = parse_options_header(header)
    name, plain = options.get(b"name"), options.get(b"filename")
    extended = _extended(header)
    return Disposition(
        None if name is None else _unescaped(name.decode("utf-8", "replace")),
        extended if plain is None or extended else _filename(plain.decode("utf-8", "replace")),
    )


def _extended(header: bytes) -> str | None:
    """Parse `filename*` (RFC 5987), which some clients send although RFC 7578 forbids it."""
    match = _EXTENDED.search(_QUOTED.sub('""', header.decode("latin-1")))
    if not match:
        return None
    try:
        return unquote(match[2], match[1], "replace")
    except LookupError:  # no such encoding
        return None


def _filename(name: str) -> str:
    if _ENCODED_WORD.search(name):  # RFC 2047, which mail libraries use
        try:
            return str(make_header(decode_header(name)))
        except (HeaderParseError, LookupError, ValueError):
            return name
    return _unescaped(name)


def _unescaped(name: str) -> str:
    return _HTML_ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)
