"""Where the faces of training pictures lie, for the changes that cut them out."""

from pathlib import Path

import numpy as np

from pipeline.photos.faces import Face, FaceFinder

Box = tuple[float, float, float, float]  # left, top, right, bottom


class FacePlaces:
    """Where a picture's largest face lies; each is looked for once. Any thread may ask."""

    def __init__(self):
        self._finder = FaceFinder()
        self._boxes: dict[Path, Box | None] = {}

    def __call__(self, path: Path, image: np.ndarray) -> Box | None:
        """(left, top, right, bottom) in pixels of `image`, (H, W, 3) uint8, which is what stands at
        `path`; None where no face is found."""
        if path not in self._boxes:
            faces = self._finder.find(image)
            # Rounded, so that no last digit of the face detector's can move a crop.
            self._boxes[path] = _rounded(faces[0]) if faces else None
        return self._boxes[path]


def _rounded(face: Face) -> Box:
    return tuple(float(round(x)) for x in (face.left, face.top, face.right, face.bottom))
