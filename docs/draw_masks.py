"""Draws docs/images/masks/masks.png: every kind of mask, as the builders of isoformer.models.masks return it.

    python docs/draw_masks.py [FOLDER]      # FOLDER: docs/images/masks unless given

Queries run down, keys across; blue takes part. A row without any key is marked: attention gives zero there.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from isoformer.models import masks

FOLDER = Path(__file__).resolve().parent / "images/masks"
# From the palette of Okabe and Ito, which colour-blind readers can tell apart; they differ in lightness too.
SEEN, HIDDEN, EMPTY = "#0072b2", "#e8e8e8", "#d55e00"
COLUMNS = 5


def kinds() -> dict[str, Tensor]:
    """Every kind by its title: the mask (Lq, Lk) of the first sequence and head."""
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    left_padding = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    heads = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.4
    whole = {
        "padding(…) on the right": masks.padding(torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])),
        "padding(…) on the left": masks.padding(left_padding),
        "padding(…) with holes": masks.padding(torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1]])),
        "lengths([3], 8)": masks.lengths(torch.tensor([3]), 8),
        "segments(…), packed": masks.segments(segments),
        "causal(8, 8)": masks.causal(8, 8),
        "causal(3, 8)\nbehind 5 cached keys": masks.causal(3, 8),
        "causal(3, 8, offset=2)\nrow 0 at position 2": masks.causal(3, 8, offset=2),
        "sliding_window(8, 8, 2)": masks.sliding_window(8, 8, 2),
        "sliding_window(8, 8, 1, 2)": masks.sliding_window(8, 8, 1, 2),
        "prefix(8, 8, [3])": masks.prefix(8, 8, torch.tensor([3])),
        "causal AND segments": masks.causal(8, 8) & masks.segments(segments),
        "causal AND left padding": masks.causal(8, 8) & masks.padding(left_padding),
        "any mask: head 0": heads[:, :1],
        "any mask: head 1": heads[:, 1:],
    }
    return {title: mask[0, 0].expand(8 if mask.shape[2] == 1 else -1, -1) for title, mask in whole.items()}


def draw() -> Figure:
    """The figure, one panel a kind, in the order of `kinds`."""
    drawn = kinds()
    rows = -(-len(drawn) // COLUMNS)
    with mpl.rc_context(mpl.rcParamsDefault):  # whatever the reader's own settings are
        figure = Figure(figsize=(9, 2.1 * rows), dpi=100)
        canvas = FigureCanvasAgg(figure)
        for panel, (title, mask) in zip(figure.subplots(rows, COLUMNS).flat, drawn.items(), strict=True):
            panel.imshow(mask.numpy(), cmap=ListedColormap([HIDDEN, SEEN]), vmin=0, vmax=1, interpolation="nearest")
            queries, keys = mask.shape
            panel.set_xticks([x - 0.5 for x in range(keys + 1)], [])
            panel.set_yticks([y - 0.5 for y in range(queries + 1)], [])
            panel.grid(color="white", linewidth=1)
            panel.tick_params(length=0)
            panel.spines[:].set_visible(False)
            panel.set_xlim(-0.5, 8.7)
            panel.set_ylim(7.5, -0.5)
            panel.set_title(title, fontsize=8, loc="left")
            for row in (~mask.any(1)).nonzero().flatten().tolist():
                panel.text(8.2, row, "0", color=EMPTY, fontsize=9, ha="center", va="center")
        first = figure.axes[0]
        first.set_xlabel("keys →", fontsize=7, loc="left")
        first.set_ylabel("← queries", fontsize=7, loc="top")
        figure.subplots_adjust(left=0.03, right=0.995, top=0.94, bottom=0.03, wspace=0.12, hspace=0.28)
        canvas.draw()  # here, where the settings are known; it also gives the panels their places
    return figure


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    draw().savefig(folder / "masks.png", dpi="figure", metadata={"Software": None})  # no version in the file


if __name__ == "__main__":
    main()
