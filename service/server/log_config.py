"""Log configuration: text lines or JSON lines."""

import logging
import os
import sys

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from uvicorn.logging import ColourizedFormatter

from service.settings import Settings

FIELDS = "request"  # attribute of a log record: the fields of a request, by name
_IN_MESSAGE = ("method", "route", "status")


class TextFormatter(ColourizedFormatter):
    """A text line: the fields of a request after the message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Append the fields."""
        fields = getattr(record, FIELDS, {})
        words = (f"{name}={value}" for name, value in fields.items() if name not in _IN_MESSAGE)
        return "  ".join([super().formatMessage(record), *words])


def configure(settings: Settings) -> None:
    """Log to standard error with the level and format of the settings."""
    is_terminal = sys.stderr.isatty()
    is_text = settings.log_format == "text" or (settings.log_format == "auto" and is_terminal)
    is_colourful = is_terminal and not os.environ.get("NO_COLOR")  # see no-color.org
    handler = logging.StreamHandler()
    handler.setFormatter(_text(is_colourful=is_colourful) if is_text else _json())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])


def is_for_people(settings: Settings) -> bool:
    """Whether text, not only a program's JSON lines, is wanted on standard error: a terminal."""
    return sys.stderr.isatty() and settings.log_format != "json"


def _text(*, is_colourful: bool) -> logging.Formatter:
    return TextFormatter("%(asctime)s %(levelprefix)s %(message)s", "%H:%M:%S", "%", is_colourful)


def _json() -> logging.Formatter:
    return JsonFormatter(
        ["levelname", "name", "message"],
        timestamp=True,
        rename_fields={"levelname": "level", "name": "logger"},
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
    )
