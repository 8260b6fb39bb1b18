"""Training torch networks from the command line, killed at its worst moments and resumed.

Each training runs in a process of its own, forked from one that has imported what training needs.
The reference trainings have fakes that are no different from their real pictures, so that the
validation AUC goes up and down by chance.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train_vit
from models import ARCHITECTURES
from pipeline.common import command_line
from pipeline.common.errors import UserError
from pipeline.data.dataset import load_dataset
from pipeline.detectors.detector import GRAPH, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.metrics import auc
from pipeline.feeding.batches import Batches
from pipeline.torch_engine import progress as torch_progress
from pipeline.torch_engine import trainer as torch_trainer
from pipeline.torch_engine.average import MovingAverage
from pipeline.torch_engine.device import uses_bf16
from pipeline.torch_engine.trainer import Classifier
from pipeline.torch_engine.training import TorchEngine
from pipeline.torch_engine.tuning import Tuning, tune
from pipeline.torch_engine.weights import WEIGHTS, starting_point
from pipeline.training.finishing import predict
from pipeline.training.runs import read_history
from tests import tiny_timm
from tests.tiny_dataset import make_dataset
from tests.tiny_timm import RESNET, VIT, faces

REPOSITORY = Path(__file__).resolve().parent.parent
EPOCHS, PATIENCE, STEPS = 40, 2, 3  # steps an epoch; it stops long before the last epoch
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.test_torch_training", "onnxscript", "openvino"])

EXACT = ("--precision", "fp32")  # where figures are compared, on a processor with bf16 as well

pytestmark = pytest.mark.usefixtures("own_cache")

TRAININGS = {
    "vit, full": [
        *("--architecture", "tiny_vit", "--layer-decay", 0.7, "--ema", 0.9, "--dropout", 0.2),
        *("--gradient-accumulation", 2, "--batch-size", 4),
    ],
    "vit, lora": [
        *("--architecture", "tiny_vit", "--tuning", "lora", "--lora-dropout", 0.2, "--ema", 0),
        *("--gradient-accumulation", 1, "--batch-size", 8),
    ],
    "resnet, lora": [
        *("--architecture", "tiny_resnet", "--tuning", "lora", "--lora-dropout", 0.2),
        *("--ema", 0.9, "--gradient-accumulation", 2, "--batch-size", 4),
    ],
}


# ---- trainings in processes of their own


def run_training(
    log: Path, *arguments: object, killed=None, every_step=False, ranks=1, **environment: str
) -> list:
    """Run train_vit.py to its end, or until its first process is `killed` (moment, how many).

    What it says goes to the file `log`. With `every_step` there is a checkpoint after each step.
    Returns the exit codes of its processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        together = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        together |= {"LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
        variables = environment | ({} if ranks == 1 else together)
        processes.append(
            FORKED.Process(
                target=_train,
                args=(
                    f"{log}.{rank}" if rank else str(log),
                    [str(argument) for argument in arguments],
                    None if rank else killed,
                    every_step,
                    {name: str(value) for name, value in variables.items()},
                ),
            )
        )
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _train(log: str, arguments: list[str], killed, every_step: bool, environment: dict) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    tiny_timm.register()
    if every_step:
        torch_progress.SECONDS_BETWEEN_CHECKPOINTS = -1
    if killed:
        _kill(*killed)
    _note_pictures(Path(f"{log}.pictures"))
    sys.argv = ["train_vit.py", *arguments]
    command_line.run(train_vit.main)


def _kill(moment: str, number: int) -> None:
    """Kill this process after the n-th time that something has happened."""

    def after(owner, name, counts=lambda *arguments: True, first=lambda *arguments: None):
        original, calls = getattr(owner, name), []

        def replacement(*arguments, **named):
            result = original(*arguments, **named)
            calls.extend([name] if counts(*arguments) else [])
            if len(calls) == number:
                first(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, replacement)

    def is_optimizer(state, path):
        return Path(path).name == "optimizer.pt"

    match moment:
        case "step":
            after(torch_progress.Progress, "on_step_end")
        case "half an optimizer":
            after(torch, "save", is_optimizer, lambda _, path: os.truncate(path, 1000))
        case "checkpoint without its end":
            after(torch_trainer.ClassifierTrainer, "_save_checkpoint")
        case "checkpoint":
            after(torch_progress.Progress, "on_save")
        case "best":
            after(torch_progress.Progress, "_keep_best")
        case "training":
            after(TorchEngine, "train")


def _note_pictures(file: Path) -> None:
    """Write which training pictures are asked for: epoch and indices of each batch."""
    original = Batches.augmented

    def noted(batches, epoch, indices):
        with file.open("a") as lines:
            lines.write(json.dumps([epoch, [int(index) for index in indices]]) + "\n")
        return original(batches, epoch, indices)

    Batches.augmented = noted


def pictures(log: Path) -> list:
    return [json.loads(line) for line in Path(f"{log}.pictures").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), train=26, validate=20, strength=0)


