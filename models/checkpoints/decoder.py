"""Llama, SmolLM, Mistral, Qwen2, Qwen3 and GPT-2 folders of the Hugging Face layout → family `decoder`.

Source: the config.json and tensor names that `transformers` writes for these model types.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoformer.models.checkpoints import Checkpoint, CheckpointError, TextFile
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
from isoformer.models.families.decoder import Config, Model
from isoformer.models.positions import RotaryScaling


@dataclass(frozen=True)
class Kind:
    """How one model type names its settings and its tensors.

    settings: our field → their key, all required. modules: ours → theirs; `{i}` is the number of the layer.
    defaults: what `transformers` takes where config.json is silent. fixed: keys with the one value that
    we support, others mean another function. fields: what all models of the type have in common.
    """

    prefix: str
    settings: dict[str, str]
    modules: dict[str, str]
    defaults: dict[str, Any]
    fixed: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


FAMILY = "decoder"
_LLAMA = Kind(
    prefix="model.",
    settings={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_heads": "num_attention_heads",
        "num_layers": "num_hidden_layers",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "activation": "hidden_act",
    },
    modules={
        "tokens": "model.embed_tokens",
        "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
        "blocks.{i}.attention.query_linear": "model.layers.{i}.self_attn.q_proj",
        "blocks.{i}.attention.key_linear": "model.layers.{i}.self_attn.k_proj",
        "blocks.{i}.attention.value_linear": "model.layers.{i}.self_attn.v_proj",
        "blocks.{i}.attention.out_linear": "model.layers.{i}.self_attn.o_proj",
        "blocks.{i}.attention.query_norm": "model.layers.{i}.self_attn.q_norm",
        "blocks.{i}.attention.key_norm": "model.layers.{i}.self_attn.k_norm",
        "blocks.{i}.feed_forward_norm": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.feed_forward.gate": "model.layers.{i}.mlp.gate_proj",
        "blocks.{i}.feed_forward.up": "model.layers.{i}.mlp.up_proj",
        "blocks.{i}.feed_forward.down": "model.layers.{i}.mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
    defaults={"tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    # Queries and keys are turned whole in these model types, whatever the factor says.
    fixed={"partial_rotary_factor": 1.0},
)
_QWEN_DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "mlp_bias": False}
KINDS = {
    "llama": _LLAMA,
    "mistral": Kind(
        _LLAMA.prefix,
        _LLAMA.settings,
        _LLAMA.modules,
        _LLAMA.defaults | {"num_key_value_heads": 8, "sliding_window": 4096},
        _LLAMA.fixed | {"layer_types": None},
    ),
    "qwen2": Kind(
        _LLAMA.prefix,
        _LLAMA.settings,
        _LLAMA.modules,
        _LLAMA.defaults | _QWEN_DEFAULTS,
        _LLAMA.fixed,
        {"qkv_bias": True, "out_bias": False},
    ),
    "qwen3": Kind(
        _LLAMA.prefix,
        _LLAMA.settings,
        _LLAMA.modules,
        _LLAMA.defaults | _QWEN_DEFAULTS | {"head_dim": 128},
        _LLAMA.fixed,
        {"qk_norm": True},
    ),
    "gpt2": Kind(
        prefix="transformer.",
        settings={
            "vocab_size": "vocab_size",
            "hidden_size": "n_embd",
            "num_heads": "n_head",
            "num_layers": "n_layer",
            "max_positions": "n_positions",
            "norm_eps": "layer_norm_epsilon",
            "activation": "activation_function",
        },
        modules={
            "tokens": "transformer.wte",
            "positions": "transformer.wpe",
            "blocks.{i}.attention_norm": "transformer.h.{i}.ln_1",
            "blocks.{i}.attention.query_linear": "transformer.h.{i}.attn.c_attn.query",
            "blocks.{i}.attention.key_linear": "transformer.h.{i}.attn.c_attn.key",
            "blocks.{i}.attention.value_linear": "transformer.h.{i}.attn.c_attn.value",
            "blocks.{i}.attention.out_linear": "transformer.h.{i}.attn.c_proj",
            "blocks.{i}.feed_forward_norm": "transformer.h.{i}.ln_2",
            "blocks.{i}.feed_forward.up": "transformer.h.{i}.mlp.c_fc",
            "blocks.{i}.feed_forward.down": "transformer.h.{i}.mlp.c_proj",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
        },
        defaults={"tie_word_embeddings": True, "activation_function": "gelu_new", "scale_attn_weights": True},
        fixed={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        fields={
            "norm_kind": "layer",
            "position_kind": "learned",
            "gated": False,
            "qkv_bias": True,
            "out_bias": True,
            "feed_forward_bias": True,
        },
    ),
}
# Buffers that older versions saved, numbers that the library makes anew.
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|h\.\d+\.attn\.(bias|masked_bias))$")
HEAD = "lm_head.weight"


def accepts(path: Path) -> bool:
    return model_type(path) in KINDS


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for the task `generate`, the only one.

    Raises CheckpointError for a configuration that the family cannot express, and for tensors that
    are missing, misshapen or unknown, by their names in the file.
    """
    return assemble(path, task, read_json(path / "config.json"), read_tensors(path), carried_files(path))


