"""The report: one HTML page that needs nothing else, and what the command shows when it has finished."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peers import inputs, plots, tables
from benchmarks.peers.records import Results

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff; margin: 0 auto;
  max-width: 1000px; padding: 0 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.2em 0 .4em; } h2 { font-size: 1.2rem; margin: 2em 0 .3em; }
figure { margin: 1em 0; } svg { width: 100%; height: auto; display: block; }
svg text { font-family: "DejaVu Sans", Verdana, sans-serif; }
.narrow { display: none; }
.table { overflow-x: auto; margin: .8em 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3em .6em; text-align: right; border-bottom: 1px solid #e2e2e2; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #999; } tr.ours td:first-child { color: #b34a00; font-weight: 600; }
tr.class th { text-align: left; background: #f3f3f3; } small { color: #555; }
td b { color: #000; } code { font-size: .9em; overflow-wrap: anywhere; }
dt { font-weight: 600; } dd { margin: 0 0 .5em; }
@media (max-width: 700px) { body { font-size: 15px; } .wide { display: none; } .narrow { display: block; }
  th, td { padding: .3em .4em; } th:first-child, td:first-child { white-space: normal; min-width: 6.5em; } }
"""
CAPTIONS = {
    "length": (
        "Latency against length",
        "One sequence, no padding; both scales are logarithmic. Lines are medians over the turns, the shade behind "
        "them goes from the first to the third quartile.",
    ),
    "tokens": (
        "Latency against real tokens",
        "Batches of eight rows, 128 tokens wide: what is not a real token is padding. An engine that computes the "
        "padding too takes as long for a quarter of the tokens as for all.",
    ),
    "accuracy": (
        "Accuracy against speed",
        "Embeddings of 1,000 sentences beside PyTorch's in float64. Float32's own rounding is at the top; large "
        "markers with a black edge are isoformer.",
    ),
    "roofline": (
        "Share of the roofline",
        "The least time that this machine allows for the real tokens alone (products at the measured peak of the "
        "engine's precision, or one read of its weights at the measured bandwidth), divided by the time it took. "
        "Activations, norms, softmax and all overhead are in what is missing from 100 %.",
    ),
}


