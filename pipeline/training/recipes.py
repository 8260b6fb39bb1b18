"""What most recipes share; a training script names what is its own.

A recipe is a dictionary: setting → value. `init` is what to start from, the others are the fields
of the engine's `Recipe`, which says what they mean.
"""

from pipeline.feeding.augmentation import Augmentation

AS_TRAINED = "as it was trained"  # of a detector that is trained further

KERAS = {
    "init": "imagenet",
    "batch_size": 16,
    "target_accuracy": None,
    "seed": 0,
    "precision": "auto",
    "resize_filter": "area",
    "augmentation": Augmentation(),
    "self_blended": 0.0,
    "balance": "none",
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "alike": "none",
    "teacher": None,
}
TORCH = {
    **KERAS,
    "tuning": "full",
    "gradient_accumulation": 1,
    "weight_decay": 0.05,
    "warmup": 0.05,
    "ema": 0.998,
    "dropout": 0.0,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_targets": (),
    "patience": 3,
}
