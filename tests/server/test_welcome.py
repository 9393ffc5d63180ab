"""What a terminal shows when the service is ready."""

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_process import curl

from service.models import store
from service.server import welcome
from service.settings import Settings

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({}, "http://127.0.0.1:8123"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:8123"),  # noqa: S104 - not listened on
        ({"host": "::"}, "http://127.0.0.1:8123"),
        ({"host": "::1"}, "http://[::1]:8123"),
        ({"host": "box.local", "tls_cert_file": Path("a.pem")}, "https://box.local:8123"),
    ],
)
def test_the_address_can_be_connected_to(given: dict[str, object], address: str) -> None:
    assert welcome.url(Settings.model_validate(given), 8123) == address


@pytest.mark.parametrize("model", ["digits", "bvlc_googlenet"])
def test_the_example_exists_and_its_path_is_quoted(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    located = store.locate(None)
    settings = Settings(model=model)
    assert welcome.example(settings, located).is_file()
    monkeypatch.chdir(tmp_path)
    spaced = store.Store(located.root, tmp_path.parent / "a b")
    command = welcome.text(settings, 80, spaced).split("image:  ")[1].splitlines()[0]
    assert shlex.split(command)[2] == f"file=@{welcome.example(settings, spaced)}"


def test_with_api_keys_the_command_sends_one() -> None:
    settings = Settings(model="digits", api_key_hashes=f"web:{'0' * 64}")
    assert "X-API-Key: $GOOGLENET_KEY" in welcome.text(settings, 80, store.locate(None))


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_a_curl_command_that_works(*, colour: bool) -> None:
    """On a real pseudo-terminal the last lines are the address, the command and the page."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--model", "digits", "--port", "0"],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment if colour else {**environment, "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(theirs)
    printed = ""
    try:
        while "a page:" not in printed or not printed.endswith("\n"):
            printed += os.read(ours, 65536).decode().replace("\r\n", "\n")
        ready, command, page = printed.rstrip().splitlines()[-3:]
        address = ready.removeprefix("Ready at ")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        assert page.split() == ["Try", "it", "on", "a", "page:", f"{address}/"]
        program, *arguments = shlex.split(command.removeprefix("Classify an image:"))
        assert program == "curl"
        arguments[1] = f"file=@{ROOT / arguments[1].removeprefix('file=@')}"
        status, _, body = curl(*arguments)
        assert (status, '"predictions":[{"label":"7"' in body) == ("200 OK", True)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(ours)
    assert ("\x1b[" in printed) == colour
    assert '{"timestamp"' not in printed
