"""Cores and memory are counted as far as this process may use them, not as the machine has them."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.common import graphs, machine
from pipeline.common.machine import usable_cores, usable_memory
from pipeline.detectors import runtime
from pipeline.detectors.detector import load_detector
from pipeline.feeding.batches import a_third_of_the_memory
from tests.conftest import DETECTOR, REPOSITORY

GIB = 1 << 30
PHYSICAL = psutil.virtual_memory().total
LIMIT = min(PHYSICAL // 2, 3 * GIB) // 4096 * 4096


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.fixture
def many_cores(monkeypatch):
    """A machine with 64 cores, all of which this process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


V2_MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "36 30 0:31 {group} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
    "37 30 0:32 {group} /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
)


# ---- version 2


@pytest.mark.parametrize("mountinfo", [V2_MOUNT, None])
def test_version_2_of_the_own_group(tmp_path, many_cores, mountinfo):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/memory.max": f"{LIMIT}\n",
        }
        | ({"proc/self/mountinfo": mountinfo} if mountinfo else {}),
    )
    assert usable_cores(root) == 3
    assert usable_memory(root) == LIMIT


@pytest.mark.parametrize("strictest", ["", "/kubepods.slice", "/kubepods.slice/pod 7"])
def test_the_strictest_of_nested_groups_counts(tmp_path, many_cores, strictest):
    files = {"proc/self/cgroup": "0::/kubepods.slice/pod 7\n", "proc/self/mountinfo": V2_MOUNT}
    for group in ("", "/kubepods.slice", "/kubepods.slice/pod 7"):
        own = group == strictest
        files |= {
            f"sys/fs/cgroup{group}/cpu.max": "200000 100000" if own else "max 100000",
            f"sys/fs/cgroup{group}/memory.max": str(LIMIT) if own else "max",
        }
    root = tree(tmp_path, files)
    assert usable_cores(root) == 2
    assert usable_memory(root) == LIMIT


def test_memory_high_is_a_limit_too(tmp_path):
    files = {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.high": str(LIMIT)}
    assert usable_memory(tree(tmp_path, files)) == LIMIT


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("", 64)]
)
def test_a_part_of_a_core_counts_as_one(tmp_path, many_cores, quota, cores):
    assert usable_cores(tree(tmp_path, {"sys/fs/cgroup/cpu.max": quota})) == cores


# ---- version 1


@pytest.mark.parametrize("mounted", ["/docker/abc", "/", None])
def test_version_1_of_a_container(tmp_path, many_cores, mounted):
    """The mount shows the container's own group, or the whole hierarchy of the machine."""
    below = {"/docker/abc": "", "/": "/docker/abc", None: ""}[mounted]
    files = {
        "proc/self/cgroup": "9:name=systemd:/x\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
        f"sys/fs/cgroup/memory{below}/memory.limit_in_bytes": f"{LIMIT}\n",
        f"sys/fs/cgroup/cpu,cpuacct{below}/cpu.cfs_quota_us": "400000\n",
        f"sys/fs/cgroup/cpu,cpuacct{below}/cpu.cfs_period_us": "100000\n",
    }
    if mounted:
        files["proc/self/mountinfo"] = V1_MOUNTS.format(group=mounted)
    root = tree(tmp_path, files)
    assert usable_cores(root) == 4
    assert usable_memory(root) == LIMIT


