"""On what torch trains, and in which precision."""

import torch

from pipeline.common.errors import UserError
from pipeline.common.machine import usable_cores
from pipeline.common.processor import has_bf16
from pipeline.feeding.engine import world_size


def chosen(device: str) -> str:
    """What "auto", "cpu" or "cuda" means here: "cuda", "mps" or "cpu". Raises UserError where there
    is none."""
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError(
            "--device cuda: torch sees no NVIDIA GPU here; install a torch built for CUDA on a "
            "machine that has one, or leave --device at auto"
        )
    if device == "cpu":
        return "cpu"
    if has_cuda:
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def in_words(device: str) -> str:
    """A chosen device, in all processes, for people."""
    several = f"{world_size()} × " if world_size() > 1 else ""
    if device == "cuda":
        return f"{several}GPU ({torch.cuda.get_device_name()})"
    if device == "mps":
        return "Apple GPU"
    return f"{several}CPU ({usable_cores()} cores)"


def uses_bf16(precision: str, device: str) -> bool:
    """Whether "auto", "fp32" or "bf16" means bfloat16 on a chosen device: "auto" where its
    processor has it."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bf16(_torch_has_bf16)


def _torch_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
