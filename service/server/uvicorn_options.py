"""uvicorn's own options: what follows `--`, or stands in `UVICORN_...` variables."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
import uvicorn
from click.core import ParameterSource

from service.errors import WrongOption

_GIVEN = {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}
_HERE = "there is one process of it, in this program's own order"
_OURS: Mapping[str, str] = {
    "host": "give --host before the --",
    "port": "give --port before the --",
    "log_config": "give --log-format before the --",
    "log_level": "give --log-level before the --",
    "use_colors": "give --log-format before the --",
    "access_log": "every request is logged already",
    "timeout_keep_alive": "give --keep-alive-seconds before the --",
    "timeout_graceful_shutdown": "give --grace-seconds before the --",
    "limit_concurrency": "give --max-connections before the --",
    **dict.fromkeys(
        (
            *("workers", "timeout_worker_healthcheck", "reload", "reload_dirs", "reload_delay"),
            *("reload_includes", "reload_excludes", "factory", "app_dir", "env_file", "interface"),
            *("lifespan",),
        ),
        _HERE,
    ),
    **dict.fromkeys(
        (
            *("http", "http2", "h11_max_incomplete_event_size", "ws", "ws_max_size"),
            *("ws_max_queue", "ws_ping_interval", "ws_ping_timeout", "ws_per_message_deflate"),
        ),
        "only HTTP/1.1 is spoken, within this program's own bounds",
    ),
}  # by the name of the parameter; what is not here is passed on


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Give what `uvicorn.Config` is to be told: what was given, and nothing by default.

    Raises `WrongOption`; prints uvicorn's help or version and ends if asked for them.
    """
    try:
        context = uvicorn.main.make_context("uvicorn", ["this", *arguments])
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from done
    except click.ClickException as error:
        raise WrongOption(f"uvicorn: {_sentence(error.format_message())}") from error
    given = {
        name: value
        for name, value in context.params.items()
        if name != "app" and context.get_parameter_source(name) in _GIVEN
    }
    for option in uvicorn.main.params:
        if option.name in given and option.name in _OURS:
            raise WrongOption(f"uvicorn's {option.opts[0]} is not passed: {_OURS[option.name]}")
    return given | ({"headers": _headers(given["headers"])} if "headers" in given else {})


def _headers(given: Sequence[str]) -> list[tuple[str, str]]:
    """Split `Name:Value`, as uvicorn does."""
    if wrong := [header for header in given if ":" not in header]:
        raise WrongOption(f"uvicorn: {wrong[0]!r} is not a header such as Name:Value")
    split = (header.split(":", 1) for header in given)
    return [(name, value.strip()) for name, value in split]


def _sentence(text: str) -> str:
    """Make what click says a line that goes on after a colon."""
    return " ".join(text.split()).rstrip(".")
