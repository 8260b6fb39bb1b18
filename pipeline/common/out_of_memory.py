"""What a program says where its memory does not suffice, instead of a traceback.

Libraries tell it in many ways: Python by MemoryError, OpenVINO and OpenCV by texts of C++, the
loader of shared libraries by an ImportError, torch and TensorFlow by exceptions of their own.
"""

import errno
import sys
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.machine import address_space_limit

# Bytes of addresses, measured with the smallest network on two cores. Below them, shared libraries,
# threads and networks fail one after the other, and some of them end the process where it stands or
# wait for ever, which cannot be caught. (Scoring takes 1.8 GB, and with 1.6 leaves out large
# photos; to train takes 5.5 GB with torch and 7 with TensorFlow, most of which are never touched.)
LEAST_ADDRESS_SPACE = 1 << 30
LEAST_TO_SCORE = 3 << 29
LEAST_TO_TRAIN = 5 << 30

_SIGNS = (
    "bad_alloc",
    "bad allocation",
    "failed to map segment",
    "cannot allocate memory",
    "can't allocate memory",
    "unable to allocate",
    "can't alloc",
    "failed to allocate",
    "insufficient memory",
    "not enough memory",
    "out of memory",
    "oom when allocating",
    "can't start new thread",
    "resource temporarily unavailable",
    "paging file is too small",  # Windows
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, means that memory did not suffice, or that no
    more thread could be started."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN):
            return True
        text = str(error).lower()
        if any(sign in text for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def out_of_memory_in_words(error: BaseException) -> str:
    """A sentence that says what has failed, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = f" ({lines[-1][:200]})" if lines else ""
    limit = address_space_limit()
    way = "close other programs" if limit is None else f"raise `ulimit -v` ({_in_gb(limit)} now)"
    return f"the memory does not suffice{what}: {way}, or take a smaller network or batch."


def require_memory(what: str, least: int) -> None:
    """Raise UserError where `ulimit -v` allows less than the bytes that `what` takes at least."""
    limit = address_space_limit()
    if limit is not None and limit < least:
        raise UserError(_too_little(limit, f"{what} needs", least))


def stop_where_memory_cannot_suffice() -> None:
    """End the program with exit code 2 and a sentence where `ulimit -v` is so low that not even its
    libraries could be loaded."""
    limit = address_space_limit()
    if limit is not None and limit < LEAST_ADDRESS_SPACE:
        sentence = _too_little(limit, "its libraries alone need", LEAST_ADDRESS_SPACE)
        print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
        raise SystemExit(2)


def _too_little(limit: int, what_needs: str, least: int) -> str:
    return (
        f"`ulimit -v` allows this program {_in_gb(limit)} of memory, and {what_needs} "
        f"{_in_gb(least)}: raise the limit, as with `ulimit -v unlimited`."
    )


def _in_gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
