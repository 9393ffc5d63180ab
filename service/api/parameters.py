"""Parameters of a request, in its query, form or JSON: unknown ones are refused."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, QueryParams

from service.errors import InvalidParameter, MalformedRequest, TooLarge

M = TypeVar("M", bound=BaseModel)

_BRACKETS = b",[{"  # each value of JSON, but the first, follows one of these
_PIECE = 512 * 1024  # bytes counted at once
_SHOWN = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)  # names of a client that an error repeats
_MOST_SHOWN = 16  # of them


async def check_query(request: Request) -> None:
    """Raise `InvalidParameter` for a query parameter that the route has not, or that is repeated.

    Pages are left out: other programs add parameters to the links to them. It is a coroutine
    function, as FastAPI runs others in a thread.
    """
    if not request.query_params:
        return
    route = request.scope["route"]
    if not isinstance(route, APIRoute) or not route.include_in_schema:
        return
    _check_names(request.query_params, {field.alias for field in route.dependant.query_params})


def _check_names(query: QueryParams, known: Collection[str]) -> None:
    counts = Counter(name for name, _ in query.multi_items())
    for name, count in counts.items():
        if name not in known:
            raise unknown("query parameter", name, known)
        if count > 1:
            raise InvalidParameter(f"the query parameter {name} is given {count} times; give one")


def unknown(
    kind: str, name: str, known: Collection[str], seen: Collection[str] = ()
) -> InvalidParameter:
    """Make the error of an unknown name, which suggests the nearest known one.

    It lists the names that were `seen` up to this one, if there are several.
    """
    shown = f" {name!r}" if _SHOWN.fullmatch(name) else " of that name"
    names = [*filter(_SHOWN.fullmatch, seen)][:_MOST_SHOWN]
    if len(names) > 1:
        shown += f" (so far there were {', '.join(names)})"
    near = difflib.get_close_matches(name.lower()[:64], known, n=1)
    if near:
        hint = f"did you mean {near[0]}?"
    elif known:
        hint = f"there are {', '.join(sorted(known))}"
    else:
        hint = "this path has none"
    return InvalidParameter(f"there is no {kind}{shown}; {hint}")


def parse_query(model: type[M], query: QueryParams) -> M:
    """Parse a query; raises `InvalidParameter`, also for a name that is unknown or repeated."""
    _check_names(query, model.model_fields)
    return parse(model, query)


def parse_headers(model: type[M], headers: Headers) -> M:
    """Parse the headers that a model's fields are called or have as alias.

    Raises `InvalidParameter`.
    """
    names = (field.alias or name for name, field in model.model_fields.items())
    return parse(model, {name: headers[name] for name in names if name in headers})


def parse(model: type[M], fields: Mapping[str, Any], *, strict: bool = False) -> M:
    """Parse fields: text of a form, a query or headers, or `strict`, of JSON, which has types.

    Raises `InvalidParameter`.
    """
    try:
        return model.model_validate(dict(fields), strict=strict or None)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # The name, without the types of a union that pydantic tried.
        raise InvalidParameter(sentence(first["loc"][:1], first["msg"])) from error


def check_values(text: bytes, most: int, instead: str) -> None:
    """Raise `TooLarge` for JSON of more values: in memory, each may take 30 times its bytes."""
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    if sum(len(piece) - len(piece.translate(None, _BRACKETS)) for piece in pieces) > most:
        raise TooLarge(f"over {most} values are too many for JSON; {instead}")


def parse_json(model: type[M], body: bytes) -> M:
    """Parse a JSON body; raises `InvalidParameter`, or `MalformedRequest` if it is no JSON."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedRequest(f"the body: {first['msg']}") from error
        raise InvalidParameter(sentence(first["loc"], first["msg"])) from error


def sentence(location: Sequence[int | str], message: str) -> str:
    """Name the invalid value and pydantic's reason."""
    where = ".".join(map(str, location)) or "the body"
    return f"{where}: {message}"
