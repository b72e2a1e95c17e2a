"""Vision Transformers: a picture cut into patches, an encoder over them, heads for embeddings and classes.

    preprocessor   pixels of any size, uint8 → pixel_values of the size that the model was trained on
    model          pixel_values of any multiple of the patch, patch_mask → last_hidden_state, image_embeds | logits

Dosovitskiy et al. 2020 (https://arxiv.org/abs/2010.11929); the distillation token: Touvron et al. 2020
(https://arxiv.org/abs/2012.12877).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.config import check
from isoformer.models.images import InterpolatedPositions, Preprocessing, Preprocessor
from isoformer.models.layers import EncoderBlock, FeedForward, activation
from isoformer.models.registry import MODEL
from isoformer.models.signature import Axis, Signature, TensorSpec

PREPROCESSOR = "preprocessor"
BATCH, ROWS, COLUMNS, LENGTH = "batch_size", "rows", "columns", "sequence_length"
LEAST_LIMIT = 16


@dataclass(frozen=True)
class Config:
    """Shape and kind of a vision Transformer.

    image_size: (height, width) that the table of positions is for; preprocessing ends with it unless it says otherwise.
    max_rows, max_columns: of patches, at most; twice as many as image_size has, and at least 16, unless given.
    special_tokens: in front of the patches: 0 none, 1 the class token, 2 the class and the distillation token.
    patch_bias, qkv_bias: of the layer that reads patches, and of queries, keys and values. embedding_norm: a norm in
    front of the first block. pooling: what stands for the picture, the class token or the mean of the patches.
    normalize: image_embeds have length 1. pooler_size: of pooler_output, a layer on the class token, None for none.
    teacher: with two special tokens, logits are the mean of two classifiers, one on each.
    """

    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    num_channels: int = 3
    max_rows: int | None = None
    max_columns: int | None = None
    special_tokens: Literal[0, 1, 2] = 1
    patch_bias: bool = True
    qkv_bias: bool = True
    embedding_norm: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.0
    task: Literal["embed-image", "classify-image"] = "embed-image"
    pooling: Literal["cls", "mean"] = "cls"
    normalize: bool = True
    pooler_size: int | None = None
    pooler_activation: str = "tanh"
    labels: tuple[str, ...] = ()
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    teacher: bool = False
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_heads", "num_layers", "intermediate_size", "patch_size", "num_channels")
        check(self, dict.fromkeys((*sizes, "max_rows", "max_columns", "pooler_size"), 1))
        image = self.preprocess.size
        for name, size in (("image_size", self.image_size), ("the preprocessing's size", image)):
            whole = len(size) == 2 and all(type(side) is int and side > 0 for side in size)
            if not whole or any(side % self.patch_size for side in size):
                raise ValueError(f"{name} is {size}; it is (height, width), multiples of patch_size {self.patch_size}")
        for name, grid in (("image_size", self.grid), ("the preprocessing's size", self._grid(image))):
            if any(side > most for side, most in zip(grid, self.limits, strict=True)):
                raise ValueError(f"{name} has {grid} patches; max_rows and max_columns are {self.limits}")
        if len(self.preprocess.mean) not in (1, self.num_channels):
            raise ValueError(f"mean {self.preprocess.mean} is not of {self.num_channels} channels")
        if not self.special_tokens and (self.pooling == "cls" or self.pooler_size):
            raise ValueError("pooling 'cls' and a pooler read the class token; there are no special_tokens")
        if self.task == "classify-image" and not self.labels:
            raise ValueError("the task classify-image needs labels")
        if self.teacher and (self.special_tokens != 2 or self.task != "classify-image"):
            raise ValueError("teacher is for classify-image with two special_tokens")

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.patch_size, size[1] // self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the table of positions."""
        return self._grid(self.image_size)

    @property
    def limits(self) -> tuple[int, int]:
        """Rows and columns of patches, at most."""
        rows, columns = self.grid
        return self.max_rows or max(2 * rows, LEAST_LIMIT), self.max_columns or max(2 * columns, LEAST_LIMIT)

    @property
    def preprocess(self) -> Preprocessing:
        """The steps of the preprocessor."""
        return self.preprocessing or Preprocessing(resize=self.image_size)


