"""Videos: frames spread evenly and upright, faces followed, rows that sum up, and bad files."""

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import ImageError
from pipeline.photos.images import read_image
from pipeline.photos.photo import Photo
from pipeline.rows.files import open_output, read_rows
from pipeline.rows.rows import COMPARED_FIELDS, FIELDS, VIDEO_FIELDS, Row
from pipeline.scoring.scoring import Scored
from pipeline.scoring.timeline import draw_timeline
from pipeline.scoring.video_rows import _Tracks, join
from pipeline.videos.frames import Sampling, with_frames
from tests.clips import make_clip, number_of, numbered, seen
from tests.conftest import FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.test_rows import MODELS, face

av = pytest.importorskip("av")


def test_frames_are_spread_evenly(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(100))
    assert seen(clip, Sampling(5)) == [(10, 1.0), (30, 3.0), (50, 5.0), (70, 7.0), (90, 9.0)]
    assert seen(clip, Sampling(every=2.5)) == [(0, 0.0), (25, 2.5), (50, 5.0), (75, 7.5)]
    assert seen(clip, Sampling(2)) == [(25, 2.5), (75, 7.5)]  # jumps to key frames
    assert [number for number, _ in seen(clip, Sampling(1000))] == list(range(100))
    assert [number for number, _ in seen(clip, Sampling(every=0.1))] == list(range(100))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.mov", "libx264"),
        ("clip.mkv", "libx264"),
        ("clip.avi", "mjpeg"),
        ("clip.webm", "libvpx"),
        ("clip.m2ts", "libx264"),
    ],
)
def test_containers(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    clip = make_clip(tmp_path / name, numbered(50), rate=25, codec=codec)
    frames = seen(clip, Sampling(4))
    assert [number for number, _ in frames] == pytest.approx([6, 19, 31, 44], abs=2)
    assert [time for _, time in frames] == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.1)


def test_frames_may_be_read_in_any_order_and_by_many_threads(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(100))
    photos = list(with_frames([Photo(clip)], Sampling(40)))
    order = np.random.default_rng(0).permutation(40)
    with ThreadPoolExecutor(8) as pool:
        images = dict(zip(order, pool.map(lambda n: photos[n].read().pixels, order), strict=True))
    numbers = [number_of(images[n]) for n in range(40)]
    assert numbers == sorted(set(numbers))
    assert [photo.frame.time for photo in photos] == [number / 10 for number in numbers]


def test_few_frames_are_in_memory_at_once(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(100))
    photos = list(with_frames([Photo(clip)], Sampling(100)))
    for photo in photos:
        photo.read()
        assert len(photo.frame.video._decoded) == 0


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))]
)
def test_rotation_in_the_metadata_is_applied(tmp_path, rotation, corner):
    image = np.zeros((96, 160, 3), np.uint8)
    image[:32, :32] = 255  # the upper left corner, as stored; turned counterclockwise it goes down
    clip = make_clip(tmp_path / "clip.mp4", [image] * 3, rotation=rotation)
    [photo] = with_frames([Photo(clip)], Sampling(1))
    upright = photo.read().pixels
    assert upright.shape == ((96, 160, 3) if rotation in (0, 180) else (160, 96, 3))
    rows, columns = (slice(2, 20) if side == 0 else slice(-20, -2) for side in corner)
    assert upright[rows, columns].mean() > 240
    assert upright.mean() < 40


def box(left: int, top: int, side: int = 100) -> tuple:
    return left, top, left + side, top + side


def test_faces_are_followed_by_overlap():
    tracks = _Tracks()
    assert tracks.numbers([box(0, 0), box(300, 0)]) == [0, 1]
    assert tracks.numbers([box(310, 5), box(20, 0)]) == [1, 0]  # another order
    assert tracks.numbers([box(40, 0)]) == [0]
    assert tracks.numbers([]) == []
    assert tracks.numbers([box(60, 0), box(320, 5)]) == [0, 1]  # the second was away for two
    assert tracks.numbers([box(60, 300), box(60, 0)]) == [2, 0]
    for _ in range(3):
        assert tracks.numbers([]) == []
    assert tracks.numbers([box(60, 0)]) == [3]  # away for too long
    assert tracks.numbers([box(60, 0), box(65, 0)]) == [3, 4]  # each number once


