"""docs/masks.md: its python runs and prints what it says, its picture and its tables are what the commands give."""

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks and docs are not installed

from benchmarks.masks.__main__ import measure  # noqa: E402
from benchmarks.masks.problem import Array, judge, problems  # noqa: E402
from benchmarks.masks.run import measure_eager  # noqa: E402
from benchmarks.masks.tables import merged, table  # noqa: E402
from benchmarks.masks.tools import eager_tools  # noqa: E402
from docs import draw_masks  # noqa: E402

PAGE = (ROOT / "docs/masks.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_prints_what_it_says() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, names)  # noqa: S102
        assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert len(blocks) >= 5


def test_the_picture_shows_the_masks_of_the_builders() -> None:
    """The colour at the centre of every cell of the committed picture."""
    picture = imread(draw_masks.FOLDER / "masks.png")
    figure = draw_masks.draw()
    height = figure.bbox.height
    colours = np.array([to_rgb(draw_masks.HIDDEN), to_rgb(draw_masks.SEEN)])
    for panel, (title, mask) in zip(figure.axes, draw_masks.kinds().items(), strict=True):
        rows, columns = np.indices(mask.shape)
        x, y = panel.transData.transform(np.stack([columns.ravel(), rows.ravel()], axis=1)).astype(int).T
        found = picture[int(height) - 1 - y, x, :3]
        np.testing.assert_allclose(found, colours[mask.int().numpy().ravel()], atol=1 / 255, err_msg=title)


def test_the_picture_is_drawn_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["draw_masks", str(tmp_path / name)])
        draw_masks.main()
    assert (tmp_path / "one/masks.png").read_bytes() == (tmp_path / "two/masks.png").read_bytes()


def answers(name: str, kind: str) -> Array:
    """A problem's right answer, with something else in the rows without keys."""
    problem = problems()[name]
    right = problem.weights() @ problem.value
    empty = ~problem.mask.any(-1, keepdims=True)
    scores = problem.query @ problem.key.swapaxes(2, 3)
    everywhere = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True) if name != "extreme" else scores
    fillers = {
        "zero": np.zeros_like(right),
        "nearly zero": np.full_like(right, 1e-5),
        "NaN": np.full_like(right, np.nan),
        "mean of all values": np.broadcast_to(problem.value.mean(2, keepdims=True), right.shape),
        "as if unmasked": everywhere @ problem.value,
        "other": np.full_like(right, 7.0),
    }
    return np.where(empty, fillers[kind], right)


@pytest.mark.parametrize("kind", ["zero", "nearly zero", "NaN", "mean of all values", "as if unmasked", "other"])
def test_a_row_without_keys_is_called_what_it_is(kind: str) -> None:
    found = judge({"rows": answers("rows", kind)}, "float64")
    assert (found["row"], found["sample"]) == (kind, kind)
    assert found["largest_error"] == pytest.approx(0, abs=1e-15)
    wrong = answers("rows", kind)
    wrong[2, 1, 3, 0] += 0.25
    assert judge({"rows": wrong}, "float64")["largest_error"] == pytest.approx(0.25)


def test_extreme_scores_are_called_what_they_are() -> None:
    problem = problems()["extreme"]
    masked = np.broadcast_to(problem.value[:, :, 1:2], problem.value.shape)
    assert judge({"extreme": answers("extreme", "zero")}, "float64")["extreme"] == "right"
    assert judge({"extreme": masked}, "float64")["extreme"] == "the masked key wins"
    failed = judge({"extreme": "it broke"}, "float64")
    assert (failed["extreme"], failed["error"], failed["sample"]) == ("error", "it broke", None)


def test_lines_of_one_tool_are_merged_only_where_they_say_the_same() -> None:
    rows = [
        {"tool": "t", "opset": opset, "dtype": dtype, "row": "zero", "sample": sample, "extreme": "right"}
        for opset, dtype, sample in ((20, "float32", "zero"), (23, "float32", "zero"), (20, "float16", "NaN"))
    ]
    lines = merged(rows, lambda row: (row["sample"],))
    assert [(opsets, dtypes, cells) for _, opsets, dtypes, _, cells in lines] == [
        ("20, 23", "float32", ("zero",)),
        ("20", "float16", ("NaN",)),
    ]


def without_errors(lines: str) -> list[str]:
    """The lines of a table but for the last column, whose digits are the machine's."""
    return [line.rsplit("|", 2)[0] for line in lines.splitlines()]


def test_the_table_of_pytorch_is_what_is_measured() -> None:
    rows = [{"tool": t.name, "opset": t.opset, "dtype": t.dtype} | measure_eager(t) for t in eager_tools()]
    assert set(without_errors(table(rows))) <= set(without_errors(PAGE))


@pytest.mark.parametrize(
    "tools", ["standard Attention", pytest.param("", marks=pytest.mark.slow)], ids=["attention", "all"]
)
def test_the_tables_of_graphs_are_what_is_measured(tools: str) -> None:
    rows = list(measure(tools))
    for runtime in {row["runtime"] for row in rows}:
        lines = table([row for row in rows if row["runtime"] == runtime])
        assert set(without_errors(lines)) <= set(without_errors(PAGE)), runtime