@pytest.fixture(scope="module")
def reference(data, own_cache, tmp_path_factory, request):
    """Finished trainings by their names in TRAININGS: a function, which trains once."""
    done = {}

    def trained(name: str) -> SimpleNamespace:
        if name not in done:
            folder = tmp_path_factory.mktemp("reference")
            arguments = ["--data", data, "--init", "none", "--epochs", EPOCHS, "--workers", 2]
            arguments += ["--patience", PATIENCE, "--learning-rate", 3e-3, *EXACT]
            arguments += TRAININGS[name]
            log, output = folder / "log", folder / "tiny"
            assert run_training(log, *arguments, "--output", output) == [0], log.read_text()
            run = output.with_name("tiny.run")
            done[name] = SimpleNamespace(
                arguments=arguments, output=output, run=run, log=log, history=read_history(run)
            )
        return done[name]

    return trained


def last_checkpoint(folder: Path) -> Path:
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint and of its best weights, by file and name."""
    checkpoint = last_checkpoint(folder)
    tensors = {}
    for path in [*checkpoint.glob("*.safetensors"), folder / "best.safetensors"]:
        tensors |= {f"{path.name} {name}": value for name, value in load_file(path).items()}
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for number, moments in optimizer["state"].items():
        tensors |= {f"optimizer {number} {name}": value for name, value in moments.items()}
    random = torch.load(checkpoint / "rng_state.pth", weights_only=False)
    return tensors | {"random": random["cpu"]}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def without_time(history: list[dict]) -> list[dict]:
    return [{name: line[name] for name in line if name != "seconds"} for line in history]


# ---- resume


def at_any_moment(epochs: int) -> list[tuple]:
    """Moment, how many of it, with a checkpoint after each step or not, whole epochs when resumed;
    for a training of so many `epochs`."""
    return [
        ("step", 2, False, 0),  # in the middle of the first epoch, and no checkpoint yet
        ("checkpoint", 2, True, 0),  # in the middle of the first epoch, with one
        ("half an optimizer", 1, False, 0),  # in the checkpoint at the end of the first epoch
        ("best", 1, False, 0),  # the best weights are newer than the checkpoint
        ("checkpoint without its end", 1, False, 0),
        ("checkpoint", 2, True, 1),  # in the middle of the second epoch
        ("step", 1, False, 1),
        ("checkpoint", 2, True, 2),  # at the end of the second epoch
        ("checkpoint", epochs - 2, False, epochs),  # training is over
        ("training", 1, False, epochs),  # but the detector has not been written
    ]


def in_the_middle(epochs: int) -> list[tuple]:
    return [("checkpoint", 2, True, 0), ("checkpoint", 2, True, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moments"),
    [("vit, full", at_any_moment), ("vit, lora", in_the_middle), ("resnet, lora", in_the_middle)],
    ids=["vit, full", "vit, lora", "resnet, lora"],
)
def test_a_training_killed_again_and_again_ends_with_the_same_bits(
    reference, name, moments, tmp_path
):
    expected = reference(name)
    output, log = tmp_path / "again", tmp_path / "log"
    run = output.with_name("again.run")
    arguments = [*expected.arguments, "--output", output]
    for moment, number, every_step, whole in moments(len(expected.history)):
        resume = ["--resume"] if run.exists() else []
        codes = run_training(
            log, *arguments, *resume, killed=(moment, number), every_step=every_step
        )
        assert codes == [-signal.SIGKILL], (moment, number, log.read_text())
        history = run / "history.jsonl"
        history = read_history(run) if history.exists() else []
        assert without_time(history) == without_time(expected.history[:whole]), (moment, number)

    assert run_training(log, *arguments, "--resume") == [0], log.read_text()
    assert without_time(read_history(run)) == without_time(expected.history)
    assert_same(state_of(run), state_of(expected.run))
    beside_checkpoints = [
        {path.name for path in folder.iterdir() if not path.name.startswith("checkpoint-")}
        for folder in (run, expected.run)
    ]
    assert beside_checkpoints[0] == beside_checkpoints[1]
    for file in sorted(expected.output.rglob("*.safetensors")):
        again = output / file.relative_to(expected.output)
        assert_same(load_file(again), load_file(file))


@pytest.mark.slow
def test_an_unfinished_training_is_not_resumed_with_other_settings(data, tmp_path):
    arguments = ["--data", data, "--init", "none", "--architecture", "tiny_vit", "--epochs", 2]
    arguments += ["--output", tmp_path / "tiny"]
    log = tmp_path / "log"
    assert run_training(log, *arguments, killed=("step", 1)) == [-signal.SIGKILL]
    assert run_training(log, *arguments, "--resume", "--ema", 0.5) == [2]
    assert re.search(r"\bema\b.* 0\.998\b.* 0\.5\b", log.read_text())
    assert run_training(log, *arguments, "--resume", "--tuning", "probe") == [2]
    assert re.search(r"\btuning\b.* full\b.* probe\b", log.read_text())


# ---- what a training leaves behind


def train_only(folder: Path, name: str, *arguments: object, **settings) -> Path:
    """Train for the detector `folder`/`name`, but do not write it; the training's folder."""
    log = folder / f"{name}.log"
    output = folder / name
    arguments = [*arguments, "--output", output]
    codes = run_training(log, *arguments, killed=("training", 1), **settings)
    assert codes[0] == -signal.SIGKILL, log.read_text()
    return output.with_name(f"{name}.run")


