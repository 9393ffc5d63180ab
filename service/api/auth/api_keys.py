"""API keys: who may call, and how often, read from a file or from the environment.

A key is 256 random bits, which nobody guesses, so that a plain SHA-256 is all that is kept of it:
slow hashes are for passwords, which people choose. A digest opens nothing. It may lie in a file,
in the environment or on a command line, and still no sentence here repeats one: somebody could
have put the key in its place.
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

from service.api.auth import rate_limits
from service.api.auth.rate_limits import Limit, Quota
from service.errors import KeysError

logger = logging.getLogger(__name__)

NAME = r"^[A-Za-z0-9_-]{1,64}$"  # fit for a log, a label and a header

_EVERY = 1.0  # seconds from one look at the file to the next
_RANDOM = 32  # bytes of a key


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has a key: a name, the key's SHA-256 (32 bytes), and how often it may be used.

    Who `manages` may also change which models are served.
    """

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
    """Make a key; what it begins with tells those who search for lost secrets whose it is."""
    return f"gnet_{secrets.token_urlsafe(_RANDOM)}"


def digest(key: bytes) -> bytes:
    """Give what is kept of a key (32 bytes)."""
    return hashlib.sha256(key).digest()


def read(path: Path) -> tuple[Caller, ...]:
    """Read a file of keys; raises `KeysError` with the first thing that is wrong, and its line."""
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
    return _distinct(str(path), [_caller(name, entry) for name, entry in entries.items()])


def parse(digests: str) -> tuple[Caller, ...]:
    """Understand NAME:SHA256,NAME:SHA256; raises `KeysError` if two are the same."""
    pairs = (pair.split(":") for pair in digests.split(","))
    return _distinct("--api-key-hashes", [Caller(name, bytes.fromhex(of)) for name, of in pairs])


def _caller(name: str, entry: _Entry) -> Caller:
    limits = tuple(rate_limits.parse(text) for text in entry.limits)
    return Caller(name, bytes.fromhex(entry.sha256), limits, entry.manages)


def _distinct(where: str, callers: Iterable[Caller]) -> tuple[Caller, ...]:
    """Check that a name, a key and a caller's window stand for one thing each."""
    names: set[str] = set()
    owners: dict[bytes, str] = {}
    for caller in (found := tuple(callers)):
        if caller.name in names:
            raise KeysError(f"{where}: there are two keys named {caller.name}")
        if owner := owners.get(caller.digest):
            raise KeysError(f"{where}: {owner} and {caller.name} are the same key")
        if len({limit.window for limit in caller.limits}) < len(caller.limits):
            raise KeysError(f"{where}: {caller.name} has two limits for the same time")
        names.add(caller.name)
        owners[caller.digest] = caller.name
    return found


def _line(text: str, name: str) -> int:
    """Find the line where a table begins, as it is usually written; else it is the first."""
    found = re.search(rf"^[ \t]*\[?[ \t]*[\"']?{re.escape(name)}(?![\w-])", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


class Keyring:
    """The keys there are now. Its file is read anew when it has changed.

    A file that has become unreadable or wrong changes nothing; the log says so once. `report`
    gets the names whenever they may be others.
    """

    def __init__(
        self, file: Path | None, digests: str | None, report: Callable[[Collection[str]], None]
    ) -> None:
        self._file, self._report = file, report
        self._given = parse(digests) if digests else ()
        self._looks_at = 0.0
        self._fingerprint = _fingerprint(file) if file else None
        self._callers: tuple[tuple[Caller, Quota], ...] = ()
        self._take(self._read())

    def refresh(self, now: float) -> None:
        """Look at the file, unless that was less than a second ago; `now` is a monotonic time.

        A Kubernetes secret changes by a link that is swapped: what it leads to counts.
        """
        if self._file is None or now < self._looks_at:
            return
        self._looks_at = now + _EVERY
        fingerprint = _fingerprint(self._file)
        if fingerprint == self._fingerprint:
            return
        self._fingerprint = fingerprint
        try:
            callers = self._read()
        except KeysError as error:
            logger.error("%s; the keys stay as they were", error)  # noqa: TRY400 - it says all
        else:
            self._take(callers)
            logger.info("the keys were read anew; there are %d", len(callers))

    def find(self, key: bytes) -> tuple[Caller, Quota] | None:
        """Tell whose key it is and what it may still ask, in a time that tells nothing else."""
        given, found = digest(key), None
        for caller, quota in self._callers:
            if hmac.compare_digest(caller.digest, given):
                found = caller, quota
        return found

    def _read(self) -> tuple[Caller, ...]:
        return _distinct("the keys", [*self._given, *(read(self._file) if self._file else ())])

    def _take(self, callers: Collection[Caller]) -> None:
        """Have these keys from now on; who stays, with the same limits, goes on counting."""
        known = {(caller.name, caller.limits): quota for caller, quota in self._callers}
        self._callers = tuple(
            (caller, known.get((caller.name, caller.limits)) or Quota(caller.limits))
            for caller in callers
        )
        self._report([caller.name for caller in callers])


def _fingerprint(file: Path) -> tuple[int, ...] | None:
    """Give what is different once a file was written or replaced; nothing if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    # The last changes with its permissions, too.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
