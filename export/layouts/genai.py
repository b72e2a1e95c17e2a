"""A model folder of onnxruntime-genai: its configuration, one graph, the tokenizer.

The graph's logits are those of the last token of each sequence. A cache written in place is what
`past_present_share_buffer` asks for; the canonical graph's cache grows.
Source: https://onnxruntime.ai/docs/genai/reference/config.html
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from isoformer.export.errors import ExportError
from isoformer.export.layouts.choice import Choice
from isoformer.export.layouts.decoders import (
    Builder,
    is_shared,
    named,
    path_of,
    refuse_others,
    replace_positions,
    sizes,
    whole_prompts,
)
from isoformer.export.layouts.files import TEXT_FILES, carry, place
from isoformer.runtime.detokenizer import configured
from isoformer.runtime.forms import read_object
from isoformer.runtime.package import Package
from isoformer.runtime.text import CONFIG, TOKENIZER, read_tokenizer


def write(package: Package, folder: Path, choice: Choice) -> None:
    """Fills the folder. Raises ExportError for what is not a decoder."""
    refuse_others(package, "genai")
    variant = package.fastest("cpu", choice.precision)
    shared = is_shared(package, variant)
    place(package, path_of(package, variant), folder / "model.onnx", partial(last_logits, padded_right=shared))
    carry(package, folder, TEXT_FILES)
    text = json.dumps(config(package, shared), indent=1, ensure_ascii=False)
    (folder / "genai_config.json").write_text(text + "\n", encoding="utf-8")


def last_logits(model: ir.Model, *, padded_right: bool) -> None:
    """Logits (B, 1, vocabulary): of the last token of each row, which stands before its padding on the right."""
    graph = model.graph
    whole_prompts(graph)
    if not any(value.name == "logits_positions" for value in graph.inputs):
        return
    build = Builder(graph)
    length = build("Shape", named(graph, "input_ids"), start=1, end=2)
    if padded_right:
        mask = named(graph, "attention_mask")
        recent = build("Slice", mask, build("Neg", length), [2**31 - 1], [1])  # of the tokens of this call
        positions = build("Sub", build("ReduceSum", recent, [1], keepdims=1), 1)
    else:
        batch = build("Shape", named(graph, "input_ids"), start=0, end=1)
        positions = build("Expand", build("Sub", length, 1), build("Concat", batch, [1], axis=0))
    replace_positions(graph, build, positions, 1)


def config(package: Package, shared: bool) -> dict[str, Any]:
    """genai_config.json."""
    found = sizes(package)
    ends = configured(package, "eos_token_id") or _own_end(package)
    edge = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    return {
        "model": {
            "type": "llama",
            "context_length": found.max_positions,
            "vocab_size": found.vocab_size,
            "bos_token_id": (*configured(package, "bos_token_id"), ends[0])[0],
            "eos_token_id": list(ends),
            "pad_token_id": (*configured(package, "pad_token_id"), ends[0])[0],
            "decoder": {
                "filename": "model.onnx",
                "head_size": found.head_dim,
                "hidden_size": found.hidden_size,
                "num_attention_heads": found.num_heads,
                "num_hidden_layers": found.num_layers,
                "num_key_value_heads": found.num_kv_heads,
                "inputs": {name: name for name in ("input_ids", "attention_mask", "position_ids")} | edge,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "session.set_denormal_as_zero": "1",
                    "provider_options": [],
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": found.max_positions,
            "num_beams": 1,
            "past_present_share_buffer": shared,
        },
    }


def _own_end(package: Package) -> tuple[int, ...]:
    """The token that tokenizer_config.json names as the last. Raises ExportError without one."""
    token = read_object(package.file(CONFIG)).get("eos_token") if package.has(CONFIG) else None
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str) and package.has(TOKENIZER):
        number = read_tokenizer(package.file(TOKENIZER)).token_to_id(token)
        if number is not None:
            return (number,)
    raise ExportError(
        f"{package.path} does not say which token ends a text; put eos_token_id into generation_config.json"
    )