@pytest.mark.slow
def test_a_training_on_forgeries_killed_and_resumed_ends_with_the_same_bits(data, tmp_path):
    arguments = ["--data", data, "--init", "none", "--architecture", "tiny_vit", "--epochs", 3]
    arguments += ["--batch-size", 4, "--learning-rate", 1e-3, "--self-blended", 1, "--cutmix", 0.4]
    arguments += ["--label-smoothing", 0.1, "--augmentation", "soften=0.5", "--patience", 3]
    expected = train_only(tmp_path, "expected", *arguments)
    output, log = tmp_path / "tiny", tmp_path / "log"
    codes = run_training(log, *arguments, "--output", output, killed=("step", 9), every_step=True)
    assert codes == [-signal.SIGKILL], log.read_text()
    assert run_training(log, *arguments, "--cutmix", 0.3, "--output", output, "--resume") == [2]
    assert re.search(r"\bcutmix\b.* 0\.4\b.* 0\.3\b", log.read_text())
    run = train_only(tmp_path, "tiny", *arguments, "--resume")
    said = (tmp_path / "tiny.log").read_text()
    assert "13 real (13) and 13 fake (13 self-blended)" in said
    assert without_time(read_history(run)) == without_time(read_history(expected))
    assert_same(state_of(run), state_of(expected))


def auc_of(folder: Path, data: Path) -> float:
    """The AUC on the validation pictures, as scoring would see them."""
    architecture = load_detector(folder).architecture
    samples = load_dataset(data).validate
    logits = predict(Runtime(folder / GRAPH, architecture).logits, samples, architecture, "area")
    return auc(np.array([sample.label for sample in samples]), logits)


@pytest.fixture
def tiny_architectures(monkeypatch):
    for architecture in (VIT, RESNET):
        monkeypatch.setitem(ARCHITECTURES, architecture.name, architecture)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_architectures")
