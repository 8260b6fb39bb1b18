"""The tables and the figure of scoring_speed.py."""

from pathlib import Path

import numpy as np


def tables(result: dict) -> str:
    """Markdown tables of the parts that there are."""
    found = [_comparisons(result), _details(result)]
    if "networks" in result:
        found += [_networks(result["networks"])]
    return "\n".join(table for table in found if table)


def measured(result: dict) -> str:
    """On what machine and when, in a sentence."""
    machines = {part["machine"] for part in result.values()}
    days = {part["date"] for part in result.values()}
    return f"Measured on {' and '.join(sorted(machines))}, {' and '.join(sorted(days))}."


def draw_networks(networks: dict, path: Path) -> None:
    """Bars of face crops a second for each network: ours, its own library, decoding alone."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = _rows(networks)
    bars = {
        "our script": ("crops_per_second", "#0072b2", ""),
        "its library, in batches": ("batches_crops_per_second", "#e69f00", "//"),
        "its library, one by one": ("one_by_one_crops_per_second", "#f0e442", ".."),
    }
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.7 * len(rows)), layout="constrained")
    places = np.arange(len(rows))[::-1]
    for number, (label, (key, colour, hatch)) in enumerate(bars.items()):
        values = [row[key] for row in rows.values()]
        drawn = axes.barh(
            places + 0.27 * (1 - number),
            values,
            0.26,
            label=label,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.5,
        )
        axes.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(places, rows)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("face crops a second, start-up included (logarithmic)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _comparisons(result: dict) -> str:
    lines = [
        f"| {_SCRIPTS[part]}, {what} | {row['ours_s']:.1f} s "
        f"| {row['rival']}: {row['rival_s']:.1f} s "
        f"| {row['times_as_fast']:.1f} | {row['ours_cores_busy']:.0%} |"
        for part in _SCRIPTS
        for what, row in result.get(part, {}).items()
        if isinstance(row, dict)
    ]
    head = ["| | ours | others | times as fast | cores busy |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines, ""]) if lines else ""


_SCRIPTS = {"meso4": "infer_meso4.py", "vit": "infer_vit.py", "photos": "infer_meso4.py"}


def _details(result: dict) -> str:
    lines = []
    if "vit" in result:
        lines += [
            f"* ViT-Base: {value:.0%} of the processor's matrix peak in {key.split('_')[-1]}."
            for key, value in result["vit"].items()
            if key.startswith("share_of_peak")
        ]
    if "memory" in result:
        peaks = [(what, row) for what, row in result["memory"].items() if isinstance(row, dict)]
        said = ", ".join(f"{row['peak_mib']:,.0f} MiB for {what}" for what, row in peaks)
        lines.append(f"* Peak memory: {said}, {result['memory']['ratio']:.2f} times as much.")
    if "cluster" in result:
        part = result["cluster"]
        lines.append(
            f"* score_cluster.py, {part['photos']} photos of 12 megapixels: one worker "
            f"{part['1_worker_s']:.0f} s, two {part['2_worker_s']:.0f} s: "
            f"{part['ratio']:.2f} times as fast."
        )
    return "\n".join([*lines, ""]) if lines else ""


def _networks(networks: dict) -> str:
    head = [
        "| network | GFLOP | crops/s | × one by one | × batches | first verdict | memory "
        "| 12 MP photos/s, face search | without | decoding : search : network |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines = []
    for name, row in _rows(networks).items():
        spent = row["photo_cpu_ms"]
        shares = " : ".join(f"{ms / sum(spent.values()):.0%}" for ms in spent.values())
        lines.append(
            f"| {name} | {row['gflop']:.2g} | {row['crops_per_second']:.3g} "
            f"| {row['times_one_by_one']:.1f} | {row['times_batches']:.1f} "
            f"| {row['first_verdict_s']:.1f} s | {row['peak_mib']:,.0f} MiB "
            f"| {row['photos_per_second_with_search']:.1f} "
            f"| {row['photos_per_second_without_search']:.1f} | {shares} |"
        )
    return "\n".join([*head, *lines, ""])


def _rows(networks: dict) -> dict[str, dict]:
    """What was measured of each network, the fastest first."""
    rows = {name: row for name, row in networks.items() if isinstance(row, dict)}
    return dict(sorted(rows.items(), key=lambda item: -item[1]["crops_per_second"]))
