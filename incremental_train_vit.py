"""Teach a detector a new kind of fake without letting it forget the old ones.

    python incremental_train_vit.py --from weights/vit --new-data new/ --replay dataset/
    python incremental_train_vit.py --from weights/vit --new-data new/ --replay dataset/ --resume
    python incremental_train_vit.py --from weights/vit --versions        list the versions
    python incremental_train_vit.py --from weights/vit --use 1           go back to the first

new/ holds train|validate/real|fake, or just real|fake (a fifth of the groups then validates; one
class may be absent). --replay names the data that the detector was trained on: some of it
(--replay-fraction 0.3 of all pictures) is used again, and its validation pictures show what was
forgotten. A table shows AUC, fakes found and real faces passed before and after, on the old and on
the new data; it is kept beside the new version.

The new detector replaces the old one if its AUC on the old data fell by no more than --margin
(0.02); otherwise, or without --replay, it is only kept as a version, and the exit code is 1. All
versions are kept in weights/vit.versions/. Training continues in the way that the detector was
trained (whole network, LoRA, norms or head; at the same rate) unless --tuning and --learning-rate
say otherwise; with LoRA, --adapter new merges the old adapter and adds a new one.

--from takes any torch network: ViT, ResNet50, EfficientNet-Lite0.
"""

from pipeline.common.command_line import run
from pipeline.training.recipes import AS_TRAINED, TORCH
from pipeline.training.training_arguments import incremental_arguments

RECIPE = {
    **TORCH,
    "tuning": AS_TRAINED,
    "learning_rate": AS_TRAINED,  # a tenth of it forgets less, but hardly learns what is new
    "layer_decay": AS_TRAINED,
    "adapter": "continue",
    "epochs": 5,
    "warmup": 0.1,
}


def main() -> int:
    args = incremental_arguments(__doc__, RECIPE)

    from pipeline.training import incremental  # what it needs takes seconds to import

    if args.versions:
        return incremental.list_versions(args.start)
    if args.use:
        return incremental.use(args.start, args.use)
    return incremental.train_further(args)


if __name__ == "__main__":
    run(main, after_stop="The same command with --resume goes on from the last checkpoint.")
