"""From one photo or video to the crops that are stored of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.common.errors import ImageError
from pipeline.photos.faces import FaceFinder, FaceRegion, crop_region, face_regions
from pipeline.photos.images import read_image
from pipeline.photos.photo import Photo
from pipeline.photos.pixels import shrink
from pipeline.videos.frames import Sampling, with_frames


@dataclass(frozen=True)
class CropSettings:
    face: str  # auto or none, see pipeline.photos.faces.face_regions
    margin: float  # side of the crop in sides of the face's box
    size: int | None = None  # pixels; longer crops are shrunk to it, shorter ones left alone
    frames: int = 8  # per video, evenly spread


@dataclass(frozen=True)
class CroppedFace:
    """`frame` is the number of the video's frame, None of a photo; `png` is the crop's file."""

    frame: int | None
    region: FaceRegion
    png: bytes


def largest_faces(
    path: Path, finder: FaceFinder | None, settings: CropSettings
) -> list[CroppedFace]:
    """The largest face of the photo, or of each chosen frame of the video that shows one.

    Raises ImageError where there is none, or the file cannot be read.
    """
    faces = []
    for frame, image in _pictures(path, settings.frames):
        regions = face_regions(image, finder, settings.face, settings.margin)
        if regions:
            crop = _shrunk(crop_region(image, regions[0]), settings.size)  # the largest is first
            faces.append(CroppedFace(frame, regions[0], _png(crop)))
    if not faces:
        raise ImageError("no face was found in it; leave it out, or crop it to the face by hand")
    return faces


def _pictures(path: Path, frames: int) -> Iterator[tuple[int | None, np.ndarray]]:
    """The photo, or up to so many frames of the video with their numbers."""
    problem, read = "", 0
    for photo in with_frames([Photo(str(path))], Sampling(frames)):
        if photo.frame is None:
            yield None, read_image(path)
            return
        try:
            if photo.error:
                raise ImageError(photo.error)
            image = photo.read().pixels
        except ImageError as error:
            problem = problem or str(error)
            continue
        read += 1
        yield photo.frame.number, image
    if not read:
        raise ImageError(problem)


def _shrunk(image: np.ndarray, size: int | None) -> np.ndarray:
    return image if size is None else shrink(image, size)


def _png(image: np.ndarray) -> bytes:
    success, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not success:
        raise RuntimeError(f"OpenCV cannot encode a picture of shape {image.shape}")
    return data.tobytes()
