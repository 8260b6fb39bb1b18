"""From decoded frames to pixels: every orientation, exact colours, and what HDR becomes."""

import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import ImageError
from pipeline.detectors.detector import load_detector
from pipeline.photos.images import read_image
from pipeline.photos.photo import Photo, Picture
from pipeline.scoring.scoring import Scorer
from pipeline.videos.frame_pixels import frame_pixels, upright
from pipeline.videos.frames import Sampling, with_frames
from tests.clips import make_clip
from tests.conftest import REPOSITORY
from tests.shared import SHARED, needs_shared

av = pytest.importorskip("av")

# a, b, c, d of the display matrix, and where a picture's upper left corner is shown
ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), "upper left"),
    "mirrored left to right": ((-1, 0, 0, 1), "upper right"),
    "upside down": ((1, 0, 0, -1), "lower left"),
    "turned by 180": ((-1, 0, 0, -1), "lower right"),
    "turned clockwise": ((0, 1, -1, 0), "upper right"),
    "turned counterclockwise": ((0, -1, 1, 0), "lower left"),
    "mirrored on the diagonal": ((0, 1, 1, 0), "upper left"),
    "mirrored on the other diagonal": ((0, -1, -1, 0), "lower right"),
}


def with_matrix(clip: str, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into the header of an MP4's track (ISO/IEC 14496-12, 8.3.2)."""
    content = bytearray(Path(clip).read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (number << 16 for number in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    Path(clip).write_bytes(content)


def marked() -> np.ndarray:
    """Black, with a white upper left corner and a grey upper right one."""
    image = np.zeros((96, 160, 3), np.uint8)
    image[:32, :32], image[:32, 128:] = 255, 128
    return image


def corners(image: np.ndarray) -> dict[str, int]:
    """How bright each corner is."""
    sides = {"upper": slice(8, 20), "lower": slice(-20, -8)}
    flanks = {"left": slice(8, 20), "right": slice(-20, -8)}
    return {
        f"{side} {flank}": image[rows, columns].mean()
        for side, rows in sides.items()
        for flank, columns in flanks.items()
    }


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_all_eight_orientations(tmp_path, name, suffix):
    matrix, white = ORIENTATIONS[name]
    clip = make_clip(tmp_path / "clip.mp4", [marked()] * 3)
    with_matrix(clip, matrix)
    if suffix == ".mkv":
        clip = _in_matroska(clip, tmp_path / "clip.mkv")
        if matrix[0] == 0 and matrix[1] == matrix[2]:
            pytest.skip("Matroska cannot say this")
    [photo] = with_frames([Photo(clip)], Sampling(1))
    image = photo.read().pixels
    assert image.shape == ((96, 160, 3) if matrix[0] else (160, 96, 3))
    shown = corners(image)
    assert max(shown, key=shown.get) == white
    # Not only one corner: the matrix maps (1, 0) to (a, b), so the grey one follows to the side
    x, y = matrix[0], matrix[1]
    side, flank = white.split()
    grey = (
        f"{side} {'right' if x > 0 else 'left'}"
        if x
        else f"{'lower' if y > 0 else 'upper'} {flank}"
    )
    assert shown[grey] == pytest.approx(128, abs=4)
    assert sum(level > 60 for level in shown.values()) == 2


def _in_matroska(clip: str, path: Path) -> str:
    with av.open(clip) as container, av.open(str(path), "w") as other:
        copy = other.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = copy
                other.mux(packet)
    return str(path)


def test_an_oblique_matrix_is_taken_for_the_nearest_orientation():
    image = np.arange(24).reshape(2, 4, 3)
    assert (upright(image, (0, 0, 0, 0)) == image).all()
    assert (upright(image, (60000, 20000, -20000, 60000)) == image).all()
    assert (upright(image, (-20000, 60000, -60000, -20000)) == np.rot90(image, -1)).all()


@needs_shared
def test_a_mirrored_video_is_the_mirrored_picture():
    clip = SHARED / "failing" / "06_display_matrix_hflip.mp4"
    with av.open(str(clip)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    [photo] = with_frames([Photo(str(clip))], Sampling(1))
    assert np.abs(photo.read().pixels - stored[:, ::-1]).mean() < 3


def test_pixels_become_square(tmp_path):
    frame = av.VideoFrame(64, 48, "yuv420p")
    assert frame_pixels(frame, 1.5).shape == (48, 96, 3)
    assert frame_pixels(frame, 1000).shape == (48, 64, 3)  # nonsense
    with pytest.raises(ImageError, match="limit"):
        frame_pixels(av.VideoFrame(8000, 4000, "gray"), 8)


# Colours

MATRICES = {  # AVCOL_SPC_… of FFmpeg: weights of red and blue, after ITU-R BT.601, 709 and 2020
    2: (0.299, 0.114),  # not named
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    1: (0.2126, 0.0722),
    9: (0.2627, 0.0593),
}


def exactly(frame, left: bool) -> np.ndarray:
    """RGB (H, W, 3) float of a YUV frame, chroma interpolated linearly.

    The first chroma sample lies at the first luma sample where `left`, else between two of them;
    between two lines in any case.
    """
    planes = [_plane(frame, index) for index in range(3)]
    height, width = planes[0].shape
    y, u, v = planes
    down, across = round(height / u.shape[0]), round(width / u.shape[1])
    rows = (np.arange(height) - (0.5 if down == 2 else 0)) / down
    columns = (np.arange(width) - (0.5 if across == 2 and not left else 0)) / across
    u, v = (_between(_between(plane, rows, 0), columns, 1) - 128 for plane in (u, v))
    if frame.color_range == 1:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    red, blue = MATRICES[frame.colorspace]
    green = 1 - red - blue
    r = y + 2 * (1 - red) * v
    b = y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / green
    return np.clip(np.dstack([r, g, b]), 0, 255)


def _plane(frame, index: int) -> np.ndarray:
    plane = frame.planes[index]
    bits = frame.format.components[index].bits
    kind = np.uint16 if bits > 8 else np.uint8
    lines = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind().itemsize)
    return lines[: plane.height, : plane.width] / 2.0 ** (bits - 8)


def _between(plane: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    last = plane.shape[axis] - 1
    low = np.floor(places).astype(int)
    share = np.expand_dims(places - low, 1 - axis)
    first, second = (np.take(plane, np.clip(n, 0, last), axis) for n in (low, low + 1))
    return first * (1 - share) + second * share


@pytest.mark.parametrize("colorspace", MATRICES)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    "format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"]
)
def test_colours_are_exact(format, full, colorspace):
    if format == "yuvj420p" and not full:
        pytest.skip("this format has the full range")
    frame = av.VideoFrame(64, 48, format)
    frame.colorspace, frame.color_range = colorspace, 2 if full else 1
    random = np.random.default_rng(0)
    for plane, component in zip(frame.planes, frame.format.components, strict=True):
        kind = np.uint16 if component.bits > 8 else np.uint8
        samples = random.integers(90, 166, plane.buffer_size // kind().itemsize)
        plane.update((samples << component.bits - 8).astype(kind).tobytes())
    assert np.abs(frame_pixels(frame) - exactly(frame, left=False)).max() < 1.3


@needs_shared
@pytest.mark.parametrize("detector", ["efficientnet_lite0", "meso4"])
def test_the_conversion_moves_no_verdict(tmp_path, detector):
    """Forty faces in H.264, one a video, against their frames converted in floating point."""
    photos = sorted((SHARED / "faces" / "test").glob("*/*/*.jpg"))
    chosen = [photos[n] for n in np.random.default_rng(0).permutation(len(photos))[:40]]
    converted, exact = [], []
    for number, path in enumerate(chosen):
        image = read_image(path)
        image = image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2]
        clip = make_clip(tmp_path / f"{number}.mp4", [image], options={"crf": "4"})
        [photo] = with_frames([Photo(clip)], Sampling(1))
        converted.append(photo.read().pixels)
        with av.open(clip) as container:
            frame = next(container.decode(video=0))
        frame.color_range = 1
        exact.append(np.round(exactly(frame, left=True)).astype(np.uint8))
    scorer = Scorer(load_detector(REPOSITORY / "weights" / detector), face_mode="none")
    here, there = (
        np.array(
            [
                rows[0].fake_probability
                for rows in scorer.score(
                    Photo(str(n), read=lambda image=image: Picture(image))
                    for n, image in enumerate(images)
                )
            ]
        )
        for images in (converted, exact)
    )
    assert len(here) == 40
    assert np.abs(here - there).max() < 0.02


@pytest.mark.parametrize(
    ("transfer", "white"), [(16, 573), (18, 721)], ids=["PQ, 203 cd/m²", "HLG, 75 %"]
)
def test_hdr_becomes_what_other_screens_show(transfer, white):
    """The level of a white sheet after ITU-R BT.2408 is white, and the order of greys is kept."""
    levels = []
    for luma in (64, 300, 440, white):
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        for plane, level in zip(frame.planes, (luma, 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, level, np.uint16).tobytes())
        frame.colorspace, frame.color_range = 9, 1
        frame.color_primaries, frame.color_trc = 9, transfer
        pixels = frame_pixels(frame)
        assert np.ptp(pixels.astype(int)) <= 2  # grey stays grey
        levels.append(int(pixels[0, 0, 0]))
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] > 245


@pytest.mark.parametrize(
    ("name", "codec", "format", "shape"),
    [
        ("clip.mp4", "libx265", "yuv420p10le", (96, 160)),
        ("clip.mp4", "libx264", "yuv444p", (97, 161)),
        ("clip.avi", "ffv1", "bgr0", (97, 161)),
        ("clip.mkv", "ffv1", "gray", (97, 161)),
        ("clip.webm", "libvpx-vp9", "yuv420p", (97, 161)),
        ("clip.mov", "prores_ks", "yuva444p10le", (96, 160)),
    ],
)
def test_formats_and_odd_sizes(tmp_path, name, codec, format, shape):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.dstack([y * 2, x + 50, y + x]).clip(0, 255).astype(np.uint8)
    if format == "gray":
        image[:] = image[:, :, :1]
    quiet = {"x265-params": "log-level=none"}
    clip = make_clip(tmp_path / name, [image] * 3, codec=codec, pixel_format=format, options=quiet)
    [photo] = with_frames([Photo(clip)], Sampling(1))
    assert np.abs(photo.read().pixels.astype(int) - image).mean() < 6


def test_interlaced_frames_are_read(tmp_path):
    image = marked()
    clip = make_clip(
        tmp_path / "clip.ts",
        [image] * 30,
        rate=25,
        codec="mpeg2video",
        options={"flags": "+ildct+ilme"},
    )
    photos = list(with_frames([Photo(clip)], Sampling(3)))
    for photo in photos:
        assert np.abs(photo.read().pixels.astype(int) - image).mean() < 6
