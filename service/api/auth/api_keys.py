"""API keys, with their rate limits, read from a file or from settings.

A key is 256 random bits, so that a plain SHA-256 is enough to store: slow hashes are for passwords.
A digest is no secret and may stand in a file, in the environment or on a command line; errors and
logs still never repeat one, since a user may have put the key in its place.
"""

import hashlib
import hmac
import logging
import re
import secrets
import tomllib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.errors import KeysError
from service.serving import rate_limits
from service.serving.rate_limits import Limit

logger = logging.getLogger(__name__)

NAME = r"^[A-Za-z0-9_-]{1,64}$"  # fit for a log, a label and a header

_POLL_SECONDS = 1.0  # between two checks of the file
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's name, SHA-256 (32 bytes) and rate limits; one that `manages` may change models."""

    name: str
    digest: bytes
    limits: tuple[Limit, ...] = ()
    manages: bool = False


class _Entry(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$")]
    limits: tuple[Annotated[str, Field(pattern=rate_limits.PATTERN)], ...] = ()
    manages: bool = False


_FILE = TypeAdapter(dict[Annotated[str, Field(pattern=NAME)], _Entry])


def new() -> str:
    """Generate a key; its prefix lets secret scanners recognize it."""
    return f"gnet_{secrets.token_urlsafe(_KEY_BYTES)}"


def digest(key: bytes) -> bytes:
    """Give a key's SHA-256 (32 bytes)."""
    return hashlib.sha256(key).digest()


def read(path: Path) -> tuple[ApiKey, ...]:
    """Read a file of keys; raises `KeysError` with the first error and its line."""
    try:
        text = path.read_text("utf-8")
        entries = _FILE.validate_python(tomllib.loads(text))
    except OSError as error:
        raise KeysError(f"cannot read the keys {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeysError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name, *inner = (str(part) for part in first["loc"])
        where = ".".join([name, *inner])
        raise KeysError(f"{path}: line {_line(text, name)}: {where}: {first['msg']}") from error
    if not entries:
        raise KeysError(f"{path} has no key in it")
    return _distinct(str(path), [_api_key(name, entry) for name, entry in entries.items()])


def parse(digests: str) -> tuple[ApiKey, ...]:
    """Parse NAME:SHA256,NAME:SHA256; raises `KeysError` if two are the same."""
    pairs = (pair.split(":") for pair in digests.split(","))
    return _distinct(
        "--api-key-hashes", [ApiKey(name, bytes.fromhex(sha256)) for name, sha256 in pairs]
    )


def _api_key(name: str, entry: _Entry) -> ApiKey:
    limits = tuple(rate_limits.parse(text) for text in entry.limits)
    return ApiKey(name, bytes.fromhex(entry.sha256), limits, entry.manages)


def _distinct(where: str, api_keys: Iterable[ApiKey]) -> tuple[ApiKey, ...]:
    """Raise `KeysError` if a name, a key or a key's window is there twice."""
    names: set[str] = set()
    owners: dict[bytes, str] = {}
    for api_key in (checked := tuple(api_keys)):
        if api_key.name in names:
            raise KeysError(f"{where}: there are two keys named {api_key.name}")
        if owner := owners.get(api_key.digest):
            raise KeysError(f"{where}: {owner} and {api_key.name} are the same key")
        if len({limit.window for limit in api_key.limits}) < len(api_key.limits):
            raise KeysError(f"{where}: {api_key.name} has two limits for the same window")
        names.add(api_key.name)
        owners[api_key.digest] = api_key.name
    return checked


def _line(text: str, name: str) -> int:
    """Find the line where a table begins, as it is usually written; 1 if it is not found."""
    match = re.search(rf"^[ \t]*\[?[ \t]*[\"']?{re.escape(name)}(?![\w-])", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 1


class Keyring:
    """The current keys; reloads its file when that has changed.

    A file that has become unreadable or invalid changes nothing and is logged once. `report` gets
    the names after each load.
    """

    def __init__(
        self, file: Path | None, digests: str | None, report: Callable[[Collection[str]], None]
    ) -> None:
        self._file, self._report = file, report
        self._configured = parse(digests) if digests else ()
        self._next_check = 0.0
        self._fingerprint = _fingerprint(file) if file else None
        self._api_keys: tuple[ApiKey, ...] = ()
        self._take(self._read())

    def refresh(self, now: float) -> None:
        """Reload the file if it has changed, checking once a second; `now` is a monotonic time.

        A Kubernetes secret changes by a swapped symbolic link, which is followed.
        """
        if self._file is None or now < self._next_check:
            return
        self._next_check = now + _POLL_SECONDS
        fingerprint = _fingerprint(self._file)
        if fingerprint == self._fingerprint:
            return
        self._fingerprint = fingerprint
        try:
            api_keys = self._read()
        except KeysError as error:
            logger.error("%s; keeping the previous keys", error)  # noqa: TRY400 - it says all
        else:
            self._take(api_keys)
            logger.info("reloaded %d API keys", len(api_keys))

    def find(self, key: bytes) -> ApiKey | None:
        """Find a key, in constant time for a number of keys."""
        sha256, match = digest(key), None
        for api_key in self._api_keys:
            if hmac.compare_digest(api_key.digest, sha256):
                match = api_key
        return match

    def _read(self) -> tuple[ApiKey, ...]:
        return _distinct("the keys", [*self._configured, *(read(self._file) if self._file else ())])

    def _take(self, api_keys: Collection[ApiKey]) -> None:
        self._api_keys = tuple(api_keys)
        self._report([api_key.name for api_key in api_keys])


def _fingerprint(file: Path) -> tuple[int, ...] | None:
    """Give what changes when a file is written or replaced; None if it does not exist."""
    try:
        stat = file.stat()
    except OSError:
        return None
    # ctime changes with the permissions, too.
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
