"""A file of results that grows by a line an image, and is gone on with after any end.

A line is written at once, so that a process that is killed leaves at most its last one torn.
That is cut off when the file is opened again, and all that is before it counts as done.
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
    """By what an image was named; `model` and `version` are as a service tells them."""

    model: str
    version: str
    views: str

    def __str__(self) -> str:
        return told(self.columns)

    @property
    def columns(self) -> dict[str, str]:
        """The same by `ORIGIN`."""
        return {name: getattr(self, name) for name in ORIGIN}

    def fits(self, wanted: Mapping[str, str]) -> bool:
        """Tell whether it is what is wanted, of which not all has to be named.

        A model may be wanted as `name@version`, as a service is asked for it.
        """
        named = {**self.columns, "model": f"{self.model}@{self.version}"}
        return all(value in {self.columns[name], named[name]} for name, value in wanted.items())


def told(wanted: Mapping[str, str]) -> str:
    """Say what an origin, or what is wanted of one, is."""
    return ", ".join(f"{name} {value}" for name, value in wanted.items())


def origin(columns: Mapping[str, Any]) -> Origin | None:
    """Take a row's origin out of its columns; what has an error instead has none."""
    model, version, views = (columns[name] for name in ORIGIN)
    return Origin(model, version, views) if model and version and views else None


@dataclass(frozen=True, slots=True)
class Row:
    """What came of an image: its predictions, most probable first, or a sentence."""

    file: str
    predictions: Sequence[Mapping[str, Any]] = ()
    error: str | None = None
    origin: Origin | None = None  # of predictions

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Self:
        """Make the row that has these columns."""
        return cls(columns["file"], columns["predictions"], columns["error"], origin(columns))

    @property
    def columns(self) -> dict[str, Any]:
        """The row by `COLUMNS`."""
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
    """How rows are bytes: each a record that ends with a line's end."""

    header: bytes
    start: bytes  # of every file, this or the beginning of it
    encode: Callable[[Row], bytes]
    decode: Callable[[bytes], Mapping[str, Any]]  # gives `file` and `error`; ValueError, KeyError
    is_whole: Callable[[bytes], bool]  # of lines: are they a record


def _to_json(row: Row) -> bytes:
    return json.dumps(row.columns, ensure_ascii=False).encode() + b"\n"


def _of_json(record: bytes) -> Mapping[str, Any]:
    columns = json.loads(record)
    if not (
        isinstance(columns["file"], str)
        and all(isinstance(columns[name], str | None) for name in _TEXTS)
    ):
        raise TypeError("what is to be a text is no text")
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


# A quoted cell may have line ends, and its quotes are doubled: outside of one they are even.
_HEADER = _line(COLUMNS)
CSV = Format(_HEADER, _HEADER, _to_csv, _of_csv, lambda lines: lines.count(b'"') % 2 == 0)
JSONL = Format(b"", b'{"file": ', _to_json, _of_json, lambda _: True)


@dataclass(slots=True)
class ResultsFile:
    """An open file of results: what it has, and where more is written."""

    file: BinaryIO
    form: Format
    path: Path
    done: set[str] = field(default_factory=set)  # names
    failures: int = 0
    origins: set[Origin] = field(default_factory=set)  # of all that has one

    def write(self, row: Row) -> None:
        """Add a row. Raises `BulkError` if it cannot be written."""
        with writing(self.path):
            self.file.write(self.form.encode(row))
            self.file.flush()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say `BulkError` of a file that cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        raise BulkError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def opened(path: Path, form: Format) -> Iterator[ResultsFile]:
    """Open a file of results to go on with it, or begin one, which is deleted if it has no rows.

    Raises `BulkError` if it is something else, cannot be written, or is being written.
    """
    with writing(path):
        is_created = not path.exists()
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        _lock(file, path)
        journal = ResultsFile(file, form, path)
        end = 0
        for row, end in rows(file, form, path):  # noqa: B007 - the last one counts
            journal.done.add(row["file"])
            journal.failures += bool(row["error"])
            if made := origin(row):
                journal.origins.add(made)
        _cut(file, end or _begin(file, form, path))
        yield journal
    finally:
        with writing(path), file:
            file.flush()  # which writes what could not be written before
            if is_created and os.fstat(file.fileno()).st_size <= len(form.header):
                path.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: Path) -> None:
    taken = BulkError(f"{path} is being written by another process")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError as error:
        raise taken from error
    if not is_there:  # the other process has deleted it, for it had no rows
        raise taken


def _cut(file: BinaryIO, end: int) -> None:
    file.truncate(end)
    file.seek(end)


def _begin(file: BinaryIO, form: Format, path: Path) -> int:
    """Begin a file without rows; gives where they will. What is not ours is left as it is."""
    file.seek(0)
    if not form.start.startswith(file.read(len(form.start))):
        raise _foreign(path)
    _cut(file, 0)
    file.write(form.header)
    return len(form.header)


def rows(file: BinaryIO, form: Format, path: Path) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Read what is whole: each row, and where it ends. Raises `BulkError` for what is no row."""
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
    sentence = "has something else in it than results of this form; name another file"
    return BulkError(f"{path} {sentence}")
