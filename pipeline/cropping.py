"""The largest face of each photo, or of frames of each video, cut out and coded as PNG."""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import ImageError
from pipeline.faces import FaceFinder, FaceRegion, crop_region, face_regions
from pipeline.images import read_image
from pipeline.inputs import is_video_file
from pipeline.machine import usable_cores
from pipeline.video_frames import Sampling, frames_of


@dataclass(frozen=True)
class CropSettings:
    """What is cut out of each picture."""

    face: str  # auto or none, see pipeline.faces.face_regions
    margin: float  # side of the crop in sides of the face's box
    size: int | None = None  # pixels; longer crops are shrunk to it, shorter ones left alone
    frames: int = 8  # per video, evenly spread


@dataclass(frozen=True)
class CroppedFace:
    """A face as it is stored: of which frame of a video, what region of it, and as a PNG file."""

    frame: int | None
    region: FaceRegion
    png: bytes


def crop_in_threads(
    items: Sequence[tuple[Any, Path]], settings: CropSettings, workers: int | None
) -> Iterator[tuple[Any, list[CroppedFace] | ImageError]]:
    """Of pairs of anything and a photo's or video's path: each item with the faces, or with the
    reason why there are none, as they become ready. `workers`: threads; None: one a core."""
    workers = workers or usable_cores()
    finder = FaceFinder() if items and settings.face != "none" else None

    def work(path: Path) -> list[CroppedFace] | ImageError:
        try:
            return _largest_faces(path, finder, settings)
        except ImageError as error:
            return error

    waiting = iter(items)
    running: dict[Future, Any] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            # A few ahead, not all: finished crops wait in memory
            for item, path in itertools.islice(waiting, 4 * workers - len(running)):
                running[pool.submit(work, path)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _largest_faces(
    path: Path, finder: FaceFinder | None, settings: CropSettings
) -> list[CroppedFace]:
    """The largest face of the photo, or of each chosen frame of the video that shows one."""
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
    """RGB pixels of a photo, or of `frames` frames of a video with the number of each."""
    if not is_video_file(path):
        yield None, read_image(path)
        return
    read = 0
    for photo in frames_of(os.fspath(path), Sampling(frames)):
        if photo.error:
            raise ImageError(photo.error)
        try:
            image = photo.read()
        except ImageError as error:  # cut short: what there is counts
            problem = str(error)
            continue
        read += 1
        yield photo.frame.number, image
    if not read:
        raise ImageError(problem)


def _shrunk(image: np.ndarray, size: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    if size is None or max(height, width) <= size:
        return image
    scale = size / max(height, width)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA)


def _png(image: np.ndarray) -> bytes:
    success, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not success:
        raise RuntimeError(f"OpenCV cannot encode a picture of shape {image.shape}")
    return data.tobytes()
