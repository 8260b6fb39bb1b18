"""Scoring on many machines with Ray Data: parts in Parquet, each written once and whole.

The photos are dealt into units, one a part. A part is named after its photos, so that a unit that
is scored twice, because its worker died just after writing, still leaves one file. What is in the
parts is not scored again.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import pyarrow.fs
import pyarrow.parquet

from pipeline.common.errors import ImageError, UserError
from pipeline.common.files import atomic_write
from pipeline.common.machine import one_thread_for_opencv, usable_cores
from pipeline.detectors.detector import Detector, load_detector
from pipeline.detectors.together import together
from pipeline.photos.images import read_picture
from pipeline.photos.photo import Photo, Picture
from pipeline.rows.parquet import parquet_table, valid_utf8
from pipeline.rows.rows import COMPARED_FIELDS, FIELDS, Row, lacking, without
from pipeline.scoring.cluster_listing import file_system
from pipeline.scoring.scoring import Scorer

ROOT = Path(__file__).resolve().parents[2]
# What Ray holds in memory at once: the names of so many photos. Their workers start anew after it,
# which costs seconds, in what takes hours.
WAVE = 1_000_000
DEATHS = 2  # of workers, over one photo read by itself, until it is given up


@dataclass(frozen=True)
class Settings:
    """How photos are scored; the same for all workers. `detectors` are detector folders, seen
    under these paths by every machine; two that score `as_one` make one row a face."""

    detectors: tuple[str, ...]
    output: str
    face_mode: str | None = None
    threshold: float | None = None
    batch_size: int = 32
    cpus_per_worker: int = 1
    stability: bool = False  # see Scorer.look
    as_one: bool = False
    lacking: tuple[str, ...] = ()  # columns that the version had not which began the parts

    @property
    def fields(self) -> tuple[str, ...]:
        several = len(self.detectors) > 1 and not self.as_one
        return without(COMPARED_FIELDS if several else FIELDS, self.lacking)

    def load(self) -> list[Detector]:
        """What each face is scored with. Raises UserError where a folder is no longer there."""
        detectors = [load_detector(Path(folder)) for folder in self.detectors]
        return [together(*detectors)] if self.as_one else detectors


def score(
    photos: Iterable[str], settings: Settings, workers: int, part_size: int, address: str | None
) -> Iterator[Counter]:
    """Score the photos that are not in the parts yet; counts of each unit, as soon as it is done.

    `address` is that of a Ray cluster ("auto": the one this machine belongs to); None starts Ray
    on this machine, for as long as this takes. The counts are of `photos`, `faces`, each verdict,
    and `seconds` of a worker. Raises UserError.
    """
    parts = Parts(settings.output)
    models = {detector.name for detector in settings.load()}
    missing = parts.without_done(photos, models)
    units = iter(lambda: list(itertools.islice(missing, part_size)), [])
    waves = iter(lambda: list(itertools.islice(units, max(1, WAVE // part_size))), [])
    first = next(waves, None)
    if first is None:
        if not parts.scored_before:
            raise UserError("There are no photos here.")
        return
    if parts.lacking:
        print(
            f"{settings.output} was begun by an earlier version of this program and goes on "
            f"without the columns {', '.join(parts.lacking)}.",
            file=sys.stderr,
        )
        settings = replace(settings, lacking=parts.lacking)
    with _ray(address, workers, settings.cpus_per_worker) as ray:
        for wave in itertools.chain([first], waves):
            items = [{"photos": [os.fsencode(path) for path in unit]} for unit in wave]
            scored = ray.data.from_items(items, override_num_blocks=len(items)).map(
                Worker,
                fn_constructor_args=(settings,),
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
                num_cpus=settings.cpus_per_worker,
            )
            for counts in scored.iter_rows():
                yield Counter({name: count for name, count in counts.items() if count})
    parts.tidy()


class Worker:
    """One process of the cluster: holds the compiled detectors, scores unit after unit."""

    def __init__(self, settings: Settings):
        self._cores = _own_cores(settings.cpus_per_worker)
        self._settings = settings
        one_thread_for_opencv()
        self._parts = Parts(settings.output)
        self._scorer = Scorer(
            *settings.load(),
            face_mode=settings.face_mode,
            threshold=settings.threshold,
            batch_size=settings.batch_size,
            # Where there are more workers than cores, none of its own was left for this one.
            workers=min(settings.cpus_per_worker, usable_cores()),
        )

    def __call__(self, item: dict) -> dict:
        paths = [os.fsdecode(path) for path in item["photos"]]
        start = time.perf_counter()
        settings = self._settings
        rows = score_unit(paths, self._scorer, self._parts, settings.fields, settings.stability)
        verdicts = Counter(row.verdict for row in rows)
        return {
            "photos": len(paths),
            "faces": len({(row.path, row.face) for row in rows if row.face is not None}),
            **{name: verdicts[name] for name in ("fake", "uncertain", "real", "no face", "error")},
            "seconds": time.perf_counter() - start,
        }


def score_unit(
    paths: list[str],
    scorer: Scorer,
    parts: "Parts",
    fields: tuple[str, ...],
    stability: bool = False,
) -> list[Row]:
    """Score the photos of a unit and write their part, if it is not there; the rows written now.

    A note that the unit was begun lies beside the parts until then. Whoever finds one knows that a
    worker died over the unit. Then each photo is read by itself and noted before: one over which
    workers die DEATHS times gets an error row, and the others are scored.
    """
    if parts.exists(paths):
        return []
    note = parts.read_note(paths) or {"begun": 0, "photo": None, "deaths": {}}
    note["begun"] += 1
    if note["photo"] is not None:
        note["deaths"][note["photo"]] = note["deaths"].get(note["photo"], 0) + 1
        note["photo"] = None
    parts.write_note(paths, note)
    if note["begun"] == 1:
        rows = [row for rows in scorer.score(map(_photo, paths), stability) for row in rows]
    else:
        rows = []
        for path in paths:
            if note["deaths"].get(path, 0) >= DEATHS:
                sentence = (
                    f"{DEATHS} workers died while they read this photo; leave it out, or score it "
                    "by itself to see why."
                )
                rows.append(Row(path=path, verdict="error", error=sentence))
                continue
            parts.write_note(paths, note | {"photo": path})
            rows += next(scorer.score([_photo(path)], stability))
    parts.write(paths, rows, fields)
    return rows


class Parts:
    """The folder of parts: on this machine, or in an object store; made if it is not there."""

    def __init__(self, output: str):
        # Both are known when without_done has begun.
        self.scored_before = 0  # photos
        self.lacking: tuple[str, ...] = ()  # of today's columns
        self._output = output
        self._files, self._folder = file_system(output)
        try:
            self._files.create_dir(self._folder, recursive=True)
        except OSError as error:
            raise UserError(f"{output}: the parts cannot be written here ({error}).") from error

    def without_done(self, photos: Iterable[str], models: set[str]) -> Iterator[str]:
        """The photos that are in no part, each once. Raises UserError where other models scored.

        Keeps 16 bytes of each photo in mind, some 10 GB for 100 million.
        """
        done = set()
        selector = pyarrow.fs.FileSelector(self._folder)
        for info in self._files.get_file_info(selector):
            if info.base_name.startswith("part-") and info.extension == "parquet":
                if not done:
                    self.lacking = self._lacking(info.path)
                table = self._read(info.path)
                others = set(table["model"].to_pylist()) - models - {None}
                if others:
                    raise UserError(
                        f"{self._output}: there are parts that {' and '.join(sorted(others))} "
                        "scored: choose another --output."
                    )
                done.update(map(_digest, set(table["path"].to_pylist())))
        self.scored_before = len(done)
        if done:
            print(f"{self._output}: {len(done):,} photos scored already.", file=sys.stderr)
        for path in photos:
            digest = _digest(valid_utf8(path))
            if digest not in done:
                done.add(digest)
                yield path

    def exists(self, unit: list[str]) -> bool:
        """Whether the part of these photos is there."""
        return self._files.get_file_info(self._part(unit)).type == pyarrow.fs.FileType.File

    def write(self, unit: list[str], rows: list[Row], fields: tuple[str, ...]) -> None:
        """Write the part of these photos, whole or not at all, and remove its note."""
        buffer = io.BytesIO()
        table = parquet_table([row.as_dict(fields) for row in rows], fields)
        pyarrow.parquet.write_table(table, buffer)
        self._write(self._part(unit), buffer.getvalue())
        self._files.delete_file(self._note(unit))

    def read_note(self, unit: list[str]) -> dict | None:
        """What the last worker over these photos left behind, if it did not come to an end."""
        try:
            with self._files.open_input_stream(self._note(unit)) as stream:
                return json.loads(stream.read())
        except FileNotFoundError:
            return None

    def write_note(self, unit: list[str], note: dict) -> None:
        self._write(self._note(unit), json.dumps(note).encode())

    def tidy(self) -> None:
        """Remove notes of units that were dealt otherwise in an earlier run."""
        self._files.delete_dir_contents(self._notes, missing_dir_ok=True)

    @property
    def _notes(self) -> str:
        return f"{self._folder}/.begun"

    def _part(self, unit: list[str]) -> str:
        return f"{self._folder}/part-{_name(unit)}.parquet"

    def _note(self, unit: list[str]) -> str:
        return f"{self._notes}/{_name(unit)}.json"

    def _lacking(self, path: str) -> tuple[str, ...]:
        with contextlib.suppress(pyarrow.ArrowInvalid, OSError):  # which `_read` puts into words
            columns = pyarrow.parquet.read_schema(path, filesystem=self._files).names
            return lacking(columns)
        return ()

    def _read(self, path: str) -> pyarrow.Table:
        try:
            return pyarrow.parquet.read_table(
                path, columns=["path", "model"], filesystem=self._files
            )
        except (pyarrow.ArrowInvalid, OSError, KeyError) as error:
            raise UserError(
                f"{path}: this is not a part that this program wrote; move it elsewhere."
            ) from error

    def _write(self, path: str, content: bytes) -> None:
        if isinstance(self._files, pyarrow.fs.LocalFileSystem):
            with atomic_write(path, "wb") as file:
                file.write(content)
            return
        folder = path.rpartition("/")[0]
        self._files.create_dir(folder, recursive=True)
        with self._files.open_output_stream(path) as stream:  # stores show whole objects only
            stream.write(content)


def _photo(path: str) -> Photo:
    if "://" not in path:
        return Photo(path)

    def read() -> Picture:
        try:
            files, name = file_system(path)
            with files.open_input_stream(name) as stream:
                return read_picture(io.BytesIO(stream.read()))
        except (OSError, UserError) as error:
            raise ImageError(f"it cannot be fetched ({error}); check the address") from error

    return Photo(path, read=read)


def _name(unit: list[str]) -> str:
    return hashlib.blake2b(b"\0".join(map(os.fsencode, unit)), digest_size=16).hexdigest()


def _digest(path: str) -> bytes:
    return hashlib.blake2b(path.encode(), digest_size=16).digest()


class _ray:
    """Ray, started here or connected to, without dashboard and without reports to its makers."""

    def __init__(self, address: str | None, workers: int, cpus_per_worker: int):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before the import
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise UserError("This needs Ray: run `pip install 'ray[data]'`.") from error
        self._ray = ray
        # Its own machine may have fewer cores than workers are asked for: they share then.
        here = {"num_cpus": workers * cpus_per_worker, "include_dashboard": False}
        try:
            ray.init(
                address=address or "local",
                **({} if address else here),
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
                log_to_driver=False,
                logging_level="error",
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--address {address}: Ray cannot be reached ({error}).") from error
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours counts photos
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def __enter__(self):
        return self._ray

    def __exit__(self, *_exception) -> None:
        self._ray.shutdown()


def _own_cores(number: int) -> list[int]:
    """Bind this process to cores that no other worker on this machine is bound to, as far as there
    are any: networks would use all cores otherwise, and workers be in each other's way.

    The claim is a lock on a file, which ends with the process, however that ends.
    """
    if not hasattr(os, "sched_setaffinity"):  # Linux has it
        return []
    import fcntl
    import tempfile

    cores = sorted(os.sched_getaffinity(0))
    for slot in range(len(cores) // number):
        path = Path(tempfile.gettempdir()) / f"deepfake-scoring-{os.getuid()}-{number}-{slot}.lock"
        claim = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(claim)
            continue
        own = cores[slot * number : (slot + 1) * number]
        for thread in os.listdir("/proc/self/task"):  # those to come are bound as their makers
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), own)
        return own
    return []
