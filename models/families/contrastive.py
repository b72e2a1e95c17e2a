"""Pictures and texts in one space, as in CLIP: two towers, learned so that a picture is nearest to its caption.

    preprocessor   pixels of any size, uint8 → pixel_values
    text_model     input_ids, attention_mask → last_hidden_state, pooler_output, text_embeds
    vision_model   pixel_values, patch_mask → last_hidden_state, pooler_output, image_embeds
    model          all of it → logits_per_image, logits_per_text, text_embeds, image_embeds

Radford et al. 2021 (https://arxiv.org/abs/2103.00020).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.config import check
from isoformer.models.families import vision
from isoformer.models.images import Preprocessing, Preprocessor
from isoformer.models.layers import EncoderBlock, FeedForward
from isoformer.models.positions import LearnedPositions
from isoformer.models.registry import MODEL
from isoformer.models.signature import Axis, Signature, TensorSpec

PREPROCESSOR, TEXT, IMAGE = vision.PREPROCESSOR, "text_model", "vision_model"
BATCH, LENGTH, TEXTS, IMAGES = vision.BATCH, "sequence_length", "text_batch_size", "image_batch_size"


@dataclass(frozen=True)
class Config:
    """Shape and kind of the two towers; those of no tower's name are the text's.

    image: the vision Transformer; its task, pooling, heads and final norm are not used. projection_size: of the space
    that both share. eos_token_id: a text is read at the first of these; None reads it at its first highest id, as
    CLIP's first vocabularies have it. logit_scale: the logarithm that training begins with.
    """

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    max_positions: int
    projection_size: int
    image: vision.Config
    eos_token_id: int | None = None
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    logit_scale: float = math.log(1 / 0.07)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_heads", "num_layers", "intermediate_size", "max_positions")
        check(self, dict.fromkeys((*sizes, "projection_size"), 1))
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id is {self.eos_token_id}; the vocabulary has 0 to {self.vocab_size - 1}")
        if self.image.special_tokens != 1:
            raise ValueError(f"image has {self.image.special_tokens} special_tokens; the class token is the one")


TINY = Config(
    vocab_size=13,
    hidden_size=15,
    num_heads=3,
    num_layers=1,
    intermediate_size=19,
    max_positions=11,
    projection_size=17,
    eos_token_id=3,
    image=vision.Config(
        hidden_size=21,
        num_heads=3,
        num_layers=1,
        intermediate_size=37,
        image_size=(6, 10),
        patch_size=2,
        max_rows=7,
        max_columns=11,
        patch_bias=False,
        embedding_norm=True,
        activation="quick_gelu",
        norm_eps=1e-5,
        preprocessing=Preprocessing(resize=11, crop=(6, 10), resample="bicubic"),
    ),
)


def signature(config: Config) -> dict[str, Signature]:
    """Graph → its inputs and outputs.

    preprocessor, and pixel_values and patch_mask: as in `vision`. text_model: input_ids, attention_mask (T, L) →
    last_hidden_state (T, L, E), pooler_output (T, E), text_embeds (T, projection). vision_model: → the same of
    pictures, image_embeds. model: T texts and I pictures → logits_per_image (I, T), logits_per_text (T, I) and both
    embeddings, which all have length 1.
    """
    image, width = config.image, config.projection_size
    embeds = {name: TensorSpec(name, "float32", (BATCH, width)) for name in ("text_embeds", "image_embeds")}
    images = vision.image_axes(image)
    length = {LENGTH: Axis(1, config.max_positions)}
    patches = "num_tokens"
    return {
        PREPROCESSOR: vision.preprocessor_signature(image),
        TEXT: Signature(
            text_specs(config, BATCH),
            (
                TensorSpec("last_hidden_state", "float32", (BATCH, LENGTH, config.hidden_size)),
                TensorSpec("pooler_output", "float32", (BATCH, config.hidden_size)),
                embeds["text_embeds"],
            ),
            axes=length,
            padding=("right",),
        ),
        IMAGE: Signature(
            vision.image_specs(image),
            (
                TensorSpec("last_hidden_state", "float32", (BATCH, patches, image.hidden_size)),
                TensorSpec("pooler_output", "float32", (BATCH, image.hidden_size)),
                embeds["image_embeds"],
            ),
            axes=images | {patches: vision.length_axis(image)},
            padding=(),
        ),
        MODEL: Signature(
            (*text_specs(config, TEXTS), *vision.image_specs(image, IMAGES)),
            (
                TensorSpec("logits_per_image", "float32", (IMAGES, TEXTS)),
                TensorSpec("logits_per_text", "float32", (TEXTS, IMAGES)),
                TensorSpec("text_embeds", "float32", (TEXTS, width)),
                TensorSpec("image_embeds", "float32", (IMAGES, width)),
            ),
            axes=images | length,
            padding=(),
        ),
    }


def text_specs(config: Config, batch: str) -> tuple[TensorSpec, ...]:
    """input_ids and attention_mask."""
    return (
        TensorSpec("input_ids", "int64", (batch, LENGTH), high=config.vocab_size),
        TensorSpec("attention_mask", "int64", (batch, LENGTH), kind="mask", default=1),
    )


def task(config: Config) -> dict[str, Any]:  # noqa: ARG001  the same of all
    """What the runtime needs to know to do the task."""
    return {"name": "match-image-text"}


class Model(nn.Module):
    """Both towers; `graph(name)` is the module of each graph that is exported, and `forward` that of `model`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.preprocessor = Preprocessor(config.image.preprocess)
        self.text = TextTower(config)
        self.image = ImageTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        patch_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """input_ids and attention_mask (T, L), pixel_values and patch_mask of I pictures → the graph's outputs.

        logits_per_image = exp(logit_scale) image_embeds @ text_embeds^T. Raises ValueError without pixel_values.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are missing; `text` is the module for texts alone")
        texts, pictures = self.text(input_ids, attention_mask), self.image(pixel_values, patch_mask)
        per_text = self.logit_scale.exp() * texts["text_embeds"] @ pictures["image_embeds"].T
        return {
            "logits_per_image": per_text.T,
            "logits_per_text": per_text,
            "text_embeds": texts["text_embeds"],
            "image_embeds": pictures["image_embeds"],
        }

    def graph(self, name: str) -> nn.Module:
        """The module that computes the signature's graph of that name."""
        if name == PREPROCESSOR:
            return vision.PreprocessorGraph(self)
        return {TEXT: self.text, IMAGE: self.image, MODEL: self}[name]


