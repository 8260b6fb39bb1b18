"""Scoring with Ray: each photo once, whatever is killed, listed twice or stored elsewhere."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

import pyarrow.dataset
import pyarrow.fs

from pipeline.common.errors import UserError
from pipeline.detectors.detector import load_detector
from pipeline.photos.photo import Photo
from pipeline.rows.rows import FIELDS, Row
from pipeline.scoring import cluster_listing
from pipeline.scoring.cluster import DEATHS, Parts, score_unit
from pipeline.scoring.cluster_listing import list_photos
from pipeline.scoring.scoring import Scorer
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY, SAMPLES, links

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def scorer(own_cache) -> Scorer:
    return Scorer(load_detector(DETECTOR), face_mode="none")


def rows_in(output: Path) -> list[dict]:
    return pyarrow.dataset.dataset(output, format="parquet").to_table().to_pylist()


def test_photos_are_listed_from_folders_lists_and_addresses(tmp_path):
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for name in ("b.jpg", "a.HEIC", "deep/c.png", "notes.txt", "clip.mp4"):
        (photos / name).touch()
    local = [str(photos / name) for name in ("a.HEIC", "b.jpg", "deep/c.png")]
    assert list(list_photos([str(photos)], [])) == local
    assert list(list_photos([str(photos / "b.jpg")], [])) == local[1:2]
    for scheme in ("file", "local"):  # one that pyarrow knows, one that only fsspec does
        address = f"{scheme}://{photos}"
        assert list(list_photos([address], [])) == [
            f"{address}/{name}" for name in ("a.HEIC", "b.jpg", "deep/c.png")
        ]
    (tmp_path / "list.txt").write_bytes(b"/x/\xff.jpg\r\n\ns3://bucket/y.jpg\n")
    for source in (str(tmp_path / "list.txt"), f"file://{tmp_path}/list.txt"):
        assert list(list_photos([], [source])) == ["/x/\udcff.jpg", "s3://bucket/y.jpg"]
    text = "\ufeff/x/é.jpg\r\ns3://bucket/y.jpg\r\n"  # as PowerShell's > writes it
    (tmp_path / "list.txt").write_bytes(text.encode("utf-16-le"))
    assert list(list_photos([], [str(tmp_path / "list.txt")])) == ["/x/é.jpg", "s3://bucket/y.jpg"]
    for wrong in ({"sources": ["nowhere"], "lists": []}, {"sources": [], "lists": ["nowhere"]}):
        with pytest.raises(UserError, match="nowhere: "):
            list(list_photos(**wrong))
    with pytest.raises(UserError, match="cannot be opened"):
        list(list_photos(["nonsense://x"], []))


def test_what_is_in_the_parts_is_not_scored_again(tmp_path, capsys):
    parts = Parts(str(tmp_path))
    paths = ["a.jpg", "ü\udcff.jpg", "c.jpg"]
    assert list(parts.without_done([*paths, "a.jpg"], {"meso4"})) == paths
    unit = paths[:2]
    parts.write_note(unit, {})
    parts.write(unit, [Row(path=p, verdict="no face", model="meso4") for p in unit], FIELDS)
    assert parts.exists(unit) and not parts.exists(paths)
    assert list(Parts(str(tmp_path)).without_done([*paths, "d.jpg"], {"meso4"})) == (
        ["c.jpg", "d.jpg"]
    )
    assert "2 photos scored already" in capsys.readouterr().err
    with pytest.raises(UserError, match="parts that meso4 scored"):
        list(parts.without_done(paths, {"vit"}))
    (tmp_path / "part-x.parquet").write_bytes(b"hello")
    with pytest.raises(UserError, match="not a part"):
        list(parts.without_done(paths, {"meso4"}))


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_unit_becomes_a_part_with_the_usual_rows(tmp_path, scorer, scheme):
    good, bad = tmp_path / "good.heic", tmp_path / "bad.jpg"
    shutil.copy(FACE_SAMPLE, good)
    bad.touch()
    unit = [f"{scheme}{path}" for path in (good, bad, tmp_path / "missing.jpg")]
    output = f"{scheme}{tmp_path}/out/rows"
    rows = score_unit(unit, scorer, Parts(output), FIELDS)
    written = rows_in(tmp_path / "out/rows")
    assert written == [row.as_dict(FIELDS) for row in rows]
    assert [row["path"] for row in written] == unit
    [expected] = next(scorer.score([Photo(str(good))]))
    assert written[0] == expected.as_dict(FIELDS) | {"path": unit[0]}
    assert [row["verdict"] for row in written[1:]] == ["error", "error"]
    assert "is empty" in written[1]["error"]
    assert score_unit(unit, scorer, Parts(output), FIELDS) == []  # it is there
    assert len(os.listdir(tmp_path / "out/rows")) == 2  # the part, and the folder of notes
    assert os.listdir(tmp_path / "out/rows/.begun") == []


POISONED = """
import os, signal, sys
from pathlib import Path
from pipeline.scoring import cluster
from pipeline.detectors.detector import load_detector
from pipeline.rows.rows import FIELDS
from pipeline.scoring.scoring import Scorer