def scored_frames(clip: str, probabilities: list[list[float]], models=MODELS):
    """The frames of a clip, as if scored: face n lies at (200·n, 0)."""
    photos = list(with_frames([Photo(clip)], Sampling(len(probabilities))))
    for photo, of_faces in zip(photos, probabilities, strict=True):
        photo.read()
        rows = []
        for number, probability in enumerate(of_faces):
            for model in models:
                row = face(clip, number, "fake" if probability >= 0.5 else "real", model)
                row.left, row.top, row.right, row.bottom = box(200 * number, 0)
                row.fake_probability = probability
                row.agreement = True if len(models) > 1 else None
                rows.append(row)
        rows = rows or [Row(path=clip, verdict="no face", model=models[0])]
        yield Scored(photo, rows, [None] * len(rows))


def verdict(_model: str, probability: float) -> str:
    return "fake" if probability >= 0.5 else "real"


def test_rows_sum_up_each_face_and_the_video(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(50))
    frames = scored_frames(clip, [[0.1, 0.2], [0.3, 0.9], [0.2], [], [0.1, 0.7]])
    [scored] = join(frames, verdict)
    rows = scored.rows
    assert {row.path for row in rows} == {clip}
    assert [row.time for row in rows] == [0.5, 0.5, 1.5, 1.5, 2.5, 3.5, 4.5, 4.5, None, None, None]
    first, second, video = rows[-3:]
    assert [row.face for row in rows] == [0, 1, 0, 1, 0, None, 0, 1, 0, 1, None]
    assert (first.frames, second.frames, video.frames) == (4, 3, 5)
    assert first.fake_probability == pytest.approx((0.1 + 0.3 + 0.2 + 0.1) / 4)
    assert second.fake_probability == pytest.approx(0.6)
    assert (first.median, second.median) == (pytest.approx(0.15), 0.7)
    assert (first.fake_share, second.fake_share) == (0, pytest.approx(2 / 3))
    # of each frame with a face the most suspicious one: 0.2, 0.9, 0.2, 0.7
    assert video.fake_probability == pytest.approx(0.5)
    assert (video.median, video.fake_share) == (pytest.approx(0.45), 0.5)
    assert [row.verdict for row in (first, second, video)] == ["real", "fake", "fake"]
    assert all(row.left is None and row.model == "meso4" for row in (first, second, video))


def test_two_networks_sum_up_side_by_side(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(20))
    frames = scored_frames(clip, [[0.1], [0.9]], ("a", "b"))
    [scored] = join(frames, lambda model, _p: "fake" if model == "a" else "real")
    summaries = [row for row in scored.rows if not row.is_frame]
    assert [(row.face, row.model, row.verdict, row.agreement) for row in summaries] == [
        (0, "a", "fake", False),
        (0, "b", "real", False),
        (None, "a", "fake", False),
        (None, "b", "real", False),
    ]


def test_photos_and_videos_in_a_row_stay_apart(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(20))
    photo = Scored(Photo("a.jpg"), [face("a.jpg")], [None])
    frames = [
        photo,
        photo,
        *scored_frames(clip, [[0.1], [0.2]]),
        *scored_frames(clip, [[0.3]]),
        photo,
    ]
    joined = list(join(frames, verdict))
    assert [item.photo.path for item in joined] == ["a.jpg", "a.jpg", clip, clip, "a.jpg"]
    assert [len(item.rows) for item in joined] == [1, 1, 4, 3, 1]


