"""Packing detector folders for a release, and getting the same folders back from it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.foreign.downloads import download, load_releases
from pipeline.foreign.release import main
from tests.test_weights import (
    GOOD,
    Server,
    content_of,
    no_proxy,  # noqa: F401 (a fixture)
    server,  # noqa: F401 (a fixture)
    write_detector,
)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def weights(tmp_path) -> Path:
    """A weights folder with two detectors, a list, and things that are no detector."""
    weights = tmp_path / "weights"
    write_detector(weights / "meso8", seed=8)
    write_detector(weights / "meso9", seed=9)
    write_detector(weights / ".meso9.previous", seed=7, name="meso9")
    (weights / "empty").mkdir()
    (weights / "Net.h5").write_bytes(b"a file")
    (weights / "releases.json").write_text(json.dumps([GOOD]))
    return weights


def release(weights: Path, output: Path, base_url: str = "https://example.org/v1/") -> int:
    return main(["--weights", str(weights), "--output", str(output), "--base-url", base_url])


def test_what_was_packed_comes_back_the_same(server: Server, weights, tmp_path):  # noqa: F811
    output = tmp_path / "release"
    assert release(weights, output, server.url + "/v1") == 0
    assert {path.name for path in output.iterdir()} == {"meso8.tar", "meso9.tar", "SHA256SUMS"}
    server.files = {f"/v1/{path.name}": path.read_bytes() for path in output.iterdir()}
    releases = load_releases(weights / "releases.json")
    assert list(releases) == ["Net", "meso8", "meso9"]
    for name in ("meso8", "meso9"):
        target = download(releases[name], tmp_path / "elsewhere")
        assert content_of(target) == content_of(weights / name)


def test_the_sums_are_those_of_the_archives(weights, tmp_path):
    release(weights, tmp_path / "release")
    for line in (tmp_path / "release" / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "release" / name).read_bytes()).hexdigest() == sha256
        assert load_releases(weights / "releases.json")[Path(name).stem].sha256 == sha256


def test_the_same_folder_always_gives_the_same_bytes(weights, tmp_path):
    release(weights, tmp_path / "one")
    listed = (weights / "releases.json").read_bytes()
    for path in weights.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    release(weights, tmp_path / "two")
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    assert (weights / "releases.json").read_bytes() == listed


def test_other_entries_and_what_people_wrote_stay(weights, tmp_path):
    release(weights, tmp_path / "release")
    entries = json.loads((weights / "releases.json").read_text())
    assert entries[0] == GOOD
    entries[1] |= {"licence": "CC-BY-4.0", "description": "for cafés", "sha256": "0" * 64}
    elsewhere = GOOD | {"name": "vit", "url": "https://example.org/vit.tar", "kind": "detector"}
    (weights / "releases.json").write_text(json.dumps([elsewhere, *entries]))
    release(weights, tmp_path / "release", "https://example.org/v2")
    after = json.loads((weights / "releases.json").read_text(encoding="utf-8"))
    assert after[:2] == [elsewhere, GOOD]
    assert after[2]["licence"] == "CC-BY-4.0"
    assert after[2]["description"] == "for cafés"
    assert after[2]["url"] == "https://example.org/v2/meso8.tar"
    assert after[2]["sha256"] != "0" * 64


def test_a_list_is_begun_where_there_is_none(weights, tmp_path):
    (weights / "releases.json").unlink()
    assert release(weights, tmp_path / "release") == 0
    assert list(load_releases(weights / "releases.json")) == ["meso8", "meso9"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda w: (w / "meso9" / "model.onnx").write_bytes(b"changed"), "SHA-256 differs"),
        (lambda w: (w / "meso9" / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda w: (w / "meso9" / "detector.json").write_text("{"), "cannot be read"),
        (lambda w: (w / "meso9").rename(w / "copy"), "named 'meso9'"),
    ],
    ids=["changed", "missing", "broken json", "renamed"],
)
def test_nothing_is_packed_when_one_folder_is_not_whole(weights, tmp_path, capsys, spoil, sentence):
    spoil(weights)
    before = (weights / "releases.json").read_bytes()
    assert release(weights, tmp_path / "release") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "release").exists()
    assert (weights / "releases.json").read_bytes() == before


def test_a_detector_does_not_take_a_files_entry(weights, tmp_path, capsys):
    before = json.dumps([GOOD | {"name": "meso9"}])
    (weights / "releases.json").write_text(before)
    assert release(weights, tmp_path / "release") == 2
    assert "meso9 is a plain file" in capsys.readouterr().err
    assert (weights / "releases.json").read_text() == before


@pytest.mark.parametrize("base_url", ["release/", "ftp://example.org/", "https://example.org/?a=b"])
def test_a_base_address_must_be_a_web_folder(weights, tmp_path, base_url):
    before = (weights / "releases.json").read_bytes()
    assert release(weights, tmp_path / "release", base_url) == 2
    assert (weights / "releases.json").read_bytes() == before


def test_without_detectors_there_is_nothing_to_release(tmp_path, capsys):
    assert release(tmp_path, tmp_path / "release") == 2
    assert "holds no detector folder" in capsys.readouterr().err
    assert release(tmp_path / "missing", tmp_path / "release") == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_command_from_outside(weights, tmp_path):
    command = [sys.executable, "manage_detectors.py", "release"]
    shown = subprocess.run(
        [*command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0
    assert "--base-url URL" in shown.stdout
    run = subprocess.run(
        [*command, "--weights", weights, "--output", tmp_path / "out", "--base-url", "http://x/"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")
    check = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"],
        cwd=tmp_path / "out",
        capture_output=True,
        timeout=60,
    )
    assert check.returncode == 0