photo = cluster._photo
def deadly(path):
    if "poison" in path:
        return photo(path)._replace(read=lambda: os.kill(os.getpid(), signal.SIGKILL))
    return photo(path)
cluster._photo = deadly
scorer = Scorer(load_detector(Path(sys.argv[1])), face_mode="none")
cluster.score_unit(sys.argv[3:], scorer, cluster.Parts(sys.argv[2]), FIELDS)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_photo_that_kills_its_worker_costs_only_itself(tmp_path, own_cache):
    unit = [str(path) for path in links(tmp_path / "photos", [FACE_SAMPLE], 4)]
    unit.insert(2, str(tmp_path / "photos/poison.jpg"))
    output = tmp_path / "rows"
    codes = []
    while not codes or codes[-1]:
        assert len(codes) < 6
        process = subprocess.run(
            [sys.executable, "-c", POISONED, DETECTOR, output, *unit],
            cwd=REPOSITORY,
            timeout=300,
            capture_output=True,
        )
        codes.append(process.returncode)
    assert codes == [-signal.SIGKILL] * (1 + DEATHS) + [0]
    rows = rows_in(output)
    assert [row["path"] for row in rows] == unit
    assert [row["verdict"] == "error" for row in rows] == [False, False, True, False, False]
    assert "workers died" in rows[2]["error"]
    assert os.listdir(output / ".begun") == []


def processes_below(pid: int) -> dict[int, str]:
    """Process → its command line, of all that a process has started."""
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(status[1])
                commands[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:  # it has ended meanwhile
                continue
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: commands[child] for child in below if child in commands}


def workers_below(pid: int) -> list[int]:
    """The processes that hold detectors, below that of score_cluster.py."""
    below = processes_below(pid).items()
    return [pid for pid, line in below if line.startswith("ray::") and "MapWorker" in line]


