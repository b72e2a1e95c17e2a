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
from isoformer.models.checkpoints.encoder_decoder import KINDS
from tests.models.checkpoints.decoders import float64_throughout
from tests.models.checkpoints.encoder_decoders import (
    CASES,
    T5_SIZES,
    VOCABULARY,
    assert_same,
    inputs,
    our_answers,
    read_model,
    their_answers,
    theirs,
)

STEPS = tuple(range(1, 11))


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[Any, Path]:
    model = theirs(request.param)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


def saved(name: str, folder: Path, **changes: Any) -> Path:
    theirs(name, **changes).save_pretrained(folder)
    return folder


def edit(file: Path, **settings: Any) -> Path:
    """The JSON file with other settings, ... removing one; returns its folder."""
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return file.parent


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)
    return folder


def refusal(path: Path, task: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path, task)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# the answers of transformers


@pytest.mark.parametrize("splits", [(), (4, 9), STEPS], ids=["whole", "three chunks", "each step"])
def test_answers(case, splits):
    model, path = case
    assert_same(model, path, splits)


def test_each_step_of_both_caches(case):
    """Their own cache, a token a step, rather than one pass of theirs."""
    model, path = case
    feeds = inputs(targets=[[1] * 11] * 3)
    _, have = our_answers(read_model(path), feeds, STEPS)
    with float64_throughout():
        known, past = model.get_encoder()(feeds["input_ids"], feeds["attention_mask"]), None
        for step in range(11):
            made = model(
                encoder_outputs=known,
                attention_mask=feeds["attention_mask"],
                decoder_input_ids=feeds["decoder_input_ids"][:, step : step + 1],
                past_key_values=past,
                use_cache=True,
            )
            past = made.past_key_values
            torch.testing.assert_close(have[:, step : step + 1], made.logits, atol=1e-9, rtol=0)


def test_in_float32(case):
    model, path = case
    feeds = inputs()
    ours: Any = checkpoints.read(path).model().requires_grad_(False)
    for have, want in zip(our_answers(ours, feeds), their_answers(model, feeds), strict=True):
        mask = feeds["attention_mask"] if have.shape[1] == 13 else feeds["decoder_attention_mask"]
        assert have.dtype == torch.float32
        torch.testing.assert_close(have[mask == 1].double(), want[mask == 1], atol=1e-4, rtol=0)


def test_what_the_masks_hide(case):
    """Padding or a causal mask that did nothing would make the comparisons above say less than they seem to."""
    feeds, model = inputs(), read_model(case[1])
    whole = our_answers(model, feeds)
    for name, place in (("input_ids", 10), ("decoder_input_ids", 5)):
        other = {**feeds, name: feeds[name].clone()}
        other[name][:, place] = (other[name][:, place] + 1) % VOCABULARY
        moved = [(one - two).abs().amax(-1) > 1e-9 for one, two in zip(whole, our_answers(model, other), strict=True)]
        if name == "input_ids":  # a place that only the first row has
            assert moved[0][0].all()
            assert moved[1][0].all()
            assert not moved[0][1, :8].any()
            assert not moved[1][1:].any()
        else:
            assert not moved[0].any()
            assert not moved[1][:, :5].any()
            assert moved[1][:2, 5].all()


@pytest.mark.parametrize("name", ["t5", "t5 1.1"])
def test_distances_beyond_every_bucket(tmp_path, name):
    """In their float32: at distances of a power of two the logarithm in float64 may fall into the next bucket."""
    model, length = theirs(name), 150
    model.save_pretrained(tmp_path)
    feeds = inputs([[1] * length], [[1] * length])
    want, have = model.float()(**feeds), our_answers(checkpoints.read(tmp_path).model(), feeds)
    torch.testing.assert_close(have[0], want.encoder_last_hidden_state, atol=2e-4, rtol=0)
    torch.testing.assert_close(have[1], want.logits, atol=2e-4, rtol=0)


