"""Video Transformers with a class head: one encoder over the patches of a frame, another over the frames of a clip.

    frame   patches → linear + position → spatial blocks → class token of the frame
    clip    class tokens of the frames that take part + position → temporal blocks → class token of the clip → logits

This is ViViT's factorised encoder (model 2) with patches of one frame each. Arnab et al. 2021
(https://arxiv.org/abs/2103.15691), section 3.3.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.config import check
from isoformer.models.layers import EncoderBlock, FeedForward
from isoformer.models.signature import Axis, Signature, TensorSpec

BATCH, FRAMES = "batch_size", "num_frames"


@dataclass(frozen=True)
class Config:
    """Shape and kind of a video model.

    Frames have image_size × image_size pixels, cut into patches of patch_size × patch_size; a clip has any number of
    frames up to max_frames. num_layers: of the spatial encoder, num_temporal_layers: of the temporal one. labels:
    the classes. For whoever prepares clips: frames are scaled to a shorter side of short_side, image_size unless given,
    and cut to their middle square; frames_per_clip of them, stride frames of the video apart or spread evenly over it,
    have values (x / 255 - image_mean) / image_std.
    """

    labels: tuple[str, ...]
    image_size: int
    patch_size: int
    hidden_size: int
    num_heads: int
    num_layers: int
    num_temporal_layers: int
    intermediate_size: int
    max_frames: int
    channels: int = 3
    frames_per_clip: int = 8
    stride: int | None = None
    short_side: int | None = None
    image_mean: float = 0.5
    image_std: float = 0.5
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("image_size", "patch_size", "hidden_size", "num_heads", "num_layers", "num_temporal_layers")
        sizes = (*sizes, "intermediate_size", "max_frames", "channels", "frames_per_clip", "stride", "short_side")
        check(self, dict.fromkeys(sizes, 1))
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.short_side is not None and self.short_side < self.image_size:
            raise ValueError(f"short_side {self.short_side} is below image_size {self.image_size}")
        if self.frames_per_clip > self.max_frames:
            raise ValueError(f"frames_per_clip {self.frames_per_clip} is over max_frames {self.max_frames}")
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are {', '.join(self.labels) or 'none'}; there is at least one, each another")
        if not self.image_std > 0:
            raise ValueError(f"image_std is {self.image_std}; it must be above 0")

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size


TINY = Config(
    labels=("walks", "runs", "stands"),
    image_size=6,
    patch_size=2,
    hidden_size=21,
    num_heads=3,
    num_layers=1,
    num_temporal_layers=1,
    intermediate_size=37,
    max_frames=41,
)


def signature(config: Config) -> Signature:
    """pixel_values (B, T, channels, image_size, image_size), frame_mask (B, T) → logits (B, labels), last_hidden_state
    (B, T, E), a vector for each frame."""
    frame = (config.channels, config.image_size, config.image_size)
    inputs = (
        TensorSpec("pixel_values", "float32", (BATCH, FRAMES, *frame)),
        TensorSpec("frame_mask", "int64", (BATCH, FRAMES), kind="mask", default=1),
    )
    logits = TensorSpec("logits", "float32", (BATCH, len(config.labels)))
    features = TensorSpec("last_hidden_state", "float32", (BATCH, FRAMES, config.hidden_size))
    return Signature(inputs, (logits, features), axes={FRAMES: Axis(1, config.max_frames)})


def task(config: Config) -> dict[str, Any]:
    """What the runtime needs to know to classify."""
    return {
        "name": "classify-video",
        "labels": list(config.labels),
        "image_size": config.image_size,
        "short_side": config.short_side or config.image_size,
        "channels": config.channels,
        "frames": config.frames_per_clip,
        "stride": config.stride,
        "image_mean": config.image_mean,
        "image_std": config.image_std,
    }


class Model(nn.Module):
    """Both encoders and the head; returns its outputs by name."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        patches = config.grid**2
        self.patches = nn.Linear(config.channels * config.patch_size**2, config.hidden_size)
        self.patch_positions = positions.LearnedPositions(patches, config.hidden_size)
        self.spatial = Encoder(config, config.num_layers)
        self.frame_positions = positions.LearnedPositions(config.max_frames, config.hidden_size)
        self.temporal = Encoder(config, config.num_temporal_layers)
        self.head = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, pixel_values: Tensor, frame_mask: Tensor) -> dict[str, Tensor]:
        """pixel_values (B, T, channels, S, S), frame_mask (B, T), 1 = takes part → the signature's outputs.

        Frames are counted along the mask, so padding on either side, or between, changes nothing. A clip without a
        frame has the logits of no evidence: those of the class token alone.
        """
        real = masks.as_bool(frame_mask)
        where = positions.count_real(frame_mask)
        x = self.frames(torch.where(real[:, :, None, None, None], pixel_values, 0.0))  # (B, T, E)
        x = self.temporal(x + self.frame_positions(where), real)  # (B, 1 + T, E)
        return {"logits": self.head(x[:, 0]), "last_hidden_state": x[:, 1:]}

    def frames(self, pixel_values: Tensor) -> Tensor:
        """(B, T, channels, S, S) → (B, T, E), each frame by itself."""
        batch, length, channels = pixel_values.shape[:3]
        grid, size = self.config.grid, self.config.patch_size
        x = pixel_values.reshape(batch * length, channels, grid, size, grid, size)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch * length, grid * grid, channels * size * size)
        x = self.spatial(self.patches(x) + self.patch_positions(grid * grid))[:, 0]
        return x.reshape(batch, length, x.shape[1])


class Encoder(nn.Module):
    """A class token in front, pre-norm blocks and a norm: (B, L, E), real (B, L) → (B, 1 + L, E)."""

    def __init__(self, config: Config, layers: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(config.hidden_size).normal_(std=0.02))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        x = self.dropout(torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], 1))
        mask = None
        if real is not None:
            length = x.shape[1]
            mask = masks.normalize(masks.padding(F.pad(real, (1, 0), value=True)), x.shape[0], 1, length, length)
        for block in self.blocks:
            x = block(x, mask)
        return self.final_norm(x)


def _block(config: Config) -> EncoderBlock:
    return EncoderBlock(
        MultiHeadAttention(config.hidden_size, config.num_heads),
        FeedForward(config.hidden_size, config.intermediate_size, config.activation),
        nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
        nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
        norm_order="pre",
        dropout=config.dropout,
    )