@needs_linux
@pytest.mark.slow
def test_killing_a_worker_loses_and_doubles_no_row(tmp_path, own_cache):
    pytest.importorskip("ray")
    photos = tmp_path / "photos"
    expected = links(photos, [SAMPLES / "two_people.jpg"], 95)
    (photos / "bad.jpg").touch()
    output = tmp_path / "rows"
    command = [sys.executable, REPOSITORY / "score_cluster.py", photos, "--output", output]
    command += ["--workers", "2", "--part-size", "3", "--weights", DETECTOR]
    # Ray's workers give way to everything else; on a busy machine the test would take long.
    environment = os.environ | {"RAY_worker_niceness": "0"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            # The second worker may still be starting when the first one writes its first part.
            while not (parts := list(output.glob("part-*.parquet"))) or not (
                workers := workers_below(process.pid)
            ):
                assert process.poll() is None, process.stderr.read().decode()
                time.sleep(0.05)
            os.kill(workers[0], signal.SIGKILL)
            _, said = process.communicate(timeout=900)
        finally:
            process.terminate()
    assert process.returncode == 1, said.decode()  # one photo is no photo
    assert len(parts) < 32  # it was killed in the middle
    rows = rows_in(output)
    counts = Counter(row["path"] for row in rows)
    assert counts == {str(path): 2 for path in expected} | {str(photos / "bad.jpg"): 1}
    assert "Traceback" not in said.decode()
    assert b"1 errors" in said

    before = {path: path.read_bytes() for path in output.glob("part-*.parquet")}
    (photos / "new.heic").symlink_to(FACE_SAMPLE)
    again = subprocess.run(command, env=environment, capture_output=True, timeout=900)
    assert again.returncode == 0, again.stderr.decode()
    assert b"96 photos scored already" in again.stderr
    new = set(output.glob("part-*.parquet")) - before.keys()
    assert len(new) == 1
    assert {path: path.read_bytes() for path in before} == before
    assert Counter(row["path"] for row in rows_in(output)) == counts | {str(photos / "new.heic"): 1}


@needs_linux
def test_workers_are_bound_to_cores_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # nobody else's claims
    program = (
        "import os, sys\n"
        "from pipeline.scoring.cluster import _own_cores\n"
        "own = _own_cores(1)\n"
        "threads = os.listdir('/proc/self/task')\n"
        "assert not own or all(os.sched_getaffinity(int(t)) == {*own} for t in threads)\n"
        "print(*own, flush=True)\n"
        "sys.stdin.read()\n"
    )
    cores = sorted(os.sched_getaffinity(0))
    workers, claims = [], []
    try:
        for _ in range(len(cores) + 1):
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-c", program],
                    cwd=REPOSITORY,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            claims.append(workers[-1].stdout.readline().split())
        assert sorted(claims) == sorted([[], *([str(core)] for core in cores)])
        workers[0].kill()  # its core is free again
        workers[0].wait()
        again = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert again.stdout.split() == claims[0]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


COUNTING = """
import sys, threading, time
import numpy as np
from pipeline.scoring.cluster import Settings, Worker
from pipeline.photos.photo import Photo, Picture

running, most, lock = 0, 0, threading.Lock()
def read():
    global running, most
    with lock:
        running += 1
        most = max(most, running)
    time.sleep(0.05)
    with lock:
        running -= 1
    return Picture(np.zeros((64, 64, 3), np.uint8))

worker = Worker(Settings((sys.argv[1],), sys.argv[2], face_mode="none", cpus_per_worker=1))
assert len(list(worker._scorer.score(Photo(str(i), read=read) for i in range(12)))) == 12
print(len(worker._cores), most)
"""


@needs_linux
@pytest.mark.parametrize("free", [True, False])
def test_a_worker_decodes_in_as_many_threads_as_it_has_cores(tmp_path, own_cache, free):
    """Also where other workers have taken all cores, and it is bound to none of its own."""
    claims = []
    for slot in range(0 if free else len(os.sched_getaffinity(0))):
        path = tmp_path / f"deepfake-scoring-{os.getuid()}-1-{slot}.lock"
        claims.append(os.open(path, os.O_RDWR | os.O_CREAT))
        fcntl.flock(claims[-1], fcntl.LOCK_EX)
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, DETECTOR, tmp_path / "rows"],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    for claim in claims:
        os.close(claim)
    assert done.stdout.split() == [str(int(free)), "1"], done.stderr


# ---- listings of any length


class EndlessStore(pyarrow.fs.FileSystemHandler):
    """A store whose objects are named as they are asked for: `flat` objects in the top folder, and
    `folders` with `each` objects. Only what listing needs is there."""

    def __init__(self, flat: int = 0, folders: int = 0, each: int = 0):
        self.flat, self.folders, self.each = flat, folders, each
        self.named = 0

    def get_file_info_selector(self, selector):
        for info in self._named(selector.base_dir):
            self.named += 1
            yield info

    def _named(self, top):
        kinds = pyarrow.fs.FileType
        if "/" not in top:
            for number in range(self.folders):
                yield pyarrow.fs.FileInfo(f"{top}/{number:04}", kinds.Directory)
            for number in range(self.flat):
                yield pyarrow.fs.FileInfo(f"{top}/{number:07}.jpg", kinds.File)
        else:
            for number in reversed(range(self.each)):  # in whatever order
                yield pyarrow.fs.FileInfo(f"{top}/{number:04}.jpg", kinds.File)
            yield pyarrow.fs.FileInfo(f"{top}/notes.txt", kinds.File)

    def _absent(self, *_arguments, **_more):
        raise NotImplementedError

    get_type_name = normalize_path = get_file_info = create_dir = delete_dir = _absent
    delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _absent
    open_input_stream = open_input_file = open_output_stream = open_append_stream = _absent