def test_the_detector_has_the_weights_of_the_best_epoch(reference, data):
    done = reference("vit, full")
    aucs = [line["val_auc"] for line in done.history]
    assert auc_of(done.output, data) == pytest.approx(max(aucs), abs=1e-6)
    description = load_detector(done.output).description
    assert description["metrics"]["auc"] == pytest.approx(max(aucs), abs=1e-6)
    assert description["training"]["best_epoch"] == 1 + int(np.argmax(aucs))
    assert len(aucs) == 1 + int(np.argmax(aucs)) + PATIENCE < EPOCHS
    best, last = (
        {name.removeprefix("network."): value for name, value in load_file(path).items()}
        for path in (
            done.run / "best.safetensors",
            last_checkpoint(done.run) / "average.safetensors",
        )
    )
    assert_same(best, load_file(done.output / WEIGHTS))
    assert not all(torch.equal(best[name], last[name]) for name in last)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_architectures")
def test_a_network_tuned_with_lora_is_written_merged_and_with_its_adapter(reference, data):
    done = reference("resnet, lora")
    description = load_detector(done.output).description
    assert set(description["files"]) == {
        *("model.onnx", "model.safetensors", "history.jsonl"),
        *("README.md", "roc.png", "reliability.png"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    }
    assert load_file(done.output / WEIGHTS).keys() == RESNET.build().state_dict().keys()
    assert description["training"]["arguments"]["tuning"] == "lora"
    assert description["export"]["largest_difference"] <= 1e-4
    best = max(line["val_auc"] for line in done.history)
    assert auc_of(done.output, data) == pytest.approx(best, abs=1e-6)
    start = starting_point(str(done.output), RESNET)
    assert start.label == "detector tiny (scratch)"
    assert start.adapter == done.output / "adapter"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "learning"),
    [
        ("vit, full", {"full", "50,689", "100.00%", "fp32"}),
        # 2 layers of 2 blocks get 16 · (32 + 32) parameters; the head has 33
        ("vit, lora", {"lora", "4,129", "54,785", "7.54%", "fp32"}),
    ],
)
def test_what_is_said(reference, name, learning):
    said = reference(name).log.read_text()
    _, after_audit = said.split("Fingerprint: ")
    lines = [line for line in re.split(r"[\r\n]+", after_audit)[1:] if line]
    training, tuning, result = (line for line in lines if not line.startswith("epoch "))
    assert "tiny_vit" in training and f"({os.cpu_count()} cores)" in training
    assert learning <= set(re.findall(r"[\w.,%]*[\w%]", tuning))
    assert result.startswith(f"{reference(name).output}: ")
    epochs = len(reference(name).history)
    finished = [line for line in lines if "100%" in line and "val_auc" in line]
    assert len({line.split(":")[0] for line in finished}) == epochs