def test_t5_1_1_scales_nothing_in_front_of_its_head(tmp_path):
    for name, scale in (("t5", 37**-0.5), ("t5 1.1", None), ("mt5", None)):
        saved(name, tmp_path / name)
        assert checkpoints.read(tmp_path / name).config.logit_scale == scale
    # Files from before transformers 5 have no other sign of it.
    path = edit(tmp_path / "t5 1.1" / "config.json", scale_decoder_outputs=..., tie_word_embeddings=False)
    rewrite(path, lambda tensors: tensors | {"lm_head.weight": tensors["shared.weight"].flip(0)})
    config = checkpoints.read(path).config
    assert config.logit_scale is None
    assert not config.tied_embeddings
    with float64_throughout():
        model = transformers.T5ForConditionalGeneration.from_pretrained(path, attn_implementation="eager").double()
    assert_same(model.requires_grad_(False), path)


@pytest.mark.parametrize("name", ["marian", "bart", "t5 1.1", "mt5"])
def test_a_head_of_its_own(tmp_path, name):
    model = theirs(name, own_head=True)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": model.lm_head.weight.float()})
    assert not checkpoints.read(tmp_path).config.tied_embeddings
    assert_same(model, tmp_path)


@pytest.mark.parametrize("name", ["marian", "mbart", "t5"])
def test_copies_of_the_table(tmp_path, name):
    model, prefix = theirs(name), "" if name == "t5" else "model."
    model.save_pretrained(tmp_path)
    names = (f"{prefix}encoder.embed_tokens.weight", f"{prefix}decoder.embed_tokens.weight", "lm_head.weight")
    table = load_file(tmp_path / "model.safetensors")[f"{prefix}shared.weight"]
    rewrite(tmp_path, lambda tensors: tensors | {copy: table.clone() for copy in names})
    assert checkpoints.read(tmp_path).config.tied_embeddings
    assert_same(model, tmp_path)
    rewrite(tmp_path, lambda tensors: {key: t for key, t in tensors.items() if key != f"{prefix}shared.weight"})
    assert_same(model, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {names[1]: table.flip(0)})
    assert f"{names[0]} and {names[1]} differ" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_saved_without_the_head(tmp_path, name):
    kind = {"bart": transformers.BartModel, "t5": transformers.T5Model}[name]
    model = theirs(name)
    model.save_pretrained(tmp_path / "whole")
    kind.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "body")
    assert not any(tensor.startswith("model.") for tensor in load_file(tmp_path / "body/model.safetensors"))
    if name == "bart":
        assert not checkpoints.read(tmp_path / "body").config.logit_bias
        model.final_logits_bias.zero_()
    assert_same(model, tmp_path / "body")
    missing = "encoder.final_layer_norm.weight" if name == "t5" else "encoder.layers.1.fc1.bias"
    rewrite(tmp_path / "body", lambda tensors: {key: t for key, t in tensors.items() if key != missing})
    assert refusal(tmp_path / "body") == f"{tmp_path / 'body'} lacks the tensor {missing}"


def test_positions_that_marian_computes_are_passed_over_if_they_are_those(tmp_path):
    model = theirs("marian")
    model.save_pretrained(tmp_path)
    names = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
    table = model.model.encoder.embed_positions.weight
    rewrite(tmp_path, lambda tensors: tensors | {name: table.half() for name in names})
    assert_same(model, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {names[1]: table.flip(0).contiguous()})
    assert f"{names[1]} does not hold the sinusoids" in refusal(tmp_path)


def test_a_bias_that_older_t5_files_have_and_nothing_reads(tmp_path):
    model, name = theirs("t5"), "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {name: torch.full((32, 3), 5.0)})
    assert checkpoints.read(tmp_path).unused == (name,)
    assert_same(model, tmp_path)


# settings


@pytest.mark.parametrize(
    ("name", "silent"),
    [
        ("bart", ["activation_function", "scale_embedding", "tie_word_embeddings"]),
        ("marian, other heads", ["activation_function", "scale_embedding", "share_encoder_decoder_embeddings"]),
        ("t5", ["feed_forward_proj", "relative_attention_num_buckets", "relative_attention_max_distance"]),
        ("t5", ["is_gated_act", "dense_act_fn", "scale_decoder_outputs", "tie_word_embeddings"]),
        ("t5, as deep", ["num_decoder_layers"]),
    ],
)
def test_settings_that_are_left_out(tmp_path, name, silent):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **dict.fromkeys(silent, ...))
    assert_same(model, tmp_path)


