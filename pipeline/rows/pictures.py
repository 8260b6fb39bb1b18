"""What a report shows of the photos: thumbnails that are made while they are scored, heat maps."""

import base64
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from pipeline.photos.images import read_image, read_picture
from pipeline.photos.photo import Photo, Picture
from pipeline.photos.pixels import shrink
from pipeline.rows.record import file_facts
from pipeline.rows.rows import Row

THUMBNAIL_SIDE = 200  # pixels of the longer side: about 8 kB a photo in the page
HEAT_MAP_SIDE = 512  # a face beside its heat map: about 20 kB
JPEG_QUALITY = 70


class PictureKeeper:
    """Makes thumbnails of photos while they are scored, and keeps them until their rows come; and,
    `with_facts`, what a record notes of their files (record.py)."""

    def __init__(self, with_facts: bool = False):
        self._with_facts = with_facts
        self._kept: dict[str, list[tuple[Photo, dict]]] = {}
        self._facts: dict[str, dict] = {}
        self._heat_maps: dict[int, Path] = {}
        self._lock = threading.Lock()  # photos are read in threads

    def watch(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        """The same photos; each leaves a thumbnail here when it is read."""
        for photo in photos:
            yield photo if photo.error else photo._replace(read=self._reader(photo))

    def note_heat_maps(self, files: dict[int, Path]) -> None:
        """The heat maps of the rows that are taken next, by the numbers of these."""
        self._heat_maps = files

    def take(self, rows: list[Row]) -> dict | None:
        """The picture for the rows of a photo; of a video, its most suspicious frame.

        `width` and `height` of the upright photo in pixels, `jpeg` in base64, `time` of the frame;
        with facts also those, and `heat_maps`.
        """
        path = rows[0].path
        picture = self._take_picture(rows)
        if not self._with_facts:
            return picture
        with self._lock:
            facts = self._facts.pop(path, None)
        heat_maps, self._heat_maps = self._heat_maps, {}
        drawn = [heat_map(row, file.name, read_image(file)) for row, file in heat_maps.items()]
        return (facts or file_facts(path)) | (picture or {}) | {"heat_maps": drawn}

    def _take_picture(self, rows: list[Row]) -> dict | None:
        path = rows[0].path
        with self._lock:
            if all(row.frames is None for row in rows):
                kept = self._kept.get(path, [])
                frames = {None: kept.pop()[1]} if kept else {}
                if not kept:
                    self._kept.pop(path, None)
            else:
                kept = self._kept.pop(path, [])
                frames = {photo.frame.time: picture for photo, picture in kept if photo.frame}
        if not frames:
            return None
        of_frames = [row for row in rows if row.time in frames]
        time = most_suspicious(of_frames).time if of_frames else next(iter(frames))
        return frames[time] | {"time": time}

    def _reader(self, photo: Photo):
        def read() -> Picture:
            if self._with_facts and not photo.read:  # a file, not the frame of one
                facts = file_facts(photo.path)
                with self._lock:
                    self._facts[photo.path] = facts
            picture = photo.read() if photo.read else read_picture(photo.path)
            small = thumbnail(picture.pixels)
            with self._lock:
                self._kept.setdefault(photo.path, []).append((photo, small))
            return picture

        return read


def thumbnail(image: np.ndarray, side: int = THUMBNAIL_SIDE) -> dict:
    """A JPEG of a picture (H, W, 3) uint8 RGB, its longer side at most `side` pixels: `jpeg` in
    base64, and the `width` and `height` of the picture."""
    height, width = image.shape[:2]
    small = shrink(image, side)
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    success, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), settings)
    if not success:
        raise RuntimeError(f"OpenCV cannot encode a picture of shape {small.shape}")
    return {"width": width, "height": height, "jpeg": base64.b64encode(data).decode()}


def heat_map(row: int, file: str, image: np.ndarray) -> dict:
    """What a report notes of the heat map of a photo's row: its number, the name of its file, and
    the picture (H, W, 3) uint8 RGB as `thumbnail`, which is large enough to see it whole."""
    return {"row": row, "file": file, **thumbnail(image, HEAT_MAP_SIDE)}


def most_suspicious(rows: list[Row]) -> Row:
    """The first row with the highest fake_probability."""
    return max(rows, key=lambda row: -1 if row.fake_probability is None else row.fake_probability)
