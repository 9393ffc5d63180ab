"""The images of a request that it gives by URL."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from service.api.form import Upload
from service.api.upload_budget import Share
from service.errors import (
    DeadlineExceeded,
    FetchDisabled,
    InvalidParameter,
    ServiceError,
    TooLarge,
)
from service.serving.disconnects import run_until_gone


@dataclass(slots=True)
class Quota:
    """The bytes that a request's fetched images may have together; their memory is its share."""

    limit: int
    share: Share
    used: int = 0

    def check(self, nbytes: int) -> None:
        """Raise `TooLarge` if there is no room for so many more."""
        if self.used + nbytes > self.limit:
            raise TooLarge(f"the images that are fetched are over {self.limit} bytes")

    def add(self, nbytes: int) -> None:
        """Count what has arrived; raises `TooLarge` or `Overloaded`."""
        self.check(nbytes)
        self.used += nbytes
        self.share.add(nbytes)


Fetch = Callable[[str, Quota], Awaitable[bytes]]
"""Gives the bytes behind a URL; raises `ServiceError`."""


async def disabled(_: str, __: Quota) -> bytes:
    """Be the `Fetch` of a service that fetches nothing."""
    raise FetchDisabled(
        "this service does not fetch images by URL; send the image itself, or see --fetch-images"
    )


async def unsupported(_: str, __: Quota) -> bytes:
    """Be the `Fetch` of an API that knows no URLs."""
    raise InvalidParameter("the image is a URL; send the image itself, in base64")


async def fetched(
    fetch: Fetch,
    uploads: Sequence[Upload],
    quota: Quota,
    seconds: float,
    gone: Callable[[], Awaitable[None]],
) -> list[Upload]:
    """Fetch the uploads that are URLs, together; one that fails has its error.

    Raises `DeadlineExceeded` after `seconds`, or `ClientDisconnected` when `gone()` returns.
    """
    works = [_fetched(fetch, upload, quota) for upload in uploads]
    try:
        async with asyncio.timeout(seconds):
            return await run_until_gone(gone, works)
    except TimeoutError as error:
        raise DeadlineExceeded("the images were not fetched before the deadline") from error


async def _fetched(fetch: Fetch, upload: Upload, quota: Quota) -> Upload:
    if upload.url is None:
        return upload
    try:
        return replace(upload, data=await fetch(upload.url, quota))
    except ServiceError as error:
        return replace(upload, error=error)
