"""Turn a file of torch's into safetensors: `python -m pipeline.foreign.torch_file IN OUT`.

A process of its own, for Keras networks, in whose process there must be no torch.
"""

import sys


def main() -> None:
    import torch
    from safetensors.torch import save_file

    source, target = sys.argv[1:]
    weights = torch.load(source, map_location="cpu", weights_only=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, target)


if __name__ == "__main__":
    main()
