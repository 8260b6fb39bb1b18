"""Crops of videos: prepare_dataset.py takes the frames that scoring looks at, of the same files."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import ImageError
from pipeline.data.cropping import CropSettings, largest_faces
from pipeline.photos.images import read_image
from pipeline.photos.photo import Photo
from pipeline.videos.frames import Sampling, with_frames
from tests.clips import make_clip, numbered, piped
from tests.conftest import SAMPLES
from tests.test_frame_pixels import with_matrix

av = pytest.importorskip("av")

WHOLE = CropSettings(face="none", margin=1.3, frames=5)


def looked_at(path: Path) -> dict[int, np.ndarray]:
    photos = list(with_frames([Photo(str(path))], Sampling(5)))
    return {photo.frame.number: image for photo in photos for image in [photo.read().pixels]}


def cropped(path: Path, folder: Path) -> dict[int, np.ndarray]:
    pictures = {}
    for face in largest_faces(path, None, WHOLE):
        stored = folder / f"{face.frame}.png"
        stored.write_bytes(face.png)
        pictures[face.frame] = read_image(stored)
    return pictures


def various(folder: Path):
    """Files whose headers mislead."""
    source = make_clip(folder / "source.mkv", numbered(100))
    yield piped(source, folder / "piped.mkv", "matroska")
    yield make_clip(folder / "late.mkv", numbered(100), pts=lambda n: n + 600)
    yield make_clip(folder / "long.m2ts", numbered(500), 25, gop=250)
    yield make_clip(folder / "long.ts", numbered(500), 25, gop=250)
    mirrored = make_clip(folder / "mirrored.mp4", numbered(100))
    with_matrix(mirrored, (-1, 0, 0, 1))
    yield mirrored


def test_the_same_frames_as_in_scoring(tmp_path):
    for path in map(Path, various(tmp_path)):
        scored, stored = looked_at(path), cropped(path, tmp_path)
        assert list(scored) == list(stored)
        assert len(stored) == 5
        for number, image in scored.items():
            assert (image == stored[number]).all()


@pytest.mark.parametrize("name", ["list.mp4", "list.mkv", "list.avi", "list.ts"])
def test_no_playlist_is_opened(tmp_path, name):
    clip = make_clip(tmp_path / "clip.mp4", numbered(20))
    path = tmp_path / name
    path.write_text(f"ffconcat version 1.0\nfile '{clip}'\n")
    with pytest.raises(ImageError, match="not a video"):
        largest_faces(path, None, WHOLE)


def test_the_beginning_of_a_video_that_has_been_cut_short_is_used(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), np.uint8)
    path = Path(make_clip(tmp_path / "clip.mkv", noise))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert 2 <= len(largest_faces(path, None, WHOLE)) <= 3
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        largest_faces(path, None, WHOLE)


def test_a_photo_is_no_video():
    [face] = largest_faces(SAMPLES / "real_collins.jpg", None, WHOLE)
    assert face.frame is None
