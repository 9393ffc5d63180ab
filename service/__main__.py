"""The command line: runs a command, and turns an error into a sentence and an exit status."""

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
from service.models import pytorch
from service.settings import Settings

Command = Callable[[Settings, dict[str, Any]], int]
"""Takes the settings and the command's own arguments; returns the exit status."""

_TORCH = {"torch", "torchvision"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, the error's, or 2 for invalid arguments."""
    # Linux ignores signals that the first process of a container has no handler for.
    signal.signal(signal.SIGTERM, _end)
    given = vars(parser.build().parse_args(arguments))
    try:
        given["command"] = shlex.join(["googlenet-service", *(arguments or sys.argv[1:])])
        run: Command = pkgutil.resolve_name(given.pop("run"))  # imports no other command: quicker
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
        print(f"googlenet-service: this command needs PyTorch: {pytorch.INSTALL}", file=sys.stderr)
        return WrongOption.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # a shell's status for a process ended by a signal


def _settings(given: dict[str, Any]) -> Settings:
    """Move the settings among the arguments into `Settings`; the rest come from the environment."""
    names = [name for name in given if name in Settings.model_fields]
    return Settings(**{name: given.pop(name) for name in names})


if __name__ == "__main__":
    sys.exit(main())
