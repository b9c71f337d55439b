"""The figures of the report: each function draws one from arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from data_pipelines.coco17 import EDGES, JOINTS
from data_pipelines.schema import MODALITIES
from star_jax.models.pooling import POWERS
from star_jax.report.analysis import Curve, Densities
from star_jax.report.theme import COLORS, FONT, INFRARED, INK, MUTED, RULE, SETTINGS, VISIBLE

OF_MODALITY = (VISIBLE, INFRARED)
OF_DIRECTION = {"i2v": INFRARED, "v2i": VISIBLE}  # the color of the query's modality
NAMES = {"i2v": "infrared to visible", "v2i": "visible to infrared"}
_IDENTITIES = [light for name, (light, _) in COLORS.items() if name.startswith("identity")]
_MARKERS = ("o", "^")  # by modality
# Positions of the joints of a person who faces the reader: x to the right, y down, as JOINTS.
_BODY = np.array(
    [
        *[(0, 0), (5, -5), (-5, -5), (11, -2), (-11, -2), (21, 24), (-21, 24), (31, 56), (-31, 56)],
        *[(37, 86), (-37, 86), (14, 88), (-14, 88), (17, 130), (-17, 130), (19, 172), (-19, 172)],
    ],
    float,
)


class Captioned(NamedTuple):
    """A picture of a ranked list.

    Attributes:
      picture: uint8[H, W, 3].
      caption: in one line.
      kind: "query", or how a match's identity compares: "same", "other" or "unknown".
    """

    picture: UInt8[np.ndarray, "H W 3"]
    caption: str
    kind: str


def _new(width: int, height: int) -> Figure:
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


@matplotlib.rc_context(SETTINGS)
def curves(
    title: str,
    steps: Float[np.ndarray, " n"],
    series: Mapping[str, Float[np.ndarray, " n"]],
    *,
    unit: str,
    colors: Sequence[str] = (VISIBLE, INFRARED, MUTED, INK),
) -> Figure:
    """Returns a figure of what was logged in training, against the step.

    One series is drawn thin and its running median thick; several are drawn with their points and
    names. The scale is logarithmic where positive values span a factor of 100 or more.

    Args:
      title: what is shown.
      steps: of training, ascending.
      series: values by name.
      unit: of the values.
      colors: of the series.
    """
    figure = _new(330, 215)
    axes = figure.subplots()
    for color, (name, values) in zip(colors, series.items(), strict=False):
        if len(series) > 1 or len(values) < 20:
            axes.plot(steps, values, color=color, marker="o", markersize=3.5, label=name)
        else:
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.45)
            axes.plot(steps, running_median(values), color=color)
    values = np.concatenate(list(series.values()))
    if values.min() > 0 and values.max() >= 100 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if values.min() >= 0:
            axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(axis="y")
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor="linecolor", borderpad=0)
    return figure


def running_median(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the medians over windows of a fifteenth of the values, shorter at both ends."""
    half = len(values) // 30
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.array([np.median(window) for window in windows])


@matplotlib.rc_context(SETTINGS)
def cmc(found: Mapping[str, Curve]) -> Figure:
    """Returns the figure of the CMC of each direction, with bands of its 95 % intervals."""
    figure = _new(440, 340)
    axes = figure.subplots()
    last = 1
    for direction, curve in found.items():
        ranks, color = np.arange(1, len(curve.mean) + 1), OF_DIRECTION[direction]
        axes.fill_between(ranks, curve.low, curve.high, color=color, alpha=0.16, linewidth=0)
        style = {"i2v": "-", "v2i": "--"}[direction]
        axes.plot(ranks, curve.mean, color=color, linestyle=style, label=NAMES[direction])
        last = max(last, len(ranks))
    ticks = [rank for rank in (1, 2, 5, 10, 20, 50) if rank <= last]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(rank) for rank in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 102)
    axes.set_title("Cumulative matching characteristic")
    axes.set_xlabel("rank k (logarithmic)")
    axes.set_ylabel("queries with a match among the first k (%)")
    axes.grid()
    axes.legend(loc="lower right", frameon=False, labelcolor="linecolor")
    return figure


