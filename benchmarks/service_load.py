"""Load the web service from other processes, and compare it with the scoring command.

    python benchmarks/service_load.py [--requests 10000] [--clients 64]

Starts backend.py and sends it photos of 256 pixels to 48 megapixels, some of them broken, from many
clients at once, of whom some hang up in the middle. Meanwhile another process asks for /healthz
twenty times a second, and for the memory once. Then the same photos, all whole, are scored by the
service and by infer_<model>.py in turn. Prints a table, writes benchmarks/service_load.json, and
ends with 1 where an answer was none of the promised ones.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from pipeline.common.files import atomic_write
from pipeline.photos.images import read_image

MODEL = "meso4"
PROMISED = {200, 413, 422, 503, "hung up"}
SIDES = (256, 256, 256, 512, 1024)  # pixels of the longer side
LARGE = {49: 4000, 199: 8000}  # of one photo in 200: 12 and 48 megapixels
HANGING_UP = 0.05  # share of the requests
BROKEN = 0.1
LATE = 0.1  # seconds within which /healthz has to answer
ROUNDS = 3  # of the comparison
BOUNDARY = "boundary-of-the-form"


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
        service_rates, command_rates = [], []
        with service(args.clients) as port:
            throughput(port, photos[:20], args.clients)  # warms it up
            result = machine() | load(port, photos, args.requests, args.clients)
            for _ in range(ROUNDS):
                service_rates.append(throughput(port, photos, args.clients))
                command_rates.append(score_with_command(folder))
    service_rate, command_rate = map(statistics.median, (service_rates, command_rates))
    result |= {
        "service_photos_per_second": round(service_rate, 1),
        "command_photos_per_second": round(command_rate, 1),
        "service_share_of_command": round(service_rate / command_rate, 2),
        "clients": args.clients,
    }
    for name, value in result.items():
        print(f"{name:32} {value}")
    with atomic_write(ROOT / "benchmarks" / "service_load.json") as file:
        json.dump(result, file, indent=1)
    return 1 if result["not_promised"] else 0


def table(result: dict) -> str:
    """The figures as a Markdown list."""
    answers = ", ".join(f"{count:,} × {kind}" for kind, count in result["answers"].items())
    first, *_, last = result["rss_mb_thirds"]
    return "\n".join(
        [
            f"* {sum(result['answers'].values()):,} requests of {result['clients']} clients: "
            f"{answers}; answers that are not promised: {result['not_promised']}.",
            f"* Memory: {first} MB in the first third, {last} MB in the last.",
            f"* `/healthz` meanwhile: median {result['health_ms_median']:.0f} ms, 99 % within "
            f"{result['health_ms_99th']:.0f} ms, at most {result['health_ms_most']:.0f} ms; "
            f"{result['health_share_late']:.2%} took more than 100 ms.",
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
        photo = samples[number % len(samples)]
        if number % 200 in LARGE:
            side = LARGE[number % 200]
            photo = photo.resize((side, side * 3 // 4))
        else:
            photo = photo.copy()
            photo.thumbnail((SIDES[number % len(SIDES)],) * 2)
        file = BytesIO()
        photo.save(file, "JPEG", quality=85 + number % 10)
        contents.append(file.getvalue())
        (folder / f"{number:05}.jpg").write_bytes(contents[-1])
    return contents


@contextlib.contextmanager
def service(clients: int) -> Iterator[int]:
    """Run the service to the end of the block; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "backend.py"],
        cwd=ROOT,
        env=os.environ | {"DETECTOR_PORT": str(port), "DETECTOR_PLACES": str(clients)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                get(port, "/healthz")
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit("backend.py has not started") from None
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def load(port: int, photos: list[bytes], requests: int, clients: int) -> dict:
    """Send the requests; count the answers, and watch health and memory."""

    def ask(client: http.client.HTTPConnection, number: int) -> int | str:
        chance = random.Random(number)
        content = photos[number % len(photos)]
        kind = chance.random()
        if kind < BROKEN:
            content = content[: chance.randrange(len(content))]
        patience = chance.uniform(0.001, 0.3) if kind > 1 - HANGING_UP else 120.0
        if number % 1000 == 0:
            print(f"{number} requests", file=sys.stderr)
        try:
            return score(client, content, patience)
        except TimeoutError:
            return "hung up" if patience < 1 else "no answer"
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__

    processes = multiprocessing.get_context("spawn")
    ours, its = processes.Pipe()
    watcher = processes.Process(target=watch, args=(port, its))
    watcher.start()
    answers = Counter(from_many_clients(port, ask, requests, clients))
    ours.send("stop")
    health, memory = ours.recv()
    watcher.join()
    third = max(1, len(memory) // 3)
    thirds = [memory[first : first + third] for first in range(0, 3 * third, third)]
    return {
        "answers": {str(kind): count for kind, count in sorted(answers.items(), key=str)},
        "not_promised": sum(count for kind, count in answers.items() if kind not in PROMISED),
        "health_ms_median": round(1000 * statistics.median(health), 1),
        "health_ms_99th": round(1000 * sorted(health)[int(0.99 * (len(health) - 1))], 1),
        "health_ms_most": round(1000 * max(health), 1),
        "health_share_late": round(sum(delay > LATE for delay in health) / len(health), 5),
        "rss_mb_thirds": [round(max(part)) for part in thirds if part],
    }


def watch(port: int, orders: Connection) -> None:
    """Until told to stop: the delays of /healthz in seconds, and MB of memory, which are sent."""
    health: list[float] = []
    memory: list[float] = []
    while not orders.poll(0.05):
        started = time.perf_counter()
        get(port, "/healthz")
        health.append(time.perf_counter() - started)
        if len(health) % 20 == 1:
            rss = re.search(r"^process_resident_memory_bytes (\S+)", get(port, "/metrics"), re.M)
            memory.append(float(rss.group(1)) / 1e6)
    orders.send((health, memory))


def throughput(port: int, photos: list[bytes], clients: int) -> float:
    """Photos a second, one a request."""

    def ask(client: http.client.HTTPConnection, number: int) -> int:
        return score(client, photos[number], 120.0)

    started = time.perf_counter()
    statuses = set(from_many_clients(port, ask, len(photos), clients))
    if statuses != {200}:
        raise SystemExit(f"the service has not scored all photos: {statuses}")
    return len(photos) / (time.perf_counter() - started)


def from_many_clients(
    port: int,
    ask: Callable[[http.client.HTTPConnection, int], int | str],
    requests: int,
    clients: int,
) -> list[int | str]:
    """What `ask` brings for each number below `requests`, in any order."""
    numbers = iter(range(requests))

    def visit(_client: int) -> list[int | str]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        with contextlib.closing(connection):
            return [ask(connection, number) for number in numbers]

    with ThreadPoolExecutor(clients) as pool:
        return [answer for answers in pool.map(visit, range(clients)) for answer in answers]


def score(client: http.client.HTTPConnection, content: bytes, patience: float) -> int:
    """The status of the answer. Hangs up, with TimeoutError, where it takes too many seconds."""
    parts = [
        f"--{BOUNDARY}",
        f'Content-Disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n--{BOUNDARY}',
        'Content-Disposition: form-data; name="files"; filename="photo.jpg"\r\n\r\n',
    ]
    body = "\r\n".join(parts).encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    client.timeout = patience
    if client.sock:
        client.sock.settimeout(patience)
    try:
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        client.request("POST", "/api/score", body, kind)
        answer = client.getresponse()
        answer.read()
    except BaseException:
        client.close()
        raise
    return answer.status


def get(port: int, path: str) -> str:
    """What is at a path, asked for over a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        client.request("GET", path)
        return client.getresponse().read().decode()


def score_with_command(folder: str) -> float:
    """Photos a second as infer_meso4.py states them, without its start-up."""
    command = [sys.executable, f"infer_{MODEL}.py", folder]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(re.search(r"([\d.]+) photos/s", ran.stdout + ran.stderr).group(1))


if __name__ == "__main__":
    sys.exit(main())