def test_defaults_are_those_of_transformers():
    for name, config in (
        ("marian", transformers.MarianConfig()),
        ("bart", transformers.BartConfig()),
        ("mbart", transformers.MBartConfig()),
        ("t5", transformers.T5Config()),
        ("mt5", transformers.MT5Config()),
    ):
        defaults = {key: value for key, value in KINDS[name].defaults.items() if key != "n_positions"}
        assert defaults == {key: getattr(config, key) for key in defaults}


def test_t5s_positions_are_those_it_was_trained_for_and_can_be_more(tmp_path):
    saved("t5", tmp_path)
    assert checkpoints.read(tmp_path).config.max_positions == 512
    checkpoint = checkpoints.read(edit(tmp_path / "config.json", n_positions=97))
    assert checkpoint.config.max_positions == 97
    longer: Any = checkpoint.model(max_positions=1024)
    assert longer.config.max_positions == 1024


def test_what_a_checkpoint_tells(tmp_path):
    path = saved("marian", tmp_path / "tiny")
    (path / "vocab.json").write_text("{}")
    checkpoint = checkpoints.read(path, "translate")
    assert checkpoint.family == "encoder_decoder"
    assert checkpoint.source == {"name": "tiny", "model_type": "marian", "unused_tensors": []}
    assert checkpoint.files == (path / "config.json", path / "generation_config.json")
    assert checkpoint.notes == ("tiny has no tokenizer.json: the package will take no text until one is saved there",)
    (path / "tokenizer.json").write_text("{}")
    checkpoint = checkpoints.read(path)
    assert checkpoint.notes == ()
    assert path / "tokenizer.json" in checkpoint.files


IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id")


@pytest.mark.parametrize(
    ("generation", "settings", "expected"),
    [
        ({}, {}, (7, 5, 3, None, None, ())),  # config.json names them, and no forced ones
        ({"eos_token_id": [11], "forced_eos_token_id": [11]}, {}, (7, 11, 3, None, 11, ())),
        ({"forced_bos_token_id": 13, "pad_token_id": 17}, {"forced_bos_token_id": 19}, (7, 5, 17, 13, None, ())),
        ({}, {"forced_bos_token_id": 19, "forced_eos_token_id": 23}, (7, 5, 3, None, None, ())),
        (None, {"forced_bos_token_id": 19, "forced_eos_token_id": 23}, (7, 5, 3, 19, 23, ())),
        (None, {"bad_words_ids": [[3], [29]]}, (7, 5, 3, None, None, (3, 29))),
        ({"bad_words_ids": [[3], [5]], "suppress_tokens": [31, 3]}, {}, (7, 5, 3, None, None, (3, 31))),
        ({"bos_token_id": 2}, {}, (2, 5, 3, None, None, ())),
        ({"bos_token_id": 2, "decoder_start_token_id": 4}, {}, (4, 5, 3, None, None, ())),
        (None, {"pad_token_id": None}, (7, 5, 5, None, None, ())),
    ],
    ids=str,
)
def test_the_tokens_of_an_answer(tmp_path, generation, settings, expected):
    path = saved("bart", tmp_path)
    edit(path / "config.json", **{"forced_eos_token_id": ..., "bos_token_id": ...} | settings)
    (path / "generation_config.json").unlink()
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    config = checkpoints.read(path).config
    assert (*(getattr(config, name) for name in IDS), config.suppressed_tokens) == expected
    theirs_ = transformers.BartForConditionalGeneration.from_pretrained(path).generation_config
    for name in IDS[3:]:
        value = getattr(theirs_, name)
        assert getattr(config, name) == (value[0] if isinstance(value, list) else value)


