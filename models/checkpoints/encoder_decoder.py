"""Marian, BART, mBART, T5 and mT5 folders of the Hugging Face layout → family `encoder_decoder`.

Source: the config.json, generation_config.json and tensor names that `transformers` writes for these model types.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoformer.models.checkpoints import Checkpoint, CheckpointError
from isoformer.models.checkpoints.folder import (
    activation,
    assign,
    carried_files,
    flag,
    model_type,
    positive,
    read_json,
    read_tensors,
    refuse_unknown,
)
from isoformer.models.families.encoder_decoder import Config, Model
from isoformer.models.positions import SinusoidalPositions

FAMILY = "encoder_decoder"
TASK = "translate"
HEAD, LOGIT_BIAS = "lm_head.weight", "final_logits_bias"


@dataclass(frozen=True)
class Kind:
    """How one model type names its settings and its tensors.

    settings: our field → their key, all required. modules: ours → theirs; `{half}` is encoder or decoder, `{i}` the
    number of the layer and `{last}` that of the last part of a layer. prefix: of every tensor but the head's.
    defaults: what `transformers` takes where config.json is silent. fixed: keys with the one value that
    we support, others mean another function. fields: what all models of the type have in common.
    """

    settings: dict[str, str]
    modules: dict[str, str]
    defaults: dict[str, Any]
    prefix: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """The tensor of the tokens' embeddings."""
        return f"{self.modules['tokens']}.weight"

    @property
    def copies(self) -> tuple[str, ...]:
        """Further names under which a file may hold it."""
        return tuple(f"{self.prefix}{half}.embed_tokens.weight" for half in ("encoder", "decoder"))


