"""The blocking client."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self, TypeVar, Unpack

import httpx2

from service.client import bulk, calls, exchange, image_input
from service.client.errors import ClientError
from service.client.image_input import ImageInput
from service.client.options import CallOptions, ClassifyOptions, EmbedOptions, ExplainOptions
from service.client.results import Embedding, Explanation, Models, Ranking
from service.client.steps import (
    Give,
    NextLine,
    Read,
    Response,
    Send,
    Sleep,
    Step,
    Steps,
    StepsOfMany,
)
from service.client.transport import OK, SEND_ERRORS, BaseClient

T = TypeVar("T")


class Client(BaseClient[httpx2.Client]):
    """A blocking client of the service at a URL; threads may share it.

    `timeout` is in seconds for a whole call, retries included; each call may set its own. Retries
    wait as long as the service asks; `on_retry` is called before each with the error and the
    seconds. Every call raises a `ClientError`. A timeout over `MAX_TIMEOUT` or nan, a key that
    cannot be a header, and an unusable proxy in the environment raise `ValueError`. Loopback
    addresses never go through a proxy.

    A response that arrives in small parts can outlast the timeout: it bounds each wait for the
    network by what remained when the head, and when the body, began. `AsyncClient` has no such gap.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(self, image: ImageInput, **options: Unpack[ClassifyOptions]) -> Ranking:
        """Rank an image's labels."""
        return self._run(calls.classify(image, options, self._context(options)))

    def classify_url(self, url: str, **options: Unpack[ClassifyOptions]) -> Ranking:
        """Rank the labels of an image that the service fetches, if it has `--fetch-images`."""
        return self._run(calls.classify_url(url, options, self._context(options)))

    def classify_all(
        self, images: Iterable[ImageInput], **options: Unpack[ClassifyOptions]
    ) -> list[Ranking | ClientError]:
        """Rank each image's labels, or return its error; the timeout is for all of them."""
        return self._run(bulk.classify_all(images, options, self._context(options)))

    def classify_stream(
        self, images: Iterable[ImageInput], **options: Unpack[ClassifyOptions]
    ) -> Iterator[tuple[int, Ranking | ClientError]]:
        """Rank each image's labels; gives its place and its ranking or error when it is there.

        The timeout is for all of them. A request that is refused is retried; one whose response
        ends too soon is not: its images without a ranking have that error.
        """
        return self._run_stream(bulk.classify_stream(images, options, self._context(options)))

    def wait_reachable(self, **options: Unpack[CallOptions]) -> None:
        """Wait for a response of any status; raises `ClientError` if none comes in time."""
        self._run(exchange.wait_reachable(self._context(options)))

    def models(self, **options: Unpack[CallOptions]) -> Models:
        """List the models that are served."""
        return self._run(calls.models(self._context(options)))

    def explain(self, image: ImageInput, **options: Unpack[ExplainOptions]) -> Explanation:
        """Locate a label, by default the most probable, in an image."""
        return self._run(calls.explain(image, options, self._context(options)))

    def embed(self, image: ImageInput, **options: Unpack[EmbedOptions]) -> Embedding:
        """Compute an image's features, for a search of similar ones."""
        return self._run(calls.embed(image, options, self._context(options)))

    def heat_map(self, image: ImageInput, **options: Unpack[ExplainOptions]) -> bytes:
        """Draw the explanation over the image: a PNG."""
        return self._run(calls.heat_map(image, options, self._context(options)))

    def _open(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(**options)

    def _run(self, steps: Steps[T]) -> T:
        outcome: object = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome = self._do(step)

    def _run_stream(self, steps: StepsOfMany) -> Iterator[tuple[int, Any]]:
        outcome: object = None
        with ExitStack() as opened:
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration:
                    return
                outcome = None
                match step:
                    case Give():
                        yield step.index, step.outcome
                    case Send(is_streamed=True):
                        opened.close()
                        outcome = self._open_stream(step, opened)
                    case _:
                        outcome = self._do(step)

    def _do(self, step: Step) -> object:
        match step:
            case Read(image):
                return image_input.read(image)
            case Send():
                return self._send(step)
            case NextLine():
                return self._next_line(step)
            case Sleep():
                time.sleep(step.seconds)
                return None

    def _send(self, step: Send) -> Response | ClientError:
        deadline = time.monotonic() + step.seconds
        try:
            with self._http.stream(**self._request_options(step)) as response:
                # Each part has its own timeout, so many small ones could take without end.
                body = b"".join(_until(deadline, response.iter_bytes()))
                return self._response(response, body)
        except SEND_ERRORS as error:
            return self._send_error(error)

    def _open_stream(self, step: Send, opened: ExitStack) -> Response | ClientError:
        try:
            response = opened.enter_context(self._http.stream(**self._request_options(step)))
            if response.status_code == OK:
                return replace(self._response(response, b""), lines=response.iter_lines())
            return self._response(response, response.read())
        except SEND_ERRORS as error:
            return self._send_error(error)

    def _next_line(self, step: NextLine) -> bytes | ClientError | None:
        try:
            if step.seconds <= 0:
                raise TimeoutError
            line: str | None = next(step.response.lines, None)
        except SEND_ERRORS as error:
            return self._send_error(error)
        return line.encode() if line else None


def _until(deadline: float, parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        if time.monotonic() >= deadline:
            raise TimeoutError
        yield part
