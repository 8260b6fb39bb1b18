"""Many videos, one after the other: few files open at a time, no growing memory, no broken run."""

import gc
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.detectors.detector import load_detector
from pipeline.photos.images import read_image
from pipeline.photos.photo import Photo
from pipeline.rows.files import read_rows
from pipeline.scoring.scoring import Scorer
from pipeline.scoring.video_rows import join
from pipeline.videos.frames import Sampling, with_frames
from tests.clips import make_clip, numbered
from tests.conftest import DETECTOR, FACE_SAMPLE

av = pytest.importorskip("av")

needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="needs /proc to count open files"
)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Megabytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


@needs_proc
def test_two_hundred_videos_are_closed_one_by_one(tmp_path):
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (240, 320, 3), np.uint8) for _ in range(6)]
    clip = make_clip(tmp_path / "clip.mp4", images)
    clips = [tmp_path / f"{number}.mp4" for number in range(200)]
    for copy in clips:
        copy.symlink_to(clip)
    scorer = Scorer(load_detector(DETECTOR), face_mode="none")
    photos = with_frames((Photo(str(path)) for path in clips), Sampling(2))
    before, files, memory = open_files(), [], []
    for scored in join(scorer.look(photos), scorer.verdict):
        assert [row.frames for row in scored.rows][-1] == 2
        files.append(open_files() - before)
        memory.append(resident())
    assert len(files) == 200
    assert max(files) <= (os.cpu_count() or 1) + 2  # a thread reads one
    assert memory[-1] - memory[40] < 150


@needs_proc
@pytest.mark.parametrize("read", [0, 1, 3])
def test_a_video_is_closed_when_nobody_wants_the_rest(tmp_path, read):
    clip = make_clip(tmp_path / "clip.mp4", numbered(100))
    before = open_files()
    gc.disable()
    try:
        photos = list(islice(with_frames([Photo(clip)], Sampling(10)), 5))
        for photo in photos[:read]:
            photo.read()
        assert open_files() == before + (read > 0)
        del photos
        if read:
            del photo
        assert open_files() == before
    finally:
        gc.enable()


@needs_proc
def test_a_video_is_closed_behind_its_last_frame(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(100))
    before = open_files()
    photos = list(with_frames([Photo(clip)] * 30, Sampling(3)))
    assert open_files() == before
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda photo: photo.read(), photos))
    assert open_files() == before
    assert len({photo.frame.video for photo in photos}) == 30


# What has been damaged

CLIPS = {
    "a.mp4": "libx264",
    "b.mp4": "libx265",
    "c.mkv": "libx264",
    "d.webm": "libvpx-vp9",
    "e.mov": "mjpeg",
    "f.avi": "mpeg4",
    "g.ts": "libx264",
    "h.mkv": "libsvtav1",
}


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """The content of a file after one of the accidents that files meet."""
    changed = bytearray(content)
    start, other = (int(place) for place in random.integers(0, len(content), 2))
    length = int(random.integers(1, 1 + len(content) // 4))
    match random.integers(8):
        case 0:
            for place in random.integers(0, len(content), random.integers(1, 50)):
                changed[place] = random.integers(256)
        case 1:  # where headers and indexes are
            end = random.choice([0, len(content) - 1200])
            for place in random.integers(0, 1200, random.integers(1, 20)):
                changed[end + place] = random.integers(256)
        case 2:
            changed = changed[: max(1, start)]
        case 3:
            changed = changed[start:]
        case 4:
            changed[start : start + length] = bytes(len(changed[start : start + length]))
        case 5:
            changed[start : start + length] = random.bytes(length)
        case 6:
            changed[start:start] = changed[other : other + length]
        case 7:  # numbers of four bytes that claim as much as they can
            for place in random.integers(0, len(content) - 4, random.integers(1, 8)):
                changed[place : place + 4] = random.choice(
                    [b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)]
                )
    return bytes(changed)


def make_mutated_videos(folder: Path, number: int, seed: int) -> list[Path]:
    random = np.random.default_rng(seed)
    face = read_image(FACE_SAMPLE)[::2, ::2]
    moving = [np.roll(face, 2 * n, axis=1) for n in range(24)]
    quiet = {"x265-params": "log-level=none"}
    originals = []
    for name, codec in CLIPS.items():
        if codec in av.codecs_available:
            clip = make_clip(folder / f"original_{name}", moving, codec=codec, gop=8, options=quiet)
            originals.append(Path(clip))
    paths = []
    for count, original in zip(range(number), itertools.cycle(originals), strict=False):
        path = folder / f"{count:03}{original.suffix}"
        path.write_bytes(mutated(original.read_bytes(), random))
        paths.append(path)
    for original in originals:
        original.unlink()
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--frames", 4), ("--every", 0.3)], ids=str)
def test_two_hundred_mutated_videos(start_infer, tmp_path, options):
    folder = tmp_path / "in"
    folder.mkdir()
    paths = make_mutated_videos(folder, 200, seed=15)
    output = tmp_path / "rows.csv"
    process = start_infer(folder, *options, "--output", output)
    grown, size = time.monotonic(), -1
    while process.poll() is None:
        time.sleep(0.2)
        if output.exists() and output.stat().st_size != size:
            grown, size = time.monotonic(), output.stat().st_size
        limit = 20 if size > 0 else 120  # to get ready
        assert time.monotonic() - grown < limit, "it hangs"
    stdout, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert stdout == b""
    [summary] = stderr.decode().splitlines()
    assert "200 videos" in summary
    groups = [
        (path, list(rows))
        for path, rows in itertools.groupby(read_rows(output), key=lambda row: row["path"])
    ]
    assert [path for path, _ in groups] == list(map(str, paths))
    for path, rows in groups:
        ends = [row for row in rows if row["time"] is None]
        assert ends, path  # what sums up, or a sentence, or both
        assert all("unexpected" not in (row["error"] or "") for row in rows), rows
    whole = [rows for _, rows in groups if all(row["verdict"] != "error" for row in rows)]
    assert 20 < len(whole) < 180
