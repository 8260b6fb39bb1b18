"""What can be set where a torch network is trained."""

from dataclasses import dataclass

import torch

from models import Architecture
from pipeline.common.errors import UserError
from pipeline.feeding.engine import Recipe, world_size
from pipeline.torch_engine.tuning import Tuning, tune


@dataclass(frozen=True)
class TorchRecipe(Recipe):
    """What shapes the trained weights of a torch network.

    A step takes `batch_size` × `gradient_accumulation` pictures on each device. `ema` is the decay
    of the weights' moving average, which is then what is validated and kept; 0: none. The
    learning rate rises for the share `warmup` of all steps and then falls as a cosine.
    """

    tuning: str = "full"
    weight_decay: float = 0.05
    warmup: float = 0.05
    gradient_accumulation: int = 1
    layer_decay: float | None = None
    ema: float = 0.0
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ()
    adapter: str = "new"  # or "continue": go on with the adapter of the detector to start from

    def check(self, architecture: Architecture) -> None:
        """Raise UserError where LoRA would find nothing to adapt, and where a probe cannot do what
        is asked for."""
        super().check(architecture)
        if self.tuning == "probe":
            if self.mixup or self.cutmix:
                raise UserError("--mixup and --cutmix need another --tuning than probe.")
            if self.teacher:
                raise UserError("--teacher needs another --tuning than probe.")
            if world_size() > 1:
                raise UserError("--tuning probe runs in one process: start it without torchrun.")
        if self.tuning == "lora":
            with torch.device("meta"):  # no memory, no time
                tune(architecture.build(), architecture, self.parts)

    @property
    def parts(self) -> Tuning:
        """Which parameters learn."""
        return Tuning(
            self.tuning, self.lora_rank, self.lora_alpha, self.lora_dropout, self.lora_targets
        )
