"""Rows survive every format, every kill and every odd name."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.rows.files import open_output, read_rows
from pipeline.rows.rows import COMPARED_FIELDS, FIELDS, Row, by_face
from pipeline.rows.table import Summary, TableWriter
from pipeline.rows.writer import RowWriter

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS = ("meso4",)
TWO = ("xception", "efficientnet_b0")
SUFFIXES = (".csv", ".jsonl", ".parquet")
ODD_PATHS = (
    'say "cheese", 1.jpg',
    "two\nlines\r\nthree\r.jpg",
    "ünï/写真 😀.jpg",
    "bytes\udcff\udc80.jpg",
    "=cmd\u2028 \t' .jpg",
    '"',
    '""\n',
    "\\udcf.jpg",
    "x" * 4000,
)

# Lone surrogates only as surrogateescape makes them, from bytes that are not UTF-8.
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
    | st.sampled_from('",\n\r\\;'),
    min_size=1,
    max_size=20,
)
whole_numbers = st.integers(-(2**31), 2**31 - 1) | st.none()
fractions = st.floats(allow_nan=False, allow_infinity=False) | st.none()
any_rows = st.builds(
    Row,
    path=st.sampled_from(ODD_PATHS) | texts,
    face=whole_numbers,
    left=whole_numbers,
    top=whole_numbers,
    right=whole_numbers,
    bottom=whole_numbers,
    face_score=fractions,
    fake_probability=fractions,
    verdict=st.sampled_from(["real", "fake", "uncertain", "no face", "error"]),
    threshold=fractions,
    model=texts | st.none(),
    error=texts | st.none(),
    declared=st.sampled_from(["generated", "edited", "camera"]) | st.none(),
    declared_by=texts | st.none(),
    stability=fractions,
    fake_probability_low=fractions,
    fake_probability_high=fractions,
    reason=texts | st.none(),
    agreement=st.booleans() | st.none(),
)


def face(path: str, number: int = 0, verdict: str = "fake", model: str = "meso4") -> Row:
    return Row(
        path=path,
        face=number,
        left=-3,
        top=0,
        right=250,
        bottom=256,
        face_score=0.93,
        fake_probability=0.1 + 1e-9,
        verdict=verdict,
        threshold=0.5,
        model=model,
    )


def both(path: str, number: int = 0, verdicts: tuple[str, str] = ("fake", "fake")) -> list[Row]:
    """A face as two networks see it."""
    rows = [
        face(path, number, verdict, model) for verdict, model in zip(verdicts, TWO, strict=True)
    ]
    for row in rows:
        row.agreement = verdicts[0] == verdicts[1]
    return rows


def broken(path: str) -> Row:
    return Row(path=path, verdict="error", model="meso4", error="The file is empty.")


def save(path: Path, *photos: list[Row], resume: bool = False) -> None:
    with open_output(path, MODELS, resume) as writer:
        for rows in photos:
            if rows[0].path not in writer.done:
                writer.write(rows)


def journal_of(path: Path) -> Path:
    """The file that a killed run leaves behind."""
    return path.with_name(f".{path.name}.journal.jsonl") if path.suffix == ".parquet" else path


def killed(path: Path, *photos: list[Row]) -> Path:
    """Write as a run that dies before it can close its output; where its rows are."""
    writer = open_output(path, MODELS)
    for rows in photos:
        writer.write(rows)
    die(writer)
    return journal_of(path)


def die(writer: RowWriter) -> None:
    """Leave a writer as the end of its process would: open files and locks go, nothing else."""
    writer._file.close()
    writer._run.lock._lock.release()


def test_columns_are_those_of_the_contract():
    assert ", ".join(FIELDS) == (
        "path, face, left, top, right, bottom, face_score, fake_probability, "
        "verdict, threshold, model, error, declared, declared_by, stability, "
        "fake_probability_low, fake_probability_high, reason"
    )
    assert (*FIELDS, "agreement") == COMPARED_FIELDS


@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("fields", [FIELDS, COMPARED_FIELDS], ids=["one network", "several"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(photos=st.lists(st.lists(any_rows, min_size=1, max_size=3), max_size=4))
def test_any_row_comes_back_as_it_was(tmp_path_factory, suffix, fields, photos):
    path = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
    with open_output(path, MODELS, fields=fields) as writer:
        for rows in photos:
            writer.write(rows)
    expected = [row.as_dict(fields) for rows in photos for row in rows]
    back = list(read_rows(path))
    assert back == expected
    if back:
        assert tuple(back[0]) == fields
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_types_and_empty_fields(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    save(path, [face("a.jpg")], [broken("b.jpg")])
    first, second = read_rows(path)
    assert [type(value) for value in first.values()] == (
        [str] + [int] * 5 + [float] * 2 + [str, float, str] + [type(None)] * 7
    )
    assert {name for name, value in second.items() if value is not None} == {
        "path",
        "verdict",
        "model",
        "error",
    }


def test_csv_and_json_lines_as_others_read_them(tmp_path):
    save(tmp_path / "rows.csv", [face("é,.jpg")])
    save(tmp_path / "rows.jsonl", [face("é,.jpg")])
    assert (tmp_path / "rows.csv").read_bytes().decode() == (
        ",".join(FIELDS) + '\n"é,.jpg",0,-3,0,250,256,0.93,0.100000001,fake,0.5,meso4,,,,,,,\n'
    )
    line = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert line.startswith('{"path": "é,.jpg", "face": 0, "left": -3,')
    assert line.endswith(
        '"model": "meso4", "error": null, "declared": null, "declared_by": null, '
        '"stability": null, "fake_probability_low": null, "fake_probability_high": null, '
        '"reason": null}\n'
    )


def test_agreement_as_others_read_it(tmp_path):
    import pyarrow.parquet

    for suffix in SUFFIXES:
        with open_output(tmp_path / f"rows{suffix}", TWO, fields=COMPARED_FIELDS) as writer:
            writer.write(both("a.jpg", 0) + both("a.jpg", 1, ("real", "uncertain")))
            writer.write([Row(path="b.jpg", verdict="no face")])
    text = (tmp_path / "rows.csv").read_text()
    assert [line.rpartition(",")[2] for line in text.splitlines()] == [
        "agreement",
        "true",
        "true",
        "false",
        "false",
        "",
    ]
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == (
        ["true}"] * 2 + ["false}"] * 2 + ["null}"]
    )
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.schema.field("agreement").type == pyarrow.bool_()
    assert table["agreement"].to_pylist() == [True, True, False, False, None]


def test_parquet_is_typed_and_valid_utf8(tmp_path):
    import pyarrow.parquet

    save(tmp_path / "rows.parquet", [face("\udcff.jpg")])
    schema = pyarrow.parquet.read_schema(tmp_path / "rows.parquet")
    assert [str(field.type) for field in schema] == (
        ["string"]
        + ["int32"] * 5
        + ["double"] * 2
        + ["string", "double"]
        + ["string"] * 4
        + ["double"] * 3
        + ["string"]
    )
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table["path"].to_pylist() == [r"\udcff.jpg"]


PHOTOS = (
    [face('a "1",\n.jpg', 0), face('a "1",\n.jpg', 1, "real")],
    [Row(path="é\udcff.jpg", verdict="no face", model="meso4")],
    [broken("c.jpg")],
    [face("d.jpg")],
)
REPAIRED = (*PHOTOS[:2], [face("c.jpg")], PHOTOS[3])  # what a second run makes of them


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_killed_at_any_byte_goes_on_without_loss(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    left = killed(path, *PHOTOS)
    content = left.read_bytes()
    expected = sorted(str(row.as_dict(FIELDS)) for rows in REPAIRED for row in rows)
    scored_again = set()
    # Parquet's journal is JSON Lines: a few places are enough where each costs a Parquet file.
    step = 29 if suffix == ".parquet" else 1
    for length in (*range(0, len(content), step), len(content)):
        path.unlink(missing_ok=True)
        left.write_bytes(content[:length])
        with open_output(path, MODELS, True) as writer:
            scored_again.add(sum(rows[0].path not in writer.done for rows in REPAIRED))
            for rows in REPAIRED:
                if rows[0].path not in writer.done:
                    writer.write(rows)
        assert sorted(str(row) for row in read_rows(path)) == expected, length
        assert [name for name in os.listdir(tmp_path) if ".bak" in name] == []
    assert scored_again == {4, 3, 2}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_of_two_networks_a_killed_run_keeps_both_rows_or_none(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    photos = [
        both('a "1",\n.jpg') + both('a "1",\n.jpg', 1, ("real", "fake")),
        [Row(path="b.jpg", verdict="no face")],
        both("c.jpg", verdicts=("uncertain", "uncertain")),
    ]
    writer = open_output(path, TWO, fields=COMPARED_FIELDS)
    for rows in photos:
        writer.write(rows)
    die(writer)
    left = journal_of(path)
    content = left.read_bytes()
    expected = [row.as_dict(COMPARED_FIELDS) for rows in photos for row in rows]
    step = 29 if suffix == ".parquet" else 5
    scored_again = set()
    for length in (*range(0, len(content), step), len(content)):
        path.unlink(missing_ok=True)
        left.write_bytes(content[:length])
        with open_output(path, TWO, True, COMPARED_FIELDS) as writer:
            missing = [rows for rows in photos if rows[0].path not in writer.done]
            for rows in missing:
                writer.write(rows)
        scored_again.add(len(missing))
        assert list(read_rows(path)) == expected, length
    assert scored_again == {3, 2, 1}


@pytest.mark.parametrize("suffix", (".csv", ".jsonl"))
def test_a_torn_file_is_readable_up_to_its_last_whole_row(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    save(path, *PHOTOS)
    content = path.read_bytes()
    rows = [row.as_dict(FIELDS) for rows in PHOTOS for row in rows]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = list(read_rows(path))
        assert whole == rows[: len(whole)]
        assert len(whole) < len(rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kill_9_keeps_every_row_that_was_written(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    program = (
        "import itertools, sys; from tests.test_rows import *\n"
        "with open_output(Path(sys.argv[1]), MODELS, True) as writer:\n"
        "    for number in itertools.count():\n"
        "        name = f'{number}.jpg'\n"
        "        if name not in writer.done:\n"
        "            writer.write([face(name, 0), face(name, 1)])\n"
        "            print(number, flush=True)\n"
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(300):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        reported = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.wait()
        last = reported[-1] if reported else 300
    with open_output(path, MODELS, True) as writer:
        assert len(writer.done) >= last
    expected = [(f"{n}.jpg", number) for n in range(len(writer.done)) for number in (0, 1)]
    assert [(row["path"], row["face"]) for row in read_rows(path)] == expected
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exception_keeps_the_rows_so_far(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    with pytest.raises(KeyboardInterrupt), open_output(path, MODELS) as writer:
        writer.write([face("a.jpg")])
        raise KeyboardInterrupt
    assert [row["path"] for row in read_rows(path)] == ["a.jpg"]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_finished_file_can_be_continued(tmp_path, capsys, suffix):
    path = tmp_path / f"rows{suffix}"
    save(path, *PHOTOS)
    save(path, *REPAIRED, [face("e.jpg")], resume=True)
    assert capsys.readouterr().err == (
        f"{path}: 2 photos scored already; 1 that ended in an error will be tried again.\n"
    )
    assert list(read_rows(path)) == [
        row.as_dict(FIELDS) for rows in (*REPAIRED, [face("e.jpg")]) for row in rows
    ]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_earlier_file_is_kept(tmp_path, capsys, suffix):
    path = tmp_path / "new" / "folder" / f"rows{suffix}"
    for name in ("first.jpg", "second.jpg", "third.jpg", "fourth.jpg"):
        save(path, [face(name)])
    said = capsys.readouterr().err
    assert [row["path"] for row in read_rows(path)] == ["fourth.jpg"]
    backups = [path.with_name(path.name + end) for end in (".bak", ".2.bak", ".3.bak")]
    for backup, name in zip(backups, ("first.jpg", "second.jpg", "third.jpg"), strict=True):
        assert f"kept as {backup.name}" in said
        backup.rename(path)
        assert [row["path"] for row in read_rows(path)] == [name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_runs_that_wrote_nothing_do_not_push_out_the_kept_file(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    for photos in ([[face("good.jpg")]], [], [], [[face("new.jpg")]]):
        save(path, *photos)
    path.with_name(path.name + ".bak").rename(path)
    assert [row["path"] for row in read_rows(path)] == ["good.jpg"]


def test_the_journal_of_a_killed_run_is_kept_where_the_run_is_not_continued(tmp_path, capsys):
    path = tmp_path / "rows.parquet"
    journal = killed(path, [face("a.jpg")])
    save(path, [face("b.jpg")])
    kept = journal.with_name(journal.name + ".bak")
    assert kept.name in capsys.readouterr().err
    assert b"a.jpg" in kept.read_bytes()
    assert [row["path"] for row in read_rows(path)] == ["b.jpg"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("photos", [1, 3])
def test_rows_of_another_model_are_not_mixed_in(tmp_path, suffix, photos):
    path = tmp_path / f"rows{suffix}"
    save(path, *([face(f"{n}.jpg", model="vit")] for n in range(photos)))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"of the model vit, not meso4; .*--continue"):
        open_output(path, MODELS, True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("before", "now"), [(TWO, TWO[:1]), (TWO[:1], TWO)])
def test_rows_of_fewer_or_more_networks_are_not_mixed_in(tmp_path, suffix, before, now):
    path = tmp_path / f"rows{suffix}"
    with open_output(path, before, fields=COMPARED_FIELDS) as writer:
        for name in ("a.jpg", "b.jpg"):
            writer.write([row for row in both(name) if row.model in before])
    content = path.read_bytes()
    sentence = f"of the model {' and '.join(sorted(before))}, not {' and '.join(now)}; "
    with pytest.raises(UserError, match=sentence):
        open_output(path, now, True, COMPARED_FIELDS)
    assert path.read_bytes() == content


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("before", "now"), [(FIELDS, COMPARED_FIELDS), (COMPARED_FIELDS, FIELDS)])
def test_a_file_without_the_same_columns_is_not_continued(tmp_path, suffix, before, now):
    path = tmp_path / f"rows{suffix}"
    with open_output(path, MODELS, fields=before) as writer:
        writer.write([face("a.jpg")])
    content = path.read_bytes()
    with pytest.raises(UserError, match="not as this program writes it"):
        open_output(path, MODELS, True, now)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


def test_a_small_file_of_others_is_kept(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")  # shorter than a header of ours
    save(tmp_path / "rows.csv", [face("a.jpg")])
    assert (tmp_path / "rows.csv.bak").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "content",
    [b"name,score\nx.jpg,1\n", b'{"name": 1}\n', b"PAR1", b"hello", b"[1]\n", b"\xff\n"],
)
def test_files_of_others_are_refused_and_left_as_they_are(tmp_path, suffix, content):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.[a-z]+: .* not as this program writes it"):
        open_output(path, MODELS, True)
    with pytest.raises(UserError, match="not as this program writes it"):
        list(read_rows(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("record", [b"a,b\n", b'"a\n' + b"x\n" * 2**16, b"a,x" + b"," * 10 + b"\n"])
def test_spoilt_csv_rows_are_refused(tmp_path, record):
    path = tmp_path / "rows.csv"
    save(path, [face("a.jpg")])
    path.write_bytes(path.read_bytes() + record + b"\n")
    with pytest.raises(UserError, match="row 2"):
        open_output(path, MODELS, True)


def test_outputs_that_cannot_be_are_refused_at_once(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name, sentence in (
        ("rows.txt", r"\.csv, \.jsonl, \.parquet, \.html or \.json"),
        ("rows", r"\.csv, \.jsonl, \.parquet, \.html or \.json"),
        ("folder.csv", "this is a folder"),
        ("file/rows.csv", "cannot be written here"),
        ("x" * 300 + ".jsonl", "cannot be written here"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_output(tmp_path / name, MODELS)
    with pytest.raises(UserError, match="--continue needs --output"):
        open_output(None, MODELS, True)
    with pytest.raises(UserError, match="No such file"):
        list(read_rows(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="ends in"):
        list(read_rows(tmp_path / "none.xlsx"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.csv"]


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    program = (
        "import resource, sys; from tests.test_rows import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with open_output(Path(sys.argv[1]), MODELS) as writer:\n"
        "    try:\n"
        "        for number in range(100): writer.write([face(f'{number}.jpg')])\n"
        "    except UserError as error: print(number, error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    number, sentence = result.stdout.split(" ", 1)
    assert "--continue" in sentence
    assert [row["path"] for row in read_rows(path)] == [f"{n}.jpg" for n in range(int(number))]
    assert path.read_bytes().endswith(b"\n")


def test_pyarrow_is_imported_for_parquet_only_and_its_absence_said(tmp_path):
    program = (
        "import sys; from tests.test_rows import *\n"
        "save(Path(sys.argv[1] + '.csv'), [face('a.jpg')])\n"
        "assert 'pyarrow' not in sys.modules\n"
        "sys.modules['pyarrow'] = None  # as where it is not installed\n"
        "try: open_output(Path(sys.argv[1] + '.parquet'), MODELS)\n"
        "except UserError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "rows")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install pyarrow" in result.stdout
    assert os.listdir(tmp_path) == ["rows.csv"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, *rows: Row) -> list[str]:
    writer = TableWriter(stream, MODELS)
    for row in rows:
        writer.write([row])
    return stream.getvalue().splitlines()


def test_the_table():
    lines = shown(io.StringIO(), face("p/a.jpg"), broken("b\x1b[2J\n\udcff.jpg"))
    assert lines == [
        "verdict      fake  declared   face  photo",
        "fake        10.0%                0  p/a.jpg",
        r"error                               b\x1b[2J\n\udcff.jpg: The file is empty.",
    ]
    assert shown(io.StringIO()) == []


def test_the_table_fits_the_terminal_and_has_colours_there(monkeypatch):
    monkeypatch.setenv("COLUMNS", "71")
    monkeypatch.setenv("NO_COLOR", "1")
    _, line, error = shown(Terminal(), face("start/" + "x" * 200 + "/end.jpg"), broken("b.jpg"))
    assert len(line) == 71
    assert "  start/x" in line
    assert "…" in line
    assert line.endswith("x/end.jpg")
    assert error.endswith("b.jpg: The file is empty.")
    monkeypatch.delenv("NO_COLOR")
    _, line = shown(Terminal(), face("a.jpg"))
    assert line.startswith("\x1b[31mfake     \x1b[0m")


def test_the_table_survives_a_terminal_without_unicode():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    TableWriter(stream, MODELS).write([face("写.jpg")])
    assert stream.buffer.getvalue().endswith(b"\\u5199.jpg\n")


def test_two_networks_stand_side_by_side():
    stream = io.StringIO()
    writer = TableWriter(stream, TWO)
    writer.write(both("p/a.jpg") + both("p/a.jpg", 1, ("real", "uncertain")))
    writer.write([Row(path="p/b.jpg", verdict="no face")])
    writer.write([Row(path="p/c.jpg", verdict="error", error="The file is empty.")])
    assert stream.getvalue().splitlines() == [
        "xception           efficientnet_b0    agree  face  photo",
        "fake        10.0%  fake        10.0%  yes       0  p/a.jpg",
        "real        10.0%  uncertain   10.0%  no        1  p/a.jpg",
        "no face                                            p/b.jpg",
        "error                                              p/c.jpg: The file is empty.",
    ]


def test_what_only_one_network_has_seen_has_a_line_of_its_own():
    stream = io.StringIO()
    whole = face("a.jpg", model=TWO[1])
    whole.right += 100
    TableWriter(stream, TWO).write(
        [Row(path="a.jpg", verdict="no face", model=TWO[0]), face("a.jpg", 0, model=TWO[0]), whole]
    )
    assert stream.getvalue().splitlines()[1:] == [
        "no face                                            a.jpg",
        "fake        10.0%                               0  a.jpg",
        "                   fake        10.0%            0  a.jpg",
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_two_networks_fit_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    writer = TableWriter(stream, ("xception", "a name that is too long for any table"))
    rows = both("start/" + "x" * 200 + "/end.jpg", verdicts=("fake", "real"))
    rows[1].model = "a name that is too long for any table"
    writer.write(rows)
    header, line = re.sub("\x1b[^m]*m", "", stream.getvalue()).splitlines()
    assert len(line) == columns
    assert line.endswith("x/end.jpg")
    assert header.index("photo") == line.index("start/")
    assert header.index("a nam") == line.index("real")
    assert "\x1b[1mno   \x1b[0m" in stream.getvalue()


def test_rows_are_shown_where_there_is_no_output(capsys):
    with open_output(None, MODELS) as writer:
        assert writer.done == set()
        writer.write([face("a.jpg")])
    assert "fake        10.0%                0  a.jpg\n" in capsys.readouterr().out


def test_faces_of_a_photo():
    first, second = both("a.jpg"), both("a.jpg", 1)
    assert by_face([first[0], second[0], first[1], second[1]]) == [first, second]
    assert by_face([]) == []


def test_summary():
    summary = Summary(MODELS)
    for rows in PHOTOS:
        summary.add(rows)
    summary.add([face("u.jpg", verdict="uncertain")])
    summary._start = time.perf_counter() - 1000
    assert summary.line(skipped=3) == (
        "5 photos, 4 faces: 2 fake, 1 uncertain, 1 real; 1 without a face; 1 error; "
        "3 other files skipped; 0.0 photos/s"
    )
    summary = Summary(MODELS)
    summary.add([face("r.jpg", verdict="real")])
    assert summary.line().startswith("1 photo, 1 face: 0 fake, 0 uncertain, 1 real; ")
    assert Summary(MODELS).line().startswith("0 photos, 0 faces: 0 fake, 0 uncertain, 0 real; ")


def test_summary_of_two_networks_counts_photos_and_faces_once():
    summary = Summary(TWO)
    summary.add(both("a.jpg") + both("a.jpg", 1, ("real", "uncertain")))
    summary.add(both("b.jpg", verdicts=("fake", "real")))
    summary.add([Row(path="c.jpg", verdict="no face")])
    summary.add([Row(path="d.jpg", verdict="error", error="The file is empty.")])
    summary._start = time.perf_counter() - 1000
    assert summary.line() == (
        "4 photos, 3 faces; xception: 2 fake, 0 uncertain, 1 real; "
        "efficientnet_b0: 1 fake, 1 uncertain, 1 real; 2 disagree; 1 without a face; 1 error; "
        "0.0 photos/s"
    )