_SETTINGS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_heads": "encoder_attention_heads",
    "num_layers": "encoder_layers",
    "intermediate_size": "encoder_ffn_dim",
    "num_decoder_heads": "decoder_attention_heads",
    "num_decoder_layers": "decoder_layers",
    "decoder_intermediate_size": "decoder_ffn_dim",
    "max_positions": "max_position_embeddings",
}
_MODULES = {
    "tokens": "model.shared",
    "{half}.embeddings.tokens": "model.shared",
    "{half}.embeddings.positions": "model.{half}.embed_positions",
    "{half}.embeddings.norm": "model.{half}.layernorm_embedding",
    "{half}.blocks.{i}.attention.query_linear": "model.{half}.layers.{i}.self_attn.q_proj",
    "{half}.blocks.{i}.attention.key_linear": "model.{half}.layers.{i}.self_attn.k_proj",
    "{half}.blocks.{i}.attention.value_linear": "model.{half}.layers.{i}.self_attn.v_proj",
    "{half}.blocks.{i}.attention.out_linear": "model.{half}.layers.{i}.self_attn.out_proj",
    "{half}.blocks.{i}.attention_norm": "model.{half}.layers.{i}.self_attn_layer_norm",
    "{half}.blocks.{i}.cross_attention.query_linear": "model.{half}.layers.{i}.encoder_attn.q_proj",
    "{half}.blocks.{i}.cross_attention.key_linear": "model.{half}.layers.{i}.encoder_attn.k_proj",
    "{half}.blocks.{i}.cross_attention.value_linear": "model.{half}.layers.{i}.encoder_attn.v_proj",
    "{half}.blocks.{i}.cross_attention.out_linear": "model.{half}.layers.{i}.encoder_attn.out_proj",
    "{half}.blocks.{i}.cross_norm": "model.{half}.layers.{i}.encoder_attn_layer_norm",
    "{half}.blocks.{i}.feed_forward.up": "model.{half}.layers.{i}.fc1",
    "{half}.blocks.{i}.feed_forward.down": "model.{half}.layers.{i}.fc2",
    "{half}.blocks.{i}.feed_forward_norm": "model.{half}.layers.{i}.final_layer_norm",
    "{half}.final_norm": "model.{half}.layer_norm",
    "{half}.head": "lm_head",
}
_DEFAULTS = {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True}
_T5 = Kind(
    settings={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "head_dim": "d_kv",
        "num_heads": "num_heads",
        "num_layers": "num_layers",
        "intermediate_size": "d_ff",
        "max_positions": "n_positions",
        "relative_buckets": "relative_attention_num_buckets",
        "relative_max_distance": "relative_attention_max_distance",
    },
    modules={
        "tokens": "shared",
        "{half}.embeddings.tokens": "shared",
        "{half}.bias": "{half}.block.0.layer.0.SelfAttention.relative_attention_bias",
        "{half}.blocks.{i}.attention.query_linear": "{half}.block.{i}.layer.0.SelfAttention.q",
        "{half}.blocks.{i}.attention.key_linear": "{half}.block.{i}.layer.0.SelfAttention.k",
        "{half}.blocks.{i}.attention.value_linear": "{half}.block.{i}.layer.0.SelfAttention.v",
        "{half}.blocks.{i}.attention.out_linear": "{half}.block.{i}.layer.0.SelfAttention.o",
        "{half}.blocks.{i}.attention_norm": "{half}.block.{i}.layer.0.layer_norm",
        "{half}.blocks.{i}.cross_attention.query_linear": "{half}.block.{i}.layer.1.EncDecAttention.q",
        "{half}.blocks.{i}.cross_attention.key_linear": "{half}.block.{i}.layer.1.EncDecAttention.k",
        "{half}.blocks.{i}.cross_attention.value_linear": "{half}.block.{i}.layer.1.EncDecAttention.v",
        "{half}.blocks.{i}.cross_attention.out_linear": "{half}.block.{i}.layer.1.EncDecAttention.o",
        "{half}.blocks.{i}.cross_norm": "{half}.block.{i}.layer.1.layer_norm",
        "{half}.blocks.{i}.feed_forward.gate": "{half}.block.{i}.layer.{last}.DenseReluDense.wi_0",
        "{half}.blocks.{i}.feed_forward.up": "{half}.block.{i}.layer.{last}.DenseReluDense.wi_1",
        "{half}.blocks.{i}.feed_forward.down": "{half}.block.{i}.layer.{last}.DenseReluDense.wo",
        "{half}.blocks.{i}.feed_forward_norm": "{half}.block.{i}.layer.{last}.layer_norm",
        "{half}.final_norm": "{half}.final_layer_norm",
        "{half}.head": "lm_head",
    },
    # Biases of distances have no end; what the model was trained for is the limit, 512 in all that Google published.
    defaults={
        "n_positions": 512,
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "tie_word_embeddings": True,
    },
    fields={"norm_kind": "rms", "norm_order": "pre", "position_kind": "relative", "bias": False, "scale": 1.0},
)
# The last four of `fixed` were settings of `transformers` once; files of that time still have them.
KINDS = {
    "marian": Kind(
        _SETTINGS,
        _MODULES,
        _DEFAULTS,
        prefix="model.",
        fixed={
            "share_encoder_decoder_embeddings": True,
            "normalize_before": False,
            "normalize_embedding": False,
            "add_final_layer_norm": False,
            "static_position_embeddings": True,
        },
        fields={"position_kind": "sinusoidal_halves"},
    ),
    "bart": Kind(
        _SETTINGS,
        _MODULES,
        _DEFAULTS,
        prefix="model.",
        fixed={
            "normalize_before": False,
            "normalize_embedding": True,
            "add_final_layer_norm": False,
            "static_position_embeddings": False,
        },
        fields={"position_kind": "learned", "embedding_norm": True},
    ),
    "mbart": Kind(
        _SETTINGS,
        _MODULES,
        _DEFAULTS,
        prefix="model.",
        fixed={
            "normalize_before": True,
            "normalize_embedding": True,
            "add_final_layer_norm": True,
            "static_position_embeddings": False,
        },
        fields={"position_kind": "learned", "embedding_norm": True, "norm_order": "pre"},
    ),
    "t5": _T5,
    "mt5": Kind(_T5.settings, _T5.modules, _T5.defaults | {"feed_forward_proj": "gated-gelu"}, fields=_T5.fields),
}
# What a search is steered by in `transformers` and no field of the configuration says, with what changes nothing.
SEARCH: dict[str, Any] = {
    "min_length": (0, 1),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
}
# Older files of T5 have it, and no version of the model reads it.
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def accepts(path: Path) -> bool:
    return model_type(path) in KINDS


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for the task `translate`, the only one.

    How an answer begins and ends is generation_config.json's word, and config.json's where there is no such file; what
    begins, ends and pads an answer is config.json's, too, where the other is silent.

    Raises CheckpointError for a configuration that the family cannot express, for tensors that are missing,
    misshapen or unknown, by their names in the file, and for copies of the embeddings that are not the same.
    """
    settings, content = read_json(path / "config.json"), read_tensors(path)
    kind = KINDS[settings["model_type"]]
    if task not in (None, TASK):
        raise CheckpointError(f"task {task!r} is not {TASK}, the one that there is for {settings['model_type']}")
    bare = not any(name.startswith(kind.prefix) for name in content)  # saved without its head
    original = {f"{kind.prefix if bare and name != HEAD else ''}{name}": name for name in content}
    tensors = {name: content[theirs] for name, theirs in original.items() if name != UNUSED}

    def in_file(name: str) -> str:
        return original.get(name, name.removeprefix(kind.prefix) if bare else name)

    head_is_table = _merge_copies(tensors, kind, in_file, path)
    config, notes = _configuration(path, settings, kind, tensors, head_is_table)
    with torch.device("meta"):
        expected = Model(config).state_dict()
    _strip(tensors, config, in_file, path)

    def their_name(ours: str) -> str:
        return _their_name(ours, kind, config)

    state = assign(expected, tensors, their_name, path, in_file)
    refuse_unknown((in_file(name) for name in tensors.keys() - {their_name(ours) for ours in expected}), path)
    files = carried_files(path)
    if not any(file.name == "tokenizer.json" for file in files):
        notes += (f"{path.name} has no tokenizer.json: the package will take no text until one is saved there",)
    unused = (UNUSED,) if UNUSED in content else ()
    source = {"name": path.resolve().name, "model_type": settings["model_type"], "unused_tensors": list(unused)}
    return Checkpoint(FAMILY, config, state, files, unused, source, notes)


def _merge_copies(tensors: dict[str, Tensor], kind: Kind, in_file: Callable[[str], str], path: Path) -> bool:
    """Leaves one table of tokens, under its first name, and no head that is the same; whether there was such a head."""
    there = [name for name in (kind.table, *kind.copies) if name in tensors]
    for name in there[1:]:
        if not torch.equal(tensors[name], tensors[there[0]]):
            names = f"{in_file(there[0])} and {in_file(name)}"
            raise CheckpointError(f"{path}: {names} differ; encoder and decoder must share one table of tokens")
    if not there:
        return False
    table = tensors[there[0]]
    for name in there:
        del tensors[name]
    tensors[kind.table] = table
    same = HEAD in tensors and torch.equal(tensors[HEAD], table)
    if same:
        del tensors[HEAD]
    return same


def _strip(tensors: dict[str, Tensor], config: Config, in_file: Callable[[str], str], path: Path) -> None:
    """Takes away what the family does not have: the two rows in front of BART's positions, Marian's positions, which
    are computed, and the first axis of a bias of the logits."""
    bias = tensors.get(LOGIT_BIAS)
    if bias is not None and bias.ndim == 2 and len(bias) == 1:
        tensors[LOGIT_BIAS] = bias[0]
    computed = config.position_kind == "sinusoidal_halves"
    size = (config.max_positions + (0 if computed else 2), config.hidden_size)
    for name in [name for name in tensors if name.endswith(".embed_positions.weight")]:
        table = tensors.pop(name)
        if table.shape != size:
            found = f"{in_file(name)} of shape {tuple(table.shape)}"
            raise CheckpointError(f"{path} has the tensor {found} where config.json asks for {size}")
        if not computed:
            tensors[name] = table[2:].contiguous()
        elif not torch.allclose(table.float(), SinusoidalPositions(*size, interleaved=False).weight, 0, atol=0.005):
            raise CheckpointError(f"{path}: {in_file(name)} does not hold the sinusoids that the model computes")


def _their_name(ours: str, kind: Kind, config: Config) -> str:
    if ours == "decoder.head.bias":
        return LOGIT_BIAS
    if ours == "decoder.head.weight" and config.tied_embeddings:
        return kind.table
    module, _, leaf = ours.rpartition(".")
    half, layer = module.partition(".")[0], re.search(r"\.(\d+)\.", module)
    template = re.sub(r"\.\d+\.", ".{i}.", re.sub(r"^(encoder|decoder)\.", "{half}.", module))
    theirs = kind.modules[template]
    if not config.gated:
        theirs = theirs.removesuffix("_1")  # T5's feed-forward without a gate has one `wi`
    last = "2" if half == "decoder" else "1"
    return f"{theirs.format(half=half, i=layer[1] if layer else '', last=last)}.{leaf}"


def _configuration(
    path: Path, settings: dict[str, Any], kind: Kind, tensors: dict[str, Tensor], head_is_table: bool
) -> tuple[Config, tuple[str, ...]]:
    """The configuration, and notes for the user. Raises CheckpointError for what the family cannot express."""
    where, file = path / "config.json", path / "generation_config.json"
    try:
        config = _config(settings, kind, tensors, head_is_table)
        layers = config.num_layers + config.decoder_layers
        if layers > len(tensors):
            raise ValueError(f"it asks for {layers} layers, and there are {len(tensors)} tensors")
        with torch.device("meta"):
            Model(config)
        where, generation = (file, read_json(file)) if file.exists() else (where, settings)
        config = replace(config, **_answers(config.vocab_size, generation, settings))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where}: {' '.join(str(error).split())}") from None
    left = [f"{key} {generation[key]}" for key, same in SEARCH.items() if generation.get(key) not in (None, *same)]
    return config, (f"{where.name}: the package leaves to its user {', '.join(left)}",) if left else ()


def _config(settings: Mapping[str, Any], kind: Kind, tensors: Mapping[str, Tensor], head_is_table: bool) -> Config:
    """All but the tokens of an answer. ValueError or TypeError for what the family cannot express."""
    settings = dict(kind.defaults) | {key: value for key, value in settings.items() if value is not None}
    if "quantization_config" in settings:
        raise ValueError("quantization_config is not supported: its tensors are no plain weights")
    for key, value in kind.fixed.items():
        if settings.get(key, value) != value:
            raise ValueError(f"{key} {settings[key]!r} is not supported")
    lacking = [key for key in kind.settings.values() if key not in settings]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if settings.get("decoder_vocab_size", settings["vocab_size"]) != settings["vocab_size"]:
        raise ValueError(f"decoder_vocab_size {settings['decoder_vocab_size']!r} is not vocab_size")
    values = {ours: settings[theirs] for ours, theirs in kind.settings.items()} | kind.fields
    values |= _bart(settings) if kind.prefix else _t5(settings)
    tied = flag(settings, "tie_word_embeddings")
    values["tied_embeddings"] = head_is_table or (tied and HEAD not in tensors)
    values["logit_bias"] = bool(kind.prefix) and LOGIT_BIAS in tensors  # without it, transformers has zeros
    config = Config(**values, decoder_start_token_id=0, eos_token_id=0, pad_token_id=0)
    if kind.prefix:
        return replace(config, embedding_scale=math.sqrt(config.hidden_size)) if settings["scale_embedding"] else config
    # T5 1.0 scales what goes into its head and 1.1 does not, which tie_word_embeddings told before there was a key.
    scaled = settings["model_type"] == "t5" and flag(
        {"scale_decoder_outputs": tied} | settings, "scale_decoder_outputs"
    )
    return replace(config, logit_scale=config.hidden_size**-0.5) if scaled else config


def _bart(settings: Mapping[str, Any]) -> dict[str, Any]:
    flag(settings, "scale_embedding")
    return {"activation": activation(settings["activation_function"], "activation_function")}


def _t5(settings: Mapping[str, Any]) -> dict[str, Any]:
    kind = settings["feed_forward_proj"]
    gated, _, name = str(kind).rpartition("-")
    if gated not in ("", "gated"):
        raise ValueError(f"feed_forward_proj is {kind!r}; it must be an activation, with 'gated-' in front or not")
    name = "gelu_new" if kind == "gated-gelu" else name
    for key, meant in (("dense_act_fn", name), ("is_gated_act", bool(gated))):
        if settings.get(key, meant) != meant:
            raise ValueError(f"{key} {settings[key]!r} is not that of feed_forward_proj {kind!r}")
    return {
        "num_decoder_layers": settings.get("num_decoder_layers"),
        "activation": activation(name, "feed_forward_proj"),
        "gated": bool(gated),
        "norm_eps": positive(settings, "layer_norm_epsilon"),
    }


def _answers(vocab_size: int, generation: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of an answer; ValueError for those that the family cannot express."""

    def first(*keys: str) -> int | None:
        found = ((key, source[key]) for source in (generation, settings) for key in keys if source.get(key) is not None)
        return next((_token(key, value, vocab_size) for key, value in found), None)

    start, eos = first("decoder_start_token_id", "bos_token_id"), first("eos_token_id")
    if start is None or eos is None:
        raise ValueError(f"it lacks {'decoder_start_token_id' if start is None else 'eos_token_id'}")
    pad, words = first("pad_token_id"), generation.get("bad_words_ids") or []
    if not isinstance(words, list) or any(not isinstance(word, list) or len(word) != 1 for word in words):
        raise ValueError(f"bad_words_ids {words!r} is not supported: they must be words of one token")
    single = [_token("bad_words_ids", word, vocab_size) for word in words if word != [eos]]  # never the end, in theirs
    more = [_token("suppress_tokens", token, vocab_size) for token in generation.get("suppress_tokens") or []]
    values: dict[str, Any] = {
        "decoder_start_token_id": start,
        "eos_token_id": eos,
        "pad_token_id": eos if pad is None else pad,
    }
    for key in ("forced_bos_token_id", "forced_eos_token_id"):
        given = generation.get(key)
        values[key] = None if given is None else _token(key, given, vocab_size)
    return values | {"suppressed_tokens": tuple(dict.fromkeys((*single, *more)))}


def _token(key: str, value: Any, vocab_size: int) -> int:
    token = value[0] if isinstance(value, list) and len(value) == 1 else value
    if type(token) is not int or not 0 <= token < vocab_size:
        raise ValueError(f"{key} is {value!r}; it must be one token, 0 to {vocab_size - 1}")
    return token
