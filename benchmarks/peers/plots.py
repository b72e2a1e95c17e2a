"""The report's plots: each for wide screens and for narrow ones, as SVG with text that stays text."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.peers import inputs, tables
from benchmarks.peers.records import Results, Row

# colours that colour-blind people can tell apart (Okabe and Ito); peers of one project share theirs
COLOURS = {
    "isoformer": "#d55e00",
    "torch": "#0072b2",
    "torch-compile": "#56b4e9",
    "optimum": "#009e73",
    "openvino": "#cc79a7",
    "ctranslate2": "#7a6a00",
}
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
GATE = 0.002  # 1 − mean cosine that a lower precision may have
NOTE = "threads waited for a processor more than half of the time, since others were at work on the machine"
Style = dict[str, Any]


def styles(results: Results) -> dict[str, Style]:
    """Colour, marker and dash of every engine: the colour of its project, the others in the order of the engines."""
    counts: dict[str, int] = {}
    found = {}
    for engine in dict.fromkeys([name for name, _ in results.rows] + list(results.accuracies)):
        family = max((f for f in COLOURS if engine.startswith(f)), key=len, default="isoformer")
        at = counts[family] = counts.get(family, -1) + 1
        found[engine] = {"color": COLOURS[family], "marker": MARKERS[at % len(MARKERS)], "ls": DASHES[at % len(DASHES)]}
    return found


def figure(narrow: bool, panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels side by side, or one below the other; height: of one panel, in inches."""
    size = (4.1, height * panels) if narrow else (10.0, height)
    made = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.12))
    axes = made.subplots(panels, 1, squeeze=False) if narrow else made.subplots(1, panels, squeeze=False)
    for axis in axes.flat:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return made, list(axes.flat)


def curves(results: Results, which: str, shapes: list[str]) -> dict[str, list[Row]]:
    """The rows of each engine at the shapes, by its label; of Optimum's graphs in float32 the fastest at each."""
    found: dict[str, list[Row]] = {}
    for label, names in tables.rows_of(results, which).items():
        rows = [tables.quickest(results, names, shape) for shape in shapes]
        if names != ["onnxruntime-plain"]:
            found[label] = [row | {"engine": names[0]} for row in rows if row]
    return {label: rows for label, rows in found.items() if rows}


def _draw(axis: Axes, results: Results, which: str, shapes: list[str], x: str) -> None:
    look = styles(results)
    for label, rows in curves(results, which, shapes).items():
        ours = rows[0]["ours"]
        style = look[rows[0]["engine"]] | {"lw": 2.6 if ours else 1.3, "ms": 6 if ours else 4.5, "zorder": 3 + ours}
        axis.plot([row[x] for row in rows], [row["median_ms"] for row in rows], label=label, **style)
        disturbed = [row for row in rows if tables.disturbed(row)]
        hollow = style | {"ls": "", "mfc": "white", "zorder": 5}
        axis.plot([row[x] for row in disturbed], [row["median_ms"] for row in disturbed], **hollow)
        low, high = ([row["quartiles_ms"][side] for row in rows] for side in (0, 1))
        axis.fill_between([row[x] for row in rows], low, high, color=style["color"], alpha=0.12, lw=0)
    axis.set_title(which)
    axis.set_ylabel("latency, ms (median)")


def _legend(axis: Axes, narrow: bool, columns: int = 2) -> None:
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17 if not narrow else -0.19),
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=2.6,
        columnspacing=1.0,
    )


def by_length(results: Results, narrow: bool = False) -> Figure:
    """Latency of one sequence against its length, both scales logarithmic."""
    made, axes = figure(narrow, 2, 5.2)
    shapes = [inputs.name(shape) for shape in inputs.LENGTHS]
    for axis, which in zip(axes, tables.CLASSES, strict=True):
        _draw(axis, results, which, shapes, "length")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axis.set_xticks([shape[1] for shape in inputs.LENGTHS])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("length of one sequence, tokens")
        _legend(axis, narrow)
    _same_height(axes)
    return made


def by_tokens(results: Results, narrow: bool = False) -> Figure:
    """Latency of a batch of 8×128 against its real tokens; the others are padding."""
    made, axes = figure(narrow, 2, 5.2)
    shapes = [inputs.name(shape) for shape in sorted(inputs.SHARES)]
    for axis, which in zip(axes, tables.CLASSES, strict=True):
        _draw(axis, results, which, shapes, "real_tokens")
        axis.set_xlabel("real tokens of the 1024 in a batch of 8×128")
        axis.set_xlim(0, 1060)
        axis.set_ylim(bottom=0)
        _legend(axis, narrow)
    return made