@pytest.mark.slow
def test_the_seed_decides(data, tmp_path):
    arguments = ["--data", data, "--init", "none", "--epochs", 1, *TRAININGS["vit, full"]]
    first, again, other = (
        load_file(train_only(tmp_path, name, *arguments, "--seed", seed) / "best.safetensors")
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert_same(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first if "weight" in name[-6:])


@pytest.mark.slow
def test_the_moving_average_is_what_is_validated_and_kept(data, tmp_path):
    arguments = ["--data", data, "--init", "none", "--epochs", 1, *TRAININGS["resnet, lora"]]
    run = train_only(tmp_path, "tiny", *arguments)
    [checkpoint] = run.glob("checkpoint-*")
    best, last, average = (
        load_file(path)
        for path in (
            run / "best.safetensors",
            checkpoint / "model.safetensors",
            checkpoint / "average.safetensors",
        )
    )
    changing = [name for name in best if not torch.equal(best[name], last[name])]
    assert any("lora_A" in name for name in changing)
    assert any("running_mean" in name for name in changing)
    for name in changing:
        assert torch.equal(best[name], average[name]), name


def test_the_decay_of_the_moving_average_rises():
    network = torch.nn.BatchNorm1d(1)
    network.bias.requires_grad_(False)
    average = MovingAverage(network, decay=0.25)
    steps = [(1, 11.0), (2, 4.0), (1000, 2.0)]
    # The shares of the old average: 2/11, 3/12, and never more than the decay
    for (step, value), expected in zip(steps, [(2 + 99) / 11, 5.295454, 2.823863], strict=True):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_mean.fill_(value)
            network.bias.fill_(value)
        average.update(step)
        with average.in_use():
            assert network.weight.item() == pytest.approx(expected)
            assert network.bias.item() == value
        assert network.weight.item() == network.running_mean.item() == value


@pytest.mark.slow
def test_a_short_training_learns_and_stops_at_the_target(tmp_path):
    """With the moving average whose decay is made for hundreds of steps, in forty."""
    data = make_dataset(tmp_path / "data", train=32, validate=32, strength=0)
    for path in data.glob("*/fake/*.jpg"):
        with Image.open(path) as picture:
            picture.paste((0, 0, 0), (40, 40, 150, 150))
            picture.save(path)
    arguments = ["--data", data, "--init", "none", "--architecture", "tiny_resnet"]
    arguments += ["--gradient-accumulation", 1, "--batch-size", 8, "--learning-rate", 3e-3]
    arguments += ["--epochs", 10, "--patience", 10, "--target-accuracy", 0.8, *EXACT]
    history = read_history(train_only(tmp_path, "tiny", *arguments))
    accuracies = [line["val_accuracy"] for line in history]
    assert max(accuracies[:-1]) < 0.8 <= accuracies[-1]
    assert len(history) < 10


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_with_a_sentence(data, tmp_path):
    log = tmp_path / "log"
    arguments = ["--data", data, "--init", "none", "--architecture", "tiny_vit"]
    arguments += ["--learning-rate", 1e30, "--batch-size", 4, "--output", tmp_path / "tiny"]
    for accumulation in (1, 3):  # noticed after ten steps, or where an epoch has fewer
        shutil.rmtree(tmp_path / "tiny.run", ignore_errors=True)
        codes = run_training(log, *arguments, "--gradient-accumulation", accumulation)
        said = log.read_text()
        assert codes == [2], said
        assert "--learning-rate" in said.splitlines()[-1]
        assert "Traceback" not in said
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
def test_targets_that_match_nothing_end_with_a_sentence(data, tmp_path):
    log = tmp_path / "log"
    arguments = ["--data", data, "--init", "none", "--architecture", "tiny_vit"]
    arguments += ["--tuning", "lora", "--lora-targets", "nowhere,else"]
    assert run_training(log, *arguments, "--output", tmp_path / "tiny") == [2]
    # At once: before the audit, and without leaving a run that would have to be resumed.
    assert log.read_text().startswith("train_vit.py: --lora-targets nowhere,else: tiny_vit ")
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "tiny.run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--device cuda: torch sees no NVIDIA GPU here"):
        TorchEngine("cuda")


# ---- precision


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_architectures")
def test_a_network_trained_in_bfloat16_is_exported_in_fp32(data, tmp_path):
    log, output = tmp_path / "log", tmp_path / "tiny"
    arguments = ["--data", data, "--init", "none", *TRAININGS["resnet, lora"], "--epochs", 2]
    arguments += ["--precision", "bf16", "--output", output]
    assert run_training(log, *arguments) == [0], log.read_text()
    assert "(34.83%), bf16." in log.read_text()
    weights = load_file(output / WEIGHTS)
    kinds = {value.dtype for value in weights.values()}
    assert kinds == {torch.float32, torch.int64}  # the latter counts batches
    assert any((value.bfloat16() != value).any() for value in weights.values())
    assert load_detector(output).description["export"]["largest_difference"] <= 1e-4
    exact = train_only(tmp_path, "exact", *arguments[:-2], "--precision", "fp32")
    low = read_history(tmp_path / "tiny.run")
    assert low[0]["loss"] != read_history(exact)[0]["loss"]
    assert low[0]["loss"] == pytest.approx(read_history(exact)[0]["loss"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "precision"), [("0", "fp32"), ("1", "bf16")])
