"""The client's calls on one image or none, as generators of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from service.client import results
from service.client.errors import ClientError
from service.client.exchange import exchange, parse
from service.client.image_input import ImageInput
from service.client.options import ClassifyOptions, EmbedOptions, ExplainOptions
from service.client.results import Embedding, Explanation, Models, Ranking
from service.client.steps import CallContext, Read, Request, Response, Steps

_BINARY = "application/octet-stream"


def classify(image: ImageInput, options: ClassifyOptions, context: CallContext) -> Steps[Ranking]:
    """Rank one image's labels."""
    data = yield from _read(image)
    return (yield from classify_bytes(data, options, context))


def classify_bytes(data: bytes, options: ClassifyOptions, context: CallContext) -> Steps[Ranking]:
    """Rank the labels of an image that has been read."""
    response = yield from exchange(post("/classify", [data], options), context)
    return parse(response, lambda body: results.ranking(body, body))


def classify_url(url: str, options: ClassifyOptions, context: CallContext) -> Steps[Ranking]:
    """Rank the labels of an image that the service fetches."""
    request = replace(post("/classify", [], options), json={"url": url})
    response = yield from exchange(request, context)
    return parse(response, lambda body: results.ranking(body, body))


def models(context: CallContext) -> Steps[Models]:
    """List the models that are served."""
    response = yield from exchange(Request("GET", "/models"), context)
    return parse(response, results.models)


def explain(image: ImageInput, options: ExplainOptions, context: CallContext) -> Steps[Explanation]:
    """Compute a label's heat maps as numbers."""
    response = yield from _explain(image, options, "application/json", context)
    return parse(response, results.explanation)


def embed(image: ImageInput, options: EmbedOptions, context: CallContext) -> Steps[Embedding]:
    """Compute an image's features."""
    data = yield from _read(image)
    response = yield from exchange(post("/embed", [data], options), context)
    return parse(response, results.embedding)


def heat_map(image: ImageInput, options: ExplainOptions, context: CallContext) -> Steps[bytes]:
    """Draw a label's heat map over the image: a PNG."""
    response = yield from _explain(image, options, "image/png", context)
    return response.body


def post(
    path: str,
    images: Sequence[bytes],
    options: ClassifyOptions | EmbedOptions | ExplainOptions,
    headers: Mapping[str, str] | None = None,
) -> Request:
    """Build a request that posts images."""
    query = {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for name, value in options.items()
        if name not in {"timeout", "background"}
        and isinstance(value, str | int | float | list | tuple)
    }
    own_headers = {"Content-Type": _BINARY} if len(images) == 1 else {}
    if options.get("background"):
        own_headers["Priority"] = "u=7"  # RFC 9218's background
    return Request("POST", path, query, {**own_headers, **(headers or {})}, images)


def _explain(
    image: ImageInput, options: ExplainOptions, accept: str, context: CallContext
) -> Steps[Response]:
    data = yield from _read(image)
    request = post("/explain", [data], options, {"Accept": accept})
    return (yield from exchange(request, context))


def _read(image: ImageInput) -> Steps[bytes]:
    data: bytes | ClientError = yield Read(image)
    if isinstance(data, ClientError):
        raise data
    return data
