"""Going on with a file of rows: what of it stays, and what is scored again."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.rows.formats import Csv, JsonLines, read_records
from pipeline.rows.lock import OutputLock
from pipeline.rows.run_settings import RunSettings, refuse_other_rows


@dataclasses.dataclass(frozen=True)
class Run:
    """What `open_output` was asked for, and the lock on its file."""

    output: Path
    models: Sequence[str]
    resume: bool
    settings: RunSettings | None
    lock: OutputLock
    record: dict | None = None  # what a record says of the run, see record.py; None: there is none


def cut_back(path: Path, form: Csv | JsonLines, run: Run) -> tuple[set[str], int]:
    """Leave in a file only the rows of photos that need no second look.

    Returns the paths of these, and how many others ended in an error.
    """
    done = set()
    errors = 0
    with atomic_write(path, "wb") as kept:
        kept.write(form.header)
        for photo, records in _all_but_last(_photos(path, form, run)):
            if any(row["verdict"] == "error" for _, row in records):
                errors += 1
            elif _models_in(records) not in (set(), set(run.models)):
                raise _of_other_models(records, run)
            else:
                done.add(photo)
                kept.writelines(text for text, _ in records)
    return done, errors


def _photos(
    path: Path, form: Csv | JsonLines, run: Run
) -> Iterator[tuple[str, list[tuple[bytes, dict]]]]:
    """Each photo with its records, which stand together; the last one may lack some."""
    by_photo = itertools.groupby(read_records(path, form), key=lambda record: record[1]["path"])
    for photo, group in by_photo:
        records = list(group)
        if not _models_in(records) <= set(run.models):
            raise _of_other_models(records, run)
        refuse_other_rows(run.output, (row for _, row in records), run.settings or {})
        yield photo, records


def _models_in(records: list[tuple[bytes, dict]]) -> set[str]:
    return {row["model"] for _, row in records} - {None}


def _of_other_models(records: list[tuple[bytes, dict]], run: Run) -> UserError:
    return UserError(
        f"{run.output}: the rows in it are of the model "
        f"{' and '.join(sorted(_models_in(records)))}, not {' and '.join(run.models)}; choose "
        "another --output, or leave out --continue (the file is then kept as .bak)."
    )


def _all_but_last(items: Iterable) -> Iterator:
    return (item for item, _next in itertools.pairwise(items))
