"""BERT, RoBERTa and DistilBERT folders of the Hugging Face layout → family `encoder`.

Sources: the config.json and tensor names that `transformers` writes for these model types, and,
for sentence embeddings, the modules.json and 1_Pooling folder of `sentence-transformers`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from isoformer.models.checkpoints import Checkpoint, CheckpointError
from isoformer.models.checkpoints.folder import (
    ACTIVATIONS,
    MAX_LABELS,
    assign,
    carried_files,
    load_json,
    model_type,
    read_json,
    read_tensors,
    refuse_unknown,
)
from isoformer.models.families.encoder import Config, Model

FAMILY = "encoder"
TASKS = {
    "Model": "embed",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "classify",
}
PROBLEMS = {"single_label_classification": "single_label", "multi_label_classification": "multi_label"}


@dataclass(frozen=True)
class Kind:
    """How one model type names its settings and its tensors.

    The tables lead from our module names to theirs; `{i}` is the number of the layer.
    """

    settings: dict[str, str]
    body: dict[str, str]
    heads: dict[str, dict[str, str]]
    position_rule: str = "index"
    classifier_activation: str = "tanh"
    unused: tuple[str, ...] = field(default=())


_BERT_SETTINGS = {
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "num_token_types": "type_vocab_size",
}
_BERT_BODY = {
    "embeddings.tokens": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.token_types": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "blocks.{i}.attention.query_linear": "encoder.layer.{i}.attention.self.query",
    "blocks.{i}.attention.key_linear": "encoder.layer.{i}.attention.self.key",
    "blocks.{i}.attention.value_linear": "encoder.layer.{i}.attention.self.value",
    "blocks.{i}.attention.out_linear": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.feed_forward.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.feed_forward.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.feed_forward_norm": "encoder.layer.{i}.output.LayerNorm",
}
KINDS = {
    "bert": Kind(
        settings=_BERT_SETTINGS,
        body=_BERT_BODY,
        heads={
            "embed": {"head.pooler": "pooler.dense"},
            "fill-mask": {
                "head.dense": "cls.predictions.transform.dense",
                "head.norm": "cls.predictions.transform.LayerNorm",
                "head.decoder": "cls.predictions.decoder",
                "head.decoder.bias": "cls.predictions.bias",
            },
            "classify": {"head.dense": "pooler.dense", "head.classifier": "classifier"},
        },
        unused=("cls.seq_relationship.weight", "cls.seq_relationship.bias"),  # next-sentence head of pre-training
    ),
    "roberta": Kind(
        settings=_BERT_SETTINGS,
        body=_BERT_BODY,
        heads={
            "embed": {"head.pooler": "pooler.dense"},
            "fill-mask": {
                "head.dense": "lm_head.dense",
                "head.norm": "lm_head.layer_norm",
                "head.decoder": "lm_head.decoder",
                "head.decoder.bias": "lm_head.bias",
            },
            "classify": {"head.dense": "classifier.dense", "head.classifier": "classifier.out_proj"},
        },
        position_rule="tokens",
    ),
    "distilbert": Kind(
        settings={
            "hidden_size": "dim",
            "num_heads": "n_heads",
            "num_layers": "n_layers",
            "intermediate_size": "hidden_dim",
            "activation": "activation",
        },
        body={
            "embeddings.tokens": "embeddings.word_embeddings",
            "embeddings.positions": "embeddings.position_embeddings",
            "embeddings.norm": "embeddings.LayerNorm",
            "blocks.{i}.attention.query_linear": "transformer.layer.{i}.attention.q_lin",
            "blocks.{i}.attention.key_linear": "transformer.layer.{i}.attention.k_lin",
            "blocks.{i}.attention.value_linear": "transformer.layer.{i}.attention.v_lin",
            "blocks.{i}.attention.out_linear": "transformer.layer.{i}.attention.out_lin",
            "blocks.{i}.attention_norm": "transformer.layer.{i}.sa_layer_norm",
            "blocks.{i}.feed_forward.up": "transformer.layer.{i}.ffn.lin1",
            "blocks.{i}.feed_forward.down": "transformer.layer.{i}.ffn.lin2",
            "blocks.{i}.feed_forward_norm": "transformer.layer.{i}.output_layer_norm",
        },
        heads={
            "embed": {},
            "fill-mask": {
                "head.dense": "vocab_transform",
                "head.norm": "vocab_layer_norm",
                "head.decoder": "vocab_projector",
            },
            "classify": {"head.dense": "pre_classifier", "head.classifier": "classifier"},
        },
        classifier_activation="relu",
    ),
}
# Buffers that older versions saved, numbers that the library makes anew.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def accepts(path: Path) -> bool:
    return model_type(path) in KINDS


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for `task` (embed, fill-mask or classify; by default the one that it was saved for).

    Raises CheckpointError for a configuration that the family cannot express, and for tensors that
    are missing, misshapen or unknown, by their names in the file.
    """
    settings = read_json(path / "config.json")
    kind = KINDS[settings["model_type"]]
    named, task = task, task or _task_of(settings, path)
    if task not in kind.heads:
        raise CheckpointError(f"task {task!r} is not one of {', '.join(kind.heads)}")
    prefix = settings["model_type"] + "."
    content = read_tensors(path)
    original = {_modern(name.removeprefix(prefix)): name for name in content}
    tensors = {name: content[theirs] for name, theirs in original.items()}
    prefixed = any(name.startswith(prefix) for name in content)
    config = _config(path, settings, kind, task, tensors)
    try:
        with torch.device("meta"):
            expected = Model(config).state_dict()
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path / 'config.json'}: {error}") from None
    table = kind.body | kind.heads[task]
    if config.tied_decoder:
        table["head.decoder.weight"] = "embeddings.word_embeddings.weight"
    elif task == "fill-mask" and f"{table['head.decoder']}.bias" in tensors:
        table["head.decoder.bias"] = f"{table['head.decoder']}.bias"

    def their_name(ours: str) -> str:
        module, _, leaf = ours.rpartition(".")
        layer = re.search(r"\.(\d+)\.", ours)
        template = re.sub(r"\.\d+\.", ".{i}.", module)
        found = table.get(ours) or f"{table[template]}.{leaf}"
        return found.replace("{i}", layer[1] if layer else "")

    def in_file(name: str) -> str:
        in_body = name.startswith(("embeddings.", "encoder.", "transformer.", "pooler."))
        return original.get(name, prefix + name if prefixed and in_body else name)

    state = assign(expected, tensors, their_name, path, in_file)
    left = tensors.keys() - {their_name(name) for name in expected}
    known = {f"{module}.{leaf}" for head in kind.heads.values() for module in head.values() for leaf in _LEAVES}
    known |= {name for head in kind.heads.values() for name in head.values()} | {*kind.unused, *BUFFERS}
    if named and prefixed:  # part of a model was asked for: heads of other kinds stand outside the prefix
        known |= {name for name, theirs in original.items() if not theirs.startswith(prefix)}
    refuse_unknown((original[name] for name in left - known), path)
    unused = tuple(sorted(original[name] for name in left - set(BUFFERS)))
    source = {"name": path.resolve().name, "model_type": settings["model_type"], "unused_tensors": list(unused)}
    return Checkpoint(FAMILY, config, state, carried_files(path), unused, source)


