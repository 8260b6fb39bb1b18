"""Rows as Parquet. It needs pyarrow."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.rows.formats import not_rows
from pipeline.rows.rows import FRACTIONS, WHOLE_NUMBERS

_BATCH = 30_000  # rows that become Parquet together, about 50 MB


def import_pyarrow():
    """The module pyarrow, its Parquet part included; raises UserError where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow: run `pip install pyarrow`, or use .csv or .jsonl."
        ) from error
    return pyarrow


def parquet_table(rows: Iterable[dict], fields: Sequence[str]):
    """The rows, dicts of `fields`, as a pyarrow.Table whose types are those of every file of rows.

    A byte of a path that is not UTF-8 becomes the text `\\udcXX`, see `valid_utf8`.
    """
    pyarrow = import_pyarrow()
    types = (
        dict.fromkeys(fields, pyarrow.string())
        | dict.fromkeys(WHOLE_NUMBERS, pyarrow.int32())
        | dict.fromkeys(FRACTIONS, pyarrow.float64())
        | {"agreement": pyarrow.bool_()}
    )
    schema = pyarrow.schema([(name, types[name]) for name in fields])
    valid = [{name: valid_utf8(value) for name, value in row.items()} for row in rows]
    return pyarrow.Table.from_pylist(valid, schema)


def write_parquet(path: Path, rows: Iterable[dict], fields: Sequence[str]) -> None:
    """Write the rows, dicts of `fields`, to a Parquet file, all of it or nothing."""
    pyarrow = import_pyarrow()
    rows = iter(rows)
    with (
        atomic_write(path, "wb") as file,
        pyarrow.parquet.ParquetWriter(file, parquet_table([], fields).schema) as parquet,
    ):
        while batch := list(itertools.islice(rows, _BATCH)):
            parquet.write_table(parquet_table(batch, fields))


def read_parquet(path: Path, allowed: Sequence[tuple[str, ...]]) -> Iterator[dict]:
    """The rows of a Parquet file; raises UserError where its columns are none of the `allowed`
    lists."""
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as parquet:
            if tuple(parquet.schema_arrow.names) not in allowed:
                raise not_rows(path, allowed[0], "its list of columns")
            for batch in parquet.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    yield {name: _from_utf8(value) for name, value in row.items()}
    except pyarrow.ArrowInvalid as error:
        raise not_rows(path, allowed[0], "its content") from error


def valid_utf8(value: str | int | float | None) -> str | int | float | None:
    """Parquet's strings must be UTF-8: a byte of a path that is not becomes the text `\\udcXX`."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _from_utf8(value: str | int | float | None) -> str | int | float | None:
    if isinstance(value, str) and r"\udc" in value:
        return re.sub(r"\\udc([89a-f][0-9a-f])", lambda code: chr(0xDC00 + int(code[1], 16)), value)
    return value
