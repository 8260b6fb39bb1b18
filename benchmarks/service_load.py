"""Load the web service from a second process, and compare it with the scoring command.

    python benchmarks/service_load.py [--requests 10000] [--clients 64]

Starts backend.py and sends it photos of mixed sizes, some of them broken, from many clients at
once, of whom some hang up in the middle. Meanwhile /healthz is asked ten times a second. Then the
same good photos are scored by the service and by infer_<model>.py. Prints a table, writes
benchmarks/service_load.json, and ends with 1 where an answer was none of the promised ones.
"""

import argparse
import asyncio
import datetime
import json
import os
import platform
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.files import atomic_write  # noqa: E402
from pipeline.images import read_image  # noqa: E402

MODEL = "meso4"
PROMISED = {200, 413, 422, 503}
SIDES = (256, 256, 256, 512, 1024)  # pixels of the longer side
HANGING_UP = 0.05  # share of the requests
BROKEN = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--photos", type=int, default=400, help="of the comparison")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), args.photos)
        port, service = start_service(args.clients)
        try:
            address = f"http://127.0.0.1:{port}"
            asyncio.run(load(address, photos[:20], 100, args.clients, quiet=True))  # warm up
            result = asyncio.run(load(address, photos, args.requests, args.clients))
            result["rss_mb_thirds"] = result.pop("rss")
            service_rate = asyncio.run(throughput(address, photos, args.clients))
        finally:
            service.terminate()
            service.wait(60)
        command_rate = score_with_command(folder)
    result |= {
        "service_photos_per_second": round(service_rate, 1),
        "command_photos_per_second": round(command_rate, 1),
        "service_share_of_command": round(service_rate / command_rate, 2),
        "clients": args.clients,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }
    for name, value in result.items():
        print(f"{name:32} {value}")
    with atomic_write(ROOT / "benchmarks" / "service_load.json") as file:
        json.dump(result, file, indent=1)
    return 1 if result["not_promised"] else 0


def table(result: dict) -> str:
    """The figures as a Markdown list."""
    answers = ", ".join(f"{count:,} × {kind}" for kind, count in result["answers"].items())
    first, _, last = result["rss_mb_thirds"]
    return "\n".join(
        [
            f"* {sum(result['answers'].values()):,} requests of {result['clients']} clients: "
            f"{answers}; answers that are not promised: {result['not_promised']}.",
            f"* Memory: {first} MB in the first third, {last} MB in the last.",
            f"* `/healthz` meanwhile: median {result['health_ms_median']:.0f} ms, 99 % within "
            f"{result['health_ms_99th']:.0f} ms, at most {result['health_ms_most']:.0f} ms.",
            f"* The same photos: {result['service_photos_per_second']} a second, "
            f"{result['service_share_of_command']:.0%} of what infer_{MODEL}.py does.",
            "",
        ]
    )


def make_photos(folder: Path, count: int) -> list[bytes]:
    """Write `count` JPEG files of mixed sizes, made from the sample photos; their contents."""
    samples = [
        Image.fromarray(read_image(path)) for path in sorted((ROOT / "samples").glob("*.jpg"))
    ]
    contents = []
    for number in range(count):
        photo = samples[number % len(samples)].copy()
        photo.thumbnail((SIDES[number % len(SIDES)],) * 2)
        file = BytesIO()
        photo.save(file, "JPEG", quality=85 + number % 10)
        contents.append(file.getvalue())
        (folder / f"{number:05}.jpg").write_bytes(contents[-1])
    return contents


def start_service(clients: int) -> tuple[int, subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"DETECTOR_PORT": str(port), "DETECTOR_PLACES": str(clients)}
    service = subprocess.Popen(
        [sys.executable, "backend.py"],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz")
            return port, service
        except httpx.TransportError:
            if service.poll() is not None:
                raise SystemExit("backend.py has not started") from None
            time.sleep(0.1)


async def load(
    address: str, photos: list[bytes], requests: int, clients: int, quiet: bool = False
) -> dict:
    """Send the requests; count the answers, and watch health and memory."""
    left = iter(range(requests))
    chance = random.Random(0)
    answers: Counter = Counter()
    health: list[float] = []
    memory: list[float] = []
    done = asyncio.Event()

    async def visitor(client: httpx.AsyncClient) -> None:
        for number in left:
            content = photos[number % len(photos)]
            kind = chance.random()
            if kind < BROKEN:
                content = content[: chance.randrange(len(content))]
            timeout = 60.0
            if kind > 1 - HANGING_UP:
                timeout = chance.uniform(0.001, 0.3)
            try:
                answer = await client.post(
                    f"{address}/api/score",
                    files={"files": ("photo.jpg", content)},
                    data={"model": MODEL},
                    timeout=timeout,
                )
                answers[answer.status_code] += 1
            except httpx.TimeoutException:
                answers["hung up" if timeout < 1 else "no answer"] += 1
            except httpx.TransportError as error:
                answers[type(error).__name__] += 1
            if not quiet and number % 1000 == 0:
                print(f"{number} requests", file=sys.stderr)

    async def watch() -> None:
        async with httpx.AsyncClient(verify=False) as client:
            while not done.is_set():
                started = time.perf_counter()
                await client.get(f"{address}/healthz", timeout=60)
                health.append(time.perf_counter() - started)
                if len(health) % 10 == 0:
                    text = (await client.get(f"{address}/metrics", timeout=60)).text
                    rss = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
                    memory.append(float(rss.group(1)) / 1e6)
                await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(verify=False, limits=limits) as client:
        await asyncio.gather(*(visitor(client) for _ in range(clients)))
    done.set()
    await watching
    third = max(1, len(memory) // 3)
    thirds = [memory[first : first + third] for first in range(0, 3 * third, third)]
    return {
        "answers": {str(kind): count for kind, count in sorted(answers.items(), key=str)},
        "not_promised": sum(
            count for kind, count in answers.items() if kind not in PROMISED | {"hung up"}
        ),
        "health_ms_median": round(1000 * statistics.median(health), 1),
        "health_ms_99th": round(1000 * sorted(health)[int(0.99 * (len(health) - 1))], 1),
        "health_ms_most": round(1000 * max(health), 1),
        "rss": [round(max(part)) for part in thirds if part],
    }


async def throughput(address: str, photos: list[bytes], clients: int) -> float:
    """Photos a second, one a request."""
    left = iter(photos)
    async with httpx.AsyncClient(verify=False, timeout=120) as client:

        async def visitor() -> None:
            for content in left:
                await client.post(
                    f"{address}/api/score",
                    files={"files": ("photo.jpg", content)},
                    data={"model": MODEL},
                )

        started = time.perf_counter()
        await asyncio.gather(*(visitor() for _ in range(clients)))
        return len(photos) / (time.perf_counter() - started)


def score_with_command(folder: str) -> float:
    """Photos a second as infer_meso4.py states them, without its start-up."""
    command = [sys.executable, f"infer_{MODEL}.py", folder]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(re.search(r"([\d.]+) photos/s", ran.stdout + ran.stderr).group(1))


if __name__ == "__main__":
    sys.exit(main())
