"""Attention weights of texts, from a package that has them as outputs, and pictures of them.

The outputs are `attentions.{layer}` (batch, heads, queries, keys) and `attention_visible`
(batch, 1 or heads, queries, keys), the mask as the model applied it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime.errors import InputError, IsoformerError, PackageError
from isoformer.runtime.package import Package
from isoformer.runtime.session import Session
from isoformer.runtime.text import text_encoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VISIBLE = "attention_visible"
MAX_TEXTS = 32

# Inches, but for the last three.
CELL = (0.14, 0.45)  # the least in which a token can be read, and the most that looks good
GRID = (20.0, 14.0)  # what all panels together take where cells can be chosen so
GAP = 0.1
BAR = (0.15, 2.0)
DPI = 150
MAX_PIXELS = 50_000_000
MAX_SIDE = 2**15

MASKED: dict[str, Any] = {"facecolor": "0.9", "edgecolor": "0.55", "hatch": "/////", "linewidth": 0}


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one text in the layers and heads that were asked for.

    tokens: L of them, with the padding that the text got beside longer ones. weights
    (layers, heads, L, L), queries before keys; visible, of the same shape, is False where masked.
    """

    text: str
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    weights: np.ndarray
    visible: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; a masked weight is None."""
        weights = self.weights.astype(np.float64).round(6).astype(object)
        weights[~self.visible] = None
        return {
            "input": self.text,
            "tokens": list(self.tokens),
            "layers": list(self.layers),
            "heads": list(self.heads),
            "weights": weights.tolist(),
        }


def compute(
    session: Session,
    texts: Sequence[str],
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    *,
    truncate: bool = False,
) -> list[AttentionMap]:
    """The maps of the texts, which run as one batch, padded on the right to the longest.

    layers, heads: numbered from 0; all of them unless given. Raises PackageError when the package
    does not return its weights, and InputError for a number out of range, for more than MAX_TEXTS
    texts and for a text whose picture would be too large.
    """
    layer_count, head_count = layers_and_heads(session.package)
    chosen_layers = _chosen("layer", layers, layer_count)
    chosen_heads = _chosen("head", heads, head_count)
    if len(texts) > MAX_TEXTS:
        raise InputError(f"there are {len(texts)} texts; {MAX_TEXTS} at most go into one batch of attention maps")
    encoder = text_encoder(session, truncate=truncate)
    encodings = encoder.encode(texts)
    length = max(len(encoding.ids) for encoding in encodings)
    _refuse_large(len(chosen_layers), len(chosen_heads), length)
    names = [f"attentions.{layer}" for layer in chosen_layers]
    outputs = session.run(encoder.inputs(encodings), [*names, VISIBLE])
    weights = np.stack([outputs[name][:, chosen_heads] for name in names], axis=1)  # (B, layers, heads, L, L)
    visible = np.broadcast_to(outputs[VISIBLE], (len(texts), head_count, length, length))[:, chosen_heads]
    pad = encoder.tokenizer.id_to_token(encoder.pad_id) or "[PAD]"
    return [
        AttentionMap(
            text,
            (*encoding.tokens, *[pad] * (length - len(encoding.ids))),
            chosen_layers,
            chosen_heads,
            weights[row],
            np.broadcast_to(visible[row], weights[row].shape),
        )
        for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True))
    ]


def layers_and_heads(package: Package) -> tuple[int, int]:
    """How many of each the package returns weights of; PackageError when it returns none."""
    outputs = {spec.name: spec for spec in package.signature.outputs}
    layers = next(layer for layer in count() if f"attentions.{layer}" not in outputs)
    heads = outputs["attentions.0"].axes[1] if layers else None
    if not isinstance(heads, int):
        raise PackageError(f"{package.path} returns no attention weights; export an encoder -o output_attentions=true")
    if VISIBLE not in outputs:
        raise PackageError(
            f"{package.path} has no output {VISIBLE}, which says what is masked; packages of encoders have"
        )
    return layers, heads


def _chosen(kind: str, wanted: Sequence[int], total: int) -> tuple[int, ...]:
    for number in wanted:
        if not 0 <= number < total:
            raise InputError(f"there is no {kind} {number}; this model has {kind}s 0 to {total - 1}")
    return tuple(dict.fromkeys(wanted)) or tuple(range(total))


def targets(png: Path, texts: int, *, force: bool) -> list[Path]:
    """A file for each text: `png` itself, or `png` with -1, -2, … before its ending where there are several.

    Raises InputError when the ending is another, the folder is missing, or a file is taken and not `force`.
    """
    if png.suffix.lower() != ".png":
        raise InputError(f"{png} does not end in .png")
    if not png.parent.is_dir():
        raise InputError(f"{png} cannot be written: there is no folder {png.parent}")
    files = [png] if texts == 1 else [png.with_stem(f"{png.stem}-{number}") for number in range(1, texts + 1)]
    for file in files:
        if file.is_dir():
            raise InputError(f"{file} is a folder")
        if (file.exists() or file.is_symlink()) and not force:
            raise InputError(f"{file} exists already; --force replaces it")
    return files


def require_matplotlib() -> None:
    """Raises IsoformerError, with what to install, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise IsoformerError("matplotlib is not installed: pip install 'isoformer[plot]'") from None


