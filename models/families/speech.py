"""Speech to text: sound as a log-mel spectrogram, an encoder over it, and a decoder that writes, as in Whisper; or,
with head "ctc", an encoder that names a token for each of its frames.

    feature_extractor      waveform → input_features
    encoder_model          input_features → last_hidden_state, and the keys and values that the decoder's
                           cross-attention reads: computed once a window of sound
    decoder_model_merged   the tokens so far, the cache, those keys and values → logits, cache

Radford et al. 2022 (https://arxiv.org/abs/2212.04356); CTC: Graves et al. 2006
(https://doi.org/10.1145/1143844.1143891).
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.config import check
from isoformer.models.families import encoder_decoder
from isoformer.models.features import HOP, SAMPLE_RATE, LogMel
from isoformer.models.layers import EncoderBlock, FeedForward
from isoformer.models.signature import Axis, Signature, TensorSpec

FEATURES, ENCODER, DECODER = "feature_extractor", encoder_decoder.ENCODER, encoder_decoder.DECODER
BATCH, FRAMES, SAMPLES, LENGTH = "batch_size", "num_frames", "num_samples", encoder_decoder.SOURCE
STRIDE = 2  # of the second convolution: mel frames to one of the encoder's
NUMBERS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Config:
    """Shape and kind of a speech model.

    num_mels: features a frame; max_frames: the longest spectrogram, at 100 frames a second. num_layers, num_heads and
    intermediate_size are the encoder's; the decoder's are the same unless given. max_positions: the decoder's.
    head "ctc": a token a frame of the encoder, and no decoder. activation: of the blocks; the convolutions have gelu.

    The rest is for whoever transcribes. Every answer begins with decoder_start_token_id, then, where the model knows
    them, the tokens of the language and the task, ("en", 50259) and ("transcribe", 50359), and no_timestamps_token_id
    where no times are wanted; previous_token_id goes before the text of the window before. suppressed_tokens never
    come, begin_suppressed_tokens not first; timestamp_begin_token_id stands for 0 s, each after it for 20 ms more.
    no_speech_token_id: its probability behind decoder_start_token_id says how likely nobody speaks. blank_token_id:
    what head "ctc" names where a frame has no token of its own.
    """

    num_mels: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    vocab_size: int
    max_frames: int = 3000
    max_positions: int = 448
    num_decoder_layers: int | None = None
    num_decoder_heads: int | None = None
    decoder_intermediate_size: int | None = None
    head: Literal["decoder", "ctc"] = "decoder"
    activation: str = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    decoder_start_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int = 1
    blank_token_id: int = 0
    suppressed_tokens: tuple[int, ...] = ()
    begin_suppressed_tokens: tuple[int, ...] = ()
    timestamp_begin_token_id: int | None = None
    no_timestamps_token_id: int | None = None
    no_speech_token_id: int | None = None
    previous_token_id: int | None = None
    language_tokens: tuple[tuple[str, int], ...] = ()
    task_tokens: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        sizes = ("num_mels", "hidden_size", "num_heads", "num_layers", "intermediate_size", "vocab_size")
        optional = ("num_decoder_layers", "num_decoder_heads", "decoder_intermediate_size")
        check(self, {**dict.fromkeys((*sizes, "max_positions", *optional), 1), "max_frames": STRIDE})
        if self.max_frames % STRIDE:
            raise ValueError(f"max_frames is {self.max_frames}; it must be a multiple of {STRIDE}")
        optional_ids = ("timestamp_begin", "no_timestamps", "no_speech", "previous")
        ids = {name: getattr(self, name) for name in (*NUMBERS, *(f"{kind}_token_id" for kind in optional_ids))}
        ids["blank_token_id"] = self.blank_token_id
        ids |= {f"the token of {name}": number for name, number in (*self.language_tokens, *self.task_tokens)}
        listed = (*self.suppressed_tokens, *self.begin_suppressed_tokens)
        ids |= {f"the suppressed token {number}": number for number in listed}
        for name, number in ids.items():
            if number is not None and not 0 <= number < self.vocab_size:
                raise ValueError(f"{name} is {number}; the vocabulary has 0 to {self.vocab_size - 1}")

    @property
    def max_length(self) -> int:
        """The encoder's frames at most."""
        return self.max_frames // STRIDE

    @property
    def decoder(self) -> encoder_decoder.Config:
        """The decoder, and what its cross-attention reads, as an encoder–decoder's."""
        return encoder_decoder.Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            intermediate_size=self.intermediate_size,
            max_positions=self.max_positions,
            num_decoder_layers=self.num_decoder_layers,
            num_decoder_heads=self.num_decoder_heads,
            decoder_intermediate_size=self.decoder_intermediate_size,
            norm_eps=self.norm_eps,
            norm_order="pre",
            position_kind="learned",
            activation=self.activation,
            dropout=self.dropout,
            suppressed_tokens=self.suppressed_tokens,
            **{name: getattr(self, name) for name in NUMBERS},
        )


