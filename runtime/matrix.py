"""The matrix of a package's lanes: as a table, as a page, as Markdown."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Rows = Sequence[dict[str, Any]]
HEADINGS = ("runtime", "version", "provider", "graph", "precision", "cases", "values", "largest share", "")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>isoformer: the same in every runtime</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a1a1a; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
caption {{ text-align: left; font-weight: 600; margin-bottom: .5rem; }}
th, td {{ text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #ccc; vertical-align: top; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.passed {{ color: #11672f; }} .failed {{ color: #a40000; font-weight: 600; }} .missing {{ color: #555; }}
</style>
<h1>The same in every runtime</h1>
<p>The largest error against the reference in float64, as a share of what is allowed; over 1 fails.</p>
{tables}
</html>
"""


def cells(row: dict[str, Any]) -> list[str]:
    """The texts of a row under HEADINGS."""
    if "missing" in row:
        return [row["label"], "", "", "", "", "", "", "", f"not run: {row['missing']}"]
    share, graph = row["worst_share_of_bound"], row["graph"]
    verdict = "passed" if row["passed"] else f"{row['failures']} failed"
    if row["elsewhere"]:
        verdict += f"; on another provider: {row['elsewhere']}"
    return [
        row["engine"],
        row["version"],
        row["provider"],
        graph if row["variant"] is None else f"{graph} ({row['variant']})",
        row["precision"],
        str(row["cases"]),
        f"{row['values']:,}",
        "no number" if share is None else f"{share:.2f}" if share <= 99 else f"{share:.1g}",
        verdict,
    ]


def table(rows: Rows) -> Table:
    """For the terminal, which is narrow: what belongs together stands together."""
    made = Table(title="every runtime", title_justify="left")
    for heading, justify in (("runtime", "left"), ("precision", "left"), ("cases", "right"), ("share", "right")):
        made.add_column(heading, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
    made.add_column("", overflow="fold")
    for row in rows:
        runtime, version, provider, graph, precision, cases_, _, share, verdict = cells(row)
        what = " ".join(filter(None, [runtime, version, provider if provider != runtime else ""]))
        style = "" if row.get("passed") else "dim" if "missing" in row else "red"
        made.add_row(what, f"{precision} {graph}".strip(), cases_, share, verdict, style=style)
    return made


def markdown(rows: Rows) -> str:
    """A table for a document."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells(row))} |" for row in rows]
    return "\n".join(lines)


def page(packages: Iterable[tuple[str, Rows]]) -> str:
    """An HTML page that needs nothing else: a table a package."""
    return PAGE.format(tables="\n".join(_html_table(name, rows) for name, rows in packages))


def _html_table(name: str, rows: Rows) -> str:
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in HEADINGS)
    body = []
    for row in rows:
        kind = "missing" if "missing" in row else "passed" if row["passed"] else "failed"
        texts = "".join(
            f"<td{' class=number' if number in (5, 6, 7) else ''}>{html.escape(text)}</td>"
            for number, text in enumerate(cells(row))
        )
        body.append(f'<tr class="{kind}">{texts}</tr>')
    rows_of_table = "\n".join(body)
    caption = f"<caption>{html.escape(name)}</caption>"
    return f"<div><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows_of_table}\n</tbody></table></div>"


def write_html(path: Path, packages: Iterable[tuple[str, Rows]]) -> None:
    """The page at `path`, whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(page(packages), encoding="utf-8")
    beside.replace(path)