@matplotlib.rc_context(SETTINGS)
def densities(title: str, quantity: str, found: Densities) -> Figure:
    """Returns the figure of a quantity for pairs of the same and of different identities.

    Args:
      title: what is shown.
      quantity: whose densities are shown.
      found: the densities.
    """
    figure = _new(330, 230)
    axes = figure.subplots()
    same, different = (
        f"{name} identity, {count:,} pairs"
        for name, count in (("same", found.num_same), ("different", found.num_different))
    )
    axes.stairs(found.different, found.edges, color=MUTED, linewidth=1.6, label=different)
    axes.stairs(found.same, found.edges, fill=True, color=VISIBLE, alpha=0.55, label=same)
    both = np.flatnonzero(found.same + found.different)
    if len(both):
        axes.set_xlim(
            found.edges[max(both[0] - 1, 0)], found.edges[min(both[-1] + 2, len(found.edges) - 1)]
        )
    axes.set_ylim(0, 1.42 * max(found.same.max(), found.different.max(), 1e-9))  # for the legend
    axes.set_title(title)
    axes.set_xlabel(quantity)
    axes.set_yticks([])
    axes.spines.left.set_visible(False)
    axes.legend(loc="upper left", frameon=False, labelcolor=INK, borderpad=0, fontsize=FONT - 1)
    return figure


