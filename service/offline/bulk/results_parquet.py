"""Results as a Parquet file, which is complete or does not exist.

Parquet's index is at the end of the file and written last, so that an incomplete file can neither
be read nor resumed. Results are kept in a JSON Lines journal beside it until all are there.
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

ENDING = ".journal"  # appended to the file's name

_ROWS = 8192  # in memory at a time, and in a row group


@contextmanager
def opened(path: Path) -> Iterator[ResultsFile]:
    """Open the journal of a Parquet file; its rows are added to the file at the end.

    Without rows, no file is made. Raises `BulkError` as `results_file.opened`, or without pyarrow.
    """
    arrow = _arrow()
    journal = path.with_name(path.name + ENDING)
    with results_file.opened(journal, JSONL) as results:
        before, origins = _names(arrow, path) if path.exists() else ({}, set())
        # A process killed between the last two steps leaves rows in both.
        results.done |= before.keys()
        results.failures += sum(before.values())
        results.origins |= origins
        yield results
        if before or any(True for _ in results_file.rows(results.file, JSONL, path)):
            with results_file.writing(path):
                _complete(arrow, path, results, before)
        journal.unlink()


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
    prediction = [
        *(("label", arrow.string()), ("wnid", arrow.string())),
        *(("index", arrow.int32()), ("probability", arrow.float64())),
    ]
    return arrow.schema([
        ("file", arrow.string()),
        *prediction,
        ("predictions", arrow.list_(arrow.struct(prediction))),
        ("error", arrow.string()),
        *((name, arrow.string()) for name in ORIGIN),
    ])  # fmt: skip


def _names(arrow: Any, path: Path) -> tuple[dict[str, bool], set[Origin]]:
    """Read the names of a file's images, whether each has an error, and all origins."""
    foreign = BulkError(f"{path} is not a Parquet results file of this format; name another file")
    names, origins = {}, set()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(_schema(arrow)):
                raise foreign
            for batch in file.iter_batches(_ROWS, columns=["file", "error", *ORIGIN]):
                for row in batch.to_pylist():
                    names[row["file"]] = row["error"] is not None
                    if origin := results_file.origin(row):
                        origins.add(origin)
    except (arrow.ArrowException, OSError) as error:
        raise foreign from error
    return names, origins


def _complete(arrow: Any, path: Path, results: ResultsFile, before: dict[str, bool]) -> None:
    """Replace the file by one with its own rows and the journal's."""
    schema = _schema(arrow)
    part = path.with_name(path.name + ".part")
    with arrow.parquet.ParquetWriter(part, schema) as writer:
        if before:
            with arrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS):
                    writer.write_batch(batch.cast(schema))
        journal = (row for row, _ in results_file.rows(results.file, JSONL, path))
        new = (row for row in journal if row["file"] not in before)
        while rows := [*islice(new, _ROWS)]:
            writer.write_batch(arrow.RecordBatch.from_pylist(rows, schema))
    part.replace(path)
