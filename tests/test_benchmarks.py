"""The benchmarks run, and README.md and docs/ say what they found."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import probes, readme_tables, subsets
from benchmarks.measuring import measure
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Dataset, Sample
from tests.shared import SHARED, needs_shared

REPOSITORY = Path(__file__).resolve().parent.parent


def test_each_table_has_one_place_and_the_figures_of_its_benchmark():
    pages = {page: page.read_text("utf-8") for page in readme_tables.PAGES}
    places = [found[1] for text in pages.values() for found in readme_tables.PLACE.findall(text)]
    assert sorted(places) == sorted(readme_tables.TABLES)
    for page, text in pages.items():
        assert readme_tables.filled(text) == text, f"{page}: run benchmarks/readme_tables.py"


@pytest.mark.parametrize("name", readme_tables.TABLES)
def test_a_changed_figure_is_noticed(name):
    [text] = [
        text
        for page in readme_tables.PAGES
        if f"<!-- {name} -->" in (text := page.read_text("utf-8"))
    ]
    start = text.index(f"<!-- {name} -->")
    end = text.index("<!-- end -->", start)
    changed = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), text[start:end])
    stale = text[:start] + changed + text[end:]
    assert stale != text
    assert readme_tables.filled(stale) == text


def test_a_program_is_measured():
    program = "import time; x = bytearray(300 << 20); time.sleep(0.5); print('said')"
    usage = measure([sys.executable, "-c", program])
    assert usage.output == "said\n"
    assert usage.peak_mib > 300
    assert usage.seconds > 0.5
    assert usage.cpu_seconds < usage.seconds + 0.5  # sleeping costs nothing


def test_memory_is_that_of_the_program_and_not_ours():
    ours = bytearray(500 << 20)
    assert measure([sys.executable, "-c", "pass"]).peak_mib < 100
    assert len(ours)


def test_a_program_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="no such figure"):
        measure([sys.executable, "-c", "raise ValueError('no such figure')"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "gflop"),
    [
        ("vit", 35.1),  # 17.56 billion multiply-adds: timm's figure
        ("resnet50", 8.2),  # 4.09 billion: torchvision's figure
        ("efficientnet_lite0", 0.77),  # 0.385 billion: that of Google's EfficientNet-lite page
    ],
)
def test_operations_of_a_network(network, gflop, tmp_path):
    probes.random_detector(network, tmp_path / network)
    assert probes.operations(tmp_path / network)["gflop"] == pytest.approx(gflop, rel=0.03)


@pytest.mark.slow
def test_scoring_speed_runs_and_keeps_other_parts(tmp_path):
    output = tmp_path / "speed.json"
    output.write_text(json.dumps({"cluster": {"photos": 1, "machine": "", "date": ""}}))
    command = [sys.executable, "benchmarks/scoring_speed.py", "memory", "networks"]
    command += ["--memory-crops", "4", "--photos", "2", "--networks", "meso4"]
    ran = subprocess.run(
        [*command, "--output", output], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(output.read_text())
    assert result["cluster"]["photos"] == 1
    assert result["networks"]["meso4"]["weights"] == "shipped"
    assert result["networks"]["meso4"]["crops_per_second"] > 0
    assert result["memory"]["ratio"] > 0
    assert "| meso4 | 0.12 |" in ran.stdout
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_subset_has_both_classes_and_is_spread_over_all_kinds(tmp_path):
    def samples(count: int, folder: str) -> list[Sample]:
        return [
            Sample(tmp_path / folder / f"{kind}_{number}.jpg", label)
            for kind, label in (("dfdc", FAKE), ("ffhq", REAL), ("sd21", FAKE), ("stylegan", FAKE))
            for number in range(count)
        ]

    dataset = Dataset(tmp_path, samples(10, "train"), samples(6, "validate"))
    some = subsets.evenly(subsets.begins_with(dataset, ["ffhq", "sd21", "stylegan"]), 8)
    assert [sample.path.name for sample in some.train] == [
        *("ffhq_0.jpg", "ffhq_2.jpg", "ffhq_5.jpg", "ffhq_7.jpg"),
        *("sd21_0.jpg", "sd21_5.jpg", "stylegan_0.jpg", "stylegan_5.jpg"),
    ]
    assert [sample.label for sample in some.validate] == [REAL, REAL, FAKE, FAKE]
    table = subsets.write_table(some, tmp_path / "some.csv").read_text().splitlines()
    assert table[0] == "path,label,generator,group,split"
    assert table[1].startswith(f"{tmp_path}/train/ffhq_0.jpg,real,")
    assert table[-1].startswith(f"{tmp_path}/validate/stylegan_0.jpg,fake,")


@needs_shared
def test_results_are_measured_and_said(own_cache, tmp_path):
    output, tests = tmp_path / "results.json", SHARED / "faces" / "test"
    command = [sys.executable, "benchmarks/results.py", "weights/meso4"]
    command += ["--data", tests / "gpt_4o", tests / "utkface"]
    command += ["--output", output, "--store", tmp_path / "scores.sqlite"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    portraits, soft = json.loads(output.read_text())["rows"]
    assert (portraits["real"], portraits["fake"], soft["fake"]) == (120, 68, 0)
    assert portraits["kind"] == "unseen"
    value, low, high = portraits["auc"]
    assert low < value < high
    assert soft["auc"] is None and soft["uncertain_fake"] is None
    shown = json.loads((REPOSITORY / "benchmarks" / "results.json").read_text())["rows"]
    [kept] = [row for row in shown if (row["detector"], row["test_set"]) == ("meso4", "gpt_4o")]
    assert value == pytest.approx(kept["auc"][0], abs=0.01)


def test_an_unknown_part_is_refused():
    ran = subprocess.run(
        [sys.executable, "benchmarks/scoring_speed.py", "speed"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "no such part: speed" in ran.stderr