class TextTower(nn.Module):
    """Tokens and learned positions, causal pre-norm blocks, a norm; the text is its end token's vector.

    Positions count from the left end. Only tokens that take part can be the end token; a text without one is read at
    its first token, and one without tokens is zero.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.eos_token_id = config.eos_token_id
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = LearnedPositions(config.max_positions, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.projection_size, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """input_ids, attention_mask (T, L) → last_hidden_state, pooler_output, text_embeds."""
        batch, length = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x = self.dropout(self.tokens(input_ids) + self.positions(length))
        mask = masks.combine(masks.padding(attention_mask), masks.causal(length, length, input_ids.device))
        assert mask is not None  # noqa: S101  it is combined of two
        mask = masks.normalize(mask, batch, 1, length, length)
        for block in self.blocks:
            x = block(x, mask)
        x = self.final_norm(x)
        pooled = self._end(x, input_ids, masks.as_bool(attention_mask))
        embeds = F.normalize(self.projection(pooled), dim=-1)
        return {"last_hidden_state": x, "pooler_output": pooled, "text_embeds": embeds}

    def _end(self, x: Tensor, input_ids: Tensor, real: Tensor) -> Tensor:
        """(T, L, E) → (T, E)."""
        ids = torch.where(real, input_ids, -1)
        ends = ids == (ids.amax(1, keepdim=True) if self.eos_token_id is None else self.eos_token_id)
        place = torch.arange(x.shape[1], device=x.device)
        first = torch.where(ends, place, x.shape[1]).amin(1, keepdim=True)  # (T, 1), L where there is none
        first = torch.where(first == x.shape[1], 0, first)
        chosen = (place == first) & real.any(1, keepdim=True)
        return (chosen.to(x.dtype)[:, None] @ x)[:, 0]


class ImageTower(nn.Module):
    """`vision.Encoder` and a norm of its class token: pixel_values, patch_mask → the picture's outputs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = vision.Encoder(config.image)
        self.final_norm = nn.LayerNorm(config.image.hidden_size, eps=config.image.norm_eps)
        self.projection = nn.Linear(config.image.hidden_size, config.projection_size, bias=False)

    def forward(self, pixel_values: Tensor, patch_mask: Tensor | None = None) -> dict[str, Tensor]:
        """As `vision.Encoder` takes it; a picture without patches is zero."""
        x, real = self.encoder(pixel_values, patch_mask)
        pooled = torch.where(real[:, :1], self.final_norm(x[:, 0]), 0.0)
        embeds = F.normalize(self.projection(pooled), dim=-1)
        return {"last_hidden_state": x, "pooler_output": pooled, "image_embeds": embeds}


def _block(config: Config) -> EncoderBlock:
    return EncoderBlock(
        MultiHeadAttention(config.hidden_size, config.num_heads),
        FeedForward(config.hidden_size, config.intermediate_size, config.activation),
        nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
        nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
        norm_order="pre",
        dropout=config.dropout,
    )
