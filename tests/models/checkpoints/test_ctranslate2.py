import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from isoformer.models import checkpoints
from isoformer.models.checkpoints import CheckpointError, ctranslate2
from isoformer.models.checkpoints.ctranslate2 import DTYPES, ModelFile
from tests.models.checkpoints.test_whisper import CASES, theirs

NUMBERS = {dtype: number for number, (dtype, _) in DTYPES.items()}
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")


def write(path: Path, tensors: dict[str, Tensor], spec: str = "WhisperSpec", version: int = 6) -> Path:
    """A model.bin, from the container's description."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text(spec), struct.pack("<II", 3, len(tensors))]
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes()
        shape = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        parts += [text(name), shape, struct.pack("<BI", NUMBERS[tensor.dtype], len(data)), data]
    parts += [struct.pack("<I", 1), text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    path.write_bytes(b"".join(parts))
    return path


def converted(model: transformers.WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """A model of transformers as CTranslate2 lays it out: fused projections, a bias of 0 for keys."""
    state, config = model.state_dict(), model.config
    tensors = {
        "decoder/activation": torch.tensor(3, dtype=torch.int8),
        "decoder/pre_norm": torch.tensor(1, dtype=torch.int8),
        "decoder/scale_embeddings": torch.tensor(0, dtype=torch.int8),
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"],
    }
    for half, heads in (("encoder", config.encoder_attention_heads), ("decoder", config.decoder_attention_heads)):
        tensors[f"{half}/num_heads"] = torch.tensor(heads, dtype=torch.int16)
        tensors[f"{half}/position_encodings/encodings"] = state[f"model.{half}.embed_positions.weight"]
    for conv in ("conv1", "conv2"):
        for leaf in ("weight", "bias"):
            tensors[f"encoder/{conv}/{leaf}"] = state[f"model.encoder.{conv}.{leaf}"]

    def norm(name: str, source: str) -> None:
        tensors[f"{name}/gamma"], tensors[f"{name}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def linear(name: str, *sources: str) -> None:
        for leaf in ("weight", "bias"):
            zero = torch.zeros(config.d_model)
            tensors[f"{name}/{leaf}"] = torch.cat([state.get(f"{source}.{leaf}", zero) for source in sources])

    for half, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        norm(f"{half}/layer_norm", f"model.{half}.layer_norm")
        for number in range(layers):
            name, source = f"{half}/layer_{number}", f"model.{half}.layers.{number}"
            norm(f"{name}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            linear(f"{name}/self_attention/linear_0", *(f"{source}.self_attn.{x}_proj" for x in "qkv"))
            linear(f"{name}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            norm(f"{name}/ffn/layer_norm", f"{source}.final_layer_norm")
            linear(f"{name}/ffn/linear_0", f"{source}.fc1")
            linear(f"{name}/ffn/linear_1", f"{source}.fc2")
            if half == "decoder":
                norm(f"{name}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
                linear(f"{name}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                linear(f"{name}/attention/linear_1", *(f"{source}.encoder_attn.{x}_proj" for x in "kv"))
                linear(f"{name}/attention/linear_2", f"{source}.encoder_attn.out_proj")
    return tensors


@pytest.fixture(scope="module")
def model() -> transformers.WhisperForConditionalGeneration:
    return theirs(**CASES["plain"])


@pytest.fixture
def folder(tmp_path, model) -> Path:
    write(tmp_path / "model.bin", converted(model))
    added = [{"content": name, "id": 3 + number} for number, name in enumerate(SPECIAL)]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [2, 17], "suppress_ids_begin": [19]}))
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits(model, ours) -> tuple[Tensor, Tensor]:
    """Of transformers and ours, of the same features and tokens."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3, model.config.num_mel_bins, 26, generator=generator)
    ids = torch.randint(0, 101, (3, 7), generator=generator)
    return model(features, decoder_input_ids=ids).logits, ours(features, decoder_input_ids=ids)


