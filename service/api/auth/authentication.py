"""Authenticate a request by its API key, and count it against the key's rate limits.

HTTP and gRPC share it: gRPC's metadata are header fields, too.
"""

from collections.abc import Mapping

from service.api.auth.api_keys import ApiKey, Keyring
from service.errors import RateLimited, Unauthorized
from service.serving.core import Core
from service.serving.rate_limits import Usage

_BEARER = b"bearer "
_UNLIMITED = Usage(0.0, ())


def authenticate(keyring: Keyring, headers: Mapping[bytes, bytes]) -> ApiKey:
    """Return the key that a request's headers have; raises `Unauthorized`."""
    secret = _secret(headers)
    if not secret or not (api_key := keyring.find(secret)):
        raise Unauthorized("send your API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    return api_key


async def count(api_key: ApiKey, core: Core) -> Usage:
    """Count a request against a key's limits; return what is left of them."""
    usage = _UNLIMITED
    if api_key.limits:
        usage = await core.take(api_key.name, api_key.limits)
    core.metrics.called(api_key.name, "rate_limited" if usage.wait else "admitted")
    return usage


def refusal(usage: Usage) -> RateLimited | None:
    """Return the error of a request that is over a limit."""
    if not usage.wait:
        return None
    return RateLimited("your API key has no requests left for now", retry_after=usage.wait)


def _secret(headers: Mapping[bytes, bytes]) -> bytes:
    """Give the key, if any; `X-API-Key` comes first, `Authorization` may be a proxy's."""
    if key := headers.get(b"x-api-key"):
        return key
    value = headers.get(b"authorization", b"")
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else b""