@pytest.mark.parametrize(
    "store", [EndlessStore(flat=1_000_000), EndlessStore(folders=1000, each=1000)]
)
def test_a_listing_of_a_million_is_never_in_memory_as_a_whole(monkeypatch, store):
    files = pyarrow.fs.PyFileSystem(store)
    monkeypatch.setattr(cluster_listing, "file_system", lambda address: (files, "bucket"))
    most = 0
    for count, _path in enumerate(list_photos(["s3://bucket"], [])):
        most = max(most, store.named - count)
    assert count + 1 == 1_000_000
    assert most <= cluster_listing.PART + 2 * store.folders + 1, "named and not passed on yet"


def test_folders_of_a_store_come_sorted_and_one_after_the_other(monkeypatch):
    files = pyarrow.fs.PyFileSystem(EndlessStore(flat=2, folders=3, each=2))
    monkeypatch.setattr(cluster_listing, "file_system", lambda address: (files, "bucket"))
    expected = ["0000000", "0000001", *(f"000{i}/000{j}" for i in range(3) for j in range(2))]
    assert list(list_photos(["s3://bucket"], [])) == [f"s3://bucket/{n}.jpg" for n in expected]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_what_a_store_holds_is_not_scored_again_after_a_restart(tmp_path, scheme):
    """Listed anew, dealt into other units, with photos that have been added."""
    if scheme == "memory":
        fsspec = pytest.importorskip("fsspec")
        top, open_file = f"/{tmp_path.name}", fsspec.filesystem("memory").open
    else:
        top, open_file = str(tmp_path / "photos"), open

    def add(name: str) -> None:
        if scheme == "file":
            Path(top, name).parent.mkdir(parents=True, exist_ok=True)
        with open_file(f"{top}/{name}", "wb") as file:
            file.write(b"x")

    for name in ("b/2.jpg", "b/1.jpg", "a.jpg", "c/d/e.png", "c/notes.txt"):
        add(name)
    address = f"{scheme}://{top}"
    parts = Parts(str(tmp_path / "rows"))
    first = list(parts.without_done(list_photos([address], []), {"meso4"}))
    assert [path.removeprefix(address) for path in first] == [
        "/a.jpg", "/b/1.jpg", "/b/2.jpg", "/c/d/e.png",
    ]  # fmt: skip
    unit = first[:3]
    parts.write_note(unit, {})
    parts.write(unit, [Row(path=p, verdict="no face", model="meso4") for p in unit], FIELDS)
    add("a/new.jpg")
    again = list(Parts(str(tmp_path / "rows")).without_done(list_photos([address], []), {"meso4"}))
    assert [path.removeprefix(address) for path in again] == ["/a/new.jpg", "/c/d/e.png"]


def test_wrong_use_is_said_before_ray_starts(infer, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        (["nowhere", "--output", "rows"], "nowhere: There is no such file"),
        (["empty", "--output", "rows"], "There are no photos here."),
        (["empty", "--output", "nonsense://x"], "cannot be opened"),
        (["--output", "rows"], "name a PATH or a --list"),
        (["empty", "--output", "rows", "--weights", "none"], "none"),
    ):
        process = infer(*arguments, script="score_cluster.py")
        assert process.returncode == 2, process.stderr.decode()
        assert sentence in process.stderr.decode().splitlines()[-1]
        assert b"Traceback" not in process.stderr
