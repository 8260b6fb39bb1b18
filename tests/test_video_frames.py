"""Which frames of a video are looked at, the way up they are, and their colours."""

import gc
import io
import itertools
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from pipeline.calibration import sigmoid
from pipeline.cropping import CropSettings, crop_in_threads
from pipeline.detector import load_detector
from pipeline.errors import ImageError
from pipeline.images import read_image, resize
from pipeline.inputs import Photo, find_photos
from pipeline.runtime import Runtime
from pipeline.video_frames import Sampling, with_frames
from tests.conftest import REPOSITORY
from tests.shared import SHARED, needs_shared
from tests.test_video import make_clip, numbered, seen

av = pytest.importorskip("av")

FAILING = SHARED / "failing"


def make_long_clip(path: Path, key_frame_every: int, format: str | None = None, file=None) -> str:
    """50 seconds, two numbered pictures each; `key_frame_every`: pictures."""
    with av.open(file or str(path), "w", format=format) as container:
        # AVI has no way to store frames in another order than they are shown in.
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size = key_frame_every
        if path.suffix != ".avi":
            stream.options = {"keyint_min": str(key_frame_every), "sc_threshold": "0", "bf": "2"}
        for image in numbered(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def problem_of(path: str, frames: int) -> str:
    photos = list(with_frames([Photo(path)], Sampling(frames)))
    for photo in photos:
        photo.read()
    return photos[0].frame.video.problem


@pytest.mark.parametrize("suffix", [".ts", ".mts", ".m2ts", ".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("key_frame_every", [20, 1000], ids=["every 10 s", "one key frame"])
def test_frames_are_spread_evenly_between_rare_key_frames(tmp_path, suffix, key_frame_every):
    format = "mpegts" if suffix in (".ts", ".mts", ".m2ts") else None
    clip = make_long_clip(tmp_path / f"clip{suffix}", key_frame_every, format)
    frames = seen(clip, Sampling(5))
    assert [number for number, _ in frames] == [10, 30, 50, 70, 90]
    assert [time for _, time in frames] == [5, 15, 25, 35, 45]
    assert [number for number, _ in seen(clip, Sampling(50))] == list(range(1, 100, 2))
    assert problem_of(clip, 5) == problem_of(clip, 50) == ""


def test_a_file_that_was_written_to_a_pipe(tmp_path):
    class Pipe(io.RawIOBase):
        """Takes bytes and, as a pipe, never goes back to write a length into the header."""

        def __init__(self):
            self.content = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    make_long_clip(tmp_path, 20, "matroska", pipe)
    clip = tmp_path / "clip.mkv"
    clip.write_bytes(pipe.content)
    assert [number for number, _ in seen(str(clip), Sampling(5))] == [10, 30, 50, 70, 90]
    [(_, faces)] = crop_in_threads([(None, clip)], CropSettings("none", 1.3, frames=5), 1)
    assert [face.frame for face in faces] == [10, 30, 50, 70, 90]


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts", ".mp4"])
@pytest.mark.parametrize("start", [60.0, 0.3, 3600.0])
def test_time_stamps_may_start_anywhere(tmp_path, suffix, start):
    """As in pieces of a recording. MP4 stores such a start as an edit."""
    clip = str(tmp_path / f"clip{suffix}")
    with av.open(clip, "w") as container:
        stream = container.add_stream("libvpx" if suffix == ".webm" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, image in enumerate(numbered(100)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number + round(start * 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = seen(clip, Sampling(5))
    assert [number for number, _ in frames] == [10, 30, 50, 70, 90]
    assert [time for _, time in frames] == pytest.approx([1, 3, 5, 7, 9], abs=0.05)
    assert [number for number, _ in seen(clip, Sampling(every=2.5))] == [0, 25, 50, 75]
    assert problem_of(clip, 5) == ""


@needs_shared
def test_the_video_that_starts_at_a_minute():
    photos = list(with_frames([Photo(str(FAILING / "07_starts_at_60s.webm"))], Sampling(3)))
    images = [photo.read() for photo in photos]
    assert len(images) == 3
    assert [photo.frame.time for photo in photos] == [1.7, 5.0, 8.3]
    assert photos[0].frame.video.problem == ""


# FFmpeg's display matrices a, b, c, d with x' = a·x + c·y and y' = b·x + d·y, and where the upper
# left corner of the stored picture comes to lie, and the one to its right.
ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), "upper left", "upper right"),
    "mirrored": ((-1, 0, 0, 1), "upper right", "upper left"),
    "turned by 180°": ((-1, 0, 0, -1), "lower right", "lower left"),
    "upside down": ((1, 0, 0, -1), "lower left", "lower right"),
    "turned clockwise": ((0, 1, -1, 0), "upper right", "lower right"),
    "turned counterclockwise": ((0, -1, 1, 0), "lower left", "upper left"),
    "transposed": ((0, 1, 1, 0), "upper left", "lower left"),
    "transposed the other way": ((0, -1, -1, 0), "lower right", "upper right"),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_display_matrix_turns_and_mirrors(tmp_path, orientation):
    (a, b, c, d), first, second = ORIENTATIONS[orientation]
    image = np.zeros((96, 160, 3), np.uint8)
    image[:32, :32] = 255
    image[:32, -32:] = 128
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
        stream.set_display_matrix(np.array(matrix, np.int32).tolist())
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    [photo] = with_frames([Photo(str(clip))], Sampling(1))
    upright = photo.read()
    assert upright.shape == ((96, 160, 3) if a else (160, 96, 3))
    assert corner(upright, first) > 240
    assert 110 < corner(upright, second) < 145


def corner(image: np.ndarray, where: str) -> float:
    rows = slice(4, 20) if "upper" in where else slice(-20, -4)
    columns = slice(4, 20) if "left" in where else slice(-20, -4)
    return float(image[rows, columns].mean())


@needs_shared
def test_the_mirrored_video_is_the_mirror_image(infer):
    path = FAILING / "06_display_matrix_hflip.mp4"
    [photo] = with_frames([Photo(str(path))], Sampling(1))
    with av.open(str(path)) as container:
        stored = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert np.abs(photo.read()[:, ::-1].astype(int) - stored[len(stored) // 2]).mean() < 2
    done = infer(path, "--frames", 3)
    assert done.returncode == 0, done.stderr
    assert b"no face" not in done.stdout


def test_programs_in_typescript_are_no_videos(tmp_path):
    make_long_clip(tmp_path / "clip.ts", 20, "mpegts")
    (tmp_path / "program.ts").write_text("export const answer = 42;\n" * 100)
    finder = find_photos([str(tmp_path)])
    assert [Path(photo.path).name for photo in finder] == ["clip.ts"]
    assert finder.skipped == 1


def test_playlists_and_addresses_are_not_opened(tmp_path):
    clip = make_clip(tmp_path / "secret.mp4", numbered(20))
    for name, content in (
        ("list.mp4", f"ffconcat version 1.0\nfile '{clip}'\n"),
        ("list.mkv", f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("list.mov", f"<MPD><BaseURL>{clip}</BaseURL></MPD>"),
    ):
        (tmp_path / name).write_text(content)
        [photo] = with_frames([Photo(str(tmp_path / name))], Sampling(3))
        assert photo.error and photo.read is None
        [(_, problem)] = crop_in_threads([(0, tmp_path / name)], CropSettings("none", 1.3), 1)
        assert isinstance(problem, ImageError)


def test_sound_and_covers_come_before_the_picture(tmp_path):
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        silence = np.zeros((1, 1024), np.float32)
        for number in range(40):
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * number
            container.mux(sound.encode(frame))
        for image in numbered(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for one in (sound, stream):
            container.mux(one.encode(None))
    assert [number for number, _ in seen(str(clip), Sampling(4))] == [2, 7, 12, 17]


def test_frames_at_uneven_times(tmp_path):
    """A phone records 30 frames in the first second, then one a second."""
    clip = str(tmp_path / "clip.mp4")
    with av.open(clip, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, image in enumerate(numbered(50)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if number < 30 else 30 * (number - 29)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = seen(clip, Sampling(4))
    times = [time for _, time in frames]
    assert all(3 <= later - earlier <= 6 for earlier, later in itertools.pairwise(times))
    assert [number for number, _ in frames] == [29 + round(time) for _, time in frames]


@pytest.mark.parametrize(
    ("width", "height", "pixel_format"),
    [(64, 48, "yuv420p"), (66, 50, "yuv420p10le"), (65, 47, "yuv444p"), (64, 48, "yuv422p")],
)
def test_sizes_and_depths(tmp_path, width, height, pixel_format):
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = (200, 40, 40), (40, 40, 200)
    clip = str(tmp_path / "clip.mkv")
    with av.open(clip, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    [photo] = with_frames([Photo(clip)], Sampling(1))
    read = photo.read()
    assert read.shape == image.shape
    away = np.r_[: width // 2 - 6, width // 2 + 6 : width]  # from where the colours meet
    assert np.abs(read[:, away].astype(int) - image[:, away]).max() <= 4


MATRICES = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}  # weights of red and blue


def exact_rgb(frame: "av.VideoFrame", matrix: str, full_range: bool) -> np.ndarray:
    """(H, W, 3) float RGB 0…255 of a yuv420p frame, in floating point; colours between their
    samples (which lie at the left of two pixels, between two rows) by linear interpolation."""
    import cv2

    planes = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    height, width = frame.height, frame.width
    y = planes[0][:height, :width].astype(np.float64)
    half = [plane[: height // 2, : width // 2].astype(np.float32) for plane in planes[1:]]
    columns, rows = np.meshgrid(np.arange(width) / 2, (np.arange(height) - 0.5) / 2)
    maps = columns.astype(np.float32), rows.astype(np.float32)
    u, v = (
        cv2.remap(plane, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(float)
        - 128
        for plane in half
    )
    scale = 1.0
    if not full_range:
        y, scale = (y - 16) * 255 / 219, 255 / 224
    red_weight, blue_weight = MATRICES[matrix]
    red = y + 2 * (1 - red_weight) * v * scale
    blue = y + 2 * (1 - blue_weight) * u * scale
    green = (y - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return np.clip(np.stack([red, green, blue], -1), 0, 255)


def encode(path: Path, images: list[np.ndarray], colorspace: int | None, full_range: bool) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if full_range else "yuv420p"
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@needs_shared
@pytest.mark.parametrize(
    ("matrix", "colorspace", "full_range"),
    [("601", None, False), ("709", 1, False), ("601", 5, True)],
)
def test_colours_are_those_of_an_exact_conversion(
    tmp_path, own_cache, matrix, colorspace, full_range
):
    """Fake_probability of 40 faces moves by at most 0.02."""
    faces = [
        path
        for kind in ("stylegan", "dfdc", "text_to_image", "faceswap")
        for label in ("real", "fake")
        for path in sorted((SHARED / "faces/test" / kind / label).iterdir())[:5]
    ]
    images = [resize(read_image(path), 224, "area") for path in faces]
    encode(tmp_path / "clip.mp4", images, colorspace, full_range)
    read = [p.read() for p in with_frames([Photo(str(tmp_path / "clip.mp4"))], Sampling(40))]
    with av.open(str(tmp_path / "clip.mp4")) as container:
        exact = [exact_rgb(f, matrix, full_range) for f in container.decode(video=0)]
    assert len(read) == len(exact) == 40
    assert max(np.abs(ours - theirs).mean() for ours, theirs in zip(read, exact, strict=True)) < 1

    detector = load_detector(REPOSITORY / "weights" / "efficientnet_lite0")
    network = Runtime.of(detector)
    temperature = detector.calibration.temperature
    size = detector.architecture.input_size
    ours, theirs = (
        sigmoid(
            network.logits(np.stack([resize(i.round().astype(np.uint8), size, "area") for i in of]))
            / temperature
        )
        for of in ([image.astype(float) for image in read], exact)
    )
    assert np.abs(ours - theirs).max() <= 0.02


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of open files")
@pytest.mark.parametrize("leave_after", [None, 1], ids=["read to the end", "left early"])
def test_each_video_is_closed_when_it_has_been_read(tmp_path, leave_after):
    clip = make_clip(tmp_path / "clip.mp4", numbered(30))
    gc.disable()  # what is closed must not wait for it
    try:
        before = open_files()
        for _ in range(200):
            frames = with_frames([Photo(clip)], Sampling(3))
            for number, photo in enumerate(frames, 1):
                photo.read()
                if number == leave_after:
                    break
            frames.close()
            assert open_files() <= before + 1
    finally:
        gc.enable()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path):
    """200 short clips, of which the first 50 warm everything up."""
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (12, 360, 640, 3), np.uint8))
    for number in range(200):
        (tmp_path / f"{number:03}.mp4").symlink_to(tmp_path / "clip.mp4.real")
    make_clip(tmp_path / "clip.mp4", images)
    (tmp_path / "clip.mp4").rename(tmp_path / "clip.mp4.real")
    peaks = []
    for number in range(200):
        path = str(tmp_path / f"{number:03}.mp4")
        for photo in with_frames([Photo(path)], Sampling(6)):
            photo.read()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] - peaks[49] < 50_000  # kilobytes; a decoder of this size takes some 10,000
