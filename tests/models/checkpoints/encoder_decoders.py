"""Encoder–decoders of `transformers` with random weights, their encoder's output and logits, and ours, in float64."""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from isoformer.models import checkpoints, positions
from isoformer.models.families.encoder_decoder import DECODER, ENCODER
from tests.models.checkpoints.decoders import float64_throughout

VOCABULARY = 101
SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 33,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 53,
    "decoder_layers": 3,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 47,
    "max_position_embeddings": 41,
    "decoder_start_token_id": 7,
    "pad_token_id": 3,
    "eos_token_id": 5,
    "attn_implementation": "eager",
}
T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 37,
    "d_kv": 11,
    "d_ff": 53,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "layer_norm_epsilon": 0.01,
    "decoder_start_token_id": 0,
    "attn_implementation": "eager",
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "marian": ("MarianMTModel", SIZES | {"scale_embedding": True, "activation_function": "swish"}),
    "marian, other heads": ("MarianMTModel", SIZES | {"decoder_attention_heads": 11}),
    "bart": ("BartForConditionalGeneration", SIZES),
    "bart, scaled": ("BartForConditionalGeneration", SIZES | {"scale_embedding": True, "activation_function": "relu"}),
    "mbart": ("MBartForConditionalGeneration", SIZES | {"scale_embedding": True}),
    "t5": ("T5ForConditionalGeneration", T5_SIZES),
    "t5, as deep": ("T5ForConditionalGeneration", T5_SIZES | {"num_decoder_layers": None}),
    "t5 1.1": (
        "T5ForConditionalGeneration",
        T5_SIZES | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5, gated, few buckets": (
        "T5ForConditionalGeneration",
        T5_SIZES
        | {
            "feed_forward_proj": "gated-silu",
            "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 7,
        },
    ),
    "mt5": ("MT5ForConditionalGeneration", T5_SIZES),
}
SOURCES = [[1] * 13, [1] * 8 + [0] * 5, [1] + [0] * 12]
TARGETS = [[1] * 11, [1] * 7 + [0] * 4, [1] + [0] * 10]


def theirs(case: str, *, own_head: bool = False, **changes: Any) -> Any:
    """A model of `transformers` with random weights everywhere: what is zero or one would hide errors."""
    name, options = CASES[case]
    with float64_throughout():
        config = getattr(transformers, re.sub(r"(MT|For).*", "Config", name) if name[0] != "M" else _config(name))
        model = getattr(transformers, name)(config(**options | changes)).double().eval().requires_grad_(False)
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    buffers = [(key, buffer) for key, buffer in model.named_buffers() if key == "final_logits_bias"]
    for key, parameter in [*model.named_parameters(), *buffers]:
        if key.endswith("embed_positions.weight") and name.startswith("Marian"):
            continue  # the library computes them
        norm = re.search(r"norm(_embedding)?\.weight", key)
        large = parameter.ndim == 2 and not re.search(r"embed|shared|Attention\.q\.", key)  # T5's scores are not scaled
        drawn = torch.empty(parameter.shape).normal_(1.0 if norm else 0.0, 0.3 if large else 0.2, generator=generator)
        parameter.copy_(drawn)  # numbers of float32, which the checkpoint's model has
    return model


def _config(name: str) -> str:
    return {"Mar": "MarianConfig", "MBa": "MBartConfig", "MT5": "MT5Config"}[name[:3]]


def inputs(sources: list[list[int]] | None = None, targets: list[list[int]] | None = None) -> dict[str, Tensor]:
    """Two batches of ragged lengths, padded on the right with tokens that are like any other."""
    feeds = {
        "attention_mask": torch.tensor(sources or SOURCES),
        "decoder_attention_mask": torch.tensor(targets or TARGETS),
    }
    generator = torch.Generator().manual_seed(1)
    for name in list(feeds):
        ids = torch.randint(2, VOCABULARY, feeds[name].shape, generator=generator)
        feeds[name.replace("attention_mask", "input_ids")] = ids
    return feeds


def their_answers(model: Any, feeds: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The encoder's output (B, S, E) and the logits (B, L, V)."""
    with float64_throughout():
        made = model(**feeds)
    return made.encoder_last_hidden_state, made.logits


def read_model(path: Path) -> Any:
    return checkpoints.read(path).model().double().requires_grad_(False)


def our_answers(model: Any, feeds: dict[str, Tensor], splits: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """The same of the two graphs, the decoder's tokens given in parts behind a cache."""
    encoded = model.graph(ENCODER)(feeds["input_ids"], feeds["attention_mask"])
    known = {name.replace("present.", "past_key_values."): t for name, t in encoded.items() if name[:8] == "present."}
    ids, mask = feeds["decoder_input_ids"], feeds["decoder_attention_mask"]
    where, batch = positions.count_real(mask), len(ids)
    past = {
        f"past_key_values.{number}.decoder.{kind}": cache[kind == "value"]
        for number, cache in enumerate(
            (cache.key, cache.value) for cache in model.decoder.empty_caches(encoded["last_hidden_state"])
        )
        for kind in ("key", "value")
    }
    parts = []
    for start, end in zip((0, *splits), (*splits, ids.shape[1]), strict=True):
        given = {} if model.config.position_kind == "relative" else {"position_ids": where[:, start:end]}
        made = model.graph(DECODER)(
            ids[:, start:end],
            mask[:, :end],
            logits_positions=torch.arange(end - start).expand(batch, -1),
            encoder_attention_mask=feeds["attention_mask"],
            **given,
            **known,
            **past,
        )
        parts.append(made["logits"])
        past = {name.replace("present.", "past_key_values."): t for name, t in made.items() if name != "logits"}
    return encoded["last_hidden_state"], torch.cat(parts, 1)


def assert_same(
    model: Any, path: Path, splits: tuple[int, ...] = (), feeds: dict[str, Tensor] | None = None, close: float = 1e-9
) -> None:
    """The answers for the real tokens, but for `close`, and answers that vary enough to prove something."""
    feeds = feeds or inputs()
    pairs = zip(their_answers(model, feeds), our_answers(read_model(path), feeds, splits), strict=True)
    for (want, have), mask in zip(pairs, (feeds["attention_mask"], feeds["decoder_attention_mask"]), strict=True):
        real = mask == 1
        assert want[real].std(0).mean() > 0.1  # between places: an answer that hardly varies would prove little
        torch.testing.assert_close(have[real], want[real], atol=close, rtol=0)
