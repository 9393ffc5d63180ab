"""The asyncio client."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
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


class AsyncClient(BaseClient[httpx2.AsyncClient]):
    """`Client` for asyncio; its calls may run concurrently."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def classify(self, image: ImageInput, **options: Unpack[ClassifyOptions]) -> Ranking:
        """Rank an image's labels."""
        return await self._run(calls.classify(image, options, self._context(options)))

    async def classify_url(self, url: str, **options: Unpack[ClassifyOptions]) -> Ranking:
        """Rank the labels of an image that the service fetches, if it has `--fetch-images`."""
        return await self._run(calls.classify_url(url, options, self._context(options)))

    async def classify_all(
        self, images: Iterable[ImageInput], **options: Unpack[ClassifyOptions]
    ) -> list[Ranking | ClientError]:
        """Rank each image's labels, or return its error; the timeout is for all of them."""
        return await self._run(bulk.classify_all(images, options, self._context(options)))

    def classify_stream(
        self, images: Iterable[ImageInput], **options: Unpack[ClassifyOptions]
    ) -> AsyncIterator[tuple[int, Ranking | ClientError]]:
        """Rank each image's labels, for `async for`; see `Client.classify_stream`."""
        return self._run_stream(bulk.classify_stream(images, options, self._context(options)))

    async def wait_reachable(self, **options: Unpack[CallOptions]) -> None:
        """Wait for a response of any status; raises `ClientError` if none comes in time."""
        await self._run(exchange.wait_reachable(self._context(options)))

    async def models(self, **options: Unpack[CallOptions]) -> Models:
        """List the models that are served."""
        return await self._run(calls.models(self._context(options)))

    async def explain(self, image: ImageInput, **options: Unpack[ExplainOptions]) -> Explanation:
        """Locate a label, by default the most probable, in an image."""
        return await self._run(calls.explain(image, options, self._context(options)))

    async def embed(self, image: ImageInput, **options: Unpack[EmbedOptions]) -> Embedding:
        """Compute an image's features, for a search of similar ones."""
        return await self._run(calls.embed(image, options, self._context(options)))

    async def heat_map(self, image: ImageInput, **options: Unpack[ExplainOptions]) -> bytes:
        """Draw the explanation over the image: a PNG."""
        return await self._run(calls.heat_map(image, options, self._context(options)))

    def _open(self, **options: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(**options)

    async def _run(self, steps: Steps[T]) -> T:
        outcome: object = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome = await self._do(step)

    async def _run_stream(self, steps: StepsOfMany) -> AsyncIterator[tuple[int, Any]]:
        outcome: object = None
        async with AsyncExitStack() as opened:
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
                        await opened.aclose()
                        outcome = await self._open_stream(step, opened)
                    case _:
                        outcome = await self._do(step)

    async def _do(self, step: Step) -> object:
        match step:
            case Read(bytes() as data):
                return data  # a thread would cost more
            case Read(image):
                return await asyncio.to_thread(image_input.read, image)
            case Send():
                return await self._send(step)
            case NextLine():
                return await self._next_line(step)
            case Sleep():
                await asyncio.sleep(step.seconds)
                return None

    async def _send(self, step: Send) -> Response | ClientError:
        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.request(**self._request_options(step))
        except SEND_ERRORS as error:
            return self._send_error(error)
        return self._response(response, response.content)

    async def _open_stream(self, step: Send, opened: AsyncExitStack) -> Response | ClientError:
        try:
            async with asyncio.timeout(step.seconds):
                stream = self._http.stream(**self._request_options(step))
                response = await opened.enter_async_context(stream)
                if response.status_code == OK:
                    return replace(self._response(response, b""), lines=response.aiter_lines())
                return self._response(response, await response.aread())
        except SEND_ERRORS as error:
            return self._send_error(error)

    async def _next_line(self, step: NextLine) -> bytes | ClientError | None:
        try:
            async with asyncio.timeout(step.seconds):
                line: str | None = await anext(step.response.lines, None)
        except SEND_ERRORS as error:
            return self._send_error(error)
        return line.encode() if line else None
