"""One run at a time writes an output: two would overwrite each other's rows."""

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.common.errors import UserError


class OutputLock:
    """Holds an output for this run, from the moment it is made until `release`.

    It is the system's lock on `.<name>.lock` beside the output, so it ends with the process,
    however that ends; a file that a killed run leaves behind locks nobody out. Raises UserError
    where another run holds it, and OSError where there cannot be such a file.
    """

    def __init__(self, output: Path):
        self._file = output.with_name(f".{output.name}.lock")
        # Not of a thread: the one that finishes the output may be another than began it.
        self._lock = FileLock(self._file, blocking=False, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{output}: another run is writing this file just now; wait for its end, or choose "
                "another --output."
            ) from None

    def release(self) -> None:
        """Let go of the output, and remove the lock's file; twice does no harm."""
        if self._lock.is_locked:
            # While it is held: who has opened it by then finds it gone and makes another. Windows
            # does not let go of an open file, and there FileLock removes it.
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._lock.release()
