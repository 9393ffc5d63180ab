"""Parameters of a request, in its query or its form: none is ignored."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from service.errors import InvalidParameter

M = TypeVar("M", bound=BaseModel)

_SHOWN = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)  # of names that a client made up


def check_query(request: Request) -> None:
    """Raise `InvalidParameter` for a query parameter that the route has not, or that is repeated.

    Pages are left out: browsers are sent to them with parameters of other programs.
    """
    if not request.query_params:
        return
    route = request.scope["route"]
    if not isinstance(route, APIRoute) or not route.include_in_schema:
        return
    known = {one.alias for one in route.dependant.query_params}
    given = Counter(name for name, _ in request.query_params.multi_items())
    for name, times in given.items():
        if name not in known:
            raise unknown("query parameter", name, known)
        if times > 1:
            raise InvalidParameter(f"the query parameter {name} is given {times} times; give one")


def unknown(kind: str, name: str, known: Collection[str]) -> InvalidParameter:
    """Make the error of a name that is not known, which says the nearest one that is."""
    given = f" {name!r}" if _SHOWN.fullmatch(name) else " of that name"
    near = difflib.get_close_matches(name.lower()[:64], known, n=1)
    if near:
        instead = f"did you mean {near[0]}?"
    elif known:
        instead = f"there are {', '.join(sorted(known))}"
    else:
        instead = "this path has none"
    return InvalidParameter(f"there is no {kind}{given}; {instead}")


def parse(model: type[M], fields: Mapping[str, str]) -> M:
    """Read the form fields that are given in place of query parameters, and go before those.

    Raises `InvalidParameter`.
    """
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise InvalidParameter(sentence(first["loc"], first["msg"])) from error


def sentence(location: Sequence[int | str], message: str) -> str:
    """Say where a value is wrong, and how, as pydantic has it."""
    where = ".".join(map(str, location)) or "the body"
    return f"{where}: {message}"
