"""uvicorn's own options: arguments after `--`, or `UVICORN_...` variables."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
import uvicorn
from click.core import ParameterSource

from service.errors import WrongOption

_GIVEN = {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}
_SINGLE_PROCESS = "the service runs in one process, which it starts itself"
_REJECTED: Mapping[str, str] = {
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
        _SINGLE_PROCESS,
    ),
    **dict.fromkeys(
        (
            *("http", "http2", "h11_max_incomplete_event_size", "ws", "ws_max_size"),
            *("ws_max_queue", "ws_ping_interval", "ws_ping_timeout", "ws_per_message_deflate"),
        ),
        "only HTTP/1.1 is supported, with the service's own limits",
    ),
}  # reasons by parameter name; other options are passed on


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `uvicorn.Config` that were given, without defaults.

    Raises `WrongOption`; prints uvicorn's help or version and exits for `--help` or `--version`.
    """
    try:
        context = uvicorn.main.make_context("uvicorn", ["app", *arguments])
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
        if option.name in given and option.name in _REJECTED:
            raise WrongOption(
                f"uvicorn's {option.opts[0]} is not supported: {_REJECTED[option.name]}"
            )
    return given | ({"headers": _headers(given["headers"])} if "headers" in given else {})


def _headers(given: Sequence[str]) -> list[tuple[str, str]]:
    """Split each `Name:Value`, as uvicorn does."""
    if invalid := [header for header in given if ":" not in header]:
        raise WrongOption(f"uvicorn: {invalid[0]!r} is not a header such as Name:Value")
    split = (header.split(":", 1) for header in given)
    return [(name, value.strip()) for name, value in split]


def _sentence(text: str) -> str:
    """Turn a message of click into one line to follow a colon."""
    return " ".join(text.split()).rstrip(".")