def test_bfloat16_is_chosen_and_said_where_the_processor_has_it(data, tmp_path, setting, precision):
    arguments = ["--data", data, "--init", "none", "--architecture", "tiny_vit", "--epochs", 1]
    chosen = train_only(tmp_path, "auto", *arguments, DEEPFAKE_BF16=setting)
    [said] = [line for line in (tmp_path / "auto.log").read_text().splitlines() if "Tuning" in line]
    assert said.endswith(f", {precision}.")
    asked = train_only(tmp_path, "asked", *arguments, "--precision", precision)
    assert without_time(read_history(chosen)) == without_time(read_history(asked))


def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch):
    for setting, expected in (("0", False), ("1", True)):
        monkeypatch.setenv("DEEPFAKE_BF16", setting)
        assert uses_bf16("auto", "cpu") is expected
        assert uses_bf16("bf16", "cpu")
        assert not uses_bf16("fp32", "cpu")
    monkeypatch.delenv("DEEPFAKE_BF16")
    if Path("/proc/cpuinfo").exists():  # elsewhere nothing tells but torch itself
        words = set(Path("/proc/cpuinfo").read_text().split())
        expected = bool(words & {"avx512_bf16", "amx_bf16"})
        assert uses_bf16("auto", "cpu") is expected


# ---- several processes

TOGETHER = [
    *("--architecture", "tiny_vit", "--init", "none", "--workers", 1, "--gradient-accumulation", 2),
    *("--learning-rate", 1e-3, "--ema", 0.9, "--epochs", 3, *EXACT),
]


@pytest.fixture(scope="module")
def together(data, own_cache, tmp_path_factory) -> Path:
    """The folder of a training with torchrun, whose second process is told to write elsewhere."""
    folder = tmp_path_factory.mktemp("together")
    script = folder / "train.py"
    script.write_text(
        "import os, sys\n"
        "from tests.test_torch_training import _train\n"
        "rank = os.environ['RANK']\n"
        "arguments = [*sys.argv[1:], '--output', f'tiny{rank}']\n"
        "_train(f'log{rank}', arguments, None, False, {})\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", script, "--data", data, "--batch-size", "2", *TOGETHER]
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr + (folder / "log0").read_text()
    return folder


@pytest.fixture(scope="module")
def alone(data, own_cache, tmp_path_factory) -> Path:
    """The folder of the same training in one process at the double batch."""
    folder = tmp_path_factory.mktemp("alone")
    train_only(folder, "tiny", "--data", data, "--batch-size", 4, *TOGETHER)
    return folder


@pytest.mark.slow
def test_two_processes_share_the_pictures_of_each_step(together, alone):
    first, second = pictures(together / "log0"), pictures(together / "log1")
    whole = pictures(alone / "tiny.log")
    assert len(first) == len(second) == len(whole) == 3 * STEPS * 2
    for (epoch, one), (_, other), (expected_epoch, both) in zip(first, second, whole, strict=True):
        assert epoch == expected_epoch
        assert len(one) == len(other) == 2
        assert one + other == both
    assert {epoch for epoch, _ in whole} == {0, 1, 2}


@pytest.mark.slow
def test_two_processes_train_like_one_at_the_double_batch(together, alone):
    """Summed in another order: no more than rounding. Where a gradient is zero but for that, as a
    key's bias has, Adam makes a step of any direction of it; outputs do not depend on these."""
    history, expected = read_history(together / "tiny0.run"), read_history(alone / "tiny.run")
    for line, other in zip(history, expected, strict=True):
        for name in ("loss", "val_loss", "learning_rate"):
            assert line[name] == pytest.approx(other[name], abs=1e-5), name
        assert line["val_auc"] == other["val_auc"]
    outputs = []
    for folder in (together / "tiny0.run", alone / "tiny.run"):
        network = Classifier(VIT.build(), "full")
        network.load_state_dict(load_file(folder / "best.safetensors"))
        pixels = torch.from_numpy(VIT.scaling(faces(16))).permute(0, 3, 1, 2)
        with torch.no_grad():
            outputs.append(network.eval()(pixels)["logits"].numpy())
    np.testing.assert_allclose(*outputs, atol=1e-4)


