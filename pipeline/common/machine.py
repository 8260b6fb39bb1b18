"""What this process may use of the machine: cores and memory.

In a container, or under `taskset`, a batch system or `ulimit`, that is less than what the machine
has. Whoever starts threads or keeps pictures in memory asks here.

`root` is the root of the file system in which /proc and /sys are looked for; it is another one in
tests. Control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html) exist on Linux only, in
two versions that may both be mounted. Each group's limit holds for all groups below it.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
# Where version 1 is mounted in all usual systems, if /proc/self/mountinfo is not to be had.
_USUAL_PLACES = {
    "memory": ("sys/fs/cgroup/memory",),
    "cpu": ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"),
    "": ("sys/fs/cgroup", "sys/fs/cgroup/unified"),  # version 2
}


class _Mount(NamedTuple):
    """A hierarchy of groups: `group` is the one that is seen at `place`."""

    group: str
    place: Path


def usable_cores(root: Path = ROOT) -> int:
    """How many cores this process may use, at least 1: those that it is bound to, or fewer where
    its control group's share of processor time is less (1.5 cores count as 2)."""
    return max(1, math.ceil(min(bound_cores(), _share_of_time(root))))


def bound_cores() -> int:
    """How many cores this process may run on, whatever its share of their time. This is what most
    libraries start a thread each for."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # Windows; macOS binds no process to cores
        return len(process.cpu_affinity())
    return os.cpu_count() or 1


def spare_threads(root: Path = ROOT) -> int | None:
    """How many threads a library may start where one for each of the `bound_cores` would be too
    many, because a control group stops them all once its share of time is used up; else None."""
    usable = usable_cores(root)
    return usable if usable < bound_cores() else None


def limit_libraries(root: Path = ROOT) -> None:
    """Tell torch and TensorFlow, before they are imported, of what they do not look for: see
    `spare_threads`. What the user has set stays."""
    if threads := spare_threads(root):
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
            os.environ.setdefault(name, str(threads))


def one_thread_for_opencv() -> None:
    """For programs that decode photos in as many threads as there are cores: OpenCV's own threads
    would only compete with them."""
    import cv2

    cv2.setNumThreads(1)


def usable_memory(root: Path = ROOT) -> int:
    """How much memory this process may use, in bytes: what the machine has, or less where its
    control group or `ulimit -v` allows less. Others may be using some of it."""
    import psutil

    limits = [psutil.virtual_memory().total, *_memory_limits(root)]
    if address_space := address_space_limit():
        limits.append(address_space)
    return min(limits)


def address_space_limit() -> int | None:
    """What `ulimit -v` allows this process, in bytes; None where nothing is said."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def _share_of_time(root: Path) -> float:
    """Of how many cores the groups of this process get the time; infinite where nothing is said."""
    shares = [math.inf]
    for folder in _groups(root, ""):
        quota, _, period = _content(folder / "cpu.max").partition(" ")
        shares.append(_quotient(quota, period))
    for folder in _groups(root, "cpu"):
        quota, period = (_content(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        shares.append(_quotient(quota, period))
    return min(shares)


def _memory_limits(root: Path) -> Iterator[int]:
    """In bytes, of all groups that this process is in. Above memory.high the system slows it down
    until it stands still."""
    files = {"": ("memory.max", "memory.high"), "memory": ("memory.limit_in_bytes",)}
    for controller, names in files.items():
        for folder in _groups(root, controller):
            yield from (
                int(text) for name in names if (text := _content(folder / name)).isdecimal()
            )


def _quotient(quota: str, period: str) -> float:
    """Infinite where the quota is "max", -1 or not there."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        return int(quota) / int(period)
    return math.inf


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all above it, as far as they can be seen.

    `controller` is "memory" or "cpu" in version 1, "" in version 2.
    """
    own = _own_group(root, controller)
    for group, place in _mounts(root, controller):
        # In a container the mount may show only a part of the hierarchy, or /proc name groups
        # outside of it: then what is mounted is the container's own group.
        inside = own == group or own.startswith(group.rstrip("/") + "/")
        below = own[len(group.rstrip("/")) :].strip("/") if inside else ""
        parts = [part for part in below.split("/") if part]
        if ".." in parts:
            parts = []
        for depth in range(len(parts), -1, -1):
            yield place.joinpath(*parts[:depth])


def _own_group(root: Path, controller: str) -> str:
    """From lines `4:memory:/docker/abc`, in version 2 `0::/user.slice`; "/" where none says so."""
    for line in _content(root / "proc/self/cgroup").splitlines():
        _, controllers, group = (line.split(":", 2) + ["", ""])[:3]
        if controller in controllers.split(","):
            return group or "/"
    return "/"


def _mounts(root: Path, controller: str) -> list[_Mount]:
    """From lines `30 23 0:26 /docker/abc /sys/fs/cgroup/memory rw … - cgroup cgroup rw,memory`:
    the fourth field is the group, the fifth the place, the type and the options come last."""
    found = []
    for line in _content(root / "proc/self/mountinfo").splitlines():
        first, _, last = line.partition(" - ")
        fields, (kind, _, options) = first.split(), (last.split() + ["", "", ""])[:3]
        version_1 = kind == "cgroup" and controller and controller in options.split(",")
        version_2 = kind == "cgroup2" and not controller
        if len(fields) > 4 and (version_1 or version_2):
            found.append(_Mount(_unescaped(fields[3]), root / _unescaped(fields[4]).lstrip("/")))
    if found:
        return found
    return [_Mount("/", root / place) for place in _USUAL_PLACES[controller]]


def _unescaped(field: str) -> str:
    """The kernel writes spaces and the like as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), field)


def _content(path: Path) -> str:
    """A small file's text; empty where it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