def _same_height(axes: list[Axes]) -> None:
    lows, highs = zip(*(axis.get_ylim() for axis in axes), strict=True)
    for axis in axes:
        axis.set_ylim(min(lows), max(highs))


def accuracy(results: Results, narrow: bool = False) -> Figure:
    """1 − mean cosine of the sentences' embeddings against the speed over the main shapes; up and right is better."""
    made, (axis,) = figure(narrow, 1, 6.4 if narrow else 5.0)
    look = styles(results)
    for engine, row in results.accuracies.items():
        speed = tables.speed(results, engine)
        if speed is None:
            continue
        style = {"color": look[engine]["color"], "marker": look[engine]["marker"], "ls": ""}
        size = 11 if row["ours"] else 7
        rows = [results.rows[engine, shape] for shape in tables.MAIN]
        fill = "white" if any(map(tables.disturbed, rows)) else look[engine]["color"]
        edge = "black" if row["ours"] else look[engine]["color"]
        distance = max(row["mean_distance"], 1e-16)
        axis.plot([speed], [distance], label=row["label"], ms=size, mec=edge, mfc=fill, **style)
    axis.axhline(GATE, color="#666666", lw=1, ls="--")
    axis.annotate(
        "limit of a lower precision: mean cosine 0.998",
        (0.01, GATE),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=8,
        color="#444444",
    )
    axis.set_yscale("log")
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("speed, times PyTorch fp32 (geometric mean over five shapes)")
    axis.set_ylabel("1 − mean cosine with float64\n(up: more accurate)")
    if narrow:
        axis.set_xlabel("speed, times PyTorch fp32\n(geometric mean over five shapes)")
        _legend(axis, narrow)
    else:
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return made


def roofline(results: Results, narrow: bool = False) -> Figure:
    """Of every engine at the main shapes: the least time that the machine allows, as a share of what it took."""
    order = [row for which in tables.CLASSES for row in tables.engines(results, which)]
    rows = {row["engine"]: row for row in reversed(order)}
    made, (axis,) = figure(narrow, 1, 1.6 + 0.26 * len(rows))
    palette = matplotlib.colormaps["viridis"]
    for number, shape in enumerate(tables.MAIN):
        found = [(y, results.rows.get((engine, shape))) for y, engine in enumerate(rows)]
        shares = [(results.share(row) * 100, y) for y, row in found if row]
        colour = palette(number / len(tables.MAIN))
        axis.plot(
            [share for share, _ in shares],
            [y for _, y in shares],
            MARKERS[number],
            color=colour,
            label=tables.title(shape),
            ms=6,
            alpha=0.9,
        )
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows.values()], fontsize=8)
    for label, row in zip(axis.get_yticklabels(), rows.values(), strict=True):
        label.set_color(COLOURS["isoformer"] if row["ours"] else "black")
    axis.set_xlim(left=0)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel("share of the roofline in the engine's own precision, %")
    if narrow:
        axis.set_xlabel("share of the roofline in the\nengine's own precision, %")
    handles = axis.get_legend_handles_labels()
    made.legend(*handles, loc="outside upper center", ncols=2 if narrow else 5, frameon=False, fontsize=8)
    return made


PLOTS: dict[str, Callable[[Results, bool], Figure]] = {
    "length": by_length,
    "tokens": by_tokens,
    "accuracy": accuracy,
    "roofline": roofline,
}


def svg(results: Results, name: str, narrow: bool) -> str:
    """An SVG element to stand in a page: without a fixed size, its ids apart from those of other plots."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "axes.titlesize": 10}):
        text = io.StringIO()
        PLOTS[name](results, narrow).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    found = text.getvalue()
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", found[found.index("<svg") :], count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    own = f"{name}-{'narrow' if narrow else 'wide'}-"
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{own}", element)


def picture(results: Results, path: Path) -> None:
    """The README's PNG: latency against length."""
    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 10}):
        made = by_length(results)
        made.supxlabel(f"hollow: {NOTE}", fontsize=8)
        made.savefig(path, dpi=110)
