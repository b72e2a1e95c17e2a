"""The tokenizer in a GGUF file's metadata → tokenizer.json and tokenizer_config.json.

Sources: the keys of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the pre-tokenizers by the
names that llama.cpp gives them (llama-vocab.cpp), as the models' own tokenizer.json have them.
"""

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from isoformer.models.checkpoints import CheckpointError
from isoformer.models.checkpoints.gguf_file import GGUFFile

PREFIX = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4  # token types
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # the Hugging Face name → the file's
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(numbers: str) -> PreTokenizer:
    words = Split(Regex(_WORDS % numbers), "isolated")
    return Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])


# By the name in tokenizer.ggml.pre.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "qwen2": _split(r"\p{N}"),
    "llama-bpe": _split(r"\p{N}{1,3}"),
}


def special_ids(file: GGUFFile, settings: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json: the ids of the tokens that begin, end and pad; several may end."""
    ids = {name: _id(file, settings, name) for name in ("bos", "eos", "eot", "eom", "padding")}
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    found = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids["padding"],
    }
    return {key: value for key, value in found.items() if value is not None}


def to_json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def tokenizer_files(file: GGUFFile, settings: dict[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The two files' content by name, or none and a note of the reason.

    Raises CheckpointError for a tokenizer that contradicts itself or does not fit the model.
    """
    kind, pre = file.metadata.get(f"{PREFIX}model"), str(file.metadata.get(f"{PREFIX}pre"))
    for key, value, known in (("model", kind, ["gpt2"]), ("pre", pre, [*PRE_TOKENIZERS])):
        if value not in known:
            reason = f"{PREFIX}{key} {value!r} is not one of {', '.join(known)}"
            return {}, (f"the package takes token ids, not text: the tokenizer is not converted, {reason}",)
    tokens = _list(file, "tokens", str)
    if len(set(tokens)) != len(tokens) or len(tokens) > settings["vocab_size"]:
        raise file.error(f"its {len(tokens)} tokens are not different ones for {settings['vocab_size']} embeddings")
    ids = {name: _id(file, settings, key) for name, key in SPECIAL.items()}
    names = {name: tokens[number] for name, number in ids.items() if number is not None and number < len(tokens)}
    added = [name for name in ("bos", "eos") if _flag(file, f"add_{name}_token", name == "bos" and pre == "llama-bpe")]
    if any(name not in names for name in added):
        raise file.error(f"it adds a token to every text and does not say which: {', '.join(added)}")
    config = {f"{name}_token": token for name, token in names.items()}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": "bos" in added,
        "add_eos_token": "eos" in added,
        "clean_up_tokenization_spaces": False,
    }
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    try:
        tokenizer = _tokenizer(file, pre, tokens)
        if added:
            before, after = ([names[name]] if name in added else [] for name in ("bos", "eos"))
            special = [(names[name], tokens.index(names[name])) for name in added]
            whole: Any = processors.TemplateProcessing([*before, "$A", *after], special_tokens=special)
            tokenizer.post_processor = whole
        return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": to_json(config)}, ()
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        raise file.error(f"its tokenizer: {' '.join(str(error).split())}") from None


def _tokenizer(file: GGUFFile, pre: str, tokens: list[str]) -> Tokenizer:
    types = _list(file, "token_type", int) if f"{PREFIX}token_type" in file.metadata else [1] * len(tokens)
    if len(types) != len(tokens):
        raise file.error(f"it has {len(types)} types of {len(tokens)} tokens")
    merges = []
    for merge in _list(file, "merges", str):
        first, _, second = merge[1:].partition(" ")  # a space in front is a token's own
        merges.append((merge[:1] + first, second))
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer: Any = Tokenizer(BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    for kind in (CONTROL, USER_DEFINED):
        chosen = [token for token, its_kind in zip(tokens, types, strict=True) if its_kind == kind]
        tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token in chosen])
    return tokenizer


def _list(file: GGUFFile, name: str, kind: type) -> list[Any]:
    values = file.metadata.get(PREFIX + name)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise file.error(f"{PREFIX}{name} is not a list of {kind.__name__}")
    return values


def _flag(file: GGUFFile, name: str, default: bool) -> bool:
    value = file.metadata.get(PREFIX + name, default)
    if type(value) is not bool:
        raise file.error(f"{PREFIX}{name} is {value!r}; it must be true or false")
    return value


def _id(file: GGUFFile, settings: dict[str, Any], name: str) -> int | None:
    value = file.metadata.get(f"{PREFIX}{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < settings["vocab_size"]:
        raise file.error(f"{PREFIX}{name}_token_id {value!r} is not one of {settings['vocab_size']} tokens")
    return value
