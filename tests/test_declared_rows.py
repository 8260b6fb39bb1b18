"""What photos say of their own origin, in rows of every format, on the page, and in old files."""

import io
import json
from io import BytesIO

import pyarrow.parquet
import pytest
from PIL import Image

from pipeline.detectors.detector import load_detector
from pipeline.origin.declared import NOTHING
from pipeline.photos.images import read_picture
from pipeline.photos.photo import Photo, Picture
from pipeline.rows.files import open_output, read_rows
from pipeline.rows.rows import (
    COMPARED_FIELDS,
    DECLARED_FIELDS,
    FIELDS,
    LATER_FIELDS,
    VIDEO_FIELDS,
    Row,
    as_earlier,
)
from pipeline.rows.table import Summary, TableWriter
from pipeline.scoring.cluster import Parts, Settings
from pipeline.scoring.scoring import Scorer
from tests.broken_files import encoded
from tests.conftest import DETECTOR, FACE_SAMPLE
from tests.declared_pictures import CAMERA, CAMERA_BY, MANIFEST_BY, comment, picture, xmp

SUFFIXES = (".csv", ".jsonl", ".parquet", ".html")
MODELS = ("meso4",)


def row(path: str, origin: str | None = None, by: str | None = None, **others) -> Row:
    settings = {"verdict": "no face", "model": "meso4", "declared": origin, "declared_by": by}
    return Row(path=path, **settings | others)


@pytest.fixture(scope="module")
def scorer(own_cache) -> Scorer:
    return Scorer(load_detector(DETECTOR))


def test_it_stands_in_each_row_and_changes_no_other_column(scorer, tmp_path):
    with Image.open(FACE_SAMPLE) as image:
        face = image.convert("RGB")
    wide = Image.new("RGB", (2 * face.width, face.height))
    wide.paste(face)
    wide.paste(face, (face.width, 0))
    plain, said = tmp_path / "plain.png", tmp_path / "said.png"
    plain.write_bytes(encoded(wide, "PNG"))
    said.write_bytes(encoded(wide, "PNG", exif=CAMERA))
    expected, found = scorer.score([Photo(str(plain)), Photo(str(said))])
    assert len(found) == 2  # faces
    for silent, row in zip(expected, found, strict=True):
        assert (silent.declared, silent.declared_by) == (None, None)
        assert (row.declared, row.declared_by) == ("camera", CAMERA_BY)
        same = [name for name in FIELDS if name not in ("path", *DECLARED_FIELDS)]
        assert row.as_dict(same) == silent.as_dict(same)


def test_photos_without_a_face_uploads_and_what_is_no_file(scorer, tmp_path):
    content = picture("WEBP", xmp=xmp())
    (tmp_path / "a.webp").write_bytes(content)
    (tmp_path / "cut.webp").write_bytes(content[:-30])
    photos = [
        Photo(str(tmp_path / "a.webp")),
        Photo("upload", read=lambda: read_picture(BytesIO(content))),
        Photo(
            str(tmp_path / "a.webp"), read=lambda: Picture(read_picture(BytesIO(content)).pixels)
        ),
        Photo(str(tmp_path / "cut.webp")),
        Photo("x", "There is no such file."),
    ]
    rows = [row for rows in scorer.score(photos) for row in rows]
    assert [(row.verdict, row.declared) for row in rows] == [
        ("no face", "generated"),
        ("no face", "generated"),
        ("no face", None),
        ("error", None),
        ("error", None),
    ]
    assert Picture(rows).declared == NOTHING