def test_version_1_without_a_limit(tmp_path, many_cores):
    files = {
        "proc/self/cgroup": "4:memory:/\n1:cpu,cpuacct:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    root = tree(tmp_path, files)
    assert usable_cores(root) == 64
    assert usable_memory(root) <= PHYSICAL


def test_both_versions_at_once(tmp_path, many_cores):
    """As systemd mounts them in hybrid mode: the limits stand in version 1."""
    files = {
        "proc/self/cgroup": "2:memory:/user\n0::/user\n",
        "proc/self/mountinfo": V1_MOUNTS.format(group="/")
        + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        "sys/fs/cgroup/memory/user/memory.limit_in_bytes": str(LIMIT),
        "sys/fs/cgroup/unified/user/cpu.max": "100000 100000",
    }
    root = tree(tmp_path, files)
    assert (usable_cores(root), usable_memory(root)) == (1, LIMIT)


@pytest.mark.parametrize("group", ["/../../elsewhere", "/not/below/the/mount"])
def test_a_group_outside_of_what_is_mounted_means_the_mounted_one(tmp_path, many_cores, group):
    files = {
        "proc/self/cgroup": f"0::{group}\n",
        "proc/self/mountinfo": V2_MOUNT.replace(" / ", " /mine ", 1),
        "sys/fs/cgroup/cpu.max": "200000 100000",
    }
    assert usable_cores(tree(tmp_path, files)) == 2


@pytest.mark.parametrize("content", ["", "nonsense", "0 0", "-1 100000", "\ufffd\n\n", "1"])
def test_what_makes_no_sense_is_no_limit(tmp_path, many_cores, content):
    files = dict.fromkeys(("proc/self/cgroup", "proc/self/mountinfo"), content)
    files["sys/fs/cgroup/cpu.max"] = content
    root = tree(tmp_path, files)
    assert usable_cores(root) == 64
    assert usable_memory(root) <= PHYSICAL


def test_libraries_start_no_more_threads_than_there_is_time_for(tmp_path, many_cores, monkeypatch):
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    for name in names:
        monkeypatch.setenv(name, "")  # so that the end of the test takes it away
        monkeypatch.delenv(name)
    machine.limit_libraries(tmp_path)
    assert machine.spare_threads(tmp_path) is None
    assert not set(names) & set(os.environ)
    root = tree(tmp_path, {"sys/fs/cgroup/cpu.max": "300000 100000"})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine.limit_libraries(root)
    assert machine.spare_threads(root) == 3
    assert [os.environ[name] for name in names] == ["1", "3"]


@pytest.mark.usefixtures("own_cache")
def test_scoring_in_a_container_computes_with_its_share_of_the_cores(monkeypatch):
    detector = load_detector(DETECTOR)
    monkeypatch.setattr(graphs, "spare_threads", lambda: 1)
    network = runtime.Runtime.of(detector)._network
    assert network.get_property("INFERENCE_NUM_THREADS") == 1


# ---- without control groups


def test_without_proc_and_sys(tmp_path):
    assert usable_cores(tmp_path) == machine.bound_cores()
    assert usable_memory(tmp_path) <= PHYSICAL


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_only_the_cores_that_a_process_is_bound_to_count():
    core = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, [{core}])\n"
        "from pipeline.common.machine import usable_cores; print(usable_cores())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr


def test_a_system_without_sched_getaffinity(tmp_path, monkeypatch):
    """Windows binds processes all the same, and psutil knows; macOS does not."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert 1 <= usable_cores(tmp_path) <= os.cpu_count()
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    assert usable_cores(tmp_path) == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_a_system_without_ulimit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert usable_memory(tmp_path) == PHYSICAL


@pytest.mark.skipif(os.name != "posix", reason="needs ulimit")
def test_ulimit_counts_and_the_picture_cache_takes_a_third(monkeypatch, tmp_path):
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))\n"
        "from pipeline.common.machine import usable_memory; print(usable_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert int(done.stdout) <= LIMIT, done.stderr
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    root = tree(tmp_path, {"sys/fs/cgroup/memory.max": str(LIMIT)})
    assert a_third_of_the_memory(root) == LIMIT // 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert a_third_of_the_memory(root) == LIMIT // 3 // 2


SOURCES = [path for folder in ("pipeline", "models", ".") for path in
           sorted((REPOSITORY / folder).glob("*.py"))]  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nobody_else_asks_the_system(path):
    if path.name == "machine.py":
        return
    text = path.read_text(encoding="utf-8")
    for name in ("os.cpu_count", "process_cpu_count", "len(os.sched_getaffinity", "SC_PHYS_PAGES"):
        assert name not in text, f"{path.name} asks for {name}: ask pipeline.common.machine"