def save(found: AttentionMap, path: Path) -> None:
    """Draws the map into the PNG file `path`, which appears complete or not at all.

    Raises InputError when the picture would be too large, IsoformerError when it cannot be written.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # a picture looks the same whatever the user's own settings are
        figure = draw(found)
        partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        try:
            with partial.open("xb") as file:
                figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15)
            partial.replace(path)
        except OSError as error:
            raise IsoformerError(f"{path} cannot be written: {error.strerror or error}") from None
        finally:
            partial.unlink(missing_ok=True)


def draw(found: AttentionMap) -> "Figure":
    """The map as a figure: layers down, heads across; in each panel queries down, keys across.

    One colour scale, from 0 to the largest weight, serves all panels. Masked cells are hatched.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns, length, _ = found.weights.shape
    _refuse_large(rows, columns, length)
    cell, width, height = _layout(rows, columns, length)
    panel, small = cell * length, min(10.0, 72 * cell * 0.62)
    labels = [_cut(token, 16) for token in _drawable(found.tokens)]
    colours: dict[str, Any] = {"cmap": "viridis", "norm": Normalize(0, float(found.weights.max()) or 1.0)}
    edges = np.arange(length + 1) - 0.5
    figure = Figure(figsize=(width, height), dpi=DPI)
    for row, column in np.ndindex(rows, columns):
        left, bottom = column * (panel + GAP), height - panel - row * (panel + GAP)
        axes = figure.add_axes((left / width, bottom / height, panel / width, panel / height))
        axes.add_patch(Rectangle((-0.5, -0.5), length, length, zorder=0, **MASKED))  # shows where the image has holes
        image = np.ma.masked_where(~found.visible[row, column], found.weights[row, column])
        axes.pcolormesh(edges, edges, image, **colours)  # imshow would make floats of every pixel
        axes.set(xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5))
        axes.tick_params(length=0, pad=2)
        axes.set_xticks([])
        axes.set_yticks([])
        if row == 0:
            axes.set_title(f"head {found.heads[column]}", fontsize=9, pad=4)
        if column == 0:
            axes.set_yticks(range(length), labels, fontsize=small, parse_math=False)
            axes.set_ylabel(f"layer {found.layers[row]}", fontsize=9)
        if row == rows - 1:
            axes.set_xticks(range(length), labels, fontsize=small, rotation=90, parse_math=False)
    _add_scale(figure, colours, hatched=not found.visible.all())
    title = _cut("".join(_drawable([" ".join(found.text.split())])), max(40, int(width * 9)))
    figure.text(0, 1 + 0.55 / height, title, fontsize=12, parse_math=False)
    figure.text(0, 1 + 0.35 / height, "queries down, keys across", fontsize=9, color="0.35")
    return figure


def _add_scale(figure: "Figure", colours: dict[str, Any], *, hatched: bool) -> None:
    """The colour bar to the right of the panels, and under it what the hatch means where there is one."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    left, bar = 1 + 0.2 / width, min(BAR[1], height)
    axes = figure.add_axes((left, 1 - bar / height, BAR[0] / width, bar / height))
    figure.colorbar(ScalarMappable(**colours), cax=axes).set_label("attention weight", fontsize=9)
    axes.tick_params(labelsize=8)
    if hatched:
        legend: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (left, 1 - (bar + 0.1) / height)}
        legend |= {"borderaxespad": 0, "borderpad": 0, "handlelength": 1.6, "handleheight": 1.6}
        figure.legend(handles=[Patch(label="masked", **MASKED)], fontsize=9, frameon=False, **legend)


def _layout(rows: int, columns: int, length: int) -> tuple[float, float, float]:
    """Inches: the side of a cell, and width and height of all panels."""
    fitting = min(GRID[0] / (columns * length), GRID[1] / (rows * length))
    cell = min(max(fitting, CELL[0]), CELL[1])
    return cell, columns * (cell * length + GAP) - GAP, rows * (cell * length + GAP) - GAP


def _refuse_large(rows: int, columns: int, length: int) -> None:
    _, *sides = _layout(rows, columns, length)
    width, height = (round(side * DPI) for side in sides)
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"{rows} layers × {columns} heads of {length} tokens make a picture of {width:,} × {height:,} pixels, "
            f"which is too large: choose some with --layer and --head, or a shorter text"
        )


def _drawable(texts: Sequence[str]) -> list[str]:
    """The texts with characters that the font lacks written as escapes, such as \\u732b."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return ["".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text) for text in texts]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
