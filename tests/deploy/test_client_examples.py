"""The examples of docs/clients.md that bash and Python do not run: in Chromium, Node, Java, Go."""

import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import ROOT, Served, fake_backend, missing, website
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_classify import plain
from test_connections import hosting
from test_docs import blocks

ADDRESS = "localhost:8000"
PAGE = ROOT / "docs/clients.md"
REACT = [
    ROOT / f".venv-clients/node_modules/{name}/umd/{name}.production.min.js"
    for name in ("react", "react-dom")
]
COMMANDS = {
    "javascript": ("node", ["node", "example.mjs"]),
    "java": ("javac", ["java", "example.java"]),
    "go": ("go", ["go", "run", "example.go"]),
}


def examples(language: str, port: int) -> list[str]:
    """Return the page's blocks of a language, for a service on that port."""
    own = [block.text for block in blocks(PAGE) if block.language == language]
    return [text.replace(ADDRESS, f"127.0.0.1:{port}") for text in own]


@pytest.mark.parametrize("language", COMMANDS)
def test_an_example_classifies_a_photo(
    language: str, served: Served, shared: Path, tmp_path: Path
) -> None:
    tool, command = COMMANDS[language]
    if not shutil.which(tool):
        missing(tool)
    shutil.copy(shared / "photos/flickr/beagle.jpg", tmp_path)
    (text,) = examples(language, served.port)
    (tmp_path / command[-1]).write_text(text, "utf-8")
    done = subprocess.run(  # noqa: S603 - our own documentation
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "beagle" in done.stdout


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser."""
    program = shutil.which("chromium")
    if not program:
        missing("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a service that pages of all origins may use."""
    with hosting(fake_backend(), cors_origins="*") as hosted:
        yield hosted.port


def choose(page: Page) -> None:
    page.set_input_files("input", {"name": "a", "mimeType": "image/png", "buffer": plain("red")})


def drop(page: Page) -> None:
    script = """bytes => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
        return transfer;
    }"""
    transfer = page.evaluate_handle(script, [*plain("red")])
    page.dispatch_event("p", "drop", {"dataTransfer": transfer})


def submit(page: Page) -> None:
    choose(page)
    page.click("button")


ACTIONS = {"output": [choose, drop, lambda _: None, choose], "body": [submit]}
STEPS = [(where, action) for where, actions in ACTIONS.items() for action in actions]


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_an_example_works_in_a_page_of_another_origin(
    number: int, chromium: Browser, port: int
) -> None:
    pages = examples("html", port)
    assert len(pages) == len(STEPS)
    where, action = STEPS[number]
    scripts = {f"/{path.name}": path for path in REACT}
    if any(path.name in pages[number] and not path.exists() for path in REACT):
        missing("React (make clients)")

    def answer(handler: BaseHTTPRequestHandler) -> None:
        script = scripts.get(handler.path)
        kind = "text/javascript" if script else "text/html; charset=utf-8"
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        whole = f"<!DOCTYPE html>{pages[number]}".encode()
        handler.wfile.write(script.read_bytes() if script else whole)

    with website(answer) as address:
        page = chromium.new_page()
        page.goto(address)
        action(page)
        expect(page.locator(where)).to_contain_text("red", timeout=20_000)
        page.close()