@pytest.mark.parametrize("fields", [FIELDS, COMPARED_FIELDS], ids=["one network", "several"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_formats_hold_it(tmp_path, suffix, fields):
    path = tmp_path / f"rows{suffix}"
    written = [row("a.jpg", "generated", MANIFEST_BY), row("b.jpg"), row("c.jpg", None, "C2PA")]
    with open_output(path, MODELS, fields=fields) as writer:
        for one in written:
            writer.write([one])
    back = {one["path"]: one for one in read_rows(path)}
    assert back == {one.path: one.as_dict(fields) for one in written}
    assert {tuple(one) for one in back.values()} == {fields}
    if suffix == ".parquet":
        assert str(pyarrow.parquet.read_schema(path).field("declared").type) == "string"
    if suffix == ".html":
        page = path.read_text(encoding="utf-8")
        assert f"The file says that it was made by a generator ({MANIFEST_BY})." in page


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_report_escapes_what_a_file_says(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    with open_output(path, MODELS) as writer:
        writer.write([row("a.jpg", "camera", "<script>alert('x')</script>=1+1")])
    [back] = read_rows(path)
    assert back["declared_by"] == "<script>alert('x')</script>=1+1"
    assert suffix != ".html" or "<script>alert" not in path.read_text(encoding="utf-8")


def test_videos_declare_nothing():
    assert Row(path="a.mp4", verdict="fake", frames=3).declaration == ""


@pytest.mark.parametrize("fields", [FIELDS, COMPARED_FIELDS], ids=["one network", "several"])
@pytest.mark.parametrize("version", range(len(LATER_FIELDS)))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_an_earlier_version_goes_on_as_it_is(tmp_path, suffix, version, fields, capsys):
    path = tmp_path / f"rows{suffix}"
    older = as_earlier(fields)[version]
    missing = [name for name in fields if name not in older]
    assert set(missing) < set(fields)
    with open_output(path, MODELS, fields=older) as writer:
        writer.write([row("a.jpg")])
        writer.write([row("b.jpg")])
    assert {tuple(one) for one in read_rows(path)} == {older}
    capsys.readouterr()
    with open_output(path, MODELS, True, fields) as writer:
        assert writer.done == {"a.jpg"}  # the last one is looked at again
        writer.write([row("b.jpg", "generated", MANIFEST_BY)])
        writer.write([row("c.jpg", "camera", CAMERA_BY)])
    said = capsys.readouterr().err
    assert str(path) in said and ", ".join(missing) in said and "--continue" in said
    assert sorted(one["path"] for one in read_rows(path)) == ["a.jpg", "b.jpg", "c.jpg"]
    assert {tuple(one) for one in read_rows(path)} == {older}
    with open_output(path, MODELS, True, fields) as writer:  # and with a video
        writer.write([row("d.mp4", frames=1)])
    assert {tuple(one) for one in read_rows(path)} == {older + VIDEO_FIELDS}
    with open_output(path, MODELS, True, fields) as writer:
        assert "a.jpg" in writer.done
    assert {tuple(one) for one in read_rows(path)} == {older + VIDEO_FIELDS}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_this_version_goes_on_without_a_word(tmp_path, suffix, capsys):
    path = tmp_path / f"rows{suffix}"
    for name in ("a.jpg", "b.jpg"):
        with open_output(path, MODELS, path.exists()) as writer:
            for one in {name, "z.jpg"}:
                writer.write([row(one, "camera", CAMERA_BY)])
    assert "earlier version" not in capsys.readouterr().err
    assert {tuple(one) for one in read_rows(path)} == {FIELDS}
    (tmp_path / "empty.jsonl").touch()
    with open_output(tmp_path / "empty.jsonl", MODELS, True) as writer:
        writer.write([row("a.jpg", "camera", CAMERA_BY)])
    assert {tuple(one) for one in read_rows(tmp_path / "empty.jsonl")} == {FIELDS}


def test_parts_of_an_earlier_version_go_on_as_they_are(tmp_path):
    settings = Settings((str(DETECTOR),), str(tmp_path))
    assert settings.fields == FIELDS
    for fields in (FIELDS, *as_earlier(FIELDS)):
        missing = tuple(name for name in FIELDS if name not in fields)
        assert Settings((), "", lacking=missing).fields == fields
        output = tmp_path / str(len(fields))
        parts = Parts(str(output))
        unit = ["a.jpg"]
        parts.write_note(unit, {})
        parts.write(unit, [row("a.jpg")], fields)
        again = Parts(str(output))
        assert list(again.without_done(["a.jpg", "b.jpg"], {"meso4"})) == ["b.jpg"]
        assert again.lacking == missing


def test_the_table_says_it_before_the_scores():
    stream = io.StringIO()
    writer = TableWriter(stream, MODELS)
    writer.write([row("a.jpg", "generated", MANIFEST_BY)])
    writer.write([row("b.jpg", "camera", CAMERA_BY)])
    writer.write([row("c\n.jpg", "edited", "XMP\n\x1b[2J")])
    assert stream.getvalue().splitlines() == [
        "verdict      fake  declared   face  photo",
        f"a.jpg: The file says that it was made by a generator ({MANIFEST_BY}).",
        "no face            generated        a.jpg",
        "no face            camera           b.jpg",
        r"c\n.jpg: The file says that it was edited (XMP\n\x1b[2J).",
        r"no face            edited           c\n.jpg",
    ]


def test_of_two_networks_the_table_says_it_once():
    stream = io.StringIO()
    writer = TableWriter(stream, ("vit", "meso4"))
    writer.write([row("a.jpg", "generated", MANIFEST_BY, model=name) for name in ("vit", "meso4")])
    said = f"a.jpg: The file says that it was made by a generator ({MANIFEST_BY})."
    assert stream.getvalue().splitlines()[1:-1] == [said]


def test_the_summary_counts_photos_not_faces():
    summary = Summary(MODELS)
    face = {"verdict": "real", "fake_probability": 0.1}
    summary.add([row("a.jpg", "camera", CAMERA_BY, face=number, **face) for number in range(3)])
    summary.add([row("b.jpg", "generated", MANIFEST_BY)])
    summary.add([row("c.jpg", None, "C2PA manifest; not verified")])
    assert "; declared by their files: 1 generated, 1 camera; 2 without a face" in summary.line()
    silent = Summary(MODELS)
    silent.add([row("a.jpg")])
    assert "declared" not in silent.line()


def test_a_command_writes_it(infer, tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(exif=comment("Steps: 2, Sampler: x, Seed: 1")))
    done = infer("a.jpg", "--face", "none", "--output", "rows.jsonl")
    assert done.returncode == 0, done.stderr.decode()
    [written] = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert written["declared"] == "generated"
    assert written["declared_by"] == "EXIF UserComment: settings of Stable Diffusion; not verified"
    assert b"declared by their files: 1 generated" in done.stderr
