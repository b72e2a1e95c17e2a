"""transformers' BertModel of one layer, of which nothing is left but attention; torch and transformers alone.

    python benchmarks/masks/bert.py FOLDER

exports it with optimum-onnx, eager and sdpa, to FOLDER/KIND/model.onnx: input_ids are row numbers of
FOLDER/embeddings.npy, whose rows hold a query, a key and a value.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HEADS, HEAD_SIZE = 2, 16
HIDDEN = HEADS * HEAD_SIZE
KINDS = ("eager", "sdpa")


def attention_of_bert(kind: str, embeddings: nn.Module, vocabulary: int = 1) -> Any:
    """A BertModel whose last_hidden_state (B, L, HIDDEN) is what its attention makes of the embeddings.

    embeddings gives (B, L, 3 * HIDDEN): query, key and value side by side; scores are not scaled.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=1,
    )
    config._attn_implementation = kind
    model: Any = BertModel(config, add_pooling_layer=False).eval()
    model.embeddings = embeddings
    layer = model.encoder.layer[0]
    layer.attention.output, layer.intermediate, layer.output = First(), First(), First()
    # It divides scores by sqrt(HEAD_SIZE); 16 has an exact one, and so nothing is rounded here.
    for part, (name, factor) in enumerate((("query", HEAD_SIZE**0.5), ("key", 1), ("value", 1))):
        linear = nn.Linear(3 * HIDDEN, HIDDEN, bias=False)
        with torch.no_grad():
            linear.weight.copy_(factor * torch.eye(3 * HIDDEN)[part * HIDDEN : (part + 1) * HIDDEN])
        setattr(layer.attention.self, name, linear)
    return model


class First(nn.Module):
    """Returns its first argument."""

    def forward(self, first: Tensor, *_: Tensor) -> Tensor:
        return first


class Given(nn.Module):
    """Embeddings that are given to the model ready-made."""

    def forward(self, *, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


class Table(nn.Module):
    """Embeddings that are looked up."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return self.rows[input_ids]


def main() -> None:
    from optimum.exporters.onnx import onnx_export_from_model  # pyright: ignore[reportMissingImports]

    folder = Path(sys.argv[1])
    rows = torch.from_numpy(np.load(folder / "embeddings.npy"))
    for kind in KINDS:
        model = attention_of_bert(kind, Table(rows), len(rows))
        onnx_export_from_model(model, folder / kind, task="feature-extraction", do_validation=False)


if __name__ == "__main__":
    main()