def test_a_model_computes_what_transformers_does(folder, model):
    for path in (folder, folder / "model.bin"):
        found = checkpoints.read(path)
        want, have = logits(model, found.model())
        torch.testing.assert_close(have, want, atol=1e-4, rtol=0)
    config = found.config
    assert (config.num_heads, config.num_decoder_heads, config.max_frames, config.max_positions) == (3, 11, 26, 29)
    assert (config.eos_token_id, config.decoder_start_token_id, config.previous_token_id) == (3, 4, 5)
    assert (config.no_speech_token_id, config.no_timestamps_token_id, config.timestamp_begin_token_id) == (6, 7, 8)
    assert (config.suppressed_tokens, config.begin_suppressed_tokens) == ((2, 17), (19,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact(folder, model, dtype):
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in converted(model).items()}
    write(folder / "model.bin", tensors)
    found = ModelFile(folder / "model.bin")
    name = "encoder/conv2/weight"
    assert torch.equal(found.read(name), tensors[name].float())


def test_whole_numbers_with_a_scale(folder, model):
    """A row's numbers are its weights times its scale, 127 over the largest."""
    tensors, name = converted(model), "encoder/layer_0/ffn/linear_0/weight"
    scale = 127 / tensors[name].abs().amax(1)
    weights, tensors[name] = tensors[name], (tensors[name] * scale[:, None]).round().to(torch.int8)
    write(folder / "model.bin", tensors)
    assert f"holds whole numbers, and there is no {name}_scale" in refusal(folder)
    write(folder / "model.bin", tensors | {f"{name}_scale": scale})
    found = checkpoints.read(folder).state["encoder.blocks.0.feed_forward.up.weight"]
    assert 0 < (found - weights).abs().max() <= 0.5 / scale.min() + 1e-6
    assert torch.equal(found, tensors[name] / scale[:, None])


def test_the_real_file(whisper):
    found = checkpoints.read(whisper)
    config = found.config
    assert (config.num_layers, config.decoder.decoder_layers, config.num_heads, config.hidden_size) == (4, 4, 6, 384)
    assert (config.num_mels, config.vocab_size, config.max_frames, config.max_positions) == (80, 51864, 3000, 448)
    assert (config.decoder_start_token_id, config.eos_token_id) == (50257, 50256)
    assert (config.no_speech_token_id, config.no_timestamps_token_id) == (50361, 50362)
    assert (config.timestamp_begin_token_id, config.language_tokens, config.task_tokens) == (50363, (), ())
    names = [getattr(file, "name", "") for file in found.files]
    assert names == ["config.json", "tokenizer.json"]
    keys = [name for name in found.state if name.endswith("key_linear.bias")]
    assert len(keys) == 12
    assert all(not found.state[name].any() for name in keys)
    # The table of the encoder's positions is known in closed form: sines of falling frequency, then cosines.
    angles = np.arange(1500)[:, None] * np.exp(-np.log(10000) / 191 * np.arange(192))
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(found.state["encoder.positions.weight"].numpy(), table, atol=1e-3)


# what is refused


@pytest.mark.parametrize("size", [0, 3, 4, 10, 40, 1000, -1])
def test_a_file_that_is_cut_off(folder, size):
    data = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(data[:size])
    with pytest.raises(CheckpointError, match=r"cannot be read as a CTranslate2 model") as error:
        ctranslate2.read(folder)
    assert "\n" not in str(error.value)


def test_a_file_with_something_behind_it(folder):
    with (folder / "model.bin").open("ab") as file:
        file.write(b"more")
    assert "and 4 bytes follow" in refusal(folder)


def test_other_versions_and_models(folder, model):
    tensors = converted(model)
    write(folder / "model.bin", tensors, spec="TransformerSpec")
    assert "it is a TransformerSpec, not a WhisperSpec" in refusal(folder)
    write(folder / "model.bin", tensors, version=5)
    assert not ctranslate2.accepts(folder)


def test_other_functions(folder, model):
    tensors = converted(model)
    for name, value in {"decoder/activation": 0, "decoder/pre_norm": 0, "decoder/scale_embeddings": 1}.items():
        write(folder / "model.bin", tensors | {name: torch.tensor(value, dtype=torch.int8)})
        assert f"{name} is {value}" in refusal(folder)


def test_tensors_that_are_missing_or_unknown(folder, model):
    tensors, lost = converted(model), "decoder/layer_1/attention/linear_1/weight"
    write(folder / "model.bin", {name: tensor for name, tensor in tensors.items() if name != lost})
    assert f"lacks the tensor {lost}" in refusal(folder)
    write(folder / "model.bin", tensors | {"decoder/layer_1/attention/linear_3/weight": torch.ones(2, 2)})
    assert "unknown tensor decoder/layer_1/attention/linear_3/weight" in refusal(folder)
    write(folder / "model.bin", tensors | {"encoder/layer_0/self_attention/linear_0/weight": torch.ones(7, 66)})
    assert "is not 3 of one height" in refusal(folder)


def test_a_tokenizer_is_needed(folder):
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is needed beside it" in refusal(folder)


def test_files_of_other_kinds(tmp_path, folder):
    other = tmp_path / "notes.bin"
    other.write_text("no model at all")
    assert not ctranslate2.accepts(other)
    copy = shutil.copy(folder / "model.bin", tmp_path / "model.txt")
    assert not ctranslate2.accepts(Path(copy))
    assert "neither a GGUF file nor a CTranslate2 model" in refusal(other)
