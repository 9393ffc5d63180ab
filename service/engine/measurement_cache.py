"""A cache of batch costs measured at earlier starts, so that a restart measures nothing.

An entry is valid for the CPU, libraries, models and settings that it was measured with.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, ValidationError

from service import cpu_info
from service.scheduling.cost_model import Key, LinearCost

logger = logging.getLogger(__name__)


class _Curve(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: tuple[int, int, bool]
    fixed: FiniteFloat
    each: FiniteFloat
    largest: PositiveInt


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    identity: dict[str, str]  # in plain text, for debugging
    precision: str
    curves: list[_Curve]


class Measurements:
    """The cache file of one identity: all that the costs depend on, by name."""

    def __init__(self, identity: Mapping[str, object]) -> None:
        full = {**identity, "cpu": cpu_info.model_name(), "isa": os.environ.get(_ISA, "")}
        self._identity = {name: str(value) for name, value in full.items()}
        digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        self._path = _folder() / f"{digest[:32]}.json"

    def read(self, keys: Sequence[Key]) -> tuple[str, dict[Key, LinearCost]] | None:
        """Return the chosen number format and the costs of these keys, if cached."""
        try:
            cached = _File.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None  # missing or damaged
        curves = {
            Key(*curve.key): LinearCost(curve.fixed, curve.each, curve.largest)
            for curve in cached.curves
        }
        if cached.identity != self._identity or {*curves} != {*keys}:
            return None
        return cached.precision, curves

    def write(self, precision: str, curves: Mapping[Key, LinearCost]) -> None:
        """Write the cache file, if the folder is writable."""
        content = _File(
            identity=self._identity,
            precision=precision,
            curves=[
                _Curve(
                    key=(key.member, key.side, key.maps),
                    fixed=line.fixed,
                    each=line.each,
                    largest=line.largest,
                )
                for key, line in curves.items()
            ],
        )
        fresh = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # then the next start measures again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(content.model_dump_json(indent=1), "utf-8")
            fresh.replace(self._path)


_ISA = "ONEDNN_MAX_CPU_ISA"  # environment variable that limits the instructions used


def _folder() -> Path:
    return platformdirs.user_cache_path("googlenet-service") / "measurements"