_LEAVES = ("weight", "bias")


def _modern(name: str) -> str:
    """Old files call a norm's weight gamma and its bias beta."""
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def _task_of(settings: dict[str, Any], path: Path) -> str:
    """The task of the class that saved the checkpoint, from config.json's `architectures`."""
    named = settings.get("architectures") or ["Model"]
    name = str(named[0]) if isinstance(named, list) else str(named)
    for ending, task in TASKS.items():
        if name.endswith(ending):
            return task
    raise CheckpointError(f"{path}: {name} is not supported; name a --task (embed, fill-mask, classify) to read part")


def _config(path: Path, settings: dict[str, Any], kind: Kind, task: str, tensors: dict[str, torch.Tensor]) -> Config:
    where = path / "config.json"
    for key, usual in (("is_decoder", False), ("add_cross_attention", False), ("position_embedding_type", "absolute")):
        if settings.get(key) not in (None, usual):
            raise CheckpointError(f"{where}: {key} {settings[key]!r} is not supported")
    needed = [*kind.settings.values(), "vocab_size", "max_position_embeddings"]
    needed += ["pad_token_id"] if kind.position_rule == "tokens" else []
    lacking = [key for key in needed if settings.get(key) is None]
    if lacking:
        raise CheckpointError(f"{where} lacks {', '.join(lacking)}")
    values = {ours: settings[theirs] for ours, theirs in kind.settings.items()}
    if values["activation"] not in ACTIVATIONS:
        raise CheckpointError(f"{where}: activation {values['activation']!r} is not one of {', '.join(ACTIVATIONS)}")
    values["activation"] = ACTIVATIONS[values["activation"]]
    values |= {"vocab_size": settings["vocab_size"], "max_positions": settings["max_position_embeddings"]}
    values |= {"position_rule": kind.position_rule, "pad_token_id": settings.get("pad_token_id") or 0, "task": task}
    if task == "embed":
        recipe = _pooling(path)
        values |= recipe or {"pooler": "head.pooler" in kind.heads["embed"] and "pooler.dense.weight" in tensors}
    elif task == "fill-mask":
        # RoBERTa's head has GELU whatever the layers have; the others follow hidden_act.
        fixed = settings["model_type"] == "roberta"
        values["head_activation"] = "gelu" if fixed else values["activation"]
        values["tied_decoder"] = settings.get("tie_word_embeddings", True) and not _own_decoder(kind, tensors)
    try:
        if task == "classify":
            values |= {"head_activation": kind.classifier_activation, **labels(settings)}
        return Config(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def labels(settings: dict[str, Any]) -> dict[str, Any]:
    """Class names and whether one, several or a number is asked for; `transformers` defaults to two classes."""
    count = settings.get("num_labels", 2)
    if type(count) is not int or not 0 < count <= MAX_LABELS:
        raise ValueError(f"num_labels is {count!r}; it must be a whole number from 1 to {MAX_LABELS}")
    names = settings.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
    problem = settings.get("problem_type") or ("regression" if len(names) == 1 else "single_label")
    if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
        raise ValueError(f"id2label {names!r} is not an object of class numbers and names")
    found = tuple(names[key] for key in sorted(names, key=int))
    if len(set(found)) != len(found):
        raise ValueError(f"id2label gives one name to several classes: {', '.join(map(str, found))}")
    return {"labels": found, "problem": PROBLEMS.get(problem, problem)}


def _own_decoder(kind: Kind, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the file has a decoder of other values than the embeddings that its configuration ties it to."""
    own = tensors.get(f"{kind.heads['fill-mask']['head.decoder']}.weight")
    table = tensors.get("embeddings.word_embeddings.weight")
    return own is not None and table is not None and not torch.equal(own, table)


def _pooling(path: Path) -> dict[str, Any]:
    """How the folder's sentence embeddings are pooled, {} where it does not say."""
    file = path / "1_Pooling" / "config.json"
    if not file.exists():
        return {}
    modes = {key for key, on in read_json(file).items() if key.startswith("pooling_mode_") and on is True}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or not modes <= known.keys():
        raise CheckpointError(f"{file}: pooling {', '.join(sorted(modes)) or 'of no kind'} is not supported")
    modules = path / "modules.json"
    if not modules.exists():
        return {"pooling": known[modes.pop()], "normalize": True}
    try:
        steps = [str(step["type"]).rpartition(".")[2] for step in load_json(modules)]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{modules} is not a list of steps with their types: {error}") from None
    others = [step for step in steps if step not in ("Transformer", "Pooling", "Normalize")]
    if others:
        raise CheckpointError(f"{modules}: the step {', '.join(others)} is not supported")
    return {"pooling": known[modes.pop()], "normalize": "Normalize" in steps}
