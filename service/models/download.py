"""HTTP downloads: resumable, limited in size, and checked against a digest."""

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
"""Called with the bytes received and the total, if the server sends it."""


def download(url: str, part: Path, *, digest: str, progress: Progress) -> None:
    """Download `url` to the file `part`, resuming an earlier partial download.

    `digest` is "sha256:" or "sha1:" and a hexadecimal digest or a prefix of one. A file that does
    not match is deleted. Raises `ModelError`, or `Unreachable` if the network is the reason.
    """
    if not url.startswith(("https://", "http://")):
        raise ModelError(f"{url} is not an http or https URL")
    try:
        _transfer(url, part, progress)
    except urllib.error.HTTPError as error:
        with error:  # closes the response
            raise ModelError(f"{url} returned {error.code} {error.reason}") from error
    except _NETWORK as error:
        raise Unreachable(_sentence(url, error, part)) from error
    except (OSError, ValueError) as error:
        raise ModelError(_sentence(url, error, part)) from error
    check(part, digest)


def ask(url: str, *, seconds: float) -> None:
    """Ask for a file's headers; raises `Unreachable`, with the reason, where a download would fail.

    Looking a name up may take longer than `seconds` without a packet.
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - a manifest's, http or https
    try:
        _open(request, seconds).close()
    except urllib.error.HTTPError as error:
        with error:
            raise Unreachable(f"{error.code} {error.reason}") from error
    except (*_NETWORK, OSError, ValueError) as error:
        raise Unreachable(_reason(error)) from error


def _open(request: urllib.request.Request, seconds: float) -> http.client.HTTPResponse:
    """Send a request by the proxies of the environment; `urlopen` keeps those of its first call."""
    response: http.client.HTTPResponse = urllib.request.build_opener().open(
        request, timeout=seconds
    )
    return response


def _sentence(url: str, error: Exception, part: Path) -> str:
    kept = "; the partial file is kept" if part.exists() else ""
    return f"cannot download {url}: {_reason(error)}{kept}"


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason).strip()


def check(path: Path, digest: str) -> None:
    """Delete a file that does not match its digest, and raise `ModelError`."""
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if not actual.startswith(expected):
        path.unlink()
        raise ModelError(
            f"the download is not the expected file: its {algorithm} is {actual}, not {expected}; "
            "it was deleted"
        )


def _transfer(url: str, part: Path, progress: Progress) -> None:
    size = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)  # noqa: S310 - `download` checks the scheme
    if size:
        request.add_header("Range", f"bytes={size}-")
    try:
        response = _open(request, TIMEOUT)
    except urllib.error.HTTPError as error:
        if size and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            return  # already complete
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            size = 0  # the server cannot resume: start over
        length = response.headers.get("Content-Length")
        total = size + int(length) if length else None
        with part.open("ab" if size else "wb") as file:
            while chunk := response.read(CHUNK):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise ModelError(f"{url} is over {MAX_BYTES} bytes")
                file.write(chunk)
                progress(size, total)
    if total is not None and size < total:
        raise ModelError(f"{url} ended after {size} of {total} bytes; fetch again to resume")
