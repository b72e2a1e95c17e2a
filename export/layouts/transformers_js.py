"""A model folder of transformers.js (https://huggingface.co/docs/transformers.js).

onnx/model.onnx is the canonical graph, onnx/model_quantized.onnx and onnx/model_q4.onnx the variants in 8 and 4 bits:
the library's dtypes fp32, q8 and q4. A decoder's logits_positions becomes num_logits_to_keep, which the library feeds.
"""

import json
from functools import partial
from pathlib import Path

import onnx_ir as ir

from isoformer.export.errors import ExportError
from isoformer.export.layouts.choice import Choice
from isoformer.export.layouts.decoders import (
    Builder,
    growing_cache,
    is_shared,
    named,
    path_of,
    refuse_others,
    replace_positions,
    whole_prompts,
)
from isoformer.export.layouts.files import TEXT_FILES, carry, place
from isoformer.runtime.chat import template_file
from isoformer.runtime.forms import read_object, shown
from isoformer.runtime.package import Package
from isoformer.runtime.text import CONFIG

LAYOUT = "transformers.js"
ENCODER_TASKS = ("embed", "classify", "fill-mask")
ENCODER_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized", "int4": "_q4"}


def write(package: Package, folder: Path, choice: Choice) -> None:
    """Fills the folder. Raises ExportError for a task or inputs that the library does not know."""
    _refuse_others(package)
    decoder = package.task["name"] == "generate"
    graphs = _graphs(package, choice.precision)
    outside = {}
    for precision, variant in graphs.items():
        target = folder / "onnx" / f"model{SUFFIXES[precision]}.onnx"
        edit = partial(kept_logits, shared=is_shared(package, variant)) if decoder else None
        if place(package, path_of(package, variant), target, edit):
            outside[target.name] = 1
    _write_config(package, folder, outside)
    carry(package, folder, tuple(name for name in TEXT_FILES if name != CONFIG))
    _write_tokenizer_config(package, folder)


def _refuse_others(package: Package) -> None:
    task = package.task.get("name")
    if task == "generate":
        refuse_others(package, LAYOUT)
    elif task not in ENCODER_TASKS:
        raise ExportError(
            f"the layout {LAYOUT} takes {', '.join(ENCODER_TASKS)} and generate; {package.path} is {task}"
        )
    else:
        foreign = [spec.name for spec in package.signature.inputs if spec.name not in ENCODER_INPUTS]
        if foreign:
            raise ExportError(f"{LAYOUT} does not feed {', '.join(foreign)}, which {package.path} has")
    for name in ("config.json", "tokenizer.json"):
        if not package.has(name):
            raise ExportError(f"{package.path} has no {name}, which {LAYOUT} reads; export it from a checkpoint")


def _graphs(package: Package, precision: str | None) -> dict[str, str | None]:
    """Precision → variant; the canonical graph, which every provider runs, for its own."""
    if precision is not None:
        package.refuse_precision("cpu", precision)
    own = package.manifest["precision"]
    found: dict[str, str | None] = {own: None}
    found |= {name: f"cpu-{name}" for name in SUFFIXES if name != own and f"cpu-{name}" in package.variants}
    wanted = own if precision is None else precision
    if wanted not in found or wanted not in SUFFIXES:
        raise ExportError(f"{package.path} has no graph of precision {shown(wanted)} that {LAYOUT} has a name for")
    if precision is not None:
        return {precision: found[precision]}
    return {name: one for name, one in found.items() if one is None or "cache_dtype" not in package.variant(one)}


def _write_config(package: Package, folder: Path, outside: dict[str, int]) -> None:
    config = read_object(package.file("config.json"))
    if outside:
        config["transformers.js_config"] = {"use_external_data_format": outside}
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _write_tokenizer_config(package: Package, folder: Path) -> None:
    """The library opens no tokenizer without the file, and looks for the chat template in it alone."""
    template = template_file(package)
    if template is None and package.has(CONFIG):
        carry(package, folder, (CONFIG,))
        return
    config = read_object(package.file(CONFIG)) if package.has(CONFIG) else {}
    if template is not None:
        config["chat_template"] = template
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def kept_logits(model: ir.Model, *, shared: bool) -> None:
    """Logits of the last `num_logits_to_keep` () places of the input, of all for 0.

    shared: GroupQueryAttention, which knows lengths alone: a mask with a 0 before a 1 asks for a place outside the
    input, so that the runtime fails where it would compute something else.
    """
    graph = model.graph
    if shared:
        growing_cache(graph)
        whole_prompts(graph)
    if not any(value.name == "logits_positions" for value in graph.inputs):
        return
    wanted = ir.Value(name="num_logits_to_keep", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    graph.inputs.append(wanted)
    build = Builder(graph)
    ids = named(graph, "input_ids")
    length = build("Squeeze", build("Shape", ids, start=1, end=2))
    all_of_them = build("Equal", wanted, 0)
    count = build("Min", build("Where", all_of_them, length, wanted), length)
    places = build("Range", build("Sub", length, count), length, 1)
    shape = build("Concat", build("Shape", ids, start=0, end=1), build("Shape", places), axis=0)
    positions = build("Expand", places, shape)
    if shared:
        mask = named(graph, "attention_mask")
        earlier, later = build("Slice", mask, [0], [-1], [1]), build("Slice", mask, [1], [2**31 - 1], [1])
        wrong = build("ReduceSum", build("Cast", build("Less", earlier, later), to=7), [1], keepdims=1)
        positions = build("Add", positions, build("Mul", wrong, length))
    replace_positions(graph, build, positions, "num_logits")
