"""Command-line options made from the fields of a pydantic model."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from service.settings import Settings
from service.training.options import Options

OFFLINE = (
    *("model", "device", "precision", "model_store", "max_batch", "cpu_threads"),
    *("max_pixels", "decode_threads", "heic"),
)  # the settings of commands that classify without a server

_METAVARS: Mapping[Any, str] = {int: "N", float: "X", float | None: "X", bool: "YES|NO"}


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add an option for each of these settings."""
    for name in names:
        _add_field(parser, name, Settings.model_fields[name], "VALUE")


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add an option for each option of a training."""
    for name, field in Options.model_fields.items():
        if name != "folder":
            _add_field(parser, name, field, _METAVARS.get(field.annotation, "TEXT"))


def _add_field(parser: argparse.ArgumentParser, name: str, field: FieldInfo, metavar: str) -> None:
    """Add the option of a field; the model validates the value and has the default."""
    has_default = not field.is_required() and field.default not in {None, ""}
    parser.add_argument(
        "--" + (field.alias or name).replace("_", "-"),
        dest=name,
        required=field.is_required(),
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=f"{field.description}" + (f" (default: {field.default})" if has_default else ""),
    )
