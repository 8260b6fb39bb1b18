"""Time scoring against what else people use, on the same photos in the same run: `make bench`.

    python benchmarks/scoring_speed.py [PART…] [--output FILE.json]

Parts, all unless named:
  meso4     infer_meso4.py --face none against a plain Keras loop: many face crops, and one
  vit       infer_vit.py against a transformers pipeline with the same network and random weights;
            what share of the processor's matrix peak the network reaches
  photos    photos of 12 megapixels with a face search, against one after the other: decoded whole,
            searched whole
  memory    peak memory on some pictures and on twenty times as many
  networks  every network: face crops and photos a second, a first verdict, memory, each stage's
            share; against its own library one by one and in batches, decoding alone, matrix peak
  cluster   score_cluster.py with one worker and with two

All are programs of their own, start-up included; before ours is timed it runs once, as the first
use compiles the graph. Beside the seconds of the clock stand those of all cores, because other
programs may run. Prints Markdown tables and writes FILE.json and FILE.png; a part that was not
asked for stays as it is there. `python benchmarks/readme_tables.py` then puts them in the README.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.made_photos import make_crops, make_links, make_photos
from benchmarks.measuring import ROOT, Usage, machine, measure
from benchmarks.speed_tables import draw_networks, tables
from pipeline.common.command_line import positive_int, run
from pipeline.common.files import atomic_write
from pipeline.detectors.runtime import is_available

# What scores with each network, and of how many crops a second's work or more consists.
NETWORKS = {
    "meso4": ("infer_meso4.py", 500),
    "mesoinception4": ("infer_mesoinception4.py", 500),
    "efficientnet_lite0": ("infer_xception_efficientnet.py", 200),
    "efficientnet_b0": ("infer_xception_efficientnet.py", 200),
    "xception": ("infer_xception_efficientnet.py", 64),
    "resnet50": ("infer_resnet50.py", 64),
    "vit": ("infer_vit.py", 64),
}


def main() -> None:
    parts = {
        "meso4": meso4,
        "vit": vit,
        "photos": photos,
        "memory": memory,
        "networks": networks,
        "cluster": cluster,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--crops", type=positive_int, default=500, help="for meso4")
    parser.add_argument("--vit-crops", type=positive_int, default=96)
    parser.add_argument("--photos", type=positive_int, default=32, help="of 12 megapixels")
    parser.add_argument("--memory-crops", type=positive_int, default=1000)
    parser.add_argument("--cluster-photos", type=positive_int, default=480)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "scoring_speed.json")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(parts)}")
    result = json.loads(args.output.read_text("utf-8")) if args.output.exists() else {}
    for name in args.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = machine() | parts[name](Path(folder), args)
        print(tables({name: result[name]}), flush=True)
        with atomic_write(args.output) as file:
            json.dump(result, file, indent=1)
    if "networks" in result:
        draw_networks(result["networks"], args.output.with_suffix(".png"))


def meso4(folder: Path, args: argparse.Namespace) -> dict:
    result = {}
    for count in (args.crops, 1):
        crops = make_crops(folder / str(count), count)
        ours = scored("infer_meso4.py", crops, folder, "--face", "none")
        what = f"{count} face crop{'s' * (count > 1)} of 256 px"
        result[what] = compared(ours, "a Keras loop", rival("keras-loop", crops))
    return result


def vit(folder: Path, args: argparse.Namespace) -> dict:
    crops = make_crops(folder / "crops", args.vit_crops)
    detector = folder / "vit"
    probe("random-detector", "vit", detector)
    ours = scored("infer_vit.py", crops, folder, "--face", "none", "--weights", detector)
    others = rival("transformers", crops)
    result = {f"{args.vit_crops} face crops": compared(ours, "a transformers pipeline", others)}
    per_second = probe("network-alone", detector)["pictures_per_second"]
    result["network_pictures_per_second"] = per_second
    for kind in ("float32", "bfloat16")[: 1 + is_available("bf16")]:
        peak = probe("matrix-peak", kind)["gflops"]
        result[f"matrix_peak_gflops_{kind}"] = peak
        result[f"share_of_peak_{kind}"] = per_second * probe("operations", detector)["gflop"] / peak
    return result


def photos(folder: Path, args: argparse.Namespace) -> dict:
    made = make_photos(folder / "photos", args.photos)
    ours = scored("infer_meso4.py", made, folder)
    what = f"{args.photos} photos of 12 megapixels"
    return {what: compared(ours, "one by one, whole", rival("whole-photos", made))}


def memory(folder: Path, args: argparse.Namespace) -> dict:
    few = make_crops(folder / "few", 32)
    result = {}
    for count in (args.memory_crops, 20 * args.memory_crops):
        links = make_links(folder / str(count), few, count)
        ours = scored("infer_meso4.py", links, folder, "--face", "none", warm=False)
        result[f"{count:,} pictures"] = {"peak_mib": ours.peak_mib}
    small, large = (each["peak_mib"] for each in result.values())
    return result | {"ratio": large / small}


def networks(folder: Path, args: argparse.Namespace) -> dict:
    twelve = make_photos(folder / "photos", args.photos // 2)
    crops = {
        count: make_crops(folder / f"crops{count}", count)
        for count in {NETWORKS[name][1] for name in args.networks} | {1}
    }
    floor = {count: rival("decoding", of_count) for count, of_count in crops.items()}
    peak = probe("matrix-peak", "float32")["gflops"]
    return {
        "matrix_peak_gflops_float32": peak,
        **{name: network(name, folder, crops, twelve, floor, peak) for name in args.networks},
    }


def network(
    name: str, folder: Path, crops: dict[int, Path], twelve: Path, floor: dict[int, Usage], peak
) -> dict:
    script, count = NETWORKS[name]
    detector = shipped_or_random(name, folder)
    result = {
        "gflop": probe("operations", detector)["gflop"],
        "crops": count,
        "weights": "random" if detector.parent == folder else "shipped",
    }
    weights = ("--weights", detector)
    whole = ("--face", "none", *weights)
    ours = scored(script, crops[count], folder, *whole)
    result["first_verdict_s"] = scored(script, crops[1], folder, *whole).seconds
    result["crops_per_second"] = count / ours.seconds
    result["peak_mib"] = ours.peak_mib
    result["decoding_alone_crops_per_second"] = count / floor[count].seconds
    for key, way in (("one_by_one", "one-by-one"), ("batches", "batches")):
        seconds = rival(way, crops[count], name).seconds
        result[f"{key}_crops_per_second"] = count / seconds
        result[f"times_{key}"] = seconds / ours.seconds
    per_second = probe("network-alone", detector)["pictures_per_second"]
    result["network_alone_per_second"] = per_second
    result["share_of_matrix_peak"] = per_second * result["gflop"] / peak
    of_photos = len(list(twelve.iterdir()))
    for key, options in (("with_search", weights), ("without_search", whole)):
        usage = scored(script, twelve, folder, *options)
        result[f"photos_per_second_{key}"] = of_photos / usage.seconds
    result["photo_cpu_ms"] = probe("stages", detector, twelve, "auto")
    return result


def cluster(folder: Path, args: argparse.Namespace) -> dict:
    """Photos of 12 megapixels, links to a few."""
    links = make_links(folder / "many", make_photos(folder / "few", 12), args.cluster_photos)
    result = {"photos": args.cluster_photos}
    for workers in (1, 2):
        output = folder / f"rows{workers}"
        command = ["score_cluster.py", links, "--output", output, "--workers", workers]
        command += ["--part-size", 10]
        command += ["--weights", ROOT / "weights" / "efficientnet_lite0"]
        result[f"{workers}_worker_s"] = measure([sys.executable, *command]).seconds
    return result | {"ratio": result["1_worker_s"] / result["2_worker_s"]}


def shipped_or_random(network: str, folder: Path) -> Path:
    """The detector in weights/, or one with random weights in `folder`."""
    shipped = ROOT / "weights" / network
    if (shipped / "detector.json").exists():
        return shipped
    probe("random-detector", network, folder / network)
    return folder / network


def scored(script: str, photos: Path, folder: Path, *options, warm: bool = True) -> Usage:
    """What a scoring script takes for the photos; the time of a first run does not count."""
    command = [sys.executable, script, photos, "--output", folder / "rows.csv", *options]
    if warm:
        measure(command)
    return measure(command)


def rival(way: str, photos: Path, *arguments) -> Usage:
    return measure([sys.executable, "benchmarks/rivals.py", way, photos, *arguments])


def probe(name: str, *arguments) -> dict:
    output = measure([sys.executable, "benchmarks/probes.py", name, *arguments]).output
    return json.loads(output.splitlines()[-1])


def compared(ours: Usage, title: str, theirs: Usage) -> dict:
    return {
        "ours_s": ours.seconds,
        "ours_cpu_s": ours.cpu_seconds,
        "ours_cores_busy": ours.cpu_seconds / ours.seconds / (os.cpu_count() or 1),
        "rival": title,
        "rival_s": theirs.seconds,
        "rival_cpu_s": theirs.cpu_seconds,
        "times_as_fast": theirs.seconds / ours.seconds,
        "times_as_fast_by_cpu": theirs.cpu_seconds / ours.cpu_seconds,
    }


if __name__ == "__main__":
    run(main)
