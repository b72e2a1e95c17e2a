"""Whisper folders of the Hugging Face layout → family `speech`.

Source: the config.json, generation_config.json and tensor names that `transformers` writes for this model type.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoformer.models.checkpoints import Checkpoint, CheckpointError, TextFile
from isoformer.models.checkpoints.folder import (
    activation,
    assign,
    carried_files,
    model_type,
    read_json,
    read_tensors,
    refuse_unknown,
)
from isoformer.models.families.speech import STRIDE, Config, Model

FAMILY = "speech"
KINDS = ("whisper",)
SETTINGS = {
    "num_mels": "num_mel_bins",
    "hidden_size": "d_model",
    "num_heads": "encoder_attention_heads",
    "num_layers": "encoder_layers",
    "intermediate_size": "encoder_ffn_dim",
    "vocab_size": "vocab_size",
    "max_positions": "max_target_positions",
    "num_decoder_layers": "decoder_layers",
    "num_decoder_heads": "decoder_attention_heads",
    "decoder_intermediate_size": "decoder_ffn_dim",
}
# Other values mean another function.
FIXED = {"scale_embedding": False, "quantization_config": None, "tie_word_embeddings": True}
# Our modules → theirs, `{i}` is the number of the layer.
_ATTENTION = {"query_linear": "q_proj", "key_linear": "k_proj", "value_linear": "v_proj", "out_linear": "out_proj"}


def _layers(half: str) -> dict[str, str]:
    ours, theirs = f"{half}.blocks.{{i}}", f"model.{half}.layers.{{i}}"
    modules = {f"{ours}.attention.{a}": f"{theirs}.self_attn.{b}" for a, b in _ATTENTION.items()}
    return modules | {
        f"{ours}.attention_norm": f"{theirs}.self_attn_layer_norm",
        f"{ours}.feed_forward.up": f"{theirs}.fc1",
        f"{ours}.feed_forward.down": f"{theirs}.fc2",
        f"{ours}.feed_forward_norm": f"{theirs}.final_layer_norm",
        f"{half}.final_norm": f"model.{half}.layer_norm",
    }


_CROSS = "decoder.blocks.{i}.cross_attention"
MODULES = {
    "tokens": "model.decoder.embed_tokens",
    "decoder.embeddings.tokens": "model.decoder.embed_tokens",
    "decoder.head": "model.decoder.embed_tokens",
    "decoder.embeddings.positions": "model.decoder.embed_positions",
    "encoder.conv1": "model.encoder.conv1",
    "encoder.conv2": "model.encoder.conv2",
    "encoder.positions": "model.encoder.embed_positions",
    **_layers("encoder"),
    **_layers("decoder"),
    "decoder.blocks.{i}.cross_norm": "model.decoder.layers.{i}.encoder_attn_layer_norm",
    **{f"{_CROSS}.{a}": f"model.decoder.layers.{{i}}.encoder_attn.{b}" for a, b in _ATTENTION.items()},
}
HEAD, TABLE, KEY_BIAS = "proj_out.weight", "model.decoder.embed_tokens.weight", "k_proj.bias"


def accepts(path: Path) -> bool:
    return model_type(path) in KINDS


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for the task `transcribe`, the only one.

    Raises CheckpointError for a configuration that the family cannot express, and for tensors that
    are missing, misshapen or unknown, by their names in the file.
    """
    settings, file = read_json(path / "config.json"), path / "generation_config.json"
    generation, tensors = read_json(file) if file.exists() else {}, read_tensors(path)
    refuse_unknown((name for name in tensors if name.endswith(KEY_BIAS)), path)
    return assemble(path, task, settings, generation, tensors, carried_files(path))