@matplotlib.rc_context(SETTINGS)
def embedding_map(
    points: Float[np.ndarray, "n 2"],
    identities: Shaped[np.ndarray, " n"],
    modalities: Shaped[np.ndarray, " n"],
) -> Figure:
    """Returns the map of embeddings; the identities with the most tracklets are colored and named.

    Args:
      points: float[n, 2].
      identities: str[n].
      modalities: int[n], VISIBLE or INFRARED, which choose the marker.
    """
    figure = _new(640, 470)
    axes = figure.subplots()
    names, counts = np.unique(identities, return_counts=True)
    named = names[np.argsort(-counts, kind="stable")[: len(_IDENTITIES)]]
    for number, marker in enumerate(_MARKERS):
        others = (modalities == number) & ~np.isin(identities, named)
        axes.scatter(
            points[others, 0],
            points[others, 1],
            s=20,
            marker=marker,
            color=MUTED,
            alpha=0.4,
            linewidths=0,
        )
    for name, color in zip(named, _IDENTITIES, strict=False):
        center = points[identities == name].mean(axis=0)
        for point in points[identities == name]:
            axes.plot(*zip(center, point, strict=True), color=color, linewidth=1, alpha=0.45)
        for number, marker in enumerate(_MARKERS):
            own = (identities == name) & (modalities == number)
            axes.scatter(
                points[own, 0], points[own, 1], s=52, marker=marker, color=color, linewidths=0
            )
    placed: list[np.ndarray] = []
    span = np.ptp(points, axis=0) + 1e-9
    for name, color in zip(named, _IDENTITIES, strict=False):
        own = points[identities == name]
        center = np.median(own, axis=0)
        anchor = own[np.argmin(np.square(own - center).sum(-1))]
        place = anchor + span * [0, 0.035]
        while any((np.abs(place - other) < span * [0.1, 0.045]).all() for other in placed):
            place = place + span * [0, 0.02]
        placed.append(place)
        axes.text(place[0], place[1], shown(name, 12), color=color, weight="bold", ha="center")
    handles = [
        axes.scatter([], [], s=40, marker=marker, color=INK, linewidths=0, label=name)
        for marker, name in zip(_MARKERS, MODALITIES, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, ncols=2, labelcolor=INK)
    axes.set_title(f"t-SNE of {len(points):,} tracklets")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


@matplotlib.rc_context(SETTINGS)
def powers(
    title: str, unit: str, weights: Float[np.ndarray, "n P"], modalities: Shaped[np.ndarray, " n"]
) -> Figure:
    """Returns a figure of a number for each power of the pooling: a point for each tracklet.

    Args:
      title: what is shown.
      unit: of the numbers.
      weights: float[n, 5], as fractions; shown in percent.
      modalities: int[n].
    """
    figure = _new(440, 290)
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    percent = 100 * weights
    axes.axhline(100 / len(POWERS), color=MUTED, linewidth=1, linestyle=":")
    for number, (name, color) in enumerate(zip(MODALITIES, OF_MODALITY, strict=True)):
        own = percent[modalities == number]
        for place in range(len(POWERS)) if len(own) else ():
            x = place + (number - 0.5) * 0.4
            jitter = x + rng.uniform(-0.14, 0.14, len(own))
            axes.scatter(
                jitter,
                own[:, place],
                s=9,
                marker=_MARKERS[number],
                color=color,
                alpha=0.3,
                linewidths=0,
            )
            median = np.median(own[:, place])
            axes.plot([x - 0.18, x + 0.18], [median, median], color=color, linewidth=2.4)
        axes.scatter([], [], s=30, marker=_MARKERS[number], color=color, label=name, linewidths=0)
    axes.set_xticks(range(len(POWERS)), [f"p = {power:g}" for power in POWERS])
    axes.set_ylim(0, 1.18 * max(percent.max(), 100 / len(POWERS)))
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.legend(loc="upper left", frameon=False, ncols=2, labelcolor=INK, borderpad=0)
    return figure


@matplotlib.rc_context(SETTINGS)
def attention(
    title: str,
    frames: UInt8[np.ndarray, "T h w 3"],
    to_features: Float[np.ndarray, "T T"],
    to_edges: Float[np.ndarray, "T T"],
) -> Figure:
    """Returns the figure of a tracklet's attention over time, below its frames.

    Args:
      title: the tracklet.
      frames: uint8[T, h, w, 3], with their skeletons drawn on.
      to_features: float[T, T], of the skeleton of a frame (first axis) to frames.
      to_edges: float[T, T], of a frame to the skeletons of frames.
    """
    time = len(frames)
    cell = 46
    height = round(cell * frames.shape[1] / frames.shape[2])
    figure = _new(cell * time + 78, height + 2 * (19 * time + 40) + 58)
    rows = figure.add_gridspec(3, 1, height_ratios=[height, 19 * time + 20, 19 * time + 20])
    top = figure.add_subplot(rows[0])
    for number, frame in enumerate(frames):
        extent = (number + 0.03, number + 0.97, 0.0, 1.0)
        top.imshow(frame, extent=extent, aspect="auto", interpolation="none")
    top.set_xlim(0, time)
    top.set_ylim(0, 1)
    top.set_axis_off()
    top.set_title(title)
    parts = (
        ("skeleton (row) to frames (columns), %", to_features, VISIBLE),
        ("frame (row) to skeletons (columns), %", to_edges, INFRARED),
    )
    for row, (name, weights, color) in enumerate(parts, start=1):
        axes = figure.add_subplot(rows[row])
        _shade(axes, weights * time / 2, color)  # uniform attention has half of the full shade
        if time <= 8:
            for (query, key), weight in np.ndenumerate(weights):
                text = f"{100 * weight:.1f}"
                axes.text(key + 0.5, query + 0.5, text, ha="center", va="center", size=FONT - 1)
        axes.set_xticks([])
        axes.set_yticks(np.arange(time) + 0.5, [str(number + 1) for number in range(time)])
        axes.set_xlabel(name)
    return figure


def _shade(axes: Axes, values: Float[np.ndarray, "R K"], color: str) -> None:
    """Fills the cells of a table by their values, from 0 (no color) to 1; NaN stays empty."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.add_patch(
                Rectangle(
                    (column + 0.02, row + 0.02),
                    0.96,
                    0.96,
                    facecolor=color,
                    alpha=0.04 + 0.5 * float(np.clip(value, 0, 1)),
                    linewidth=0,
                )
            )
    axes.set_xlim(0, values.shape[1])
    axes.set_ylim(values.shape[0], 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


@matplotlib.rc_context(SETTINGS)
def body(
    title: str,
    values: Float[np.ndarray, " J"],
    labels: Sequence[str],
    emphasized: Bool[np.ndarray, " J"],
) -> Figure:
    """Returns a figure of a number for each joint, on a person who faces the reader.

    Args:
      title: what is shown.
      values: float[17], drawn as the areas of circles, hollow ones where negative.
      labels: str[17], the numbers as text, below the joints' names.
      emphasized: bool[17], whose labels are printed bold.
    """
    figure = Figure(figsize=(450 / 72, 430 / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    for start, end in EDGES:
        axes.plot(*_BODY[[start, end]].T, color=RULE, linewidth=3, solid_capstyle="round", zorder=1)
    largest = max(np.abs(values).max(), 1e-9)
    sides = {"left": 1, "right": -1}
    places = {
        name: [j for j, joint in enumerate(JOINTS) if joint.startswith(name)] for name in sides
    }
    for name, joints in places.items():
        for number, joint in enumerate(sorted(joints, key=lambda j: _BODY[j, 1])):
            target = (sides[name] * 62, -26 + 28.5 * number)
            _name_joint(axes, joint, target, labels[joint], bool(emphasized[joint]))
    (nose,) = (j for j, joint in enumerate(JOINTS) if joint == "nose")
    _name_joint(axes, nose, (0, -44), labels[nose], bool(emphasized[nose]))
    for point, value in zip(_BODY, values, strict=True):
        area = 16 + 420 * abs(value) / largest
        fill = INFRARED if value >= 0 else "none"
        axes.scatter(
            point[0],
            point[1],
            s=area,
            facecolor=fill,
            edgecolor=INFRARED,
            alpha=0.75,
            linewidths=1.5,
            zorder=3,
        )
    axes.set_xlim(-150, 150)
    axes.set_ylim(193, -93.7)  # the same scale as x
    axes.set_axis_off()
    axes.text(-150, -85, title, size=FONT + 1, weight="bold")
    return figure


def _name_joint(
    axes: Axes, joint: int, target: tuple[float, float], label: str, bold: bool
) -> None:
    side = np.sign(target[0])
    alignment = {-1: "right", 0: "center", 1: "left"}[int(side)]
    axes.plot(*zip(_BODY[joint], target, strict=True), color=RULE, linewidth=0.8, zorder=0)
    axes.text(
        target[0] + 2 * side,
        target[1],
        f"{JOINTS[joint].replace('_', ' ')}\n{label}",
        ha=alignment,
        va="bottom" if side == 0 else "center",
        weight="bold" if bold else "normal",
        color=INK if bold else MUTED,
    )


@matplotlib.rc_context(SETTINGS)
def cameras(
    direction: str,
    pairs: Sequence[Mapping[str, Any]],
    queries: Sequence[str],
    entries: Sequence[str],
) -> Figure:
    """Returns the figure of the mAP of each pair of cameras.

    Args:
      direction: "i2v" or "v2i".
      pairs: of an evaluation's report, `by_camera_pair`.
      queries: names of the cameras of queries, in order of the rows.
      entries: names of the cameras of gallery entries, in order of the columns.
    """
    table = np.full((len(queries), len(entries)), np.nan)
    for pair in pairs:
        place = queries.index(pair["query_camera"]), entries.index(pair["gallery_camera"])
        table[place] = pair["map"]
    figure = _new(34 * len(entries) + 90, 27 * len(queries) + 86)
    axes = figure.subplots()
    _shade(axes, table / 100, OF_DIRECTION[direction])
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            axes.text(
                column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", size=FONT - 1
            )
    axes.set_xticks(np.arange(len(entries)) + 0.5, [shown(name, 8) for name in entries])
    axes.set_yticks(np.arange(len(queries)) + 0.5, [shown(name, 8) for name in queries])
    if max(map(len, entries)) > 3:
        axes.tick_params(axis="x", rotation=90)
    axes.set_title(f"mAP (%), {NAMES[direction]}")
    axes.set_xlabel("camera of the gallery")
    axes.set_ylabel("camera of the query")
    return figure


@matplotlib.rc_context(SETTINGS)
def conditions(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Returns the figure of the mAP of the queries under each condition, with 95 % intervals.

    Args:
      found: of each direction, `by_condition` of an evaluation's report.
    """
    names = sorted(set().union(*found.values()))
    figure = _new(440, 52 * len(names) + 76)
    axes = figure.subplots()
    for row, name in enumerate(names):
        for offset, (direction, scores) in zip((-0.15, 0.17), found.items(), strict=True):
            if name not in scores:
                continue
            own, color = scores[name], OF_DIRECTION[direction]
            marker = {"i2v": "^", "v2i": "o"}[direction]
            low, high = own["intervals"]["map"]
            axes.plot([low, high], [row + offset] * 2, color=color, alpha=0.6)
            axes.scatter(own["map"], row + offset, s=42, marker=marker, color=color, zorder=3)
            text = f"{own['map']:.0f}, {own['queries']} queries"
            axes.text(103, row + offset, text, color=color, va="center", size=FONT - 1)
    for direction in found:
        marker, color = {"i2v": "^", "v2i": "o"}[direction], OF_DIRECTION[direction]
        axes.scatter([], [], s=42, marker=marker, color=color, label=NAMES[direction])
    axes.set_yticks(range(len(names)), [shown(name, 24) for name in names])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.spines.left.set_visible(False)
    axes.grid(axis="x")
    axes.set_title("Condition of the query")
    axes.set_xlabel("mAP (%) and 95 % interval")
    figure.legend(loc="outside lower left", frameon=False, ncols=2, labelcolor=INK)
    return figure


@matplotlib.rc_context(SETTINGS)
def corruption(
    title: str, unit: str, amounts: Sequence[float], reports: Sequence[Mapping[str, Any]]
) -> Figure:
    """Returns the figure of the mAP against the amount of corruption, with 95 % intervals.

    Args:
      title: the kind of corruption.
      unit: of the amounts.
      amounts: ascending.
      reports: the evaluations at these amounts.
    """
    figure = _new(420, 270)
    axes = figure.subplots()
    for direction, color in OF_DIRECTION.items():
        means = [report[direction]["map"] for report in reports]
        low, high = zip(*(report[direction]["intervals"]["map"] for report in reports), strict=True)
        axes.fill_between(amounts, low, high, color=color, alpha=0.16, linewidth=0)
        marker = {"i2v": "^", "v2i": "o"}[direction]
        axes.plot(amounts, means, color=color, marker=marker, markersize=5, label=NAMES[direction])
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_ylabel("mAP (%)")
    axes.grid(axis="y")
    axes.legend(loc="lower left", frameon=False, labelcolor="linecolor")
    return figure


@matplotlib.rc_context(SETTINGS)
def ranked_lists(rows: Sequence[Sequence[Captioned]]) -> Figure:
    """Returns the figure of ranked lists, a row for each: the query, then its matches by rank."""
    columns = max(map(len, rows))
    figure = _new(130 * columns, 168 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    borders = {"query": (MUTED, "-"), "same": (VISIBLE, "-"), "other": (INFRARED, (0, (3, 2)))}
    for row, line in zip(grid, rows, strict=True):
        for axes in row[len(line) :]:
            axes.set_axis_off()
        for axes, (picture, caption, kind) in zip(row, line, strict=False):
            axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
            color, style = borders[kind]
            axes.spines[:].set(visible=True, color=color, linestyle=style, linewidth=2.5)
            axes.set_xlabel(shown(caption, 20), color=INK, size=FONT - 2)
    return figure


def shown(name: str, length: int) -> str:
    """Returns a name from data as a figure shows it: cut, and without matplotlib's formulas."""
    cut = name if len(name) <= length else f"{name[: length - 1]}…"
    return cut.replace("$", r"\$")
