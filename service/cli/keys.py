"""The keys commands: create API keys and check a file of them."""

from pathlib import Path
from typing import Any

import tomlkit

from service.api.auth import api_keys
from service.cli import console
from service.settings import Settings


def new_key(_: Settings, given: dict[str, Any]) -> int:
    """Print a new key, which is not stored, and its entry for the file on standard error."""
    key = api_keys.new()
    entry: dict[str, Any] = {"sha256": api_keys.digest(key.encode()).hex()}
    if given["limits"]:
        entry["limits"] = given["limits"]
    console.say(key)
    console.say(tomlkit.dumps({given["name"]: entry}).rstrip(), stderr=True)
    return 0


def check_keys(_: Settings, given: dict[str, Any]) -> int:
    """Validate a file of keys and print their names and limits."""
    file: Path = given["file"]
    shown = console.table(f"Keys in {file}", "name", "limits")
    for client in api_keys.read(file):
        shown.add_row(
            client.name, ", ".join(f"{limit.requests}/{limit.window}" for limit in client.limits)
        )
    console.terminal().print(shown)
    return 0
