"""The benchmarks run, and README.md and docs/ say what they found."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import probes, quality_bins, readme_tables, subsets
from benchmarks.measuring import machine, measure
from pipeline.common.labels import FAKE, REAL
from pipeline.common.processor import has_nvidia_card
from pipeline.data.dataset import Dataset, Sample
from tests.shared import SHARED, needs_shared
from tests.tiny_dataset import make_dataset

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


@needs_shared
def test_what_holding_changes_is_measured_and_other_detectors_stay(own_cache, tmp_path):
    output, tests = tmp_path / "stability.json", SHARED / "faces" / "test"
    output.write_text(json.dumps({"rows": [{"detector": "other"}, {"detector": "meso4"}]}))
    command = [sys.executable, "benchmarks/stability.py", "weights/meso4", "--sample", "4"]
    command += ["--data", tests / "gpt_4o", tests / "utkface", "--output", output]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    other, portraits, soft, both = json.loads(output.read_text())["rows"]
    assert other == {"detector": "other"}
    assert (portraits["real"], portraits["fake"], soft["real"], soft["fake"]) == (4, 4, 4, 0)
    assert (both["real"], both["fake"], both["test_set"]) == (8, 4, "all")
    assert soft["after"]["recall_fake"] is None
    for row in (portraits, soft, both):
        assert 0 <= row["looked_again"] <= 1
        assert row["after"]["called_fake"][0] <= row["before"]["called_fake"][0]


def test_bins_of_quality_are_large_enough_and_keep_the_promise():
    random = np.random.default_rng(0)
    labels = np.repeat([REAL, FAKE], [600, 300])
    quality = random.uniform(size=900)
    scores = np.clip(random.uniform(size=900) * (1 - quality / 2) + 0.3 * (labels == FAKE), 0, 1)
    edges = quality_bins.edges_of(quality[labels == REAL])
    bins = np.digitize(quality, edges)
    assert len(edges) == 3
    assert min(np.bincount(bins[labels == REAL])) >= quality_bins.FEWEST
    sources = np.array(["a", "b"] * 450)
    looks = quality_bins.Looks(labels, sources, scores[None], {"sharpness": quality[None]})
    for k in range(4):
        threshold = quality_bins.threshold_for(looks, (bins == k)[None], 0.05)
        real = scores[(bins == k) & (labels == REAL)]
        assert np.mean(real >= threshold) <= 0.05
    few = np.repeat([1.0, 2.0, 3.0], [150, 99, 120])  # the 99 alone would be too few
    assert np.all(np.bincount(np.digitize(few, quality_bins.edges_of(few))) >= 100)


@needs_shared
def test_a_face_search_is_measured_and_compared_with_an_earlier_one(tmp_path):
    command = [sys.executable, "benchmarks/face_search.py", SHARED / "faces" / "test" / "dfdc"]
    command += ["--photos", "3", "--output"]
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    ran = subprocess.run([*command, before], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    changed = json.loads(before.read_text())
    pasted = sum(len(photo["pasted"]) for photo in changed["photos"])
    found = [face for photo in changed["photos"] for face in photo["found"]]
    assert f"3 photos, {pasted} faces of 64 pixels and more: " in ran.stdout
    assert pasted >= 3 and len(found) >= 3
    found[0]["box"] = [edge + 5000 for edge in found[0]["box"]]
    before.write_text(json.dumps(changed))
    compared = [*command, after, "--against", before]
    ran = subprocess.run(compared, cwd=REPOSITORY, capture_output=True, text=True)
    assert "lost 1, gained 1; intersection over union 1.0000 on average" in ran.stdout, ran.stderr
    changed["photos"][0]["pasted"] = []
    before.write_text(json.dumps(changed))
    ran = subprocess.run(compared, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "--against: these are other photos" in ran.stderr


def test_the_processor_is_named_with_what_it_has_for_matrices():
    processor = machine()["machine"]
    assert re.search(r", \d+ cores$", processor)
    flags = Path("/proc/cpuinfo")
    if flags.exists() and " avx2 " in flags.read_text():
        assert "AVX2" in processor


def test_an_unknown_part_is_refused():
    ran = subprocess.run(
        [sys.executable, "benchmarks/scoring_speed.py", "speed"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "no such part: speed" in ran.stderr


def test_what_needs_a_card_says_so_where_there_is_none(tmp_path):
    if has_nvidia_card():
        pytest.skip("this machine has a card")
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--data", tmp_path, "--output", tmp_path / "out"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "There is no NVIDIA card here" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_try_on_a_card_can_be_rehearsed_on_the_processor(tmp_path):
    data = make_dataset(tmp_path / "data", train=8, validate=4)
    command = ["--data", data, "--device", "cpu", "--only", "rows", "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *command, "--pictures", "8"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert found["rows"]["vit"]["largest_difference"] == 0
    assert found["rows"]["vit"]["photos_per_second"] > 0
