"""A file from the network: resumable, bounded, and checked before anyone can see it."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from service.errors import ModelError, Unreachable

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
MAX_BYTES = 2 << 30

_NETWORK = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)

Progress = Callable[[int, int | None], None]
"""Told how many bytes are there, and of how many, if the server says so."""


def download(url: str, part: Path, *, digest: str, progress: Progress) -> None:
    """Bring `url` into the file `part`, going on from what an earlier try left there.

    `digest` is "sha256:" or "sha1:" and a hexadecimal digest, or the beginning of one. A file
    that does not match it is deleted. Raises `ModelError`; `Unreachable` where the network is why.
    """
    if not url.startswith(("https://", "http://")):
        raise ModelError(f"{url} is not a web address")
    try:
        _transfer(url, part, progress)
    except urllib.error.HTTPError as error:
        with error:  # it is the response, too
            raise ModelError(f"{url} answers {error.code} {error.reason}") from error
    except _NETWORK as error:
        raise Unreachable(_sentence(url, error)) from error
    except (OSError, ValueError) as error:
        raise ModelError(_sentence(url, error)) from error
    check(part, digest)


def _sentence(url: str, error: Exception) -> str:
    reason = str(getattr(error, "reason", error)).strip()
    return f"cannot download {url}: {reason}; what came is kept"


def check(path: Path, digest: str) -> None:
    """Delete a file that does not match its digest, and raise `ModelError`."""
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if not found.startswith(expected):
        path.unlink()
        raise ModelError(
            f"what came is not the file wanted: its {algorithm} is {found}, not {expected}; "
            "it was deleted"
        )


def _transfer(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)  # noqa: S310 - the scheme is checked by the caller
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - the same
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            return  # all of it is there already
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server cannot resume: from the start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                have += len(chunk)
                if have > MAX_BYTES:
                    raise ModelError(f"{url} is over {MAX_BYTES} bytes")
                file.write(chunk)
                progress(have, total)
    if total is not None and have < total:
        raise ModelError(f"{url} ended after {have} of {total} bytes; fetch again to go on")
