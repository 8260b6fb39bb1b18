"""The benchmarks run, and the README says what they found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import probes, readme_tables, subsets
from benchmarks.measuring import measure
from pipeline.dataset import FAKE, REAL, Dataset, Sample

REPOSITORY = Path(__file__).resolve().parent.parent


def test_the_readme_has_the_figures_of_the_benchmarks():
    readme = readme_tables.README.read_text("utf-8")
    assert len(readme_tables.PLACE.findall(readme)) == len(readme_tables.TABLES)
    assert readme_tables.filled(readme) == readme, "run python benchmarks/readme_tables.py"


def test_a_changed_figure_is_noticed():
    readme = readme_tables.README.read_text("utf-8")
    name = next(iter(readme_tables.TABLES))
    assert (
        readme_tables.filled(readme.replace(f"<!-- {name} -->\n", f"<!-- {name} -->\n9")) == readme
    )


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


def test_an_unknown_part_is_refused():
    ran = subprocess.run(
        [sys.executable, "benchmarks/scoring_speed.py", "speed"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "no such part: speed" in ran.stderr
