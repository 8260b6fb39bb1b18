"""Which photos the arguments of a scoring command mean."""

import codecs
import io
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.photos.inputs import find_photos
from pipeline.photos.photo import Photo


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(*arguments: str, stdin: bytes = b"") -> list[str]:
    photos = list(find_photos(arguments, io.TextIOWrapper(io.BytesIO(stdin))))
    assert [photo.error for photo in photos] == [""] * len(photos)
    return [photo.path for photo in photos]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_in_order_without_hidden_and_other_files(folder):
    make(folder, "p/b.JPG", "p/a.png", "p/sub/c.webp", "p/sub/.d.jpg", "p/.cache/e.jpg")
    make(
        folder,
        "p/notes.txt",
        "p/sub/Film.MOV",
        "p/sub/film.ts",
        "p/jpg",
        "p/.DS_Store",
        "p/a/z.heic",
    )
    photos = find_photos(["p"])
    assert [photo.path for photo in photos] == [
        "p/a.png",
        "p/b.JPG",
        "p/a/z.heic",
        "p/sub/Film.MOV",
        "p/sub/c.webp",
    ]
    assert photos.skipped == 3


def test_hidden_folders_and_odd_endings_count_where_they_are_named(folder):
    make(folder, ".hidden/a.jpg", "scan.photo", ".b.jpg", "none")
    assert found(".hidden", "scan.photo", ".b.jpg", "none") == [
        ".hidden/a.jpg",
        "scan.photo",
        ".b.jpg",
        "none",
    ]


def test_links_are_followed_but_never_in_a_circle(folder):
    make(folder, "p/a.jpg", "elsewhere/b.jpg")
    (folder / "p/circle").symlink_to(folder / "p")
    (folder / "p/other").symlink_to(folder / "elsewhere")
    (folder / "p/self.jpg").symlink_to("self.jpg")
    (folder / "elsewhere/back").symlink_to(folder / "p")
    expected = ["p/a.jpg", "p/self.jpg", "p/other/b.jpg"]  # the link to itself: read, and refused
    assert found("p") == expected
    assert sorted(found("p/**")) == sorted(expected)
    assert found("p/**/*.jpg")[0] == "p/a.jpg"
    assert len(found("p/**/*.jpg")) == 3


def test_patterns_match_photos_in_order(folder):
    make(folder, "p/b.jpg", "p/a.jpg", "p/c.txt", "p/sub/d.jpg", "p/sub/deep/e.png")
    assert found("p/*.jpg") == ["p/a.jpg", "p/b.jpg"]
    assert found("p/**/*.jpg") == ["p/a.jpg", "p/b.jpg", "p/sub/d.jpg"]
    everything = ["p/a.jpg", "p/b.jpg", "p/sub/d.jpg", "p/sub/deep/e.png"]
    for pattern in ("p/*", "p/**", "p/**/*", "**/p/**/**", "p/s*/../**/*.*"):
        assert [os.path.normpath(path) for path in found(pattern)] == everything, pattern
    assert found("p/**/deep") == found("p/**/d*/*") == ["p/sub/deep/e.png"]
    assert found("**/d*.jpg") == ["./p/sub/d.jpg"]
    assert found("p", "p/s*") == everything
    photos = find_photos(["p/*"])
    assert len(list(photos)) == 4
    assert photos.skipped == 1
    photos = find_photos(["p/**/*.png"])
    assert len(list(photos)) == 1
    assert photos.skipped == 0


def test_a_name_that_exists_is_no_pattern(folder):
    make(folder, "photo[1].jpg", "photo1.jpg", "[x]/a.jpg")
    assert found("photo[1].jpg") == ["photo[1].jpg"]
    assert found("[x]") == ["[x]/a.jpg"]
    (folder / "photo[1].jpg").unlink()
    assert found("photo[1].jpg") == ["photo1.jpg"]


