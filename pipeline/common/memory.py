"""Memory that a program has freed, kept for its next use instead of being handed back."""

import ctypes
import sys

# Numbers of mallopt's parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1  # bytes; the largest number that mallopt takes


def keep_freed_memory() -> bool:
    """From now on, let this process keep what it frees; whether the C library can be told so.

    A training step allocates and frees the same gigabytes again and again. glibc gives large blocks
    back to the system each time, which then clears every page anew: without this, an
    EfficientNet-Lite0 step on a CPU takes half as long again (benchmarks/training_speed.py). So it
    is with scoring: of the time to decode a photo of 12 megapixels, a third to a half went to that.
    Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
