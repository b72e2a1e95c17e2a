import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoformer.models import checkpoints
from isoformer.models.checkpoints import CheckpointError
from isoformer.models.families.speech import DECODER, ENCODER, signature, task

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "num_mel_bins": 7,
    "d_model": 66,
    "encoder_layers": 3,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 53,
    "decoder_layers": 2,
    "decoder_attention_heads": 11,
    "decoder_ffn_dim": 41,
    "max_source_positions": 13,
    "max_target_positions": 29,
    "decoder_start_token_id": 5,
    "eos_token_id": 3,
    "bos_token_id": 3,
    "pad_token_id": 3,
    "begin_suppress_tokens": [19],
    "suppress_tokens": [2, 17],
    "init_std": 0.3,
    "attn_implementation": "eager",
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "as deep as its decoder": {"encoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 53},
    "relu": {"activation_function": "relu"},
    "many mels": {"num_mel_bins": 128},
}
BATCH = 3


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


def theirs(**changes: Any) -> Any:
    """A model of random weights, those of biases and norms included; the zeros that it starts with prove little."""
    torch.manual_seed(11)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZES | changes)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    return model.requires_grad_(False)


def saved(folder: Path, **changes: Any) -> Path:
    theirs(**changes).save_pretrained(folder)
    return folder


def refusal(path: Path, task: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path, task)
    assert "\n" not in str(error.value)
    return str(error.value)