TINY = Config(
    num_mels=11,
    hidden_size=21,
    num_heads=3,
    num_layers=2,
    intermediate_size=37,
    vocab_size=101,
    max_frames=128,
    max_positions=64,
    timestamp_begin_token_id=71,
)


def signature(config: Config) -> dict[str, Signature]:
    """Graph → its inputs and outputs.

    feature_extractor: waveform (B, 160 T), 16 kHz, full scale -1 … 1 → input_features (B, M, T).
    encoder_model: input_features (B, M, 2 S), attention_mask (B, S) → last_hidden_state (B, S, E),
    present.{i}.encoder.key|value (B, H, S, D) for each layer i of the decoder; with head "ctc" → logits
    (B, S, vocabulary), and there is no decoder. For the decoder see `encoder_decoder.decoder_signature`.
    """
    features = Signature(
        (TensorSpec("waveform", "float32", (BATCH, SAMPLES)),),
        (TensorSpec("input_features", "float32", (BATCH, config.num_mels, FRAMES)),),
        axes={FRAMES: Axis(STRIDE, config.max_frames), SAMPLES: Axis(sum_of=(FRAMES,), times=HOP)},
        padding=(),
    )
    inputs = (
        TensorSpec("input_features", "float32", (BATCH, config.num_mels, FRAMES)),
        TensorSpec("attention_mask", "int64", (BATCH, LENGTH), kind="mask", default=1),
    )
    axes = {LENGTH: Axis(1, config.max_length), FRAMES: Axis(sum_of=(LENGTH,), times=STRIDE)}
    if config.head == "ctc":
        logits = TensorSpec("logits", "float32", (BATCH, LENGTH, config.vocab_size))
        return {FEATURES: features, ENCODER: Signature(inputs, (logits,), axes=axes, padding=("right",))}
    outputs = (
        TensorSpec("last_hidden_state", "float32", (BATCH, LENGTH, config.hidden_size)),
        *encoder_decoder.cross_specs("present", config.decoder, LENGTH),
    )
    return {
        FEATURES: features,
        ENCODER: Signature(inputs, outputs, axes=axes, padding=("right",)),
        DECODER: encoder_decoder.decoder_signature(config.decoder),
    }


def task(config: Config) -> dict[str, Any]:
    """What the runtime needs to know to transcribe."""
    sound = {"sample_rate": SAMPLE_RATE, "hop_length": HOP, "max_frames": config.max_frames}
    if config.head == "ctc":
        return {"name": "transcribe-ctc", **sound, "stride": STRIDE, "blank": config.blank_token_id}
    return {
        "name": "transcribe",
        **encoder_decoder.generation(config.decoder),
        **sound,
        "begin_suppressed": list(config.begin_suppressed_tokens),
        "timestamp_begin": config.timestamp_begin_token_id,
        "no_timestamps": config.no_timestamps_token_id,
        "no_speech": config.no_speech_token_id,
        "previous": config.previous_token_id,
        "languages": dict(config.language_tokens),
        "tasks": dict(config.task_tokens),
    }


