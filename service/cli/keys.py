"""Commands about API keys."""

from pathlib import Path
from typing import Any

import tomlkit

from service.api.auth import api_keys
from service.cli import console
from service.settings import Settings


def new_key(_: Settings, given: dict[str, Any]) -> int:
    """Print a new key, which is kept nowhere, and on standard error what the file should have."""
    key = api_keys.new()
    entry: dict[str, Any] = {"sha256": api_keys.digest(key.encode()).hex()}
    if given["limits"]:
        entry["limits"] = given["limits"]
    console.say(key)
    console.say(tomlkit.dumps({given["name"]: entry}).rstrip(), stderr=True)
    return 0


def check_keys(_: Settings, given: dict[str, Any]) -> int:
    """Read a file of keys and print whose they are."""
    file: Path = given["file"]
    shown = console.table(f"Keys in {file}", "name", "limits")
    for caller in api_keys.read(file):
        shown.add_row(
            caller.name, ", ".join(f"{one.requests}/{one.window}" for one in caller.limits)
        )
    console.terminal().print(shown)
    return 0
