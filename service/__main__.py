"""The command line: arguments to a command, and a failure to one sentence and a status."""

import pkgutil
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from pydantic import ValidationError

from service.cli import parser
from service.errors import ServiceError, WrongOption
from service.settings import Settings

Command = Callable[[Settings, dict[str, Any]], int]
"""Takes the settings and the command's own arguments, gives the exit status."""


_TORCH = {"torch", "torchvision"}
_NEEDS_TORCH = "this command needs PyTorch: pip install 'googlenet-service[torch]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status: 0, the error's, or 2 for a wrong call."""
    # The first process of a container is spared every signal that it does not handle itself.
    signal.signal(signal.SIGTERM, _end)
    ours, uvicorns = _split(sys.argv[1:] if arguments is None else arguments)
    given = vars(parser.build().parse_args(ours)) | ({"uvicorn": uvicorns} if uvicorns else {})
    try:
        given["command"] = shlex.join(["googlenet-service", *(arguments or sys.argv[1:])])
        run: Command = pkgutil.resolve_name(given.pop("run"))  # only that, for the rest takes time
        return run(_settings(given), given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        print(f"googlenet-service: --{option}: {first['msg']}", file=sys.stderr)
        return 2
    except ServiceError as error:
        print(f"googlenet-service: {error}", file=sys.stderr)
        return error.exit_status
    except ModuleNotFoundError as error:
        if error.name not in _TORCH:
            raise
        print(f"googlenet-service: {_NEEDS_TORCH}", file=sys.stderr)
        return WrongOption.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Part what is ours from what follows `--`, which uvicorn understands when it is to serve."""
    if "--" not in arguments or arguments[0] != "serve":
        return arguments, ()
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # as a shell tells of a signal's victim


def _settings(given: dict[str, Any]) -> Settings:
    """Move the settings among the arguments into `Settings`; the environment gives the rest."""
    chosen = [name for name in given if name in Settings.model_fields]
    return Settings(**{name: given.pop(name) for name in chosen})


if __name__ == "__main__":
    sys.exit(main())
