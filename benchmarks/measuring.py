"""How long programs take and how much memory they hold, and on which machine."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Usage(NamedTuple):
    """Seconds of the clock, seconds of all cores, and peak memory in MiB; its standard output."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str


# Linux counts what a process held before it became another program, too: so the program is started
# from one that holds little, not from a benchmark that holds pictures.
_LAUNCHER = """
import json, os, resource, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]), file=sys.stderr)
sys.exit(status != 0)
"""


def measure(command: list) -> Usage:
    """Run a program of the repository to its end. Ends this one where it fails.

    Peak memory is that of the program alone, without the programs that it starts.
    """
    launched = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, command)]
    done = subprocess.run(launched, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[1]} failed:\n{done.stderr[-2000:]}")
    seconds, cpu_seconds, peak = json.loads(done.stderr.splitlines()[-1])
    in_kib = 1 if sys.platform.startswith("linux") else 1 / 1024  # macOS counts in bytes
    return Usage(seconds, cpu_seconds, peak * in_kib / 1024, done.stdout)


# As Linux names what processors have for the products of matrices.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_tile": "AMX",
}


def machine() -> dict:
    """What the figures of a benchmark hold for: processor and what it has for the products of
    matrices, cores, day, load by other programs."""
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
    of_first = {}
    for line in lines:
        name, _, value = line.partition(":")
        of_first.setdefault(name.strip(), value.strip())
    flags = of_first.get("flags", "").split()
    known = dict.fromkeys(name for flag, name in _INSTRUCTIONS.items() if flag in flags)
    processor = of_first.get("model name") or platform.machine()
    return f"{processor} ({', '.join(known)})" if known else processor


def note(output: Path, **entries) -> None:
    """Print a line of a long run, and add it to `output`/log.jsonl."""
    print(output.name, json.dumps(entries), flush=True)
    with open(output / "log.jsonl", "a", encoding="utf-8") as log:
        print(json.dumps(entries), file=log)