def test_what_leads_to_no_photo_is_an_error_and_the_others_go_on(folder):
    make(folder, "a.jpg", "text/b.txt")
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    arguments = [
        "gone.jpg",
        "none*.jpg",
        "text/*",
        "a.jpg/x",
        "broken.jpg",
        "x" * 5000,
        "",
        "a.jpg",
    ]
    photos = list(find_photos(arguments))
    assert [photo.path for photo in photos] == arguments
    assert "no such file" in photos[0].error
    assert "No file matches" in photos[1].error
    assert "ends like a photo" in photos[2].error
    assert all(photo.error.endswith(".") for photo in photos[:-1])
    assert photos[-1] == Photo("a.jpg")


def test_folders_are_read_when_their_turn_comes_and_may_be_gone_by_then(folder):
    make(folder, "p/a.jpg", "p/b.jpg", "p/sub/c.jpg", "p/zoo/d.jpg")
    photos = iter(find_photos(["p"]))
    assert next(photos) == Photo("p/a.jpg")
    (folder / "p/sub/c.jpg").unlink()
    (folder / "p/sub").rmdir()
    _, gone, last = photos
    assert gone.path == "p/sub"
    assert "cannot be read" in gone.error
    assert last == Photo("p/zoo/d.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_an_error(folder):
    make(folder, "p/a.jpg", "p/locked/b.jpg")
    (folder / "p/locked").chmod(0)
    fine, locked = find_photos(["p"])
    (folder / "p/locked").chmod(0o700)
    assert fine == Photo("p/a.jpg")
    assert (locked.path, "permissions" in locked.error) == ("p/locked", True)


def test_what_is_given_twice_comes_once(folder):
    make(folder, "p/a.jpg", "p/b.jpg", "p/sub/c.jpg", "p/raw.xyz")
    once = ["p/b.jpg", "p/a.jpg", "p/sub/c.jpg"]
    assert (
        found("p/b.jpg", "p", "./p", "p/a.jpg", "p/*.jpg", "p/**/*.jpg", "p/b.jpg", "p/sub") == once
    )
    assert found("p/**/b*", "p", "p/**/b*") == once
    assert found("p", "p/raw.xyz", "p/raw.xyz")[-1] == "p/raw.xyz"


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
@pytest.mark.parametrize("end", [True, False])
def test_a_list_on_standard_input(folder, separator, end):
    make(folder, "a.jpg", "é b.jpg", "p/c.jpg", "*.jpg", "-")
    odd = os.fsdecode(b"\xff.jpg")
    make(folder, odd)
    names = ["a.jpg", "é b.jpg", "p", "*.jpg", odd, "-"]
    listed = separator.join(map(os.fsencode, names)) + (separator if end else b"")
    expected = ["a.jpg", "é b.jpg", "p/c.jpg", "*.jpg", odd, "-"]
    assert found("-", stdin=listed) == expected
    assert found("p", "-", stdin=b"\n\na.jpg\n") == ["p/c.jpg", "a.jpg"]
    assert found("-", stdin=b"") == []


def test_names_with_line_ends_can_be_listed_with_nul(folder):
    make(folder, "two\nlines.jpg", "b.jpg")
    assert found("-", stdin=b"two\nlines.jpg\0b.jpg\0") == ["two\nlines.jpg", "b.jpg"]


def test_a_listed_photo_comes_before_the_list_ends(folder):
    make(folder, "a.jpg", "b.jpg")
    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "wb", buffering=0) as writer:
        photos = iter(find_photos(["-"], stdin))
        writer.write(b"a.jpg\nb.j")
        assert next(photos) == Photo("a.jpg")
        writer.write(b"pg\n")
        assert next(photos) == Photo("b.jpg")


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("encoding", MARKED)
def test_a_list_in_any_encoding_that_its_first_bytes_tell(folder, encoding, marked, separator):
    make(folder, "a.jpg", "é b.jpg", "p/写真😀.jpg")
    names = ["a.jpg", "é b.jpg", "p/写真😀.jpg"]
    text = separator.join(names) + separator
    mark = MARKED[encoding] if marked else b""
    assert found("-", stdin=mark + text.encode(encoding)) == names
    # As `copy a.txt + b.txt` puts two lists together.
    twice = (mark + text.encode(encoding)) * 2
    assert found("-", stdin=twice) == names * 2


