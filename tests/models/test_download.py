"""Downloads: resumption, limits, digests and errors."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import website

from service.errors import ModelError, Unreachable
from service.models import download as downloading
from service.models.download import CHUNK, download

Answer = Callable[[BaseHTTPRequestHandler], None]
CONTENT = bytes(range(256)) * (5 * CHUNK // 512) + b"the end"  # two and a half chunks
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Run a web server with this handler; yields the URL of a file."""
    with website(answer) as address:
        yield f"{address}/weights"


class Website:
    """Serves one file; records each request's `Range` and the bytes sent."""

    def __init__(self, content: bytes = CONTENT, *, resumes: bool = True) -> None:
        self.content = content
        self.resumes = resumes
        self.cut: int | None = None  # bytes of the next answer after which the line breaks
        self.ranges: list[str | None] = []
        self.sent: list[int] = []

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        """Respond from the start of the requested range."""
        wanted = request.headers["Range"]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.resumes else 0
        body = self.content[start:]
        self.ranges.append(wanted)
        if start and not body:
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        cut, self.cut = self.cut, None
        self.sent.append(len(body[:cut]))
        request.wfile.write(body[:cut])


def silent(have: int, total: int | None) -> None:
    """Ignore progress."""


def refusal(url: str, part: Path, *, digest: str = DIGEST) -> str:
    """Return the error of a failing download."""
    with pytest.raises(ModelError) as caught:
        download(url, part, digest=digest, progress=silent)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The path to download to."""
    return tmp_path / "weights.part"


@pytest.mark.parametrize(
    "digest",
    [DIGEST, DIGEST[:15], "sha1:" + hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest()],
    ids=["sha256", "beginning", "sha1"],
)
def test_download_reports_progress(digest: str, part: Path) -> None:
    reported: list[tuple[int, int | None]] = []
    with serving(site := Website()) as url:
        download(url, part, digest=digest, progress=lambda *now: reported.append(now))
    assert part.read_bytes() == CONTENT
    assert reported == [(have, len(CONTENT)) for have in (CHUNK, 2 * CHUNK, len(CONTENT))]
    assert site.ranges == [None]


def test_download_without_content_length(part: Path) -> None:
    def untold(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(CONTENT)

    reported: list[int | None] = []
    with serving(untold) as url:
        download(url, part, digest=DIGEST, progress=lambda _, total: reported.append(total))
    assert part.read_bytes() == CONTENT
    assert set(reported) == {None}


def test_follows_redirects(part: Path) -> None:
    def moved(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", there)
        request.end_headers()

    part.write_bytes(CONTENT[:1000])
    with serving(site := Website()) as there, serving(moved) as url:
        download(url, part, digest=DIGEST, progress=silent)
    assert part.read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-"]


@pytest.mark.parametrize(
    ("have", "resumes", "sent"),
    [
        (1000, True, [len(CONTENT) - 1000]),
        (1000, False, [len(CONTENT)]),  # a server without support for ranges
        (len(CONTENT), True, []),
    ],
)
def test_resumes_a_partial_file(have: int, *, resumes: bool, sent: list[int], part: Path) -> None:
    part.write_bytes(CONTENT[:have])
    reported: list[tuple[int, int | None]] = []
    with serving(site := Website(resumes=resumes)) as url:
        download(url, part, digest=DIGEST, progress=lambda *now: reported.append(now))
    assert part.read_bytes() == CONTENT
    assert site.ranges == [f"bytes={have}-"]
    assert site.sent == sent
    assert reported[-1:] == [(len(CONTENT), len(CONTENT))] * len(sent)
    if have and resumes and sent:
        assert reported[0] == (have + CHUNK, len(CONTENT))


def test_broken_connection_leaves_a_resumable_part(part: Path) -> None:
    site = Website()
    site.cut = CHUNK + 1000
    with serving(site) as url:
        sentence = refusal(url, part)
        assert sentence == (
            f"{url} ended after {CHUNK + 1000} of {len(CONTENT)} bytes; fetch again to resume"
        )
        assert part.read_bytes() == CONTENT[: CHUNK + 1000]
        download(url, part, digest=DIGEST, progress=silent)
    assert part.read_bytes() == CONTENT
    assert site.ranges == [None, f"bytes={CHUNK + 1000}-"]
    assert sum(site.sent) == len(CONTENT)


def test_wrong_digest_deletes_the_file(part: Path) -> None:
    with serving(Website(CONTENT + b"!")) as url:
        sentence = refusal(url, part)
    assert sentence.startswith("the download is not the expected file: its sha256 is ")
    assert sentence.endswith("it was deleted")
    assert DIGEST.removeprefix("sha256:") in sentence
    assert not part.exists()


def test_part_of_another_file_is_deleted(part: Path) -> None:
    part.write_bytes(b"another file")
    with serving(site := Website()) as url:
        assert "it was deleted" in refusal(url, part)
        download(url, part, digest=DIGEST, progress=silent)
    assert part.read_bytes() == CONTENT
    assert site.ranges == ["bytes=12-", None]


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "Not Found"), (416, "Requested Range Not Satisfiable"), (500, "")]
)
def test_error_status_is_reported_and_leaves_nothing(status: int, reason: str, part: Path) -> None:
    with serving(lambda request: request.send_error(status)) as url:
        assert refusal(url, part).startswith(f"{url} returned {status} {reason}")
    assert not part.exists()


def test_error_status_keeps_the_part(part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(lambda request: request.send_error(503)) as url:
        assert refusal(url, part) == f"{url} returned 503 Service Unavailable"
    assert part.read_bytes() == CONTENT[:1000]


def long(request: BaseHTTPRequestHandler) -> None:
    """Respond with a length that is no number."""
    request.send_response(200)
    request.send_header("Content-Length", "long")
    request.end_headers()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda request: request.wfile.write(b"SSH-2.0-OpenSSH\r\n"), "SSH-2.0-OpenSSH"),
        (lambda _: None, ".*closed connection without response"),
        (long, ""),
    ],
    ids=["no HTTP", "no response", "invalid length"],
)
def test_invalid_response(answer: Answer, reason: str, part: Path) -> None:
    with serving(answer) as url:
        assert re.match(f"cannot download {url}: {reason}", refusal(url, part))


@pytest.mark.parametrize(
    ("host", "reason"), [(f"{'a' * 70}.example", ""), ("127.0.0.1:1", ".*Connection refused")]
)
def test_unreachable_host(host: str, reason: str, part: Path) -> None:
    url = f"http://{host}/weights"
    assert re.match(f"cannot download {url}: {reason}", refusal(url, part))
    assert "partial file" not in refusal(url, part)  # there is none


def test_unwritable_part(tmp_path: Path) -> None:
    with serving(Website()) as url:
        assert "No such file or directory" in refusal(url, tmp_path / "missing" / "weights.part")


def test_unreachable_only_for_network_errors(part: Path) -> None:
    with serving(Website()) as url:
        pass
    with pytest.raises(Unreachable):
        download(url, part, digest=DIGEST, progress=silent)
    with (
        serving(lambda request: request.send_error(404)) as url,
        pytest.raises(ModelError) as reported,
    ):
        download(url, part, digest=DIGEST, progress=silent)
    assert not isinstance(reported.value, Unreachable)  # the server responds, so a retry is useless
    with serving(Website()) as url, pytest.raises(ModelError) as reported:
        download(url, part.parent / "missing" / "part", digest=DIGEST, progress=silent)
    assert not isinstance(reported.value, Unreachable)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a", "weights.pth", ""])
def test_only_http_urls(url: str, part: Path) -> None:
    assert refusal(url, part) == f"{url} is not an http or https URL"


def test_size_limit(part: Path) -> None:
    """A sparse file stands for two downloaded gibibytes."""

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(206)
        request.end_headers()
        request.wfile.write(b"one byte too many")

    with part.open("wb") as file:
        file.truncate(downloading.MAX_BYTES - 16)
    with serving(endless) as url:
        assert refusal(url, part) == f"{url} is over {downloading.MAX_BYTES} bytes"
    assert part.stat().st_size == downloading.MAX_BYTES - 16


def test_digest_matches_by_prefix_only(part: Path) -> None:
    part.write_bytes(CONTENT)
    with pytest.raises(ModelError, match="it was deleted"):
        downloading.check(part, "sha256:" + DIGEST.removeprefix("sha256:")[1:])
    assert not part.exists()