def assemble(
    path: Path,
    task: str | None,
    settings: Mapping[str, Any],
    generation: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: tuple[Path | TextFile, ...] = (),
    *,
    name_in_file: Callable[[str], str] = str,
) -> Checkpoint:
    """`read`, of settings and tensors that are named as in such a folder, wherever they were read from.

    name_in_file: turns a tensor's name there into the file's own, for messages. Keys have no bias in such a folder;
    it is 0 where there is none. Raises CheckpointError.
    """
    if task not in (None, "transcribe"):
        raise CheckpointError(f"task {task!r} is not transcribe, the one that there is for whisper")
    where = path / "config.json" if path.is_dir() else path
    try:
        config = _config(settings, generation, special_tokens(path if path.is_dir() else path.parent))
        if config.num_layers + config.decoder.decoder_layers > len(tensors):
            raise ValueError(f"it asks for more layers than there are tensors, {len(tensors)}")
        with torch.device("meta"):
            expected = Model(config).state_dict()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{where}: {' '.join(str(error).split())}") from None
    bare = not any(name.startswith("model.") for name in tensors)  # saved without its head
    theirs = {f"{'model.' if bare and name != HEAD else ''}{name}": name for name in tensors}
    weights = {name: tensors[original] for name, original in theirs.items()}

    def in_file(name: str) -> str:
        return name_in_file(theirs.get(name, name))

    if HEAD in weights and TABLE in weights and not torch.equal(weights[HEAD], weights[TABLE]):
        raise CheckpointError(f"{path}: {in_file(HEAD)} is not {in_file(TABLE)}; a head of its own is not supported")
    names = {ours: their_name(ours) for ours in expected}
    given = weights.keys() - {HEAD}
    for ours, name in names.items():
        if name.endswith(KEY_BIAS):
            weights.setdefault(name, torch.zeros(expected[ours].shape))
    state = assign(expected, weights, names.__getitem__, path, in_file)
    refuse_unknown((in_file(name) for name in given - set(names.values())), path)
    return Checkpoint(FAMILY, config, state, files, source={"name": path.resolve().name, "model_type": "whisper"})


def special_tokens(folder: Path) -> dict[str, int]:
    """Text → id of the tokens that the folder's tokenizer.json adds to its vocabulary, {} without one."""
    file = folder / "tokenizer.json"
    added = read_json(file).get("added_tokens") if file.exists() else None
    try:
        return {entry["content"]: int(entry["id"]) for entry in added or []}
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{file}: added_tokens are not entries with content and id") from None


def their_name(ours: str) -> str:
    module, _, leaf = ours.rpartition(".")
    layer = re.search(r"\.(\d+)\.", ours)
    found = MODULES[re.sub(r"\.\d+\.", ".{i}.", module)]
    return f"{found.replace('{i}', layer[1] if layer else '')}.{leaf}"


def _config(settings: Mapping[str, Any], generation: Mapping[str, Any], special: Mapping[str, int]) -> Config:
    """ValueError or TypeError for what the family cannot express."""
    for key, value in FIXED.items():
        if settings.get(key, value) not in (None, value):
            raise ValueError(f"{key} {settings[key]!r} is not supported")
    lacking = [key for key in (*SETTINGS.values(), "max_source_positions") if settings.get(key) is None]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return Config(
        **{ours: settings[theirs] for ours, theirs in SETTINGS.items()},
        max_frames=STRIDE * settings["max_source_positions"],
        activation=activation(settings.get("activation_function", "gelu")),
        **_tokens({**settings, **{key: value for key, value in generation.items() if value is not None}}, special),
    )


def _tokens(settings: Mapping[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    """The ids that transcribing needs, of generation_config.json, config.json and the tokenizer, in this order."""
    start = settings.get("decoder_start_token_id", special.get("<|startoftranscript|>"))
    eos = settings.get("eos_token_id", special.get("<|endoftext|>"))
    eos = eos[0] if isinstance(eos, list) and len(eos) == 1 else eos
    if type(start) is not int or type(eos) is not int:
        raise ValueError(f"decoder_start_token_id is {start!r} and eos_token_id {eos!r}; each is one token")
    silent = settings.get("no_timestamps_token_id", special.get("<|notimestamps|>"))
    # In every vocabulary of Whisper the three stand in this order: nobody speaks, no timestamps, 0.00 s.
    zero = special.get("<|0.00|>", None if silent is None else silent + 1)
    nobody = special.get("<|nospeech|>", special.get("<|nocaptions|>", None if silent is None else silent - 1))
    tokens = {
        "decoder_start_token_id": start,
        "eos_token_id": eos,
        "pad_token_id": eos if settings.get("pad_token_id") is None else settings["pad_token_id"],
        "suppressed_tokens": tuple(token for token in settings.get("suppress_tokens") or () if token >= 0),
        "begin_suppressed_tokens": tuple(settings.get("begin_suppress_tokens") or ()),
        "timestamp_begin_token_id": zero,
        "no_timestamps_token_id": silent,
        "no_speech_token_id": nobody,
        "previous_token_id": settings.get("prev_sot_token_id", special.get("<|startofprev|>")),
    }
    if not settings.get("is_multilingual", settings["vocab_size"] >= 51865):  # one language, and no token for it
        return tokens
    languages = settings.get("lang_to_id") or {t: i for t, i in special.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", t)}
    tasks = settings.get("task_to_id") or {
        name: special[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in special
    }
    tokens["language_tokens"] = tuple((text.strip("<|>"), token) for text, token in languages.items())
    return tokens | {"task_tokens": tuple(tasks.items())}