def test_what_steers_a_search_and_is_not_carried_over(tmp_path):
    path = saved("bart", tmp_path)
    (path / "tokenizer.json").write_text("{}")
    edit(path / "generation_config.json", min_length=56, no_repeat_ngram_size=3, repetition_penalty=1.0)
    note = "generation_config.json: the package leaves to its user min_length 56, no_repeat_ngram_size 3"
    assert checkpoints.read(path).notes == (note,)


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings False is not"),
        ("marian", {"normalize_before": True}, "normalize_before True is not supported"),
        ("marian", {"static_position_embeddings": False}, "static_position_embeddings False is not supported"),
        ("marian", {"decoder_vocab_size": 100}, "decoder_vocab_size 100 is not vocab_size"),
        ("marian", {"encoder_attention_heads": 4}, "hidden_size 33 is not a multiple of num_heads 4"),
        ("marian", {"decoder_attention_heads": 4}, "hidden_size 33 is not a multiple of num_heads 4"),
        ("marian", {"scale_embedding": "yes"}, "scale_embedding is 'yes'; it must be true or false"),
        ("bart", {"normalize_embedding": False}, "normalize_embedding False is not supported"),
        ("bart", {"activation_function": "quick_gelu"}, "activation_function 'quick_gelu' is not one of gelu,"),
        ("bart", {"activation_function": ["gelu"]}, "config.json"),
        ("bart", {"d_model": "33"}, "hidden_size is '33'"),
        ("bart", {"d_model": ..., "decoder_layers": None}, "lacks d_model, decoder_layers"),
        ("bart", {"decoder_layers": 900}, "902 layers, and there are"),
        ("bart", {"d_model": 3 * 10**20}, "config.json"),
        ("bart", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not supported"),
        ("mbart", {"normalize_before": False}, "normalize_before False is not supported"),
        ("t5", {"feed_forward_proj": "gated-gelu-new"}, "feed_forward_proj is 'gated-gelu-new'"),
        ("t5", {"feed_forward_proj": "swiglu", "dense_act_fn": ...}, "feed_forward_proj 'swiglu' is not one of"),
        ("t5", {"dense_act_fn": "silu"}, "dense_act_fn 'silu' is not that of feed_forward_proj 'relu'"),
        ("t5", {"is_gated_act": True}, "is_gated_act True is not that of feed_forward_proj 'relu'"),
        ("t5", {"scale_decoder_outputs": 1}, "scale_decoder_outputs is 1; it must be true or false"),
        ("t5", {"layer_norm_epsilon": -1}, "layer_norm_epsilon is -1; it must be a positive number"),
        ("t5", {"relative_attention_num_buckets": 31}, "num_buckets is 31"),
        ("t5", {"n_positions": 0}, "max_positions is 0"),
    ],
    ids=str,
)
def test_settings_that_are_refused_by_name(tmp_path, name, settings, named):
    message = refusal(edit(saved(name, tmp_path) / "config.json", **settings))
    assert named in message
    assert str(tmp_path / "config.json") in message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"eos_token_id": [5, 6]}, "eos_token_id is [5, 6]; it must be one token, 0 to 100"),
        ({"forced_bos_token_id": 101}, "forced_bos_token_id is 101; it must be one token, 0 to 100"),
        ({"forced_eos_token_id": "</s>"}, "forced_eos_token_id is '</s>'; it must be one token"),
        ({"pad_token_id": True}, "pad_token_id is True; it must be one token"),
        ({"bad_words_ids": [[3], [4, 9]]}, "bad_words_ids [[3], [4, 9]] is not supported: they must be words of one"),
        ({"bad_words_ids": [[-1]]}, "bad_words_ids is [-1]; it must be one token"),
        ({"suppress_tokens": [101]}, "suppress_tokens is 101; it must be one token"),
        ({"suppress_tokens": 3}, "generation_config.json"),
    ],
    ids=str,
)
def test_tokens_of_an_answer_that_are_refused_by_name(tmp_path, settings, named):
    message = refusal(edit(saved("bart", tmp_path) / "generation_config.json", **settings))
    assert named in message
    assert str(tmp_path / "generation_config.json") in message


