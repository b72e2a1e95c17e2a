import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoformer.models import checkpoints
from isoformer.models.checkpoints import CheckpointError
from isoformer.models.checkpoints.decoder import KINDS
from isoformer.models.positions import LinearScaling
from tests.models.checkpoints.decoders import (
    CASES,
    LLAMA3,
    MASKS,
    SPLIT,
    assert_same,
    float64_throughout,
    inputs,
    our_logits,
    read_model,
    theirs,
)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[Any, Path]:
    model = theirs(request.param)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


def edit(folder: Path, **settings: Any) -> Path:
    """config.json with other settings; ... removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def saved(name: str, folder: Path, **changes: Any) -> Path:
    theirs(name, **changes).save_pretrained(folder)
    return folder


def refusal(path: Path, task: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path, task)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# the answers of transformers


@pytest.mark.parametrize("splits", [(), (SPLIT,)], ids=["whole", "two chunks"])
@pytest.mark.parametrize("side", MASKS)
def test_logits(case, side, splits):
    model, path = case
    assert_same(model, path, side, splits)


@pytest.mark.parametrize("side", MASKS)
def test_what_the_masks_hide(case, side):
    """A window, a causal mask or padding that did nothing would make the comparison above say less than it seems to."""
    feeds, model = inputs(side), read_model(case[1])
    one = our_logits(model, feeds)
    feeds["input_ids"][:, 4] = (feeds["input_ids"][:, 4] + 1) % 101
    changed = (our_logits(model, feeds) - one).abs().amax(-1) > 0
    assert not changed[:, :4].any()
    assert changed[0, 4]


def test_a_checkpoint_that_was_saved_in_half_precision(tmp_path):
    model = theirs("qwen3")
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    model.save_pretrained(tmp_path, state_dict={name: t.bfloat16() for name, t in model.state_dict().items()})
    assert load_file(tmp_path / "model.safetensors").popitem()[1].dtype == torch.bfloat16
    assert_same(model, tmp_path)


def test_shards(tmp_path):
    model = theirs("llama")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_same(model, tmp_path)


@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_saved_without_the_head(tmp_path, name):
    model = theirs(name)
    prefix = "transformer" if name == "gpt2" else "model"
    getattr(model, prefix).save_pretrained(tmp_path)
    assert not any(tensor.startswith(prefix) for tensor in load_file(tmp_path / "model.safetensors"))
    assert_same(model, tmp_path)


def test_a_head_of_its_own_beside_the_table_that_it_is_tied_to(tmp_path):
    theirs("llama, tied").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, tmp_path / "model.safetensors")
    assert checkpoints.read(tmp_path).config.tied_embeddings
    save_file(tensors | {"lm_head.weight": table.flip(0)}, tmp_path / "model.safetensors")
    assert not checkpoints.read(tmp_path).config.tied_embeddings
    with float64_throughout():
        assert_same(transformers.LlamaForCausalLM.from_pretrained(tmp_path).double().requires_grad_(False), tmp_path)


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gpt2", ["transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"]),
    ],
)
def test_buffers_of_older_versions_are_passed_over(tmp_path, name, buffers):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {buffer: torch.tensor(float("nan")) for buffer in buffers})
    assert_same(model, tmp_path)


# settings


@pytest.mark.parametrize("name", ["llama, base", "llama, linear", "llama, yarn", "llama, llama3"])
def test_rotary_settings_as_before_transformers_5(tmp_path, name):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    old = dict(CASES[name][1]["rope_parameters"])
    base, kind = old.pop("rope_theta"), old.pop("rope_type")
    scaling = None if kind == "default" else {"type": kind, **old}
    edit(tmp_path, rope_parameters=..., rope_theta=base, rope_scaling=scaling)
    assert_same(model, tmp_path)


@pytest.mark.parametrize(
    ("name", "silent"),
    [
        ("llama, heads of hidden / num_heads", ["head_dim", "hidden_act", "attention_bias", "mlp_bias"]),
        ("llama, as many keys as queries", ["num_key_value_heads", "rope_parameters", "tie_word_embeddings"]),
        ("qwen2, window", ["layer_types", "tie_word_embeddings"]),
        ("gpt2", ["n_inner", "activation_function", "scale_attn_weights", "tie_word_embeddings"]),
    ],
)
def test_settings_that_are_left_out(tmp_path, name, silent):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    edit(tmp_path, **dict.fromkeys(silent, ...))
    assert_same(model, tmp_path)


def test_defaults_are_those_of_transformers(tmp_path):
    for name in ("Mistral", "Qwen2", "Qwen3"):
        theirs_, ours = getattr(transformers, f"{name}Config")(), KINDS[name.lower()].defaults
        have = {key: getattr(theirs_, key, False) for key in ours if key != "sliding_window"}
        assert have == {key: value for key, value in ours.items() if key != "sliding_window"}
    path = edit(saved("mistral", tmp_path), sliding_window=...)
    assert checkpoints.read(path).config.sliding_window == transformers.MistralConfig().sliding_window == 4096


def test_what_a_checkpoint_tells(tmp_path):
    path = saved("llama, linear", tmp_path / "tiny")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    checkpoint = checkpoints.read(path, "generate")
    assert checkpoint.family == "decoder"
    assert checkpoint.config.rotary_scaling == LinearScaling(2.5)
    assert checkpoint.source == {"name": "tiny", "model_type": "llama"}
    carried = ("config.json", "generation_config.json", "chat_template.jinja")
    assert checkpoint.files == tuple(path / name for name in carried)


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ("gpt2", {"n_head": ...}, "lacks n_head"),
        ("gpt2", {"n_embd": "33"}, "hidden_size is '33'"),
        ("gpt2", {"n_embd": 10**30}, "config.json"),
        ("gpt2", {"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'; it must be a positive number"),
        ("gpt2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ("llama", {"num_hidden_layers": 900}, "900 layers, and there are 30 tensors"),
        ("llama", {"num_hidden_layers": ..., "rms_norm_eps": None}, "lacks num_hidden_layers, rms_norm_eps"),
        ("llama", {"num_key_value_heads": 4}, "num_heads 6 is not a multiple of num_kv_heads 4"),
        ("llama", {"num_key_value_heads": 0}, "num_kv_heads is 0"),
        ("llama", {"head_dim": 9}, "rotary_dim 9 is not an even number"),
        ("llama", {"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not one of gelu,"),
        ("llama", {"hidden_act": ["silu"]}, "config.json"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rope_type 'longrope' is not one of"),
        ("llama", {"rope_parameters": LLAMA3 | {"mscale": 2}}, "rope_type 'llama3' does not have mscale"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "not one rule for all layers"),
        ("llama", {"rope_parameters": [1]}, "not one rule for all layers"),
        ("llama", {"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta is nan"),
        ("llama", {"rope_parameters": {"rope_theta": 0.5}}, "base is 0.5; it must be above 1"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not supported"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["chunked_attention"] * 3},
            "layer_types",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention"]},
            "window_layers has 1 entries",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": None, "max_window_layers": "2"},
            "config.json",
        ),
    ],
    ids=str,
)
def test_settings_that_are_refused_by_name(tmp_path, name, settings, named):
    message = refusal(edit(saved(name, tmp_path), **settings))
    assert named in message
    assert str(tmp_path / "config.json") in message


def test_another_task(tmp_path):
    assert "task 'embed' is not generate" in refusal(saved("llama", tmp_path), "embed")


# tensors


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "lm_head.weight"),
        ("llama", "model.layers.1.self_attn.k_proj.weight"),
        ("llama, biases", "model.layers.2.mlp.up_proj.bias"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("gpt2", "transformer.wpe.weight"),
        ("gpt2", "transformer.h.1.mlp.c_fc.bias"),
    ],
)
def test_a_tensor_that_is_missing_of_another_shape_or_unknown(tmp_path, name, tensor):
    path = saved(name, tmp_path)
    whole = load_file(path / "model.safetensors")
    save_file({n: t for n, t in whole.items() if n != tensor}, path / "model.safetensors")
    assert refusal(path) == f"{path} lacks the tensor {tensor}"
    save_file(whole | {tensor: whole[tensor][:-1].clone()}, path / "model.safetensors")
    assert re.search(rf"has the tensor {re.escape(tensor)} of shape .* where config.json asks for", refusal(path))
    save_file(whole | {f"{tensor}.extra": torch.zeros(1)}, path / "model.safetensors")
    assert refusal(path) == f"{path} has the unknown tensor {tensor}.extra"


def test_the_parts_of_gpt2s_attention_are_named(tmp_path):
    path, name = saved("gpt2", tmp_path), "transformer.h.0.attn.c_attn.weight"
    rewrite(path, lambda tensors: tensors | {name: torch.zeros(33, 96)})
    assert f"tensors {name} (query) of shape (32, 33) where config.json asks for (33, 33), {name} (" in refusal(path)
    rewrite(path, lambda tensors: tensors | {name: torch.zeros(33, 98)})
    assert f"{name} of shape (98, 33) is not queries, keys and values" in refusal(path)
    rewrite(path, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    assert f"lacks the tensors {name} (key), {name} (query), {name} (value)" in refusal(path)


def test_an_own_bias_that_the_configuration_does_not_have(tmp_path):
    path = edit(saved("llama, attention biases", tmp_path), attention_bias=False)
    assert "has the unknown tensors model.layers.0.self_attn.k_proj.bias, " in refusal(path)
