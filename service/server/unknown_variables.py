"""Environment variables that look like settings but are none."""

import difflib
import logging
from collections.abc import Iterable

from service.errors import WrongOption
from service.settings import Settings

logger = logging.getLogger(__name__)

_PREFIX = "GOOGLENET_"
CLIENT_KEY = f"{_PREFIX}KEY"  # the API key that `classify --url` sends
_KNOWN = {"KEY", *map(str.upper, Settings.model_fields)}  # after the prefix


def check(variables: Iterable[str], *, is_strict: bool) -> None:
    """Log a warning for each unknown `GOOGLENET_...` variable; raises `WrongOption` if strict."""
    for variable in sorted(variables):
        name = variable.upper().removeprefix(_PREFIX)  # settings ignore the case, too
        if not variable.upper().startswith(_PREFIX) or name in _KNOWN:
            continue
        nearest = difflib.get_close_matches(name, _KNOWN, n=1)
        suggestion = f"did you mean {_PREFIX}{nearest[0]}?" if nearest else "see serve --help"
        message = f"unknown environment variable {variable}; {suggestion}"
        if is_strict:
            raise WrongOption(message)
        logger.warning(message)