TINY = Config(
    hidden_size=21,
    num_heads=3,
    num_layers=1,
    intermediate_size=37,
    image_size=(6, 10),
    patch_size=2,
    max_rows=11,
    max_columns=13,
    pooler_size=17,
    preprocessing=Preprocessing(resize=11, crop=(6, 10), resample="bicubic"),
)


def signature(config: Config) -> dict[str, Signature]:
    """Graph → its inputs and outputs.

    preprocessor: pixels (B, in_height, in_width, channels) → pixel_values (B, channels, height, width).
    model: pixel_values (B, channels, patch_size R, patch_size C), patch_mask (B, R, C), 1 where a patch takes part →
    last_hidden_state (B, special_tokens + R C, E), image_embeds (B, E), pooler_output, or logits (B, labels).
    """
    last = TensorSpec("last_hidden_state", "float32", (BATCH, LENGTH, config.hidden_size))
    if config.task == "classify-image":
        outputs = (TensorSpec("logits", "float32", (BATCH, len(config.labels))),)
    else:
        outputs = (last, TensorSpec("image_embeds", "float32", (BATCH, config.hidden_size)))
        if config.pooler_size:
            outputs = (*outputs, TensorSpec("pooler_output", "float32", (BATCH, config.pooler_size)))
    axes = image_axes(config)
    if last in outputs:
        axes[LENGTH] = length_axis(config)
    return {
        PREPROCESSOR: preprocessor_signature(config),
        MODEL: Signature(image_specs(config), outputs, axes=axes, padding=()),
    }


def preprocessor_signature(config: Config) -> Signature:
    """The edge of `PreprocessorGraph`."""
    pixels = TensorSpec("pixels", "uint8", (BATCH, "in_height", "in_width", config.num_channels))
    values = TensorSpec("pixel_values", "float32", (BATCH, config.num_channels, *config.preprocess.size))
    return Signature((pixels,), (values,), padding=())


def image_specs(config: Config, batch: str = BATCH) -> tuple[TensorSpec, ...]:
    """pixel_values and patch_mask."""
    return (
        TensorSpec("pixel_values", "float32", (batch, config.num_channels, "height", "width")),
        TensorSpec("patch_mask", "int64", (batch, ROWS, COLUMNS), kind="mask", default=1),
    )


def image_axes(config: Config) -> dict[str, Axis]:
    """The axes of `image_specs`."""
    rows, columns = config.limits
    return {
        ROWS: Axis(1, rows),
        COLUMNS: Axis(1, columns),
        "height": Axis(sum_of=(ROWS,), times=config.patch_size),
        "width": Axis(sum_of=(COLUMNS,), times=config.patch_size),
    }


def length_axis(config: Config) -> Axis:
    """The special tokens and the patches, row by row."""
    return Axis(product_of=(ROWS, COLUMNS), plus=config.special_tokens)


def task(config: Config) -> dict[str, Any]:
    """What the runtime needs to know to do the task."""
    if config.task == "classify-image":
        return {"name": config.task, "labels": list(config.labels), "problem": config.problem}
    return {"name": config.task}


class Model(nn.Module):
    """All parts; `graph(name)` is the module of each graph that is exported, and `forward` that of `model`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.preprocessor = Preprocessor(config.preprocess)
        self.encoder = Encoder(config)
        self.final_norm = _norm(config)
        self.head = ClassificationHead(config) if config.task == "classify-image" else EmbeddingHead(config)

    def forward(self, pixel_values: Tensor, patch_mask: Tensor | None = None) -> dict[str, Tensor]:
        """pixel_values (B, channels, patch_size R, patch_size C), patch_mask (B, R, C) → the task's outputs.

        Raises ValueError when the two do not fit each other.
        """
        x, real = self.encoder(pixel_values, patch_mask)
        return self.head(self.final_norm(x), real)

    def graph(self, name: str) -> nn.Module:
        """The module that computes the signature's graph of that name."""
        return {PREPROCESSOR: PreprocessorGraph, MODEL: lambda model: model}[name](self)


