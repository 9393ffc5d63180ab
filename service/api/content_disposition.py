"""A part's Content-Disposition to its field name and file name."""

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from urllib.parse import unquote

from python_multipart.multipart import parse_options_header

_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_EXTENDED = re.compile(r";\s*filename\*\s*=\s*([A-Za-z0-9_-]+)'[^']*'([^;\s]*)", re.IGNORECASE)
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=")
_BROWSERS = re.compile("%(22|0D|0A)", re.IGNORECASE)  # all that HTML has browsers encode in names


@dataclass(frozen=True, slots=True)
class Disposition:
    """What a part is called; a name that is not there is None."""

    name: str | None
    filename: str | None


def parse(header: bytes) -> Disposition:
    """Read a Content-Disposition; what cannot be decoded is shown as it came."""
    _, options = parse_options_header(header)
    name, plain = options.get(b"name"), options.get(b"filename")
    extended = _extended(header)
    return Disposition(
        None if name is None else _unescaped(name.decode("utf-8", "replace")),
        extended if plain is None or extended else _filename(plain.decode("utf-8", "replace")),
    )


def _extended(header: bytes) -> str | None:
    """Read `filename*` (RFC 5987), which RFC 7578 does not want and some clients send."""
    found = _EXTENDED.search(_QUOTED.sub('""', header.decode("latin-1")))
    if not found:
        return None
    try:
        return unquote(found[2], found[1], "replace")
    except LookupError:  # no such encoding
        return None


def _filename(given: str) -> str:
    if _ENCODED_WORD.search(given):  # RFC 2047, which mail libraries use
        try:
            return str(make_header(decode_header(given)))
        except (HeaderParseError, LookupError, ValueError):
            return given
    return _unescaped(given)


def _unescaped(given: str) -> str:
    return _BROWSERS.sub(lambda found: chr(int(found[1], 16)), given)