def assemble(
    path: Path,
    task: str | None,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: tuple[Path | TextFile, ...] = (),
    *,
    name_in_file: Callable[[str], str] = str,
    notes: tuple[str, ...] = (),
) -> Checkpoint:
    """`read`, of settings and tensors that are named as in such a folder, wherever they were read from.

    name_in_file: turns a tensor's name there into the file's own, for messages. Raises CheckpointError.
    """
    kind, folder = KINDS[settings["model_type"]], path.is_dir()
    if task not in (None, "generate"):
        raise CheckpointError(f"task {task!r} is not generate, the one that there is for {settings['model_type']}")
    bare = not any(name.startswith(kind.prefix) for name in tensors)  # saved without its head
    theirs = {f"{kind.prefix if bare and name != HEAD else ''}{name}": name for name in tensors}
    weights = {name: tensors[original] for name, original in theirs.items() if not BUFFERS.search(name)}

    def in_file(name: str) -> str:
        whole, part = re.sub(r"c_attn\.(query|key|value)", "c_attn", name), re.search(r"c_attn\.(\w+)\.", name)
        return name_in_file(theirs.get(whole, whole)) + (f" ({part[1]})" if part else "")

    if settings["model_type"] == "gpt2":
        weights = _linear_weights(weights, in_file)
    table = f"{kind.modules['tokens']}.weight"
    own_head = HEAD in weights and table in weights and not torch.equal(weights[HEAD], weights[table])
    where = path / "config.json" if folder else path
    try:
        config = _config(settings, kind, own_head)
        if config.num_layers > len(tensors):
            raise ValueError(f"it asks for {config.num_layers} layers, and there are {len(tensors)} tensors")
        with torch.device("meta"):
            expected = Model(config).state_dict()
    except (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: {' '.join(str(error).split())}") from None
    modules = kind.modules | ({"head": kind.modules["tokens"]} if config.tied_embeddings else {})

    def their_name(ours: str) -> str:
        module, _, leaf = ours.rpartition(".")
        layer = re.search(r"\.(\d+)\.", ours)
        found = modules[re.sub(r"\.\d+\.", ".{i}.", module)]
        return f"{found.replace('{i}', layer[1] if layer else '')}.{leaf}"

    state = assign(expected, weights, their_name, path, in_file, asked_by="config.json" if folder else "its metadata")
    left = weights.keys() - {their_name(name) for name in expected} - {HEAD}
    refuse_unknown((in_file(name) for name in left), path)
    source = {"name": path.resolve().name, "model_type": settings["model_type"]}
    return Checkpoint(FAMILY, config, state, files, source=source, notes=notes)


def _linear_weights(tensors: dict[str, Tensor], in_file: Callable[[str], str]) -> dict[str, Tensor]:
    """GPT-2's tensors with its (in, out) matrices as (out, in), and queries, keys and values apart."""
    result = {}
    for name, tensor in tensors.items():
        if re.search(r"\.c_(attn|proj|fc)\.weight$", name):
            tensor = tensor.T if tensor.ndim == 2 else tensor
        module, attention, leaf = name.rpartition("c_attn.")
        if not attention:
            result[name] = tensor
            continue
        if tensor.ndim == 0 or tensor.shape[0] % 3:
            raise CheckpointError(f"{in_file(name)} of shape {tuple(tensor.shape)} is not queries, keys and values")
        for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            result[f"{module}c_attn.{part}.{leaf}"] = piece.contiguous()
    return result


def _config(settings: Mapping[str, Any], kind: Kind, own_head: bool) -> Config:
    """ValueError or TypeError for what the family cannot express. own_head: the file has one beside the table."""
    settings = dict(kind.defaults) | dict(settings)
    if settings.get("quantization_config"):
        raise ValueError("quantization_config is not supported: its tensors are no plain weights")
    for key, value in kind.fixed.items():
        if settings.get(key, value) not in (None, value):
            raise ValueError(f"{key} {settings[key]!r} is not supported")
    lacking = [key for key in kind.settings.values() if settings.get(key) is None]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    values = {ours: settings[theirs] for ours, theirs in kind.settings.items()} | kind.fields
    values["activation"] = activation(values["activation"])
    values["norm_eps"] = positive(settings, kind.settings["norm_eps"])
    values["tied_embeddings"] = flag(settings, "tie_word_embeddings") and not own_head
    if settings["model_type"] == "gpt2":
        inner = settings.get("n_inner")
        values["intermediate_size"] = 4 * settings["n_embd"] if inner is None else inner
        return Config(**values, scale=None if flag(settings, "scale_attn_weights") else 1.0)
    heads = settings.get("num_key_value_heads")
    values |= {"num_kv_heads": values["num_heads"] if heads is None else heads, "head_dim": settings.get("head_dim")}
    bias = flag(settings, "attention_bias")
    values = {"qkv_bias": bias, "out_bias": bias, "feed_forward_bias": flag(settings, "mlp_bias")} | values
    return Config(**values, **_rotary(settings, values["max_positions"]), **_windows(settings, values["num_layers"]))


def _rotary(settings: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """transformers 5 keeps it all in `rope_parameters`; before, there were `rope_theta` and `rope_scaling`."""
    parameters = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        raise ValueError(f"rope_parameters {parameters!r} are not one rule for all layers")
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor {parameters['partial_rotary_factor']!r} is not supported")
    given = {"rope_theta": settings.get("rope_theta") or 10000.0} | parameters
    scaling = RotaryScaling.from_config(parameters, max_positions)
    plain = type(scaling) is RotaryScaling
    return {"rotary_base": positive(given, "rope_theta"), "rotary_scaling": None if plain else scaling}


def _windows(settings: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    window = settings.get("sliding_window")
    if settings["model_type"] == "llama" or window is None:
        return {}
    if settings["model_type"] == "mistral":
        return {"sliding_window": window}
    kinds, first = settings.get("layer_types"), settings["max_window_layers"]
    if not settings.get("use_sliding_window"):
        return {}
    if kinds is None:
        layers = tuple(i >= first for i in range(num_layers))
    elif isinstance(kinds, list) and all(kind in ("full_attention", "sliding_attention") for kind in kinds):
        layers = tuple(kind == "sliding_attention" for kind in kinds)
    else:
        raise ValueError(f"layer_types {kinds!r} are not a list of full_attention and sliding_attention")
    return {"sliding_window": window, "window_layers": layers} if any(layers) else {}