@pytest.mark.parametrize("key", ["decoder_start_token_id", "eos_token_id"])
def test_answers_that_never_begin_or_end(tmp_path, key):
    path = saved("bart", tmp_path)
    for file in ("config.json", "generation_config.json"):
        edit(path / file, **{key: ..., "bos_token_id": ...})
    assert refusal(path) == f"{path / 'generation_config.json'}: it lacks {key}"
    (path / "generation_config.json").write_text("[]")
    assert "generation_config.json holds list, not a JSON object" in refusal(path)


def test_another_task(tmp_path):
    assert "task 'generate' is not translate" in refusal(saved("t5", tmp_path), "generate")


def test_umt5_has_a_bias_in_each_layer_and_is_refused(tmp_path):
    transformers.UMT5ForConditionalGeneration(transformers.UMT5Config(**T5_SIZES)).save_pretrained(tmp_path)
    assert "model_type 'umt5' is not supported; there are bart, bert," in refusal(tmp_path)


# tensors


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("marian", "model.shared.weight"),
        ("marian", "model.encoder.layers.1.self_attn.k_proj.bias"),
        ("marian", "model.decoder.layers.2.encoder_attn_layer_norm.weight"),
        ("bart", "model.encoder.layernorm_embedding.bias"),
        ("bart", "model.decoder.embed_positions.weight"),
        ("bart", "model.decoder.layers.2.encoder_attn.out_proj.weight"),
        ("mbart", "model.decoder.layer_norm.weight"),
        ("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("t5", "encoder.block.1.layer.1.DenseReluDense.wi.weight"),
        ("t5", "decoder.block.2.layer.1.EncDecAttention.o.weight"),
        ("t5 1.1", "decoder.block.2.layer.2.DenseReluDense.wi_1.weight"),
        ("t5 1.1", "decoder.final_layer_norm.weight"),
    ],
)
def test_a_tensor_that_is_missing_of_another_shape_or_unknown(tmp_path, name, tensor):
    path = saved(name, tmp_path)
    whole = load_file(path / "model.safetensors")
    save_file({n: t for n, t in whole.items() if n != tensor}, path / "model.safetensors")
    assert refusal(path) == f"{path} lacks the tensor {tensor}"
    save_file(whole | {tensor: whole[tensor][:-1].clone()}, path / "model.safetensors")
    found = re.escape(f"has the tensor {tensor} of shape {tuple(whole[tensor][:-1].shape)} where config.json asks for ")
    assert re.search(found + re.escape(str(tuple(whole[tensor].shape))), refusal(path))
    save_file(whole | {f"{tensor}.extra": torch.zeros(1)}, path / "model.safetensors")
    assert refusal(path) == f"{path} has the unknown tensor {tensor}.extra"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("marian", "model.encoder.layer_norm.weight"),
        ("t5", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("t5", "decoder.block.1.layer.2.DenseReluDense.wi_1.weight"),
        ("t5", "final_logits_bias"),
        ("bart", "classification_head.dense.weight"),
    ],
)
def test_a_tensor_that_the_configuration_does_not_have(tmp_path, name, tensor):
    path = rewrite(saved(name, tmp_path), lambda tensors: tensors | {tensor: torch.zeros(VOCABULARY)})
    message = refusal(path)
    assert message == f"{path} has the unknown tensor {tensor}"


def test_a_bias_of_the_logits(tmp_path):
    model = theirs("marian")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"final_logits_bias": torch.zeros(1, 100)})
    assert "final_logits_bias of shape (100,) where config.json asks for (101,)" in refusal(tmp_path)
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != "final_logits_bias"})
    assert not checkpoints.read(tmp_path).config.logit_bias
    model.final_logits_bias.zero_()  # what transformers has then
    assert_same(model, tmp_path)


def test_a_head_that_is_not_tied_and_not_there(tmp_path):
    path = edit(saved("t5", tmp_path) / "config.json", scale_decoder_outputs=..., tie_word_embeddings=False)
    assert refusal(path) == f"{path} lacks the tensor lm_head.weight"