# Files that are no good


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 44100
        frame.planes[0].update(bytes(4096))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_bad_videos(folder: Path) -> dict[str, str]:
    """File name → a phrase of the sentence that it must get."""
    folder.mkdir()
    clip = Path(make_clip(folder / "good.mp4", numbered(60)))
    content = clip.read_bytes()
    clip.unlink()
    (folder / "empty.mp4").touch()
    (folder / "text.mov").write_text("not a video at all\n" * 100)
    (folder / "headless.mp4").write_bytes(content[: len(content) // 2])  # the index is at its end
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "picture.webm").write_bytes((SAMPLES / "real_collins.jpg").read_bytes())
    (folder / "playlist.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{SAMPLES}/x.ts\n#EXT-X-ENDLIST\n"
    )
    (folder / "list.avi").write_text(f"ffconcat version 1.0\nfile '{SAMPLES}/real_collins.jpg'\n")
    audio_only(folder / "sound.mp4")
    make_clip(folder / "huge.avi", [np.zeros((5000, 8000, 3), np.uint8)], codec="mjpeg")
    (folder / "missing.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mp4")
    return {
        "empty.mp4": "is empty",
        "text.mov": "not a video",
        "headless.mp4": "cut short",
        "noise.mkv": "not a video",
        "picture.webm": "not a video",
        "playlist.mp4": "not a video",
        "list.avi": "not a video",
        "sound.mp4": "no moving picture",
        "huge.avi": "8000 x 5000 pixels",
        "missing.mp4": "no such file",
        "pipe.mp4": "special",
    }


def rows_without_faces(photos):
    """What a scorer makes of photos of nothing."""
    for photo in photos:
        error = photo.error
        try:
            if not error:
                photo.read()
        except ImageError as failure:
            error = str(failure)
        row = Row(path=photo.path, verdict="error" if error else "no face", error=error or None)
        yield Scored(photo, [row], [None])


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX links and pipes")
def test_bad_videos_get_a_sentence(tmp_path, capfd):
    phrases = make_bad_videos(tmp_path / "bad")
    photos = with_frames([Photo(str(tmp_path / "bad" / name)) for name in phrases], Sampling(4))
    items = list(join(rows_without_faces(photos), verdict))
    for item, (name, phrase) in zip(items, phrases.items(), strict=True):
        assert [Path(row.path).name for row in item.rows] == [name], item.rows
        [row] = item.rows
        assert row.verdict == "error"
        assert phrase in row.error, name
        assert row.frames == 0  # so that it counts as a video
    assert capfd.readouterr() == ("", "")  # FFmpeg says nothing of its own


def test_of_a_video_that_ends_early_the_beginning_is_scored(tmp_path):
    clip = Path(make_clip(tmp_path / "clip.mkv", numbered(100)))
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 6 // 10])
    [item] = join(rows_without_faces(with_frames([Photo(str(clip))], Sampling(10))), verdict)
    *frames, summary, error = item.rows
    assert 2 <= len(frames) <= 6
    assert summary.frames == len(frames)
    assert error.verdict == "error"
    assert "cut short: it ends after" in error.error
    assert "of 10.0 s" in error.error


def test_damage_in_the_middle_is_passed_over(tmp_path):
    clip = Path(make_clip(tmp_path / "clip.avi", numbered(100), codec="mjpeg"))
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    clip.write_bytes(content)
    photos = with_frames([Photo(str(clip))], Sampling(20))
    [item] = join(rows_without_faces(photos), verdict)
    assert sum(row.is_frame for row in item.rows) >= 15


# Columns


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".html"])
@pytest.mark.parametrize("fields", [FIELDS, COMPARED_FIELDS], ids=["one network", "several"])
def test_columns_are_added_with_the_first_video(tmp_path, suffix, fields):
    path = tmp_path / f"rows{suffix}"
    photo, last = [face("a.jpg", 0), face("a.jpg", 1)], [face("z.jpg")]
    frame, summary = face("clip.mp4"), face("clip.mp4")
    frame.time = 0.5
    summary.frames, summary.median, summary.fake_share = 1, 0.1, 0.0
    for rows in ([photo], [photo, [frame, summary]], [photo, [frame, summary], last]):
        with open_output(path, MODELS, resume=path.exists(), fields=fields) as writer:
            for of_one in rows:
                if of_one[0].path not in writer.done:
                    writer.write(of_one)
        wide = fields + VIDEO_FIELDS if len(rows) > 1 else fields
        back = list(read_rows(path))
        assert back == [row.as_dict(wide) for of_one in rows for row in of_one]
        assert {tuple(row) for row in back} == {wide}
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".bak")] == [path.name]


def test_a_run_killed_at_any_byte_of_a_video_scores_it_again(tmp_path):
    path = tmp_path / "rows.csv"
    frame, summary = face("clip.mp4"), face("clip.mp4")
    frame.time, summary.frames, summary.median, summary.fake_share = 0.5, 1, 0.1, 0.0
    items = [[face("a.jpg")], [frame, summary], [face("b.jpg")]]
    with open_output(path, MODELS) as writer:
        for rows in items:
            writer.write(rows)
    content = path.read_bytes()
    expected = [row.as_dict(FIELDS + VIDEO_FIELDS) for rows in items for row in rows]
    for length in range(content.index(b"\n") + 1, len(content)):  # the first line comes whole
        path.write_bytes(content[:length])
        with open_output(path, MODELS, True) as writer:
            for rows in items:
                if rows[0].path not in writer.done:
                    writer.write(rows)
        assert list(read_rows(path)) == expected, length


# As users run it