class Model(nn.Module):
    """All parts; `graph(name)` is the module of each graph that is exported, `forward` is for training."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.features = LogMel(config.num_mels)
        self.encoder = Encoder(config)
        if config.head == "ctc":
            self.decoder, self.head = None, nn.Linear(config.hidden_size, config.vocab_size)
        else:
            self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            self.decoder, self.head = encoder_decoder.Decoder(config.decoder, self.tokens), None

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """input_features (B, M, 2 S), attention_mask (B, S), decoder_input_ids (B, L) and its mask → logits
        (B, L, vocabulary); with head "ctc" the first two alone → logits (B, S, vocabulary).

        Raises ValueError when decoder_input_ids are missing, or there without a decoder.
        """
        if attention_mask is None:
            attention_mask = input_features.new_ones(len(input_features), input_features.shape[2] // STRIDE).long()
        if (decoder_input_ids is None) != (self.decoder is None):
            raise ValueError("decoder_input_ids go with a decoder, and a decoder with them")
        x = self.encoder(input_features, attention_mask)
        if self.decoder is None or decoder_input_ids is None:
            return cast(nn.Linear, self.head)(x)
        if decoder_attention_mask is None:
            decoder_attention_mask = torch.ones_like(decoder_input_ids)
        where = positions.count_real(decoder_attention_mask)
        caches, cross = self.decoder.empty_caches(x), self.decoder.keys_values(x)
        x, _ = self.decoder(decoder_input_ids, decoder_attention_mask, where, caches, attention_mask, cross)
        return self.decoder.logits(x)

    def graph(self, name: str) -> nn.Module:
        """The module that computes the signature's graph of that name."""
        return {FEATURES: FeatureGraph, ENCODER: EncoderGraph, DECODER: encoder_decoder.DecoderGraph}[name](self)


class Encoder(nn.Module):
    """gelu(conv1), gelu(conv2) of stride 2, a table of positions, pre-norm blocks and a norm:
    input_features (B, M, 2 S), attention_mask (B, S) → (B, S, E).

    Features under the mask count as 0, which is what the convolutions see beyond the ends.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mels, config.hidden_size, 3, padding=1)
        self.conv2 = nn.Conv1d(config.hidden_size, config.hidden_size, 3, padding=1, stride=STRIDE)
        self.positions = positions.LearnedPositions(config.max_length, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, input_features: Tensor, attention_mask: Tensor) -> Tensor:
        """Raises ValueError when there are not two frames of features to each of the mask."""
        batch, length = attention_mask.shape
        if not torch.compiler.is_compiling() and input_features.shape[2] != STRIDE * length:
            raise ValueError(
                f"input_features have shape {tuple(input_features.shape)} and attention_mask {(batch, length)}; "
                f"there are {STRIDE} frames of features to each of the mask"
            )
        real = masks.as_bool(attention_mask)[:, :, None].expand(-1, -1, STRIDE).flatten(1)  # (B, 2 S)
        x = torch.where(real[:, None], input_features, 0.0)
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)  # (B, S, E)
        x = self.dropout(x + self.positions(length))
        mask = masks.normalize(masks.padding(attention_mask), batch, 1, length, length)
        for block in self.blocks:
            x = block(x, mask)
        return self.final_norm(x)


class FeatureGraph(nn.Module):
    """The graph `feature_extractor`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.features = model.features

    def forward(self, waveform: Tensor) -> dict[str, Tensor]:
        return {"input_features": self.features(waveform)}


class EncoderGraph(nn.Module):
    """The graph `encoder_model`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.decoder = model.decoder
        self.head = model.head

    def forward(self, input_features: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.encoder(input_features, attention_mask)
        if self.decoder is None:
            return {"logits": cast(nn.Linear, self.head)(x)}
        return {"last_hidden_state": x} | encoder_decoder.named("present", "encoder", self.decoder.keys_values(x))


def _block(config: Config) -> EncoderBlock:
    return EncoderBlock(
        MultiHeadAttention(config.hidden_size, config.num_heads),
        FeedForward(config.hidden_size, config.intermediate_size, config.activation),
        nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
        nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
        norm_order="pre",
        dropout=config.dropout,
    )
