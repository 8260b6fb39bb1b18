"""The shipped detectors say of the sample photos what they said when this was written down.

Nothing but the scripts' own arguments and the rows that they write is used here, so that this file
stays as it is while everything behind them is moved about.
"""

import json

import pytest

from tests.conftest import REPOSITORY, SAMPLES

SCRIPTS = {
    "meso4": "infer_meso4.py",
    "mesoinception4": "infer_mesoinception4.py",
    "efficientnet_lite0": "infer_xception_efficientnet.py",
}
# (photo, box: left, top, right, bottom) of each row.
FACES = [
    ("fake_collins_face_on_hopper.jpg", (181, 123, 356, 342)),
    ("fake_hopper_face_on_collins.jpg", (182, 59, 270, 177)),
    ("fake_hopper_mouth_on_collins.jpg", (181, 59, 271, 177)),
    ("fake_morph_of_both.jpg", (182, 60, 269, 176)),
    ("fake_self_blended_collins.jpg", (182, 58, 270, 178)),
    ("no_face_coffee.webp", (None, None, None, None)),
    ("real_cameraman.png", (202, 119, 258, 197)),
    ("real_collins.jpg", (182, 58, 270, 178)),
    ("real_hopper_face.heic", (35, 17, 215, 232)),
    ("real_hopper_rotated.jpg", (176, 104, 359, 331)),
    ("two_people.jpg", (685, 102, 865, 320)),
    ("two_people.jpg", (178, 55, 271, 179)),
]
# (fake_probability, verdict) of each row.
VERDICTS = {
    "meso4": [
        (0.133428, "real"),
        (0.203264, "uncertain"),
        (0.136402, "real"),
        (0.118846, "real"),
        (0.129360, "real"),
        (None, "no face"),
        (0.013894, "real"),
        (0.255538, "uncertain"),
        (0.067007, "real"),
        (0.349063, "uncertain"),
        (0.134453, "real"),
        (0.163025, "real"),
    ],
    "mesoinception4": [
        (0.048763, "real"),
        (0.850801, "fake"),
        (0.528246, "uncertain"),
        (0.490695, "uncertain"),
        (0.543773, "uncertain"),
        (None, "no face"),
        (0.081104, "real"),
        (0.627967, "uncertain"),
        (0.268050, "uncertain"),
        (0.185161, "real"),
        (0.147835, "real"),
        (0.545852, "uncertain"),
    ],
    "efficientnet_lite0": [
        (0.051934, "real"),
        (0.102730, "real"),
        (0.053428, "real"),
        (0.331274, "real"),
        (0.016897, "real"),
        (None, "no face"),
        (0.971902, "uncertain"),
        (0.017760, "real"),
        (0.030184, "real"),
        (0.033647, "real"),
        (0.028347, "real"),
        (0.024016, "real"),
    ],
}


@pytest.mark.parametrize("detector", SCRIPTS)
def test_rows_are_what_they_were(detector, infer, tmp_path):
    file = tmp_path / "rows.jsonl"
    weights = REPOSITORY / "weights" / detector
    done = infer(SAMPLES, "--weights", weights, "--output", file, script=SCRIPTS[detector])
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: (row["path"], row["face"] or 0))

    expected = zip(FACES, VERDICTS[detector], strict=True)
    for row, ((photo, box), (probability, verdict)) in zip(rows, expected, strict=True):
        assert (SAMPLES / photo).samefile(row["path"])
        assert [row[side] for side in ("left", "top", "right", "bottom")] == [
            side if side is None else pytest.approx(side, abs=0.5) for side in box
        ]
        assert row["verdict"] == verdict
        assert row["fake_probability"] == (
            probability if probability is None else pytest.approx(probability, abs=1e-4)
        )
