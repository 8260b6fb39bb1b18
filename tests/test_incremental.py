"""Going on with new data: what is replayed, what is measured, what takes the old one's place."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE
from pipeline.data.dataset import Sample, load_dataset
from pipeline.detectors.detector import load_detector
from pipeline.detectors.versions import current_version, versions_of
from pipeline.evaluation.precision import FEWEST_FACES
from pipeline.feeding.augmentation import NO_AUGMENTATION
from pipeline.training import incremental
from pipeline.training.incremental import choose_replay, measure, new_dataset
from pipeline.training.recipes import AS_TRAINED
from pipeline.training.training import seed_after, train_detector
from pipeline.training.training_arguments import incremental_arguments, training_arguments
from tests.conftest import DETECTOR
from tests.tiny_dataset import make_dataset

RECIPE = {
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "patience": 5,
    "target_accuracy": None,
    "dropout": 0.0,
    "seed": 0,
    "precision": "fp32",
    "resize_filter": "area",
    "augmentation": NO_AUGMENTATION,
    "tuning": AS_TRAINED,  # a torch setting, which Meso4's engine does not have
}

pytestmark = pytest.mark.usefixtures("own_cache")


# ---- what is replayed


def samples(real: int, fake: int) -> list[Sample]:
    kinds = [(0, number) for number in range(real)] + [(1, number) for number in range(fake)]
    return [Sample(Path(f"{label}/{number}.jpg"), label) for label, number in kinds]


@given(
    new_real=st.integers(0, 60),
    new_fake=st.integers(0, 60),
    old_real=st.integers(0, 60),
    old_fake=st.integers(0, 60),
    fraction=st.floats(0, 0.9),
    seed=st.integers(0, 9),
)
def test_replay_has_the_wanted_size_and_evens_out_the_classes(
    new_real, new_fake, old_real, old_fake, fraction, seed
):
    new, old = samples(new_real, new_fake), samples(old_real, old_fake)
    chosen = choose_replay(new, old, fraction, seed)
    assert chosen == choose_replay(new, old, fraction, seed)
    assert len({sample.path for sample in chosen}) == len(chosen)
    assert set(chosen) <= set(old)
    wanted = round(len(new) * fraction / (1 - fraction))
    assert len(chosen) <= wanted
    real = sum(sample.label == 0 for sample in chosen)
    fake = len(chosen) - real
    if real < old_real and fake < old_fake:  # neither class ran out
        assert len(chosen) == wanted
        apart = abs((new_real + real) - (new_fake + fake))
        assert apart <= max(1, abs(new_real - new_fake) - wanted + 1)


def test_a_share_of_thirty_percent_is_thirty_percent():
    chosen = choose_replay(samples(350, 350), samples(1000, 1000), 0.3, seed=0)
    assert len(chosen) / (700 + len(chosen)) == pytest.approx(0.3, abs=1e-3)


def test_new_fakes_alone_are_met_by_old_real_pictures():
    chosen = choose_replay(samples(0, 100), samples(1000, 1000), 0.5, seed=0)
    assert [sample.label for sample in chosen] == [0] * 100


def test_new_data_that_is_not_split_is_split_by_group(tmp_path):
    make_dataset(tmp_path / "whole", train=20, validate=10)
    split = new_dataset(tmp_path / "whole", seed=0)
    assert (len(split.train), len(split.validate)) == (20, 10)
    (tmp_path / "whole" / "train").rename(tmp_path / "loose")
    loose = new_dataset(tmp_path / "loose", seed=0)
    assert (len(loose.train), len(loose.validate)) == (16, 4)
    assert not {s.path for s in loose.train} & {s.path for s in loose.validate}


def test_new_data_may_lack_a_class_however_it_is_given(tmp_path):
    whole = make_dataset(tmp_path / "whole", train=4, validate=2)
    fakes = [path for path in sorted(whole.rglob("*")) if path.parent.name == "fake"]
    table = tmp_path / "fakes.csv"
    lines = [f"{path},fake,{path.parent.parent.name}" for path in fakes]
    table.write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    for split in ("train", "validate"):
        shutil.rmtree(whole / split / "real")
    for source in (whole, table):
        found = new_dataset(source, seed=0)
        assert {sample.label for sample in found.train + found.validate} == {FAKE}
        assert len(found.train) + len(found.validate) == len(fakes)


# ---- training further, for real, with the smallest network

# Batch normalization follows the pictures at any learning rate, so that the AUC on a few pictures
# moves: whether by more than the usual margin is another matter on another processor.
ANY_AUC = ("--margin", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """`old`: smoothed faces are the fakes. `contrary`: the same, but with the labels exchanged."""
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder / "old", train=48, validate=24, strength=1)
    shutil.copytree(folder / "old", folder / "contrary")
    for split in (folder / "contrary").iterdir():
        (split / "real").rename(split / "aside")
        (split / "fake").rename(split / "real")
        (split / "aside").rename(split / "fake")
    return folder


@pytest.fixture(scope="module")
def trained(own_cache, data, tmp_path_factory) -> Path:
    """Meso4, trained on `old` until it tells its classes apart."""
    folder = tmp_path_factory.mktemp("weights") / "meso4"
    recipe = RECIPE | {"init": "none", "epochs": 12, "learning_rate": 5e-3, "patience": 12}
    recipe.pop("tuning")
    arguments = ["--data", str(data / "old"), "--output", str(folder)]
    train_detector(training_arguments("test", {"meso4": recipe}, arguments))
    assert load_detector(folder).description["metrics"]["auc"] > 0.75
    return folder


@pytest.fixture
def detector(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "weights" / "meso4"))


def further(detector: Path, *arguments: object, **settings) -> int:
    given = ["--from", str(detector), *map(str, arguments)]
    return incremental.train_further(incremental_arguments("test", RECIPE | settings, given))


@pytest.mark.slow
def test_a_detector_that_forgot_does_not_take_the_place(detector, data, capsys):
    before = load_detector(detector).description
    code = further(
        detector,
        *("--new-data", data / "contrary", "--replay", data / "old", "--replay-fraction", 0),
        epochs=8,
        learning_rate=5e-3,
    )
    said = capsys.readouterr().out
    assert code == 1
    assert f"{detector} is left as it is" in said
    assert f"--from {detector} --use 2" in said
    assert load_detector(detector).description == before
    new = load_detector(versions_of(detector)[2])
    assert new.name == "meso4"
    old_samples = load_dataset(data / "old").validate
    stored = json.loads((detector.with_name("meso4.versions") / "v2.json").read_text())
    results = stored["results"]["old data"]
    assert results["before"]["auc"] == pytest.approx(before["metrics"]["auc"], abs=1e-6)
    assert results["after"] == measure(new, old_samples)
    assert results["after"]["auc"] < results["before"]["auc"] - 0.02
    assert f"{results['before']['auc']:.3f} → {results['after']['auc']:.3f}" in said

    assert incremental.use(detector, 2) == 0
    assert load_detector(detector).description == new.description


@pytest.mark.slow
def test_one_that_did_not_forget_takes_it_and_one_can_go_back(detector, data, capsys):
    before = load_detector(detector).description
    arguments = ("--new-data", data / "old", "--replay", data / "old", *ANY_AUC)
    assert further(detector, *arguments, learning_rate=1e-6) == 0
    assert f"--from {detector} --use 1" in capsys.readouterr().out
    after = load_detector(detector).description
    assert after != before and current_version(detector) == 2
    training = after["training"]
    assert training["start"] == "detector meso4 (scratch)"
    assert (training["new_images"], training["replayed_images"]) == (48, 21)

    assert incremental.list_versions(detector) == 0
    said = capsys.readouterr().out
    assert "version 1: " in said and "version 2: " in said
    assert said.index("in use") > said.index("version 2")
    assert incremental.use(detector, 1) == 0
    assert load_detector(detector).description == before


@pytest.mark.slow
def test_without_the_old_data_nothing_is_replaced(detector, data, capsys):
    before = load_detector(detector).description
    assert further(detector, "--new-data", data / "old", learning_rate=1e-6, epochs=1) == 1
    assert f"{detector} is left as it is: without --replay" in capsys.readouterr().out
    assert load_detector(detector).description == before
    assert list(versions_of(detector)) == [1, 2]


# ---- what cannot be read, and classes that are missing


def broken(folder: Path, name: str) -> Path:
    """Add a picture to a folder that ends like one and is none."""
    path = folder / name
    path.write_bytes(b"\xff\xd8\xff\xe0 cut off")
    return path


@pytest.mark.slow
def test_broken_validation_pictures_are_left_out_and_the_new_detector_is_put_in_use(
    detector, data, tmp_path, capsys
):
    for name in ("new", "old"):
        shutil.copytree(data / "old", tmp_path / name)
        for split in ("train", "validate"):
            for label in ("real", "fake"):
                broken(tmp_path / name / split / label, "broken.jpg")
    arguments = ("--new-data", tmp_path / "new", "--replay", tmp_path / "old", "--margin", 1)
    assert further(detector, *arguments, learning_rate=1e-6, epochs=1) == 0
    assert current_version(detector) == 2
    stored = json.loads((detector.with_name("meso4.versions") / "v2.json").read_text())
    for results in stored["results"].values():
        assert results["after"]["images"] == {"real": 12, "fake": 12}
    assert load_detector(detector).description["training"]["new_images"] == 48
    assert "broken.jpg" in capsys.readouterr().err


def refused(detector: Path, *arguments: object) -> str:
    """The sentence with which a training is refused, before it has left anything behind."""
    before = sorted(detector.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        further(detector, *arguments)
    assert sorted(detector.parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("missing", ["real", "fake"])
def test_one_class_alone_is_refused_before_the_training(detector, data, tmp_path, missing):
    new = tmp_path / "new"
    shutil.copytree(data / "old" / "train", new)
    shutil.rmtree(new / missing)
    sentence = refused(detector, "--new-data", new)
    assert sentence.startswith(f"{new}: ")
    assert f"not one {missing} picture" in sentence and "--replay" in sentence
    sentence = refused(
        detector, "--new-data", new, "--replay", data / "old", "--replay-fraction", 0
    )
    assert f"not one {missing} picture" in sentence and "--replay-fraction" in sentence


def test_a_class_of_which_nothing_can_be_read_is_refused_before_the_training(
    detector, data, tmp_path
):
    new = Path(shutil.copytree(data / "old", tmp_path / "new"))
    shutil.rmtree(new / "validate" / "real")
    (new / "validate" / "real").mkdir()
    broken(new / "validate" / "real", "broken.jpg")
    sentence = refused(detector, "--new-data", new)
    assert sentence.startswith(f"{new}: ") and "not one real picture" in sentence
    sentence = refused(detector, "--new-data", data / "old", "--replay", new)
    assert sentence.startswith(f"{new}: ") and "not one real picture" in sentence


@pytest.mark.slow
def test_new_fakes_alone_are_enough_where_old_pictures_are_replayed(detector, data, tmp_path):
    new = tmp_path / "new"
    shutil.copytree(data / "old" / "train" / "fake", new / "fake")
    arguments = ("--new-data", new, "--replay", data / "old", "--margin", 1)
    assert further(detector, *arguments, learning_rate=1e-6, epochs=1) == 0
    stored = json.loads((detector.with_name("meso4.versions") / "v2.json").read_text())
    assert set(stored["results"]) == {"old data", "new data"}


@pytest.mark.slow
def test_it_learns_at_the_rate_that_it_was_trained_with(detector, data):
    further(detector, "--new-data", data / "old", learning_rate=AS_TRAINED, epochs=1)
    arguments = [
        load_detector(folder).description["training"]["arguments"]
        for folder in versions_of(detector).values()
    ]
    assert [each["learning_rate"] for each in arguments] == [5e-3, 5e-3]
    assert [each["seed"] for each in arguments] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "seed"), [([], 1), (["--seed", 0], 0)])
def test_training_on_from_a_detector_changes_pictures_in_other_ways(
    trained, data, tmp_path, source, seed
):
    recipe = RECIPE | {"init": "none", "epochs": 1}
    recipe.pop("tuning")
    arguments = ["--data", data / "old", "--init", trained, "--output", tmp_path / "next", *source]
    train_detector(training_arguments("test", {"meso4": recipe}, list(map(str, arguments))))
    training = load_detector(tmp_path / "next").description["training"]
    assert training["arguments"]["seed"] == seed


def test_the_seed_after_what_is_no_detector_of_ours_is_the_first(tmp_path):
    (tmp_path / "detector.json").write_text('{"training": {"start": "published"}}')
    starts = ["none", "imagenet", "hf-hub:owner/name", tmp_path, tmp_path / "absent.h5"]
    assert [seed_after(start) for start in starts] == [0] * 5


@pytest.mark.slow
def test_the_new_version_has_its_precision_checked(detector, data, tmp_path):
    old = make_dataset(tmp_path / "old", train=8, validate=FEWEST_FACES)
    further(detector, "--new-data", data / "old", "--replay", old, epochs=1)
    assert load_detector(versions_of(detector)[2]).description["precision"]["order"]


@pytest.mark.slow
def test_another_folder_can_be_written(detector, data, tmp_path):
    other = tmp_path / "weights" / "other"
    arguments = ("--new-data", data / "old", "--replay", data / "old", "--output", other)
    assert further(detector, *arguments, *ANY_AUC, learning_rate=1e-6, epochs=1) == 0
    assert load_detector(other).name == "other"
    assert versions_of(detector) == {} and list(versions_of(other)) == [1, 2]


def test_versions_of_a_detector_that_has_none():
    with pytest.raises(UserError, match="no versions are kept"):
        incremental.list_versions(DETECTOR)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--new-data", "nowhere"], "nowhere"),
        (["--new-data", "x", "--replay-fraction", "1"], "--replay-fraction 1"),
        (["--new-data", "x", "--self-blended", "1"], "--self-blended 1"),
        (["--new-data", "x", "--use", "2"], "not allowed with"),
        ([], "one of the arguments"),
    ],
)
def test_wrong_use_is_refused_in_one_sentence(arguments, sentence, tmp_path):
    import subprocess

    script = Path(__file__).resolve().parent.parent / "incremental_train_vit.py"
    done = subprocess.run(
        [sys.executable, str(script), "--from", str(DETECTOR), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr
