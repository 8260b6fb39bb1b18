"""Which frames of a video are looked at, whatever its container, time stamps and streams."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import ImageError
from pipeline.photos.photo import Photo
from pipeline.videos.frames import Sampling, with_frames
from tests.clips import make_clip, number_of, numbered, piped, seen
from tests.conftest import SAMPLES
from tests.shared import SHARED, needs_shared

av = pytest.importorskip("av")

EVENLY = [(10, 1.0), (30, 3.0), (50, 5.0), (70, 7.0), (90, 9.0)]  # of 100 frames, ten a second
FIVE = Sampling(5)


def problem_of(path: str, sampling: Sampling = FIVE) -> str:
    """What is said to be wrong with a video when all its frames have been read."""
    photos = list(with_frames([Photo(path)], sampling))
    if photos[0].error:
        return photos[0].error
    for photo in photos:
        photo.read()
    return photos[0].frame.video.problem


def about(frames: list[tuple[int, float]]) -> list:
    """The same frames, with times that a container has rounded."""
    return [(number, pytest.approx(time, abs=0.002)) for number, time in frames]


# Time stamps


@pytest.mark.parametrize("start", [600, 13, -3])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts", "a.mpg", "a.flv"])
def test_the_first_time_stamp_may_be_any(tmp_path, name, start):
    codec = {"a.webm": "libvpx-vp9", "a.mpg": "mpeg2video"}.get(name, "libx264")
    if name == "a.mpg" and start < 0:
        pytest.skip("MPEG programme streams have no negative time stamps")
    rate = 25 if name == "a.mpg" else 10
    clip = make_clip(
        tmp_path / name, numbered(100), rate, codec, pts=lambda n: n + start * rate // 10
    )
    expected = [(number, time * 10 / rate) for number, time in EVENLY]
    if start < 0 and name == "a.mp4":  # an edit list leaves out what is before 0
        assert seen(clip, Sampling(1000))[0] == (3, 0.0)
        return
    assert seen(clip, Sampling(5)) == about(expected)
    assert len(seen(clip, Sampling(every=2.5))) == np.ceil(100 / rate / 2.5)
    assert problem_of(clip) == ""


@needs_shared
def test_a_video_that_starts_after_a_minute():
    clip = str(SHARED / "failing" / "07_starts_at_60s.webm")
    photos = list(with_frames([Photo(clip)], Sampling(3)))
    for photo in photos:
        photo.read()
    assert [photo.frame.time for photo in photos] == [1.6, 5.0, 8.3]
    assert [photo.frame.number for photo in photos] == [16, 50, 83]
    assert photos[0].frame.video.problem == ""
    assert len(list(with_frames([Photo(clip)], Sampling(every=2)))) == 5


def test_an_edit_list_shows_the_end_alone(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(100), gop=100, pts=lambda n: n - 50)
    assert seen(clip, Sampling(5)) == [(55, 0.5), (65, 1.5), (75, 2.5), (85, 3.5), (95, 4.5)]
    assert problem_of(clip) == ""


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_frames_may_be_shown_for_different_times(tmp_path, name):
    def slower(n: int) -> int:  # 50 frames in five seconds, then 50 frames in 25
        return n if n < 50 else 50 + 5 * (n - 50)

    clip = make_clip(tmp_path / name, numbered(100), pts=slower)
    assert seen(clip, Sampling(6)) == about(
        [(25, 2.5), (55, 7.5), (65, 12.5), (75, 17.5), (85, 22.5), (95, 27.5)]
    )
    assert [number for number, _ in seen(clip, Sampling(every=5))] == [0, 50, 60, 70, 80, 90]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_a_long_pause_is_not_looked_at(tmp_path, name):
    clip = make_clip(tmp_path / name, numbered(60), pts=lambda n: n if n < 30 else n + 3000)
    assert [number for number, _ in seen(clip, Sampling(6))] == [5, 17, 28, 31, 42, 54]
    assert [number for number, _ in seen(clip, Sampling(every=2))] == [0, 20, 29, 40]
    assert problem_of(clip) == ""


def test_a_slide_show_gives_each_slide_once(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", numbered(5), pts=lambda n: 100 * n)
    assert [number for number, _ in seen(clip, Sampling(32))] == [0, 1, 2, 3, 4]
    assert [number for number, _ in seen(clip, Sampling(every=1))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.ts", "libx264")]
)
def test_very_short_videos(tmp_path, name, codec, number):
    clip = make_clip(tmp_path / name, numbered(number), codec=codec)
    assert [n for n, _ in seen(clip, Sampling(32))] == list(range(number))
    assert [n for n, _ in seen(clip, Sampling(every=60))] == [0]
    assert problem_of(clip) == ""


# Containers


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize(
    "name", ["clip.ts", "clip.mts", "clip.m2ts", "clip.mpg", "clip.mkv", "clip.avi"]
)
def test_long_groups_of_pictures(tmp_path, name, codec):
    fits = codec != "libx265" or name not in ("clip.mpg", "clip.avi")
    if codec not in av.codecs_available or not fits:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    # A key frame every ten seconds, and no other at a change of scene
    quiet = {"x265-params": "scenecut=0:log-level=none", "sc_threshold": "0"}
    clip = make_clip(tmp_path / name, numbered(1000), 25, codec, gop=250, options=quiet)
    expected = [(62, 2.48), (187, 7.48), (312, 12.48), (437, 17.48)]
    expected += [(562, 22.48), (687, 27.48), (812, 32.48), (937, 37.48)]
    assert seen(clip, Sampling(8)) == about(expected)
    assert seen(clip, Sampling(every=12)) == about([(0, 0), (300, 12), (600, 24), (900, 36)])
    assert problem_of(clip, Sampling(40)) == ""


@pytest.mark.parametrize("name", ["clip.ts", "clip.m2ts"])
def test_the_clock_of_a_transport_stream_may_start_anew(tmp_path, name):
    wrap = 2**33 / 90_000  # seconds after which time stamps of 33 bits are zero again
    clip = make_clip(
        tmp_path / name, numbered(500), 25, gop=100, header={"output_ts_offset": f"{wrap - 9}"}
    )
    expected = [(50, 2.0), (150, 6.0), (250, 10.0), (350, 14.0), (450, 18.0)]
    assert seen(clip, Sampling(5)) == about(expected)
    assert problem_of(clip) == ""


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_a_damaged_part_is_stepped_over(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (300, 48, 64, 3), np.uint8)
    clip = Path(make_clip(tmp_path / name, noise, 25, gop=50, options={"sc_threshold": "0"}))
    content = bytearray(clip.read_bytes())
    start, end = len(content) * 4 // 10, len(content) * 6 // 10
    content[start:end] = bytes(end - start)
    clip.write_bytes(content)
    photos = list(with_frames([Photo(str(clip))], Sampling(6)))
    times = []
    for photo in photos:
        with contextlib.suppress(ImageError):
            photo.read()
            times.append(photo.frame.time)
    assert times == sorted(set(times))
    assert len(times) >= 5
    assert times[0] < 2
    assert times[-1] > 9


def test_recordings_one_after_the_other(tmp_path):
    first, second = (make_clip(tmp_path / f"{n}.ts", numbered(100)) for n in (1, 2))
    clip = tmp_path / "both.ts"
    clip.write_bytes(Path(first).read_bytes() + Path(second).read_bytes())
    assert [number for number, _ in seen(str(clip), Sampling(4))] == [25, 75, 25, 75]


def test_a_broadcast_starts_anywhere(tmp_path):
    clip = Path(
        make_clip(tmp_path / "clip.ts", numbered(100), gop=30, options={"sc_threshold": "0"})
    )
    content = clip.read_bytes()
    clip.write_bytes(content[188 * (len(content) // 188 // 6) :])  # the first key frame is gone
    numbers = [number for number, _ in seen(str(clip), Sampling(7))]
    assert numbers[0] == 35
    assert numbers == [35, 45, 55, 65, 75, 85, 95]


@pytest.mark.parametrize(
    ("name", "codec"), [("matroska", "libx264"), ("webm", "libvpx-vp9"), ("mp4", "libx264")]
)
def test_a_video_written_to_a_pipe(tmp_path, name, codec):
    source = tmp_path / ("source.mp4" if name == "mp4" else "source.mkv")
    make_clip(source, numbered(100), codec=codec)
    path = tmp_path / "clip.mkv"
    fragmented = {"movflags": "frag_keyframe+empty_moov"} if name == "mp4" else {}
    piped(str(source), path, name, fragmented)
    assert seen(str(path), Sampling(5)) == about(EVENLY)
    assert problem_of(str(path)) == ""


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("clip.avi", codec) for codec in ("libx264", "mpeg4", "mjpeg", "ffv1")),
        *(("clip.mp4", codec) for codec in ("libx264", "libx265", "libsvtav1", "libvpx-vp9")),
        *(("clip.mkv", codec) for codec in ("libx264", "libx265", "libsvtav1", "prores_ks")),
        *(("clip.webm", codec) for codec in ("libvpx", "libvpx-vp9", "libsvtav1")),
        *(("clip.ts", codec) for codec in ("libx264", "libx265", "mpeg2video")),
        *(("clip.flv", codec) for codec in ("libx264", "flv1")),
        *(("clip.mov", codec) for codec in ("libx264", "prores_ks", "mjpeg")),
        *(("clip.wmv", codec) for codec in ("wmv2", "msmpeg4v3")),
        *(("clip.mpg", codec) for codec in ("mpeg1video", "mpeg2video")),
        ("clip.m4v", "mpeg4"),
        ("clip.3gp", "libx264"),
    ],
)
def test_each_frame_of_each_kind(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    pixel_format = {"prores_ks": "yuv422p10le", "ffv1": "yuv420p"}.get(codec, "")
    images = (np.repeat(np.repeat(image, 4, 0), 4, 1) for image in numbered(100))
    quiet = {"x265-params": "log-level=none"}
    clip = make_clip(
        tmp_path / name, images, 25, codec, gop=40, pixel_format=pixel_format, options=quiet
    )
    for sampling, numbers in [
        (Sampling(5), [10, 30, 50, 70, 90]),
        (Sampling(100), list(range(100))),
        (Sampling(every=1), [0, 25, 50, 75]),
    ]:
        photos = list(with_frames([Photo(clip)], sampling))
        assert [number_of(photo.read().pixels[::4, ::4]) for photo in photos] == numbers
        assert [photo.frame.number for photo in photos] == numbers
        times = [photo.frame.time for photo in photos]
        assert times == pytest.approx([number / 25 for number in numbers], abs=0.002)
    assert photos[0].frame.video.problem == ""


# Streams


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
def test_sound_may_come_first_and_last_longer(tmp_path, name):
    clip = make_clip(tmp_path / name, numbered(100), rate=25, sound_first=12)
    frames = seen(clip, Sampling(5))
    assert frames == about([(10, 0.4), (30, 1.2), (50, 2.0), (70, 2.8), (90, 3.6)])
    assert problem_of(clip) == ""


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_picture_of_the_cover_may_come_first(tmp_path, name, marked):
    source = make_clip(tmp_path / "source.mp4", numbered(100))
    path = tmp_path / name
    with av.open(source) as container, av.open(str(path), "w") as other:
        cover = other.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        if marked:
            cover.disposition = av.stream.Disposition.attached_pic
        copy = other.add_stream_from_template(container.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 255, np.uint8), format="rgb24")
        for packet in [*cover.encode(picture), *cover.encode(None)]:
            other.mux(packet)
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = copy
                other.mux(packet)
    assert seen(str(path), Sampling(5)) == about(EVENLY)
    assert problem_of(str(path)) == ""


# What is not whole


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.flv", "clip.avi"])
def test_cut_short_is_said_of_what_has_been_cut(tmp_path, name):
    codec = "mjpeg" if name == "clip.avi" else "libx264"
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), np.uint8)
    header = {"movflags": "faststart"} if name == "clip.mp4" else {}
    clip = Path(make_clip(tmp_path / name, noise, codec=codec, header=header))
    content = clip.read_bytes()
    assert problem_of(str(clip)) == ""
    clip.write_bytes(content[: len(content) // 2])
    photos = list(with_frames([Photo(str(clip))], Sampling(10)))
    times = []
    for photo in photos:
        with contextlib.suppress(ImageError):  # the last frame may be half there
            photo.read()
            times.append(photo.frame.time)
    assert times == [0.5, 1.5, 2.5, 3.5, 4.5][: len(times)]
    assert len(times) >= 4
    problem = photos[0].frame.video.problem
    assert "cut short" in problem
    assert " of 10." in problem
    [after] = [float(word) for word in problem.split() if word[0].isdigit() and word[0] != "1"]
    assert after == pytest.approx(5, abs=1)


def test_a_transport_stream_is_as_long_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), np.uint8)
    clip = Path(make_clip(tmp_path / "clip.ts", noise))
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    assert problem_of(str(clip)) == ""
    assert len(list(with_frames([Photo(str(clip))], Sampling(10)))) == 10


def test_without_its_index_an_mp4_cannot_be_opened(tmp_path):
    clip = Path(make_clip(tmp_path / "clip.mp4", numbered(100)))  # the index comes last
    clip.write_bytes(clip.read_bytes()[:-2000])
    assert "cut short" in problem_of(str(clip))


def test_a_picture_named_like_a_video(tmp_path):
    from PIL import Image

    for name, format in [("a.mp4", "GIF"), ("b.webm", "WEBP"), ("c.mov", "PNG")]:
        frames = [Image.new("L", (64, 48), grey) for grey in (0, 100, 200)]
        path = tmp_path / name
        frames[0].save(path, format, save_all=True, append_images=frames[1:])
        assert "not a video" in problem_of(str(path))


def test_a_frame_may_not_grow_beyond_the_limit(tmp_path):
    """The headers say 64 x 48; what follows in the stream is larger than any frame may be."""
    small = make_clip(tmp_path / "small.ts", numbered(20))
    black = np.zeros((6400, 6400, 3), np.uint8)
    large = make_clip(tmp_path / "large.ts", [black] * 2, options={"preset": "ultrafast"})
    clip = tmp_path / "clip.ts"
    clip.write_bytes(Path(small).read_bytes() + Path(large).read_bytes())
    photos = list(with_frames([Photo(str(clip))], Sampling(30)))
    shapes = set()
    for photo in photos:
        try:
            shapes.add(photo.read().pixels.shape)
        except ImageError:
            continue
    assert shapes == {(48, 64, 3)}


def test_nothing_else_is_opened(tmp_path):
    other = make_clip(tmp_path / "other.mp4", numbered(20))
    lists = {
        "concat.mp4": f"ffconcat version 1.0\nfile '{other}'\n",
        "playlist.mkv": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n",
        "description.mov": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\n{other}\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        assert "not a video" in problem_of(str(tmp_path / name))
    assert (SAMPLES / "real_collins.jpg").exists()
