"""What this machine can compute with: bfloat16 in the processor, an NVIDIA card."""

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.common.errors import UserError

SETTING = "DEEPFAKE_BF16"
NVIDIA_DRIVER = Path("/dev/nvidiactl")  # there as soon as the driver has found a card


def has_bf16(ask: Callable[[], bool]) -> bool:
    """Whether to count on a processor that computes faster in bfloat16 than in 32-bit floats.

    `ask` is what the library says that is going to compute: OpenVINO when photos are scored, torch
    when networks are trained. DEEPFAKE_BF16 in the environment decides instead: 0 hides bfloat16,
    so that results are those of a processor without it; 1 grants it, also where it is slow. What
    computes on a GPU does not ask. Raises UserError where the setting is neither 0, 1 nor empty.
    """
    setting = os.environ.get(SETTING, "")
    if setting not in ("", "0", "1"):
        raise UserError(
            f"{SETTING}={setting}: 0 hides the processor's bfloat16, 1 grants it; unset, it is "
            "used where the processor has it."
        )
    return setting == "1" if setting else ask()


def has_nvidia_card() -> bool:
    """Whether there is an NVIDIA card with its driver; nothing is loaded for the answer."""
    return NVIDIA_DRIVER.exists()