@pytest.mark.slow
def test_of_two_processes_one_writes_and_speaks(together, alone):
    written = {path.name for path in (together / "tiny1.run").rglob("*") if path.is_file()}
    assert written == {"rng_state_1.pth"}
    assert not (together / "tiny1").exists()
    assert (together / "log1").read_text() == ""
    said = (together / "log0").read_text()
    assert said.count("Training tiny_vit on 2 × CPU") == 1
    assert said.count("parameters learn") == 1
    assert "Warning" not in said
    description = json.loads((together / "tiny0" / "detector.json").read_text())
    assert "2 × CPU" in description["training"]["device"]
    assert len(read_history(together / "tiny0")) == 3


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_with_the_same_bits(data, tmp_path):
    arguments = ["--data", data, *TOGETHER, "--batch-size", 2, "--dropout", 0.2, "--epochs", 8]
    arguments += ["--patience", 8]
    expected = train_only(tmp_path, "expected", *arguments, ranks=2)
    output, log = tmp_path / "tiny", tmp_path / "log"
    # Together they write a checkpoint every 20 steps, if it is time: in the seventh epoch.
    codes = run_training(
        log, *arguments, "--output", output, killed=("step", 21), every_step=True, ranks=2
    )
    assert codes[0] == -signal.SIGKILL, log.read_text()
    run = train_only(tmp_path, "tiny", *arguments, "--resume", ranks=2)
    assert len(pictures(tmp_path / "tiny.log")) == 2 * 4  # two batches a step
    assert without_time(read_history(run)) == without_time(read_history(expected))
    for name in ("best.safetensors", "checkpoint-24/model.safetensors"):
        assert_same(load_file(run / name), load_file(expected / name))


@pytest.mark.slow
def test_two_processes_agree_on_the_statistics_of_batch_normalization(data, tmp_path):
    arguments = ["--data", data, "--init", "none", "--architecture", "tiny_resnet", "--epochs", 2]
    arguments += ["--batch-size", 2, "--learning-rate", 1e-3, "--tuning", "lora", *EXACT]
    run = train_only(tmp_path, "tiny", *arguments, ranks=2)
    network = Classifier(tune(RESNET.build(), RESNET, Tuning("lora")), "lora")
    network.load_state_dict(load_file(run / "best.safetensors"))
    network.eval()

    @torch.no_grad()
    def logits(pixels: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(RESNET.scaling(pixels)).permute(0, 3, 1, 2)
        return network(scaled)["logits"].numpy()[:, 0]

    samples = load_dataset(data).validate
    labels = np.array([sample.label for sample in samples])
    found = logits_loss(labels, predict(logits, samples, RESNET, "area"))
    best = max(read_history(run), key=lambda line: line["val_auc"])
    assert found == pytest.approx(best["val_loss"], abs=1e-6)


def logits_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


# ---- the real scripts


@pytest.mark.slow
def test_a_detector_that_train_vit_made_scores_with_infer_vit(infer, tmp_path):
    data = make_dataset(tmp_path / "data", train=8, validate=8)
    output = tmp_path / "weights" / "mine"
    arguments = ["--data", data, "--architecture", "vit_tiny_patch16_224", "--init", "none"]
    arguments += ["--epochs", 1, "--batch-size", 4, "--output", output, *EXACT]
    done = infer(*arguments, script="train_vit.py")
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"Warning" not in done.stderr
    rows = tmp_path / "rows.jsonl"
    pictures = data / "validate"
    done = infer(
        *(pictures, "--weights", output, "--face", "none", "--output", rows), script="infer_vit.py"
    )
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(rows) == 8
    assert {row["model"] for row in rows} == {"mine"}
    labels = ["fake" in Path(row["path"]).parts for row in rows]
    scored = auc(np.array(labels), np.array([row["fake_probability"] for row in rows]))
    assert scored == pytest.approx(read_history(output)[0]["val_auc"], abs=1e-6)
