"""How long programs take and how much memory they hold, and on which machine."""

import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Usage(NamedTuple):
    """Seconds of the clock, seconds of all cores, and peak memory in MiB; its standard output."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str


def measure(command: list) -> Usage:
    """Run a program of the repository to its end. Ends this one where it fails.

    Peak memory is that of the program alone, without the programs that it starts.
    """
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaints:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, stdout=said, stderr=complaints, text=True
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        complaints.seek(0)
        if status:
            sys.exit(f"{command[1]} failed:\n{complaints.read()[-2000:]}")
        in_kib = 1 if sys.platform.startswith("linux") else 1 / 1024  # macOS counts in bytes
        peak = usage.ru_maxrss * in_kib / 1024
        return Usage(seconds, usage.ru_utime + usage.ru_stime, peak, said.read())


def machine() -> dict:
    """What the figures of a benchmark hold for: processor, cores, day, load by other programs."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "load_at_the_start": round(os.getloadavg()[0], 2),  # 0: the machine was idle
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
