"""The pages of /docs and /redoc, as a browser without a network shows them."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from conftest import ROOT
from playwright.sync_api import Browser, ConsoleMessage, expect
from test_auth import KEY, digests
from test_connections import Hosted, hosting
from test_playground import chromium as chromium  # noqa: PLC0414 - a fixture

from service.api.routes import docs

FOLDER = ROOT / "service/api/static/docs"
SENT = {path: FOLDER / name for path, (name, _) in docs.FILES.items()}


@pytest.fixture(scope="module")
def hosted() -> Iterator[Hosted]:
    """A ready service on a fake model that asks for a key, below a proxy's path."""
    with hosting(api_key_hashes=digests(web=KEY), root_path="/vision") as ours:
        yield ours


def base(hosted: Hosted) -> str:
    return f"http://127.0.0.1:{hosted.port}"


@pytest.mark.parametrize(("path", "file"), SENT.items(), ids=SENT)
def test_every_file_is_sent_and_kept_until_it_changes(
    path: str, file: Path, hosted: Hosted
) -> None:
    answer = httpx2.get(base(hosted) + path)
    assert answer.content == file.read_bytes()
    known = {"If-None-Match": answer.headers["etag"]}
    assert httpx2.get(base(hosted) + path, headers=known).status_code == 304


def test_nothing_is_in_the_folder_that_is_not_sent_or_a_licence() -> None:
    others = {file.name for file in FOLDER.iterdir()} - {file.name for file in SENT.values()}
    assert others == {
        "README.md",
        *("swagger-ui.LICENSE", "swagger-ui.NOTICE", "swagger-ui-bundle.js.LICENSE.txt"),
        *("redoc.LICENSE", "redoc.standalone.js.LICENSE.txt"),
    }


def test_the_document_names_the_path_that_a_proxy_removes(hosted: Hosted) -> None:
    document = httpx2.get(f"{base(hosted)}/openapi.json").json()
    assert document["servers"] == [{"url": "/vision"}]


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/docs", ".opblock-summary-path"), ("/redoc", "h2")],
)
def test_a_browser_shows_every_operation_and_loads_nothing_from_elsewhere(
    path: str, shown: str, hosted: Hosted, chromium: Browser
) -> None:
    said: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            said.append(message.text)

    page = chromium.new_page()
    requested: list[str] = []
    page.on("console", hear)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    try:
        page.goto(base(hosted) + path)
        expect(
            page.locator(shown, has_text=re.compile("classify", re.IGNORECASE)).first
        ).to_be_visible(timeout=20_000)
        documented = httpx2.get(f"{base(hosted)}/openapi.json").json()["paths"]
        count = sum(len(methods) for methods in documented.values())
        assert page.locator(shown).count() >= count
    finally:
        page.close()
    elsewhere = [url for url in requested if not url.startswith((base(hosted), "data:", "blob:"))]
    assert elsewhere == []
    assert said == []
