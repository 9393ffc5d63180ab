"""Results as a Parquet file, which is whole or not there.

Parquet's index is at the end of the file and written last, so that one that is being written
can neither be read nor gone on with. Results are kept in a journal beside it until all are there.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from service.errors import BulkError
from service.offline.bulk import results_file
from service.offline.bulk.results_file import JSONL, ORIGIN, Origin, ResultsFile

ENDING = ".journal"  # of the journal's name, after the file's

_ROWS = 8192  # in memory at a time, and in a row group


@contextmanager
def opened(path: Path) -> Iterator[ResultsFile]:
    """Open the journal of a Parquet file that may be there; it becomes part of it at the end.

    Without rows there will be no file.

    Raises `BulkError` as `journal.opened` does, or without pyarrow.
    """
    arrow = _arrow()
    beside = path.with_name(path.name + ENDING)
    with results_file.opened(beside, JSONL) as results:
        before, origins = _names(arrow, path) if path.exists() else ({}, set())
        # Killed between its last two steps, it left rows in both.
        results.done |= before.keys()
        results.failures += sum(before.values())
        results.origins |= origins
        yield results
        if before or any(True for _ in results_file.rows(results.file, JSONL, path)):
            with results_file.writing(path):
                _complete(arrow, path, results, before)
        beside.unlink()


def _arrow() -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise BulkError(
            "Parquet needs pyarrow: pip install 'googlenet-service[bulk]'; or name a .jsonl or"
            " .csv file"
        ) from error


def _schema(arrow: Any) -> Any:
    one = [
        *(("label", arrow.string()), ("wnid", arrow.string())),
        *(("index", arrow.int32()), ("probability", arrow.float64())),
    ]
    return arrow.schema([
        ("file", arrow.string()),
        *one,
        ("predictions", arrow.list_(arrow.struct(one))),
        ("error", arrow.string()),
        *((name, arrow.string()) for name in ORIGIN),
    ])  # fmt: skip


def _names(arrow: Any, path: Path) -> tuple[dict[str, bool], set[Origin]]:
    """Read which images a file has, whether each has an error, and by what they were named."""
    foreign = BulkError(f"{path} is no Parquet file of results of this form; name another file")
    names, origins = {}, set()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(_schema(arrow)):
                raise foreign
            for batch in file.iter_batches(_ROWS, columns=["file", "error", *ORIGIN]):
                for row in batch.to_pylist():
                    names[row["file"]] = row["error"] is not None
                    if made := results_file.origin(row):
                        origins.add(made)
    except (arrow.ArrowException, OSError) as error:
        raise foreign from error
    return names, origins


def _complete(arrow: Any, path: Path, results: ResultsFile, before: dict[str, bool]) -> None:
    """Write what the file has and what the journal has to a new file, and put it in its place."""
    schema = _schema(arrow)
    part = path.with_name(path.name + ".part")
    with arrow.parquet.ParquetWriter(part, schema) as writer:
        if before:
            with arrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS):
                    writer.write_batch(batch.cast(schema))
        ours = (row for row, _ in results_file.rows(results.file, JSONL, path))
        new = (row for row in ours if row["file"] not in before)
        while rows := [*islice(new, _ROWS)]:
            writer.write_batch(arrow.RecordBatch.from_pylist(rows, schema))
    part.replace(path)