def write(results: Results, path: Path, picture: Path | None = None) -> None:
    """The page, and the PNG if a path for it is given; each beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(page(results), encoding="utf-8")
    beside.replace(path)
    if picture is not None:
        partial = picture.with_suffix(".partial.png")
        plots.picture(results, partial)
        partial.replace(picture)


def page(results: Results) -> str:
    """The whole page as HTML."""
    shapes = [inputs.name(shape) for shape in inputs.ALL]
    others = [shape for shape in shapes if shape not in tables.MAIN]
    parts = [
        "<h1>MiniLM on this machine: isoformer beside other engines</h1>",
        _introduction(results),
        "<h2>Five shapes</h2>",
        "<p>Medians in milliseconds; small: first and third quartile over the turns. In brackets how many times faster "
        "than the fastest peer of its class at that shape. Bold: the fastest of its class. "
        f"{tables.MARK}, in plots a hollow marker: the engine's threads waited for a processor for more than half "
        "of the time. Others were at work, and some engines hand the processor to them while they wait for "
        "threads of their own; such an engine may be much faster alone.</p>",
        _latencies(results, tables.MAIN),
        *(_figure(results, name) for name in plots.PLOTS),
        "<h2>Accuracy</h2>",
        "<p>Of the 1,000 sentences' embeddings beside PyTorch's in float64: cosines, the largest difference of a "
        "component, and Spearman's correlation of the similarities of all 499,500 pairs.</p>",
        _accuracies(results),
        "<h2>The other shapes</h2>",
        _latencies(results, others),
        "<h2>How it was measured</h2>",
        _method(results),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>isoformer and its peers</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _introduction(results: Results) -> str:
    machine = results.head["machine"]
    roof = results.head["roofline"]
    peaks = ", ".join(f"{name} {peak / 1e9:,.0f}" for name, peak in roof["products"].items())
    units = ", ".join(machine.get("units", []))
    return (
        f"<p>all-MiniLM-L6-v2 (6 layers, 384 wide), real weights; {escape(machine['processor'])}, "
        f"{machine['cores']} cores ({escape(units)}), {results.head['threads']} threads an engine, "
        f"{escape(results.head['date'])}. Measured peaks of products in GFLOP/s (int8: 10⁹ operations/s): {peaks}; "
        f"reads {roof['memory'] / 1e9:.0f} GB/s from memory, {roof['read'] / 1e9:.0f} GB/s of the size of the "
        "weights.</p>"
    )


def _latencies(results: Results, shapes: Sequence[str]) -> str:
    shapes = [shape for shape in shapes if any(at == shape for _, at in results.rows)]
    head = "".join(f"<th>{tables.title(shape)}</th>" for shape in shapes)
    rows = [f"<thead><tr><th>batch×length (real tokens)</th>{head}</tr></thead>"]
    for which in tables.CLASSES:
        found = tables.engines(results, which)
        if found:
            rows.append(f'<tr class="class"><th colspan="{len(shapes) + 1}">{which}, ms</th></tr>')
        best = {shape: _fastest(results, shape, which) for shape in shapes}
        for engine in found:
            cells = "".join(_latency(results, engine["engine"], shape, best[shape]) for shape in shapes)
            rows.append(f"<tr{_mark(engine['ours'])}><td>{escape(engine['label'])}</td>{cells}</tr>")
    return f'<div class="table"><table>{"".join(rows)}</table></div>'


def _fastest(results: Results, shape: str, which: str) -> str:
    rows = [row for (_, at), row in results.rows.items() if at == shape and tables.group(row) == which]
    return max(rows, key=lambda row: row["times_faster_than_anchor"])["engine"] if rows else ""


def _latency(results: Results, engine: str, shape: str, best: str) -> str:
    row = results.rows.get((engine, shape))
    if row is None:
        return "<td>–</td>"
    text = tables.milliseconds(row)
    text = f"<b>{text}</b>" if engine == best else text
    ratio = tables.beside_best(results, row) if row["ours"] else None
    text += f" ({ratio[1]:.2f}×)" if ratio else ""
    low, high = map(tables.number, row["quartiles_ms"])
    return f"<td>{text}<br><small>{low} – {high}</small></td>"


def _mark(ours: bool) -> str:
    return ' class="ours"' if ours else ""


def _figure(results: Results, name: str) -> str:
    heading, caption = CAPTIONS[name]
    both = "".join(
        f'<div class="{kind}" role="img" aria-label="{heading}">{plots.svg(results, name, kind == "narrow")}</div>'
        for kind in ("wide", "narrow")
    )
    return f"<h2>{heading}</h2>\n<p>{caption}</p>\n<figure>{both}</figure>"


def _accuracies(results: Results) -> str:
    names = ("engine", "mean cosine", "least cosine", "largest difference", "Spearman")
    rows = [f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"]
    for row in sorted(results.accuracies.values(), key=lambda row: (tables.group(row), row["mean_distance"])):
        cells = [f"{row['mean_cosine']:.6f}", f"{row['least_cosine']:.6f}", f"{row['largest_difference']:.1e}"]
        cells.append(f"{row['spearman']:.6f}")
        marked = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr{_mark(row['ours'])}><td>{escape(row['label'])}</td>{marked}</tr>")
    return f'<div class="table"><table>{"".join(rows)}</table></div>'


def _method(results: Results) -> str:
    waited = np.quantile([row["waited"] for row in results.rows.values()], (0.5, 0.9))
    turns = sorted({len(row["turns_ms"]) for row in results.rows.values()})
    versions = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(', '.join(f'{p} {v}' for p, v in found.items()))}</dd>"
        for name, found in results.head["versions"].items()
    )
    failed = "".join(
        f"<dt>{escape(name)}: left out</dt><dd>{escape(why)}</dd>" for name, why in results.failures.items()
    )
    return (
        "<p>Every engine is a process of its own; they take turns in an order drawn anew for each turn, one working "
        f"while the others sleep; {' or '.join(map(str, turns))} turns a shape. A turn is one run that is not counted "
        "and then runs for 0.3 s, three at least; the median of the half that waited least for a processor counts. "
        "Ratios are taken turn by turn, so that a machine whose speed drifts slows both sides. All engines get the "
        "same ids and masks and give the normalised mean of the real tokens; for engines whose graph ends before it "
        "numpy computes it, which is counted. While this was measured, threads waited for a processor for "
        f"{waited[0]:.1%} of the time (median over engines and shapes; one in ten: {waited[1]:.1%} or more), "
        "because others were at work on the machine. The command is "
        "<code>make bench-peers</code>.</p>"
        f"<h2>Environments</h2><dl>{versions}{failed}</dl>"
    )


def show(results: Results, console: Console) -> None:
    """The main shapes as tables for people."""
    for which in tables.CLASSES:
        table = Table(title=f"{which}: median ms (times faster than the best peer) share of the roofline")
        table.add_column("batch × length (real tokens)")
        for shape in tables.MAIN:
            table.add_column(tables.title(shape), justify="right")
        for engine in tables.engines(results, which):
            rows = [results.rows.get((engine["engine"], shape)) for shape in tables.MAIN]
            cells = [_shown(results, row) if row else "–" for row in rows]
            table.add_row(engine["label"], *cells)
        console.print(table)
    for name, why in results.failures.items():
        console.print(f"left out: {name}: {why}", style="yellow")


def _shown(results: Results, row: dict) -> str:
    ratio = tables.beside_best(results, row) if row["ours"] else None
    beside = f" ({ratio[1]:.2f})" if ratio else ""
    return f"{tables.milliseconds(row)}{beside} {results.share(row):.0%}"
