"""A results file that grows by a line per image, and that an interrupted run resumes.

Each line is written at once, so that a killed process leaves at most its last line torn. That
line is cut off when the file is opened again, and all before it counts as done.
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from service.errors import BulkError

ORIGIN = ("model", "version", "views")
COLUMNS = ("file", "label", "wnid", "index", "probability", "predictions", "error", *ORIGIN)

_TEXTS = ("error", *ORIGIN)


@dataclass(frozen=True, slots=True)
class Origin:
    """The model and view plan of a result; `model` and `version` are as a service names them."""

    model: str
    version: str
    views: str

    def __str__(self) -> str:
        return describe(self.columns)

    @property
    def columns(self) -> dict[str, str]:
        """The columns `ORIGIN`."""
        return {name: getattr(self, name) for name in ORIGIN}

    def fits(self, expected: Mapping[str, str]) -> bool:
        """Return whether the expected columns, which may be some of all, are those of this origin.

        The model may be `name@version`, as in a request to a service.
        """
        qualified = {**self.columns, "model": f"{self.model}@{self.version}"}
        return all(v in {self.columns[name], qualified[name]} for name, v in expected.items())


def describe(columns: Mapping[str, str]) -> str:
    """Describe an origin, or some of its columns."""
    return ", ".join(f"{name} {value}" for name, value in columns.items())


def origin(columns: Mapping[str, Any]) -> Origin | None:
    """Read a row's origin from its columns; a row with an error has none."""
    model, version, views = (columns[name] for name in ORIGIN)
    return Origin(model, version, views) if model and version and views else None


@dataclass(frozen=True, slots=True)
class Row:
    """The result of an image: predictions, most probable first, or an error."""

    file: str
    predictions: Sequence[Mapping[str, Any]] = ()
    error: str | None = None
    origin: Origin | None = None  # of the predictions

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Self:
        """Make a row of its columns."""
        return cls(columns["file"], columns["predictions"], columns["error"], origin(columns))

    @property
    def columns(self) -> dict[str, Any]:
        """The columns `COLUMNS`."""
        first = self.predictions[0] if self.predictions else {}
        return {
            "file": self.file,
            **{name: first.get(name) for name in COLUMNS[1:5]},
            "predictions": [*self.predictions],
            "error": self.error,
            **{name: getattr(self.origin, name, None) for name in ORIGIN},
        }


@dataclass(frozen=True, slots=True)
class Format:
    """Encodes rows as records, each of which ends with a line feed."""

    header: bytes
    start: bytes  # of every file, or of this if it is shorter
    encode: Callable[[Row], bytes]
    decode: Callable[[bytes], Mapping[str, Any]]  # raises ValueError, KeyError, TypeError
    is_whole: Callable[[bytes], bool]  # whether lines are a complete record


def _to_json(row: Row) -> bytes:
    return json.dumps(row.columns, ensure_ascii=False).encode() + b"\n"


def _of_json(record: bytes) -> Mapping[str, Any]:
    columns = json.loads(record)
    if not (
        isinstance(columns["file"], str)
        and all(isinstance(columns[name], str | None) for name in _TEXTS)
    ):
        raise TypeError("a text column has no text")
    return {name: columns[name] for name in COLUMNS}


def _line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def _to_csv(row: Row) -> bytes:
    columns = row.columns
    columns["predictions"] = json.dumps(columns["predictions"], ensure_ascii=False)
    return _line([columns[name] for name in COLUMNS])


def _of_csv(record: bytes) -> Mapping[str, Any]:
    [cells] = csv.reader(io.StringIO(record.decode(), newline=""))
    return dict(zip(COLUMNS, cells, strict=True))


# A quoted cell may have line feeds, and its quotes are doubled: a record's quotes are even.
_HEADER = _line(COLUMNS)
CSV = Format(_HEADER, _HEADER, _to_csv, _of_csv, lambda lines: lines.count(b'"') % 2 == 0)
JSONL = Format(b"", b'{"file": ', _to_json, _of_json, lambda _: True)


@dataclass(slots=True)
class ResultsFile:
    """An open results file, and a summary of the rows that it has."""

    file: BinaryIO
    form: Format
    path: Path
    done: set[str] = field(default_factory=set)  # names
    failures: int = 0
    origins: set[Origin] = field(default_factory=set)  # of all rows

    def write(self, row: Row) -> None:
        """Add a row. Raises `BulkError` if it cannot be written."""
        with writing(self.path):
            self.file.write(self.form.encode(row))
            self.file.flush()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `BulkError` for a file that cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        raise BulkError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def opened(path: Path, form: Format) -> Iterator[ResultsFile]:
    """Open a results file to add to it, or create one, which is deleted if it gets no rows.

    Raises `BulkError` if it is another kind of file, cannot be written, or is being written.
    """
    with writing(path):
        is_created = not path.exists()
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        _lock(file, path)
        results = ResultsFile(file, form, path)
        end = 0
        for row, end in rows(file, form, path):  # noqa: B007 - the last one counts
            results.done.add(row["file"])
            results.failures += bool(row["error"])
            if row_origin := origin(row):
                results.origins.add(row_origin)
        _cut(file, end or _begin(file, form, path))
        yield results
    finally:
        with writing(path), file:
            file.flush()  # writes what could not be written before
            if is_created and os.fstat(file.fileno()).st_size <= len(form.header):
                path.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: Path) -> None:
    locked = BulkError(f"{path} is being written by another process")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_same = os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError as error:
        raise locked from error
    if not is_same:  # the other process has deleted it, as it had no rows
        raise locked


def _cut(file: BinaryIO, end: int) -> None:
    file.truncate(end)
    file.seek(end)


def _begin(file: BinaryIO, form: Format, path: Path) -> int:
    """Write the header of a file without rows; returns its length. Keeps another kind of file."""
    file.seek(0)
    if not form.start.startswith(file.read(len(form.start))):
        raise _foreign(path)
    _cut(file, 0)
    file.write(form.header)
    return len(form.header)


def rows(file: BinaryIO, form: Format, path: Path) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield complete rows and where each ends. Raises `BulkError` for anything that is no row."""
    file.seek(0)
    end = len(form.header)
    if file.read(end) != form.header:
        return
    record = b""
    for line in file:
        record += line
        if not record.endswith(b"\n") or not form.is_whole(record):
            continue
        end += len(record)
        try:
            row = form.decode(record)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise _foreign(path) from error
        yield row, end
        record = b""


def _foreign(path: Path) -> BulkError:
    return BulkError(f"{path} is not a results file of this format; name another file")
