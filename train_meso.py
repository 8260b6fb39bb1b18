"""Train Meso4 or MesoInception4 on folders of real and fake faces.

    python train_meso.py --data dataset/                         → weights/meso4/
    python train_meso.py --data dataset/ --architecture mesoinception4
    python train_meso.py --data dataset/ --resume                after Ctrl-C, kill -9, a power cut
    python train_meso.py --data dataset/ --show-augmentation sheet.png

The dataset is train|validate/real|fake (prepare_dataset.py makes one). It is audited first; what
cannot be read is named and left out. Training stops when the validation AUC no longer rises; the
best epoch's weights are calibrated, exported and written to the detector folder that infer_meso4.py
and infer_mesoinception4.py score with. Until then <output>.run/ holds its state, history.jsonl and
TensorBoard's logs.

To expect: 7,000 faces take a minute an epoch on two idle cores with Meso4, three with
MesoInception4. Meso4 from the published weights (--init weights/Meso4_DF.h5) reached a validation
AUC of 0.79 in 14 epochs on StyleGAN, Stable Diffusion and DFDC fakes; more should help.
"""

from pathlib import Path

from models import ARCHITECTURES
from pipeline.augmentation import Augmentation, show_augmentation
from pipeline.commands import run, training_parser

WEIGHTS = Path(__file__).resolve().parent / "weights"
RECIPE = {"epochs": 40, "batch_size": 16, "learning_rate": 1e-3, "patience": 12, "dropout": 0.0}
# Lighter than the default: networks of 28,000 parameters learn little from worse pictures.
AUGMENTATION = Augmentation(
    crop=0.4, rescale=0.1, blur=0.03, noise=0.03, brightness=0.3, jpeg=0.2, webp=0.02
)


def main() -> None:
    parser = training_parser(__doc__, **RECIPE)
    parser.add_argument("--architecture", choices=("meso4", "mesoinception4"), default="meso4")
    args = parser.parse_args()
    architecture = ARCHITECTURES[args.architecture]
    output = args.output or WEIGHTS / args.architecture

    from pipeline.audit import audited_dataset

    dataset, audit = audited_dataset(args.data, args.workers)
    if args.show_augmentation:
        sheet = args.show_augmentation
        show_augmentation(dataset.train, architecture, AUGMENTATION, args.seed, sheet)
        return

    from pipeline.keras_training import train_detector  # TensorFlow takes seconds to import

    train_detector(args, architecture, AUGMENTATION, dataset, audit, output)


if __name__ == "__main__":
    run(main, after_stop="The same command with --resume goes on from the last whole epoch.")