def test_a_list_in_utf_16_that_comes_byte_by_byte(folder):
    make(folder, "写真.jpg", "b.jpg")
    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "wb", buffering=0) as writer:
        photos = iter(find_photos(["-"], stdin))
        for byte in "\ufeff写真.jpg\r\nb".encode("utf-16-le"):
            writer.write(bytes([byte]))
        assert next(photos) == Photo("写真.jpg")
        writer.write(".jpg".encode("utf-16-le"))
        writer.close()
        assert next(photos) == Photo("b.jpg")


def test_the_list_that_powershell_wrote(folder):
    make(folder, "list/a.png", "list/b.png")
    stdin = "\ufefflist/a.png\r\nlist/b.png\r\n".encode("utf-16-le")
    assert found("-", stdin=stdin) == ["list/a.png", "list/b.png"]


@pytest.mark.parametrize("names", [["a", "b", "c.jpg"], ["a.jpg", "b"], ["./a", "./b", "./c"]])
def test_short_names_with_nul_are_no_utf_16(folder, names):
    make(folder, *names)
    assert found("-", stdin="\0".join([*names, ""]).encode()) == names


def test_names_that_are_not_utf_8(folder):
    make(folder, os.fsdecode(b"caf\xe9.jpg"), "thé.jpg")
    assert found("-", stdin=b"caf\xe9.jpg\n") == [os.fsdecode(b"caf\xe9.jpg")]
    [photo] = find_photos(["-"], io.TextIOWrapper(io.BytesIO(b"th\xe9.jpg\n")))
    assert photo.path == os.fsdecode(b"th\xe9.jpg")
    assert "UTF-8" in photo.error


@pytest.mark.parametrize("root", ["/", "//", "/.", "/usr/..", "drive", "up/drive"])
def test_a_list_never_names_a_whole_drive(folder, root):
    make(folder, "a.jpg")
    (folder / "drive").symlink_to("/")
    (folder / "up").symlink_to(".")
    stdin = io.TextIOWrapper(io.BytesIO(f"{root}\na.jpg\n".encode()))
    refused, photo = itertools.islice(find_photos(["-"], stdin), 2)
    assert refused.path == root
    assert "whole drive" in refused.error
    assert photo == Photo("a.jpg")


def test_a_list_may_name_the_folder_it_is_in_but_no_way_out_of_it(folder):
    make(folder, "a.jpg")
    (folder / "drive").symlink_to("/")
    assert found("-", stdin=b".\n") == ["./a.jpg"]


names = st.text(st.sampled_from("ab[]*?-. é\n\udcff"), min_size=1, max_size=4).map("x{}".format)


@settings(max_examples=50, deadline=None)
@given(tree=st.lists(st.lists(names, min_size=1, max_size=3), max_size=8))
def test_every_photo_of_any_tree_is_found_once(tmp_path_factory, tree):
    top = tmp_path_factory.mktemp("tree")
    paths = {"/".join(parts) + ".jpg" for parts in tree}
    make(top, *paths)
    assert sorted(found(str(top))) == sorted(f"{top}/{path}" for path in paths)
    assert sorted(found(*(f"{top}/{path}" for path in paths))) == sorted(found(str(top)))


def test_a_transport_stream_is_told_from_a_program_of_the_same_ending(folder):
    make(folder, "p/a.png", "p/empty.ts", "p/sub/z.png")
    (folder / "p/program.ts").write_text("export const answer = 42;\n" * 20)
    (folder / "p/film.ts").write_bytes(b"G" + bytes(187) + b"G" + bytes(187))
    (folder / "p/timed.TS").write_bytes(4 * (bytes(4) + b"G" + bytes(187)))
    expected = ["p/a.png", "p/film.ts", "p/timed.TS", "p/sub/z.png"]
    assert found("p") == expected
    assert found("p/*.ts") == ["p/film.ts"]
    assert found("p", "p/program.ts", "p/film.ts") == [*expected, "p/program.ts"]
