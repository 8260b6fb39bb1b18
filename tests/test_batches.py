"""What networks are fed: in which order, by which process, and the same again after a kill."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import ARCHITECTURES
from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Dataset, Sample, load_dataset
from pipeline.feeding.augmentation import NO_AUGMENTATION, Augmentation
from pipeline.feeding.batches import Batches, PictureCache, Share, _pasted
from pipeline.feeding.engine import Recipe
from pipeline.feeding.sampling import BALANCES, SELF_BLENDED, Epochs, source_of
from pipeline.photos.images import read_image, resize
from tests.tiny_dataset import make_dataset, portrait
from tests.tiny_keras import SETTINGS

MESO4 = ARCHITECTURES["meso4"]


def make_batches(dataset: Dataset, batch_size=4, augmentation=NO_AUGMENTATION, **arguments):
    share = Share(arguments.pop("rank", 0), arguments.pop("world_size", 1))
    cache_bytes = arguments.pop("cache_bytes", 1 << 30)
    recipe = make_recipe(batch_size=batch_size, augmentation=augmentation, **arguments)
    return Batches(MESO4, recipe, dataset, 2, share, cache_bytes)


def make_recipe(**settings) -> Recipe:
    return Recipe(**SETTINGS | {"augmentation": NO_AUGMENTATION} | settings)


def as_scored(sample: Sample) -> np.ndarray:
    return resize(read_image(sample.path), MESO4.input_size, "area")


def seen_in(batches: Batches, dataset: Dataset, steps: range) -> list[list[int]]:
    """The indices of the training pictures in each step."""
    known = {as_scored(sample).tobytes(): i for i, sample in enumerate(dataset.train)}
    assert len(known) == len(dataset.train)
    seen = []
    for step in steps:
        pixels, labels = batches.training(step)
        assert pixels.dtype == np.uint8 and labels.dtype == np.float32
        assert pixels.shape[1:] == (256, 256, 3) and labels.shape == (len(pixels), 1)
        indices = [known[picture.tobytes()] for picture in pixels]
        assert [[dataset.train[index].label] for index in indices] == labels.tolist()
        seen.append(indices)
    return seen


def test_each_epoch_has_each_picture_at_most_once_and_in_an_order_of_its_own(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=10, validate=2))
    batches = make_batches(dataset)
    assert batches.steps == 2
    seen = seen_in(batches, dataset, range(6))
    assert [len(indices) for indices in seen] == [4] * 6
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    other = seen_in(make_batches(dataset, seed=1), dataset, range(2))
    assert other[0] + other[1] != epochs[0]


def test_a_step_is_the_same_whichever_came_before_it(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=8, validate=2))
    batches = make_batches(dataset, augmentation=Augmentation())
    through = [batches.training(step)[0] for step in range(6)]
    alone = make_batches(dataset, augmentation=Augmentation(), cache_bytes=0).training(5)[0]
    np.testing.assert_array_equal(alone, through[5])
    assert not any(np.array_equal(alone, other) for other in through[:5])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_step_without_overlap(tmp_path, world):
    dataset = load_dataset(make_dataset(tmp_path, train=13, validate=2))
    parts = [make_batches(dataset, 2, rank=rank, world_size=world) for rank in range(world)]
    alone = make_batches(dataset, 2 * world)
    steps = range(2 * alone.steps)
    assert {part.steps for part in parts} == {alone.steps} == {13 // (2 * world)}
    expected = seen_in(alone, dataset, steps)
    shares = [seen_in(part, dataset, steps) for part in parts]
    for together, *share in zip(expected, *shares, strict=True):
        assert [index for part in share for index in part] == together
        assert len(set(together)) == 2 * world
    for part in parts:  # each validates with all pictures, and comes to the same figures
        assert len(part.validation(0)[0]) == 2


def test_fewer_pictures_than_a_batch_are_one_batch(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=6, validate=2))
    batches = make_batches(dataset, batch_size=16)
    assert batches.steps == 1
    assert [len(batches.training(step)[0]) for step in range(3)] == [6, 6, 6]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_validation_sees_what_scoring_sees(tmp_path, cache_bytes):
    dataset = load_dataset(make_dataset(tmp_path, train=4, validate=6))
    large = np.random.default_rng(1).integers(0, 256, (700, 1301, 3), np.uint8)
    Image.fromarray(large).save(dataset.validate[0].path.with_suffix(".png"))
    dataset = load_dataset(tmp_path)
    assert len(dataset.validate) == 7
    batches = make_batches(dataset, cache_bytes=cache_bytes)
    expected = np.stack([as_scored(sample) for sample in dataset.validate])
    assert batches.validation_steps == 2
    for _ in range(2):
        parts = [batches.validation(number) for number in range(2)]
        pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        np.testing.assert_array_equal(pixels, expected)
        assert labels[:, 0].tolist() == [sample.label for sample in dataset.validate]


def test_a_full_cache_still_gives_the_right_pictures(tmp_path):
    random = np.random.default_rng(0)
    expected = {}
    for number in range(6):
        picture = portrait(random)
        path = tmp_path / f"{number}.png"
        Image.fromarray(picture).save(path)
        expected[path] = picture
    size = picture.nbytes
    decoded = []

    def reduce(image):
        decoded.append(image)
        return image

    cache = PictureCache(reduce, max_bytes=3 * size + size // 2)
    for _ in range(3):
        for path, picture in expected.items():
            np.testing.assert_array_equal(cache[path], picture)
    assert len(decoded) == 6 + 2 * 3, "three pictures fit and the other three are read each time"


# ---- what an epoch shows


def lopsided(tmp_path: Path) -> list[Sample]:
    """6 real pictures of a, 2 of b; 9 fakes of c, 2 of d, 1 of e."""
    counts = {(REAL, "a"): 6, (REAL, "b"): 2, (FAKE, "c"): 9, (FAKE, "d"): 2, (FAKE, "e"): 1}
    return [
        Sample(tmp_path / f"{source}_{number}.jpg", label)
        for (label, source), count in counts.items()
        for number in range(count)
    ]


def shown(epochs: Epochs, epoch: int) -> list[Sample]:
    return [epochs.pictures[epochs.index(number)] for number in epochs.order(epoch)]


def test_the_order_of_plain_epochs_is_that_of_their_seed(tmp_path):
    """As it was before epochs could be made up otherwise: no earlier training changes."""
    samples = lopsided(tmp_path)
    for epoch in range(3):
        expected = np.random.default_rng((5, epoch)).permutation(len(samples))
        np.testing.assert_array_equal(Epochs(samples, 0, "none", 5).order(epoch), expected)


@pytest.mark.parametrize("self_blended", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("balance", BALANCES)
def test_an_epoch_is_made_of_what_was_asked_for(tmp_path, balance, self_blended):
    samples = lopsided(tmp_path)
    epochs = Epochs(samples, self_blended, balance, 0)
    for epoch in range(3):
        pictures = shown(epochs, epoch)
        assert len(pictures) == len(epochs)
        assert len(set(epochs.order(epoch).tolist())) == len(epochs)
        fakes = [sample for sample in pictures if sample.label == FAKE]
        forged = [sample for sample in fakes if sample.generator == SELF_BLENDED]
        assert len(forged) == round(self_blended * len(fakes))
        assert all(sample.path.name[0] in "ab" for sample in forged)
        real = len(pictures) - len(fakes)
        if balance != "none":
            assert abs(real - len(fakes)) <= 1
        elif self_blended < 1:
            assert (real, len(fakes)) == (8, 12)
        else:
            assert (real, len(fakes)) == (8, 8)
        if balance == "generator":
            for of_kind in (
                [sample for sample in pictures if sample.label == REAL],
                forged,
                [sample for sample in fakes if sample.generator != SELF_BLENDED],
            ):
                counts = Counter(sample.path.name[0] for sample in of_kind)
                assert not counts or max(counts.values()) - min(counts.values()) <= 1
                assert not counts or set(counts) in ({"a", "b"}, {"c", "d", "e"})


def test_what_there_is_too_much_of_comes_in_turn(tmp_path):
    epochs = Epochs(lopsided(tmp_path), 0, "generator", 0)
    seen = [{s.path.name for s in shown(epochs, e) if s.path.name[0] == "c"} for e in range(12)]
    assert {len(names) for names in seen} == {3}
    assert set.union(*seen) == {f"c_{number}.jpg" for number in range(9)}


def test_sources_come_from_folders_columns_or_file_names(tmp_path):
    assert source_of(Sample(tmp_path / "dfdc_swap_ab.jpg", FAKE)) == "dfdc_swap"
    assert source_of(Sample(tmp_path / "dfdc_swap_ab.jpg", FAKE, "mine")) == "mine"
    assert source_of(Sample(tmp_path / "00012.jpg", FAKE)) == ""


def test_what_cannot_be_balanced_is_refused(tmp_path):
    same = [Sample(tmp_path / f"{number}.jpg", number % 2) for number in range(8)]
    with pytest.raises(UserError, match="but one generator of each class"):
        Epochs(same, 0, "generator", 0)
    videos = [Sample(tmp_path / f"{number}_frame.jpg", number % 2) for number in range(80)]
    with pytest.raises(UserError, match="real pictures come from 40 sources, for example 0"):
        Epochs(videos, 0, "generator", 0)
    Epochs(videos, 0, "class", 0)


def test_a_picture_that_comes_twice_is_changed_anew(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=8, validate=2))
    train = [s for s in dataset.train if s.label == REAL] + [dataset.train[0]]
    lonely = Dataset(dataset.root, train, dataset.validate)
    batches = make_batches(lonely, augmentation=Augmentation(), balance="class")
    numbers = [n for n in batches.order(0) if batches.epochs.index(n) == len(train) - 1]
    assert len(numbers) == len(batches.epochs) // 2
    pixels, labels = batches.augmented(0, numbers)
    assert len({picture.tobytes() for picture in pixels}) == len(numbers)
    assert set(labels[:, 0]) == {FAKE}


def test_without_a_single_fake_half_of_the_pictures_are_forgeries(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=12, validate=4), fakes_in_train=False)
    assert {sample.label for sample in dataset.train} == {REAL}
    batches = make_batches(dataset, self_blended=1.0)
    assert batches.steps == 3 and len(batches.epochs) == 12
    known = {as_scored(sample).tobytes() for sample in dataset.train}
    steps = [batches.training(step) for step in range(6)]
    again = make_batches(dataset, self_blended=1.0, cache_bytes=0)
    for step in (5, 3):
        for one, other in zip(again.training(step), steps[step], strict=True):
            np.testing.assert_array_equal(one, other)
    pixels, labels = (np.concatenate(part) for part in zip(*steps, strict=True))
    untouched = np.array([picture.tobytes() in known for picture in pixels])
    assert labels.sum() == 12
    assert not untouched[labels[:, 0] == FAKE].any()
    # The others are altered as a whole, half of the time.
    assert 0 < untouched[labels[:, 0] == REAL].sum() < 12
    _, labels = batches.validation(0)
    assert labels[:, 0].tolist() == [sample.label for sample in dataset.validate]


def test_smoothed_labels_are_those_of_training_alone(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=4, validate=2))
    batches = make_batches(dataset, label_smoothing=0.1)
    assert sorted(batches.training(0)[1][:, 0]) == pytest.approx([0.05, 0.05, 0.95, 0.95])
    assert sorted(batches.validation(0)[1][:, 0]) == [0, 1]


def test_mixed_pictures_are_mixed_with_the_next_one_and_so_are_their_labels(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=16, validate=2))
    plain, mixing = (make_batches(dataset, 8, mixup=mixup) for mixup in (0.0, 1.0))
    numbers = mixing.order(0)[:8]
    pixels, labels = plain.augmented(0, numbers)
    mixed, soft = mixing.augmented(0, numbers)
    assert mixed.dtype == np.uint8 and soft.dtype == np.float32
    shares = []
    for i in range(8):
        j = (i + 1) % 8
        one, other = pixels[i].astype(float), pixels[j].astype(float)
        share = ((mixed[i] - other) * (one - other)).sum() / ((one - other) ** 2).sum()
        assert np.abs(share * one + (1 - share) * other - mixed[i]).max() < 1.5
        assert soft[i, 0] == pytest.approx(
            share * labels[i, 0] + (1 - share) * labels[j, 0], abs=0.01
        )
        shares.append(share)
    assert len({round(share, 2) for share in shares}) > 4
    for one, other in zip(mixing.augmented(0, numbers), (mixed, soft), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (mixing.augmented(1, numbers)[0] != mixed).any()


def test_pasted_pictures_hold_a_rectangle_of_the_next_one_and_so_much_of_its_label(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=16, validate=2))
    plain, pasting = (make_batches(dataset, 8, cutmix=cutmix) for cutmix in (0.0, 1.0))
    numbers = pasting.order(0)[:8]
    pixels, labels = plain.augmented(0, numbers)
    mixed, soft = pasting.augmented(0, numbers)
    assert mixed.dtype == np.uint8 and soft.dtype == np.float32
    shares = []
    for i in range(8):
        j = (i + 1) % 8
        changed = (mixed[i] != pixels[i]).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_array_equal(mixed[i][box], pixels[j][box])
        share = 1 - mixed[i][box].shape[0] * mixed[i][box].shape[1] / changed.size
        expected = share * labels[i, 0] + (1 - share) * labels[j, 0]
        assert soft[i, 0] == pytest.approx(expected, abs=0.02)  # edges may look the same
        shares.append(share)
    assert len({round(share, 2) for share in shares}) > 4
    for one, other in zip(pasting.augmented(0, numbers), (mixed, soft), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (pasting.augmented(1, numbers)[0] != mixed).any()


def test_the_pasted_part_is_as_large_as_asked_for():
    """A square of area a that is cut off at the edges keeps (√a − a/4)² on average: where a is
    uniform, as with ALPHA 1, 1/2 − 1/5 + 1/48. A small ALPHA pastes all or nothing."""
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    shares = {}
    for alpha in (1.0, 0.05):
        mixed, shares[alpha] = zip(
            *(_pasted(black, white, np.random.default_rng(seed), alpha) for seed in range(2000)),
            strict=True,
        )
        assert [1 - picture.mean() / 255 for picture in mixed] == pytest.approx(shares[alpha])
    assert np.mean(shares[1.0]) == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.02)
    assert np.mean(np.array(shares[1.0]) > 0.99) < 0.1 < np.mean(np.array(shares[0.05]) > 0.99)
    assert not black.any(), "the picture itself stays"


def test_a_swap_and_its_original_are_changed_alike(tmp_path):
    """Both show the same picture here, so that whatever differs comes from the changes."""
    paths = [tmp_path / "original.png", tmp_path / "swap.png", tmp_path / "stranger.png"]
    for path in paths:
        Image.fromarray(portrait(np.random.default_rng(0))).save(path)
    groups = ("pair", "pair", "other")
    labels = (REAL, FAKE, REAL)
    samples = [
        Sample(path, label, group=group)
        for path, label, group in zip(paths, labels, groups, strict=True)
    ]
    dataset = Dataset(tmp_path, samples, samples)
    changes = Augmentation(flip=0.5, crop=1, brightness=1)
    alike = make_batches(dataset, augmentation=changes, alike="group")
    each = make_batches(dataset, augmentation=changes)
    for epoch in range(4):
        (original, swap, stranger), _ = alike.augmented(epoch, [0, 1, 2])
        assert (original == swap).all() and (original != stranger).any()
        (original, swap, _), _ = each.augmented(epoch, [0, 1, 2])
        assert (original != swap).any()


def test_a_resolution_shrinks_what_the_network_is_fed(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path / "data", train=4, validate=2))
    changes = Augmentation(flip=0.5, crop=1, jpeg=1)
    whole, small = (
        make_batches(dataset, augmentation=changes, resolution=size) for size in (None, 64)
    )
    for kind in ("training", "validation"):
        (pixels, labels), (shrunk, same) = (getattr(b, kind)(0) for b in (whole, small))
        assert shrunk.shape == (len(pixels), 64, 64, 3) and (labels == same).all()
        expected = pixels.reshape(-1, 64, 4, 64, 4, 3).mean(axis=(2, 4))
        assert np.abs(shrunk - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("name", "resolution", "sentence"),
    [
        ("vit", 128, "vit can be trained on pictures of 224 pixels only"),
        ("meso4", 128, "meso4 can be trained on pictures of 256 pixels only"),
        ("resnet50", 256, "resnet50 can be trained on pictures of 32 to 224 pixels"),
        ("xception", 16, "xception can be trained on pictures of 32 to 256 pixels"),
    ],
)
def test_a_resolution_that_a_network_cannot_take_is_refused(name, resolution, sentence):
    with pytest.raises(UserError, match=sentence):
        make_recipe(resolution=resolution).check(ARCHITECTURES[name])
