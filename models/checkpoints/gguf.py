"""GGUF files (llama.cpp): Llama, Qwen2, Qwen3 and GPT-2 → family `decoder`, weights as float32.

Metadata and tensors are put under the names of the Hugging Face layout and read as such a folder is
(`decoder.assemble`); configuration and tokenizer are written for the package in that layout too.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md for the keys, and llama.cpp's
convert_hf_to_gguf.py for what the conversion did to names and weights.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from isoformer.models.checkpoints import Checkpoint, TextFile
from isoformer.models.checkpoints.decoder import FAMILY as FAMILY
from isoformer.models.checkpoints.decoder import assemble
from isoformer.models.checkpoints.folder import refuse_unknown
from isoformer.models.checkpoints.gguf_file import MAGIC, GGUFFile
from isoformer.models.checkpoints.gguf_tokenizer import special_ids, to_json, tokenizer_files


@dataclass(frozen=True)
class Architecture:
    """How a GGUF architecture names its settings and its tensors.

    settings: key of config.json → key of the metadata, behind the architecture's name. modules: name in the
    file → name in the Hugging Face layout; `{i}` is the number of the layer.
    """

    class_name: str
    settings: dict[str, str]
    modules: dict[str, str]


_LLAMA_SETTINGS = {
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_LLAMA_MODULES = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", _LLAMA_SETTINGS, _LLAMA_MODULES),
    "qwen2": Architecture("Qwen2ForCausalLM", _LLAMA_SETTINGS, _LLAMA_MODULES),
    "qwen3": Architecture("Qwen3ForCausalLM", _LLAMA_SETTINGS, _LLAMA_MODULES),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        settings={
            "n_embd": "embedding_length",
            "n_head": "attention.head_count",
            "n_layer": "block_count",
            "n_inner": "feed_forward_length",
            "n_positions": "context_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        modules={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
            "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
            "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
            "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
            "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
            "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
    ),
}
# Keys that the settings above do not need, with the values of them that change nothing (None: any value).
OTHER_KEYS: dict[str, tuple[Any, ...] | None] = {
    "attention.head_count_kv": None,
    "attention.key_length": None,
    "attention.value_length": None,
    "rope.dimension_count": None,
    "rope.freq_base": None,
    "rope.scaling.type": ("none", "linear"),
    "rope.scaling.factor": None,
    "rope.scale_linear": (1.0,),
    "rope.scaling.original_context_length": None,
    "rope.scaling.finetuned": None,
    "vocab_size": None,
    "tensor_data_layout": ("Meta AI original pth",),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
}


def accepts(path: Path) -> bool:
    """By the first bytes, or by the name: a file that is called GGUF and is none deserves that answer."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for the task `generate`, the only one, its quantised weights as the float32 they stand for.

    Raises CheckpointError for a damaged file, an architecture, quantisation or setting that is not
    supported, and for tensors that are missing, misshapen or unknown. A tokenizer that cannot be converted is a note.
    """
    file = GGUFFile(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise file.error(f"general.architecture {name!r} is not one of {', '.join(ARCHITECTURES)}")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise file.error("it is one part of several; `llama-gguf-split --merge` makes them one file")
    architecture = ARCHITECTURES[name]
    names = {original: _renamed(original, architecture.modules) for original in file.tensors}
    refuse_unknown((original for original, theirs in names.items() if theirs is None), path)
    settings = _settings(file, name, architecture)
    tensors = {str(theirs): _tensor(file, original, name, settings) for original, theirs in names.items()}
    tokenizer, notes = tokenizer_files(file, settings)
    ids = special_ids(file, settings)
    written = {"config.json": to_json(settings | ids), "generation_config.json": to_json(ids)} | tokenizer
    files = tuple(TextFile(name, text) for name, text in written.items())
    back = {theirs: ours for ours, theirs in architecture.modules.items()}
    return assemble(
        path, task, settings, tensors, files, name_in_file=lambda name: _renamed(name, back) or name, notes=notes
    )


def _renamed(tensor: str, modules: dict[str, str]) -> str | None:
    """The tensor's name in the other layout, which `modules` leads to."""
    module, _, leaf = tensor.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    found = modules.get(re.sub(r"\.\d+\.", ".{i}.", module, count=1))
    return f"{found.replace('{i}', layer[1] if layer else '')}.{leaf}" if found else None


def _settings(file: GGUFFile, name: str, architecture: Architecture) -> dict[str, Any]:
    """config.json. Raises CheckpointError for a setting that is missing, or that we do not know to be harmless."""
    values = {key.removeprefix(f"{name}."): v for key, v in file.metadata.items() if key.startswith(f"{name}.")}
    for key, value in values.items():
        allowed = None if key in architecture.settings.values() else OTHER_KEYS.get(key, ())
        if allowed is not None and value not in allowed:
            raise file.error(f"{name}.{key} {value!r} is not supported")
    table, output = file.tensors.get("token_embd.weight"), "output.weight" in file.tensors
    lacking = [f"{name}.{key}" for key in architecture.settings.values() if key not in values]
    if lacking or table is None:
        raise file.error(f"it lacks {', '.join(lacking) or 'the tensor token_embd.weight'}")

    def whole(key: str, default: int) -> int:
        value = values.get(key, default)
        if type(value) is not int or value < 1:
            raise file.error(f"{name}.{key} is {value!r}; it must be a whole number of at least 1")
        return value

    settings = {"architectures": [architecture.class_name], "model_type": name, "dtype": "float32"}
    settings |= {"vocab_size": table.shape[0], "tie_word_embeddings": not output}
    for theirs, key in architecture.settings.items():
        settings[theirs] = values[key] if key.endswith("epsilon") else whole(key, 0)
    if name == "gpt2":
        return settings | {"activation_function": "gelu_new"}
    heads = settings["num_attention_heads"]
    head_dim = whole("attention.key_length", settings["hidden_size"] // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if whole(key, head_dim) != head_dim:
            raise file.error(f"{name}.{key} {values[key]} with keys of {head_dim} is not supported")
    settings |= {"num_key_value_heads": whole("attention.head_count_kv", heads), "head_dim": head_dim}
    settings |= {"rope_theta": values.get("rope.freq_base", 10000.0), "hidden_act": "silu"}
    factor = values.get("rope.scaling.factor", 1.0) or 1.0
    if factor != 1.0 and values.get("rope.scaling.type", "linear") == "linear":
        settings["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return settings | {key: tensor in file.tensors for key, tensor in biases.items()}


def _tensor(file: GGUFFile, original: str, architecture: str, settings: dict[str, Any]) -> Tensor:
    """The tensor as the Hugging Face layout has it. One that does not fit is left for `assemble` to refuse."""
    tensor, part = file.read(original), original.split(".")[-2]
    if architecture == "gpt2" and part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return tensor.T if tensor.ndim == 2 else tensor  # back to the (in, out) of GPT-2
    if architecture == "llama" and part in ("attn_q", "attn_k"):
        heads = settings["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        if tensor.shape[0] % (2 * heads) == 0:
            # llama.cpp turns neighbours, (2i, 2i + 1); the conversion put there what were (i, i + D/2).
            return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return tensor