class PreprocessorGraph(nn.Module):
    """The graph `preprocessor`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.preprocessor = model.preprocessor

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": self.preprocessor(pixels)}


class Embeddings(nn.Module):
    """[special tokens; patches @ weight + bias] + positions: pixel_values, mask (B, R, C) → (B, special + R C, E).

    A patch under the mask counts as 0 before its position is added. The positions are those of the grid that the mask
    spans, so that a picture in a corner of a larger canvas has its own.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.patch_size
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, size, stride=size, bias=config.patch_bias)
        self.positions = InterpolatedPositions(*config.grid, config.hidden_size)
        # Each with its position: (special tokens, E), in two tables, as checkpoints have them.
        shape = (config.special_tokens, config.hidden_size)
        self.special = nn.Parameter(torch.empty(shape).normal_(std=0.02)) if config.special_tokens else None
        self.special_positions = nn.Parameter(torch.zeros(shape)) if config.special_tokens else None

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        x = self.patches(pixel_values).permute(0, 2, 3, 1)  # (B, R, C, E)
        x = torch.where(mask[..., None], x, 0.0) + self.positions(mask)
        x = x.flatten(1, 2)
        if self.special is None or self.special_positions is None:
            return x
        front = (self.special + self.special_positions).expand(x.shape[0], -1, -1)
        return torch.cat([front, x], 1)


class Encoder(nn.Module):
    """Embeddings and pre-norm blocks: pixel_values, patch_mask (B, R, C) → (B, L, E) and who takes part (B, L).

    The special tokens take part where any patch does: a picture without one has no keys.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.special_tokens = config.special_tokens
        self.embeddings = Embeddings(config)
        self.embedding_norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))

    def forward(self, pixel_values: Tensor, patch_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raises ValueError when height and width are not the mask's rows and columns of patches."""
        size = self.patch_size
        batch, _, height, width = pixel_values.shape
        if patch_mask is None:
            patch_mask = torch.ones(batch, height // size, width // size, device=pixel_values.device)
        rows, columns = patch_mask.shape[1:]
        if not torch.compiler.is_compiling() and (height, width) != (size * rows, size * columns):
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)} and patch_mask {tuple(patch_mask.shape)}; "
                f"a patch has {size} × {size} pixels"
            )
        mask = masks.as_bool(patch_mask)
        x = self.dropout(self.embedding_norm(self.embeddings(pixel_values, mask)))
        real = mask.flatten(1)  # (B, R C)
        if self.special_tokens:
            real = torch.cat([real.any(1, keepdim=True).expand(-1, self.special_tokens), real], 1)
        length = x.shape[1]
        full = masks.normalize(masks.padding(real), batch, 1, length, length)
        for block in self.blocks:
            x = block(x, full)
        return x, real


class Pool(nn.Module):
    """The vector that stands for the picture: (B, L, E), (B, L) → (B, E); zero for one without patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.special_tokens = config.special_tokens

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        if self.pooling == "cls":
            return torch.where(real[:, :1], x[:, 0], 0.0)
        weights = real[:, self.special_tokens :].to(x.dtype)
        total = (weights[:, None] @ x[:, self.special_tokens :])[:, 0]  # (B, E)
        return total / weights.sum(1, keepdim=True).clamp(min=1)


class EmbeddingHead(nn.Module):
    """image_embeds, L2-normalised if so configured, and pooler_output, activation(dense(class token))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pool = Pool(config)
        self.normalize = config.normalize
        self.pooler = nn.Linear(config.hidden_size, config.pooler_size) if config.pooler_size else None
        self.activation = activation(config.pooler_activation)

    def forward(self, x: Tensor, real: Tensor) -> dict[str, Tensor]:
        pooled = self.pool(x, real)
        outputs = {"last_hidden_state": x, "image_embeds": F.normalize(pooled, dim=-1) if self.normalize else pooled}
        if self.pooler is not None:
            outputs["pooler_output"] = self.activation(self.pooler(x[:, 0]))
        return outputs


class ClassificationHead(nn.Module):
    """classifier(pooled), or the mean with the teacher's on the distillation token: a score for every class."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pool = Pool(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))
        self.teacher = nn.Linear(config.hidden_size, len(config.labels)) if config.teacher else None

    def forward(self, x: Tensor, real: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(self.pool(x, real))
        if self.teacher is not None:
            logits = (logits + self.teacher(torch.where(real[:, 1:2], x[:, 1], 0.0))) / 2
        return {"logits": logits}


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


def _block(config: Config) -> EncoderBlock:
    return EncoderBlock(
        MultiHeadAttention(config.hidden_size, config.num_heads, bias=config.qkv_bias, out_bias=True),
        FeedForward(config.hidden_size, config.intermediate_size, config.activation),
        _norm(config),
        _norm(config),
        norm_order="pre",
        dropout=config.dropout,
    )