def moving(image: np.ndarray, number: int):
    return (np.roll(image, 2 * n, axis=1) for n in range(number))


def test_the_command_scores_videos_among_photos(infer, tmp_path):
    photos = tmp_path / "in"
    photos.mkdir()
    two = read_image(SAMPLES / "two_people.jpg")[::2, ::2]
    make_clip(photos / "two.mp4", moving(two, 20))
    (photos / "photo.heic").symlink_to(FACE_SAMPLE)
    (photos / "bad.mov").write_bytes(b"nothing")
    process = infer(photos, "--frames", 4, "--output", "rows.csv")
    assert process.returncode == 1
    summary = process.stderr.decode()
    assert "1 photo, 2 videos of 4 frames, 3 faces: " in summary
    assert "; 1 error; " in summary
    rows = list(read_rows(tmp_path / "rows.csv"))
    of_clip = [row for row in rows if row["path"].endswith("two.mp4")]
    frames = [row for row in of_clip if row["time"] is not None]
    assert [(row["time"], row["face"]) for row in frames] == [
        (time, number) for time in (0.2, 0.7, 1.2, 1.7) for number in (0, 1)
    ]
    for number in (0, 1):
        its_rows = [row for row in frames if row["face"] == number]
        lefts = [row["left"] for row in its_rows]
        assert lefts == sorted(lefts)  # both move to the right
        [summed] = [row for row in of_clip if row["face"] == number and row["frames"]]
        mean = np.mean([row["fake_probability"] for row in its_rows])
        assert summed["fake_probability"] == pytest.approx(mean)
    photo = [row for row in rows if row["path"].endswith(".heic")]
    assert [[row[name] for name in VIDEO_FIELDS] for row in photo] == [[None] * 4]

    process = infer(photos / "two.mp4", "--every", "0.5")
    *_, first, second, video = process.stdout.decode().splitlines()
    assert "     0  " in first and "     1  " in second
    assert video.split()[2].endswith("two.mp4")
    assert "(4 frames: median " in video
    process = infer(photos, "--frames", 4, "--output", "rows.csv", "--continue")
    assert "1 that ended in an error will be tried again" in process.stderr.decode()
    assert process.returncode == 1


def test_a_photo_costs_no_import_of_av():
    program = (
        "import sys; sys.argv = ['infer_meso4.py', sys.argv[1]]\n"
        "import infer_meso4, pipeline.scoring.scoring_command\n"
        "infer_meso4.main()\n"
        "assert 'av' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(FACE_SAMPLE)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=300,
    )


def test_without_av_a_video_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    [photo] = with_frames([Photo("clip.mp4")], Sampling())
    assert "pip install av" in photo.error


def test_the_timeline_has_a_line_for_each_face():
    rows = []
    for number, time in itertools.product((0, 1), (0.0, 0.5, 1.0)):
        rows.append(face("clip.mp4", number))
        rows[-1].time, rows[-1].fake_probability = time, 0.2 + 0.3 * number + 0.2 * time
    [axes] = draw_timeline(rows).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["face 0"] == pytest.approx([0.2, 0.3, 0.4])
    assert drawn["face 1"] == pytest.approx([0.5, 0.6, 0.7])
    assert draw_timeline([Row(path="clip.mp4", verdict="no face", time=0.0)]) is None
    assert draw_timeline([Row(path="photo.jpg", verdict="real", fake_probability=0.1)]) is None


def test_threads_do_not_wait_for_each_other_for_ever(tmp_path):
    """The last frame first, while nobody reads the others."""
    clip = make_clip(tmp_path / "clip.mp4", numbered(20))
    photos = list(with_frames([Photo(clip)], Sampling(20)))
    done = threading.Event()
    threading.Thread(target=lambda: (photos[-1].read(), done.set()), daemon=True).start()
    assert done.wait(60)


def test_what_goes_wrong_with_one_frame_is_said(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(20))
    photos = list(with_frames([Photo(clip)], Sampling(4)))

    def scored():
        for number, item in enumerate(rows_without_faces(photos)):
            if number == 2:  # as where the search for faces fails
                row = Row(path=clip, verdict="error", error="unexpected failure")
                item = Scored(item.photo, [row], [None])
            yield item

    [item] = join(scored(), verdict)
    *frames, summary, error = item.rows
    assert [row.time for row in frames] == [0.2, 0.7, 1.7]
    assert summary.frames == 3
    assert error.error == "unexpected failure"
