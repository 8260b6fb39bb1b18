"""Where the labelled faces and reference weights lie that are not part of this repository."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

needs_shared = pytest.mark.skipif(
    not (SHARED / "faces").is_dir(),
    reason="needs the labelled faces and reference weights in ../shared, which are not published",
)