def features(config: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(BATCH, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)


def close(have: Tensor, want: Tensor) -> None:
    assert want.abs().max() > 0.1  # else nothing would be shown
    torch.testing.assert_close(have, want, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[Any, Any]:
    """A model of transformers, and what we read of it."""
    folder = tmp_path_factory.mktemp("theirs")
    model = theirs(**CASES[request.param])
    model.save_pretrained(folder)
    return model, checkpoints.read(folder).model().requires_grad_(False)


def encode(case: tuple[Any, Any]) -> dict[str, Tensor]:
    model, ours = case
    mask = torch.ones(BATCH, model.config.max_source_positions, dtype=torch.int64)
    return ours.graph(ENCODER)(features(model.config), mask)


# the answers of transformers


def test_the_encoder(case):
    model, _ = case
    close(encode(case)["last_hidden_state"], model.model.encoder(features(model.config)).last_hidden_state)


def test_each_step_of_the_decoder(case):
    """A prompt of two tokens, then one by one, each behind the cache of both."""
    model, ours = case
    config, made = model.config, transformers.DynamicCache
    cache = transformers.EncoderDecoderCache(made(), made())
    hidden = model.model.encoder(features(config))
    encoded = encode(case)
    past = {name.replace("present", "past_key_values"): x for name, x in encoded.items() if name.startswith("present")}
    past |= {
        spec.name: torch.zeros(BATCH, int(spec.axes[1]), 0, int(spec.axes[3]))
        for spec in signature(ours.config)[DECODER].inputs
        if ".decoder." in spec.name
    }
    ids = torch.randint(0, 101, (BATCH, 9), generator=torch.Generator().manual_seed(5))
    done = 0
    for width in (2, 1, 1, 3, 1, 1):
        new, places = ids[:, done : done + width], torch.arange(done, done + width).expand(BATCH, -1)
        want = model(encoder_outputs=hidden, decoder_input_ids=new, past_key_values=cache, use_cache=True).logits
        found = ours.graph(DECODER)(
            new,
            torch.ones(BATCH, done + width, dtype=torch.int64),
            position_ids=places,
            logits_positions=torch.arange(width).expand(BATCH, -1),
            encoder_attention_mask=torch.ones(BATCH, config.max_source_positions, dtype=torch.int64),
            **past,
        )
        close(found["logits"], want)
        past |= {name.replace("present", "past_key_values"): x for name, x in found.items() if name != "logits"}
        done += width
    assert done == ids.shape[1]


def test_training_has_the_same_logits(case):
    model, ours = case
    ids = torch.randint(0, 101, (BATCH, 7), generator=torch.Generator().manual_seed(5))
    want = model(features(model.config), decoder_input_ids=ids).logits
    close(ours(features(model.config), decoder_input_ids=ids), want)


def test_keys_have_no_bias_and_values_have_one(case):
    state = case[1].state_dict()
    keys = [name for name in state if name.endswith("key_linear.bias")]
    assert len(keys) == len(case[1].encoder.blocks) + 2 * len(case[1].decoder.blocks)
    assert all(not state[name].any() for name in keys)
    assert all(state[name.replace("key", "value")].any() for name in keys)


# what is read


def test_configuration(tmp_path):
    config = checkpoints.read(saved(tmp_path)).config
    assert (config.max_frames, config.max_length, config.max_positions) == (26, 13, 29)
    assert (config.num_heads, config.num_decoder_heads) == (3, 11)
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (5, 3, 3)
    assert (config.suppressed_tokens, config.begin_suppressed_tokens) == ((2, 17), (19,))
    assert config.timestamp_begin_token_id is None
    assert (task(config) or {})["languages"] == {}


def test_generation_config(tmp_path):
    saved(tmp_path)
    generation = {
        "is_multilingual": True,
        "no_timestamps_token_id": 90,
        "lang_to_id": {"<|en|>": 6, "<|de|>": 7},
        "task_to_id": {"transcribe": 81, "translate": 82},
        "prev_sot_token_id": 83,
        "suppress_tokens": [4, -1],
        "decoder_start_token_id": None,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    found = checkpoints.read(tmp_path)
    said = task(found.config) or {}
    assert (said["no_timestamps"], said["timestamp_begin"], said["no_speech"], said["previous"]) == (90, 91, 89, 83)
    assert (said["languages"], said["tasks"]) == ({"en": 6, "de": 7}, {"transcribe": 81, "translate": 82})
    assert (said["suppressed"], said["begin_suppressed"], said["decoder_start"]) == ([4], [19], [5])
    assert [getattr(file, "name", "") for file in found.files] == ["config.json", "generation_config.json"]


def test_special_tokens_of_the_tokenizer(tmp_path):
    saved(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    names = ("<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>")
    added = [{"content": name, "id": 60 + number} for number, name in enumerate(names)]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    said = task(checkpoints.read(tmp_path).config) or {}
    assert (said["previous"], said["no_speech"], said["no_timestamps"], said["timestamp_begin"]) == (60, 61, 62, 63)


def test_saved_without_the_head(tmp_path):
    model = theirs()
    model.model.save_pretrained(tmp_path)
    assert not any(name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))
    found = checkpoints.read(tmp_path).model()
    close(found.state_dict()["encoder.conv1.weight"], model.model.encoder.conv1.weight)


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_embedding": True}, "scale_embedding True is not supported"),
        ({"d_model": 68}, "hidden_size 68 is not a multiple of num_heads 3"),
        ({"d_model": 132}, "where config.json asks for"),
        ({"num_mel_bins": None}, "it lacks num_mel_bins"),
        ({"activation_function": "mish"}, "activation 'mish' is not one of"),
        ({"eos_token_id": [3, 4]}, "eos_token_id [3, 4]; each is one token"),
        ({"vocab_size": 5}, "decoder_start_token_id is 5; the vocabulary has 0 to 4"),
        ({"encoder_layers": 900}, "it asks for more layers than there are tensors"),
        ({"max_source_positions": 12}, "model.encoder.embed_positions.weight of shape (13, 66)"),
        ({"quantization_config": {"bits": 8}}, "quantization_config {'bits': 8} is not supported"),
    ],
)
def test_a_configuration_that_does_not_fit(tmp_path, changes, message):
    file = saved(tmp_path) / "config.json"
    (tmp_path / "generation_config.json").write_text("{}")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert message in refusal(tmp_path)


def test_tensors_that_are_missing_or_unknown(tmp_path):
    file = saved(tmp_path) / "model.safetensors"
    tensors, lost = load_file(file), "model.decoder.layers.1.encoder_attn.k_proj.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file)
    assert f"lacks the tensor {lost}" in refusal(tmp_path)
    for extra in ("model.encoder.layers.0.self_attn.k_proj.bias", "model.encoder.layers.3.fc1.bias"):
        save_file(tensors | {extra: torch.ones(66)}, file)
        assert f"unknown tensor {extra}" in refusal(tmp_path)


def test_a_head_of_its_own(tmp_path):
    file = saved(tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"proj_out.weight": torch.ones(101, 66)}, file)
    assert "a head of its own is not supported" in refusal(tmp_path)


def test_another_task(tmp_path):
    assert "task 'embed' is not transcribe" in refusal(saved(tmp_path), "embed")
