"""Authenticate a request by its API key, and count it against the key's rate limits.

HTTP and gRPC share it: gRPC's metadata are header fields, too.
"""

from collections.abc import Mapping

from service.api.auth.api_keys import ApiKey, Keyring
from service.api.auth.rate_limits import Quota
from service.errors import RateLimited, Unauthorized
from service.serving.metrics.metrics import Metrics

_BEARER = b"bearer "


def authenticate(keyring: Keyring, headers: Mapping[bytes, bytes]) -> tuple[ApiKey, Quota]:
    """Give the key that a request's headers carry, and its quota; raises `Unauthorized`."""
    secret = _secret(headers)
    if not secret or not (entry := keyring.find(secret)):
        raise Unauthorized("send your API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    return entry


def count(api_key: ApiKey, quota: Quota, metrics: Metrics, now: float) -> RateLimited | None:
    """Count a request against a key's quota; give the error if the quota is used up."""
    wait = quota.take(now)
    metrics.called(api_key.name, "rate_limited" if wait else "admitted")
    if wait:
        return RateLimited("your API key has no requests left for now", retry_after=wait)
    return None


def _secret(headers: Mapping[bytes, bytes]) -> bytes:
    """Give the key, if any; `X-API-Key` comes first, `Authorization` may be a proxy's."""
    if key := headers.get(b"x-api-key"):
        return key
    value = headers.get(b"authorization", b"")
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else b""
