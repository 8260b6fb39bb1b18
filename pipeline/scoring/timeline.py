"""The timeline of a video: fake_probability from frame to frame, as a figure."""

from typing import TYPE_CHECKING

from pipeline.rows.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_timeline(rows: list[Row]) -> "Figure | None":
    """Draw fake_probability over the time of a video, a line a face and model.

    `rows` are all rows of one photo or video. None where there is no frame that shows a face.
    """
    frames = [row for row in rows if row.is_frame and row.fake_probability is not None]
    if not frames:
        return None
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in frames))
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple, list[Row]] = {}
    for row in frames:
        lines.setdefault((row.face, row.model), []).append(row)
    for (face, model), of_line in lines.items():
        named = f"face {face}" + (f", {model}" if len(models) > 1 else "")
        times = [row.time for row in of_line]
        axes.plot(times, [row.fake_probability for row in of_line], ".-", linewidth=1, label=named)
    for threshold in dict.fromkeys(row.threshold for row in frames):
        axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="seconds", ylabel="fake_probability", ylim=(0, 1))
    if len(lines) <= 12:  # more would cover the figure
        figure.legend(loc="outside right upper", fontsize="small")
    return figure
