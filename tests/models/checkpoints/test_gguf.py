import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from isoformer.models import checkpoints
from isoformer.models.checkpoints import Checkpoint, CheckpointError
from isoformer.models.checkpoints.gguf_file import GGUFFile
from tests.models.checkpoints.decoders import (
    SIZES,
    assert_same,
    float64_throughout,
    inputs,
    our_logits,
    their_logits,
    theirs,
)

BYTES = sorted(ByteLevel.alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "1 9", "Ġ Ġ", "i n"]
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), "<s>", "</s>", "<pad>", "<tool>"]
TYPES = [1] * (len(TOKENS) - 4) + [3, 3, 3, 4]
BOS, EOS, PAD = (TOKENS.index(token) for token in ("<s>", "</s>", "<pad>"))
TEXTS = [
    "the thing in 1984",
    " the  the\n\n\tIt's 12345, isn't it?",
    "naïve 北京 é…!",
    "x<s>the</s> <tool>it",
    "  ",
    "1",
]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


def write(
    path: Path,
    model: Any,
    kind: Kind = Kind.F32,
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
    tokenizer: dict[str, Any] | None = None,
    **metadata: Any,
) -> Path:
    """A model of transformers as llama.cpp's convert_hf_to_gguf.py writes it, the matrices in `kind`.

    metadata: keys of the architecture, "." written as "__"; ... leaves one out.
    """
    name, config = model.config.model_type, model.config
    writer = gguf.GGUFWriter(path, name)
    settings: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "feed_forward_length": 4 * config.hidden_size if name == "gpt2" else config.intermediate_size,
    }
    if name == "gpt2":
        settings["attention.layer_norm_epsilon"] = config.layer_norm_epsilon
    else:
        settings |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.freq_base": config.rope_parameters["rope_theta"],
            "rope.dimension_count": config.head_dim,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    for key, value in (settings | {key.replace("__", "."): value for key, value in metadata.items()}).items():
        if value is not ...:
            add(writer, f"{name}.{key}", value)
    for key, value in (tokenizer or {}).items():
        if value is not ...:
            add(writer, f"tokenizer.{key}", value)
    architecture = next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors = {}
    for theirs_, tensor in model.state_dict().items():
        if theirs_ == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if name == "llama" and "q_proj" in theirs_:
            array = permute(array, config.num_attention_heads)
        if name == "llama" and "k_proj" in theirs_:
            array = permute(array, config.num_key_value_heads)
        if name == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight", theirs_):
            array = array.T
        tensors[names.get_name(theirs_, (".weight", ".bias"))] = np.ascontiguousarray(array)
    for ours, array in change(tensors).items():
        its_kind = kind if array.ndim > 1 else Kind.F32
        writer.add_tensor(ours, gguf.quantize(array, its_kind), raw_dtype=its_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's conversion does to the queries and keys of Llama."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def bpe(pre: str, **changes: Any) -> dict[str, Any]:
    """The metadata of a small byte-level tokenizer."""
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": TOKENS,
        "ggml.token_type": TYPES,
        "ggml.merges": MERGES,
        "ggml.bos_token_id": BOS,
        "ggml.eos_token_id": EOS,
        "ggml.padding_token_id": PAD,
    } | changes


TINY = {"num_hidden_layers": 1, "vocab_size": len(TOKENS)}


def tiny(path: Path, name: str = "llama", kind: Kind = Kind.F32, **options: Any) -> Path:
    return write(path, theirs(name, **TINY), kind, **options)


def content(checkpoint: Checkpoint) -> dict[str, Any]:
    assert all(isinstance(file, checkpoints.TextFile) for file in checkpoint.files)
    return {file.name: json.loads(file.content) for file in checkpoint.files}  # pyright: ignore[reportAttributeAccessIssue]


def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(content(checkpoints.read(path))["tokenizer.json"]))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# the answers of transformers


NAMES = [
    "llama",
    "llama, tied",
    "llama, one key",
    "llama, as many keys as queries",
    "llama, heads of hidden / num_heads",
    "llama, biases",
    "llama, base",
    "qwen2",
    "qwen3",
    "gpt2",
]
EPS = 2.0**-7  # the same in the file's float32


def random_model(name: str, **options: Any) -> Any:
    return theirs(name, **{"layer_norm_epsilon" if name == "gpt2" else "rms_norm_eps": EPS}, **options)


@pytest.mark.parametrize("name", NAMES)
def test_logits(tmp_path, name):
    model = random_model(name)
    assert_same(model, write(tmp_path / "model.gguf", model), "left")


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_the_same_weights_from_these_files(tmp_path, name):
    """So the files are what the format asks for, queries and keys in the right order among it."""
    model = random_model(name)
    path = write(tmp_path / "model.gguf", model, general__name="tiny")
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    assert len(found) >= len(list(model.parameters()))
    for theirs_, tensor in model.named_parameters():
        torch.testing.assert_close(found[theirs_].double(), tensor, rtol=0, atol=0)


def test_linear_scaling(tmp_path):
    model = random_model("llama, linear")
    keys: dict[str, Any] = {"rope__scaling__factor": 2.5}
    assert_same(model, write(tmp_path / "a.gguf", model, **keys, rope__scaling__type="linear"))
    assert_same(model, write(tmp_path / "b.gguf", model, **keys))  # the type that llama.cpp takes then
    assert checkpoints.read(write(tmp_path / "c.gguf", model, **keys, rope__scaling__type="none")).config == (
        checkpoints.read(write(tmp_path / "d.gguf", model)).config
    )


def test_sizes_that_the_file_may_leave_out(tmp_path):
    model = random_model("llama, heads of hidden / num_heads")
    out = ("attention__key_length", "attention__value_length", "rope__dimension_count", "rope__freq_base")
    assert_same(model, write(tmp_path / "a.gguf", model, **dict.fromkeys(out, ...)))
    model = random_model("llama, as many keys as queries")
    assert_same(model, write(tmp_path / "b.gguf", model, attention__head_count_kv=...))


def test_the_configuration_that_is_written_makes_the_same_model(tmp_path):
    for name in ("llama, linear", "llama, tied", "qwen2", "qwen3", "gpt2"):
        model = random_model(name)
        keys: dict[str, Any] = {"rope__scaling__factor": 2.5} if name == "llama, linear" else {}
        checkpoint = checkpoints.read(write(tmp_path / "model.gguf", model, **keys))
        (tmp_path / "config.json").write_text(json.dumps(content(checkpoint)["config.json"]))
        with float64_throughout():
            config = transformers.AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
            again = transformers.AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
        again.load_state_dict(model.state_dict())
        torch.testing.assert_close(their_logits(again, inputs("none")), their_logits(model, inputs("none")))


# quantisation

HALF_2, HALF_3 = struct.pack("<e", 2.0), struct.pack("<e", -3.0)
LOW_FIRST = bytes(low | high << 4 for low, high in zip(range(16), reversed(range(16)), strict=True))
UP_DOWN = np.array([*range(16), *reversed(range(16))], np.float32)
BLOCKS = {
    Kind.F32: (np.arange(4, dtype="<f4").tobytes(), np.arange(4)),
    Kind.F16: (np.arange(4, dtype="<f2").tobytes(), np.arange(4)),
    Kind.BF16: (bytes.fromhex("803f 00c0 4040 0000"), np.array([1.0, -2.0, 3.0, 0.0])),
    Kind.Q8_0: (HALF_2 + bytes(range(240, 256)) + bytes(range(16)), 2 * np.arange(-16, 16)),
    Kind.Q4_0: (HALF_2 + LOW_FIRST, 2 * (UP_DOWN - 8)),
    Kind.Q4_1: (HALF_2 + HALF_3 + LOW_FIRST, 2 * UP_DOWN - 3),
    Kind.Q5_0: (HALF_2 + b"\xff\xff\x00\x00" + LOW_FIRST, 2 * (UP_DOWN + 16 * (np.arange(32) < 16) - 16)),
    Kind.Q5_1: (HALF_2 + HALF_3 + b"\x00\x00\xff\xff" + LOW_FIRST, 2 * (UP_DOWN + 16 * (np.arange(32) > 15)) - 3),
    # scales 1 and minima 1 of all eight groups, then sevens
    Kind.Q4_K: (HALF_2 + HALF_3 + b"\x01" * 8 + b"\x11" * 4 + b"\x77" * 128, np.full(256, 2 * 7 + 3)),
    Kind.Q6_K: (b"\xff" * 128 + b"\xff" * 64 + b"\x03" * 16 + HALF_2, np.full(256, 2 * 3 * (63 - 32))),
}


def single(path: Path, kind: int, shape: tuple[int, ...], raw: bytes, version: int = 3) -> Path:
    """A file of one tensor `t`, written by hand."""
    info = struct.pack("<Q", 1) + b"t" + struct.pack("<I", len(shape))
    info += b"".join(struct.pack("<Q", size) for size in reversed(shape)) + struct.pack("<IQ", kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", version, 1, 0) + info
    path.write_bytes(head + bytes(-len(head) % 32) + raw)
    return path


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_what_blocks_stand_for(tmp_path, kind):
    raw, values = BLOCKS[kind]
    want = torch.from_numpy(np.stack([values] * 3).astype(np.float32))
    have = GGUFFile(single(tmp_path / "t.gguf", kind, tuple(want.shape), raw * 3)).read("t")
    assert have.dtype == torch.float32
    assert torch.equal(have, want)
    assert torch.equal(GGUFFile(single(tmp_path / "t.gguf", kind, (len(values),), raw, 2)).read("t"), want[0])


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_a_model_of_each_kind(tmp_path, kind):
    """The matrices as gguf rounds them, so that the logits are to be those of the rounded model."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 96}
    model = random_model("llama", **sizes)
    path = write(tmp_path / "model.gguf", model, kind)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            array = parameter.float().numpy()
            heads = 4 if "q_proj" in parameter_name else SIZES["num_key_value_heads"]
            turned = permute(array, heads) if re.search("[qk]_proj", parameter_name) else array
            rounded = gguf.dequantize(gguf.quantize(turned, kind), kind).reshape(array.shape)
            if turned is not array:  # back again: undoing it is what is tested
                rows = permute(np.arange(len(array))[:, None], heads)[:, 0]
                rounded = rounded[np.argsort(rows)]
            assert 0 < np.abs(rounded - array).max() < 0.2
            parameter.copy_(torch.from_numpy(np.array(rounded, np.float32)))
    assert_same(model, path)


@pytest.mark.parametrize(("kind", "named"), [(24, "kind I8"), (28, "kind F64"), (4, "kind 4, which is unknown")])
def test_a_kind_that_cannot_be_read(tmp_path, kind, named):
    path = tiny(tmp_path / "model.gguf")
    place = path.read_bytes().index(b"blk.0.attn_norm.weight") + 22 + 4 + 8
    data = bytearray(path.read_bytes())
    data[place : place + 4] = struct.pack("<I", kind)
    if kind == 28:  # twice as long, so nothing may follow
        path = single(path, kind, (3,), bytes(24))
        with pytest.raises(CheckpointError, match="kind F64, which is not supported"):
            GGUFFile(path).read("t")
        return
    path.write_bytes(data)
    assert named in refusal(path)


# the tokenizer


def their_tokenizer(pre: str) -> Any:
    vocab = {token: number for number, token in enumerate(TOKENS)}
    kind = {"gpt-2": transformers.GPT2Tokenizer, "qwen2": transformers.Qwen2Tokenizer}[pre]
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokenizer = kind(vocab=vocab, merges=merges, **special)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2"])
@pytest.mark.parametrize("text", [*TEXTS, "e\u0301"])
def test_ids_are_those_of_transformers(tmp_path, pre, text):
    tokenizer = tokenizer_of(tiny(tmp_path / "model.gguf", tokenizer=bpe(pre)))
    assert tokenizer.encode(text).ids == their_tokenizer(pre)(text)["input_ids"]


@pytest.mark.parametrize(
    ("pre", "numbers"),
    [("gpt-2", [" 12345"]), ("smollm", " 12345"), ("qwen2", " 12345"), ("llama-bpe", [" ", "123", "45"])],
)
def test_numbers_are_split_as_the_pre_tokenizer_does(tmp_path, pre, numbers):
    tokenizer = tokenizer_of(tiny(tmp_path / "model.gguf", tokenizer=bpe(pre)))
    assert [text.replace("Ġ", " ") for text, _ in tokenizer.pre_tokenizer.pre_tokenize_str(" 12345")] == [*numbers]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_text_comes_back(tmp_path, pre, text):
    tokenizer = tokenizer_of(tiny(tmp_path / "model.gguf", tokenizer=bpe(pre)))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_special_and_added_tokens(tmp_path):
    tokenizer = tokenizer_of(tiny(tmp_path / "model.gguf", tokenizer=bpe("gpt-2")))
    ids = tokenizer.encode("a<s>b<tool>").ids
    assert [TOKENS[i] for i in ids] == ["a", "<s>", "b", "<tool>"]
    assert tokenizer.decode(ids) == "ab<tool>"


@pytest.mark.parametrize(
    ("pre", "keys", "around"),
    [
        ("gpt-2", {}, ("", "")),
        ("llama-bpe", {}, ("<s>", "")),
        ("llama-bpe", {"ggml.add_bos_token": False}, ("", "")),
        ("qwen2", {"ggml.add_bos_token": True}, ("<s>", "")),
        ("smollm", {"ggml.add_bos_token": True, "ggml.add_eos_token": True}, ("<s>", "</s>")),
    ],
)
def test_tokens_that_every_text_begins_and_ends_with(tmp_path, pre, keys, around):
    path = tiny(tmp_path / "model.gguf", tokenizer=bpe(pre, **keys))
    encoding = tokenizer_of(path).encode("in")
    assert "".join(encoding.tokens) == f"{around[0]}in{around[1]}"
    config = content(checkpoints.read(path))["tokenizer_config.json"]
    assert (config["add_bos_token"], config["add_eos_token"]) == (around[0] != "", around[1] != "")


def test_transformers_reads_the_files_that_are_written(tmp_path):
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    keys = {"chat_template": template, "ggml.eot_token_id": PAD}
    checkpoint = checkpoints.read(tiny(tmp_path / "model.gguf", tokenizer=bpe("smollm", **keys)))
    for name, data in content(checkpoint).items():
        (tmp_path / name).write_text(json.dumps(data))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("the 19")["input_ids"] == tokenizer_of(tmp_path / "model.gguf").encode("the 19").ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, EOS, PAD)
    message = [{"role": "user", "content": "the"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "<s>the</s>"
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (BOS, [EOS, PAD], PAD)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"ggml.model": "llama"}, "tokenizer.ggml.model 'llama' is not one of gpt2"),
        ({"ggml.model": ...}, "tokenizer.ggml.model None"),
        ({"ggml.pre": "deepseek-coder"}, "tokenizer.ggml.pre 'deepseek-coder' is not one of gpt-2, smollm, "),
    ],
)
def test_a_tokenizer_of_another_kind_is_left_out_with_a_note(tmp_path, keys, named):
    checkpoint = checkpoints.read(tiny(tmp_path / "model.gguf", tokenizer=bpe("gpt-2", **keys)))
    assert [*content(checkpoint)] == ["config.json", "generation_config.json"]
    (note,) = checkpoint.notes
    assert named in note


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"ggml.tokens": [*TOKENS[:-1], "<s>"]}, "tokens are not different ones"),
        ({"ggml.tokens": [*TOKENS, "more"], "ggml.token_type": [*TYPES, 1]}, "are not different ones for 266"),
        ({"ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is not a list of str"),
        ({"ggml.merges": ...}, "tokenizer.ggml.merges is not a list of str"),
        ({"ggml.merges": ["nowhere found"]}, "its tokenizer: "),
        ({"ggml.merges": ["joined"]}, "its tokenizer: "),
        ({"ggml.token_type": [1, 1]}, "2 types of 266 tokens"),
        ({"ggml.bos_token_id": 266}, "tokenizer.ggml.bos_token_id 266 is not one of 266 tokens"),
        ({"ggml.eos_token_id": "x"}, "tokenizer.ggml.eos_token_id 'x'"),
        ({"ggml.add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1"),
        ({"ggml.add_bos_token": True, "ggml.bos_token_id": ...}, "does not say which: bos"),
    ],
)
def test_a_tokenizer_that_does_not_fit(tmp_path, keys, named):
    assert named in refusal(tiny(tmp_path / "model.gguf", tokenizer=bpe("gpt-2", **keys)))


# what is refused


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"block_count": ...}, "lacks llama.block_count"),
        ({"block_count": 900}, "900 layers"),
        ({"block_count": 2}, "lacks the tensors blk.1.attn_k.weight, "),
        ({"attention__head_count": [6, 6]}, "llama.attention.head_count is [6, 6]; it must be a whole number"),
        ({"attention__head_count": 5}, "model.gguf"),
        ({"attention__head_count_kv": 0}, "llama.attention.head_count_kv is 0"),
        ({"attention__layer_norm_rms_epsilon": "x"}, "rms_norm_eps is 'x'"),
        ({"embedding_length": 2**32 - 1}, "more than 16,777,216"),
        ({"rope__dimension_count": 4}, "llama.rope.dimension_count 4 with keys of 10 is not supported"),
        ({"rope__scaling__type": "yarn"}, "llama.rope.scaling.type 'yarn' is not supported"),
        ({"rope__scaling__factor": "x"}, "factor"),
        ({"rope__freq_base": float("nan")}, "rope_theta is nan"),
        ({"attention__scale": 0.5}, "llama.attention.scale 0.5 is not supported"),
        ({"expert_count": 8}, "llama.expert_count 8 is not supported"),
    ],
)
def test_settings_that_are_refused_by_name(tmp_path, keys, named):
    assert named in refusal(tiny(tmp_path / "model.gguf", **keys))


def test_tensors_that_are_missing_of_another_shape_or_unknown(tmp_path):
    path, name = tmp_path / "model.gguf", "blk.0.attn_k.weight"
    message = refusal(tiny(path, change=lambda tensors: {n: t for n, t in tensors.items() if n != name}))
    assert message == f"{path} lacks the tensor {name}"
    message = refusal(tiny(path, change=lambda tensors: tensors | {name: tensors[name][:-1]}))
    assert message == f"{path} has the tensor {name} of shape (19, 42) where its metadata asks for (20, 42)"
    message = refusal(tiny(path, change=lambda tensors: tensors | {"rope_freqs.weight": np.ones(5, np.float32)}))
    assert message == f"{path} has the unknown tensor rope_freqs.weight"
    message = refusal(tiny(path, change=lambda tensors: {n: t for n, t in tensors.items() if n != "token_embd.weight"}))
    assert "lacks the tensor token_embd.weight" in message


def test_another_architecture_and_a_part_of_a_file(tmp_path):
    path = tiny(tmp_path / "model.gguf")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
                                  b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba"))  # fmt: skip
    assert "general.architecture 'mamba' is not one of llama, qwen2, qwen3, gpt2" in refusal(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "one part of several" in refusal(path)


# damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with all that there is: numbers, texts, lists, tensors of several kinds."""
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 32}
    model = theirs("llama", **TINY | sizes)
    return write(path, model, Kind.Q4_1, tokenizer=bpe("smollm")).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "model.gguf"


def test_the_whole_file_reads(whole, scratch):
    scratch.write_bytes(whole)
    assert checkpoints.read(scratch).config.hidden_size == 32


@given(st.data())
def test_a_file_that_is_cut_off(whole, scratch, data):
    size = data.draw(st.integers(0, len(whole) - 33))  # the end may be padding
    scratch.write_bytes(whole[:size])
    refusal(scratch)


EDGES = [0, 1, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


@given(st.data())
def test_a_file_with_other_bytes_is_read_or_refused(whole, scratch, data):
    """Whatever the bytes say: nothing else than a CheckpointError, and no more memory than the file's size asks for."""
    changed = bytearray(whole)
    end = data.draw(st.sampled_from([24, 600, len(whole)]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, end - 8))
        size = data.draw(st.sampled_from([1, 4, 8]))
        value = data.draw(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)) % 256**size
        changed[place : place + size] = value.to_bytes(size, "little")
    scratch.write_bytes(changed)
    try:
        checkpoints.read(scratch)
    except CheckpointError:
        refusal(scratch)


def patched(data: bytes, place: int, code: str, value: int) -> bytes:
    return data[:place] + struct.pack(f"<{code}", value) + data[place + struct.calcsize(code) :]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _: b"", "cannot be read as GGUF"),
        (lambda _: b"GGU", "4 bytes are expected at 0, and the file has 3"),
        (lambda data: b"GGML" + data[4:], "it does not begin with GGUF"),
        (lambda data: patched(data, 4, "I", 1), "version 1 is not one of (2, 3)"),
        (lambda data: patched(data, 4, "I", 4), "version 4 is not one of (2, 3)"),
        (lambda data: data[:4] + b"\0\0\0\3" + data[8:], "it is big-endian"),
        (lambda data: patched(data, 8, "Q", 2**63), f"{2**63} entries are announced"),
        (lambda data: patched(data, 16, "Q", 2**63), f"{2**63} entries are announced"),
        (lambda data: patched(data, 24, "Q", 2**40), f"{2**40} entries are announced"),
        (lambda data: data[:32] + b"\xff" + data[33:], "the text at 24 is not UTF-8"),
        (lambda data: patched(data, 52, "I", 13), "13 is not a type of metadata"),
        (lambda data: patched(patched(data, 52, "I", 9), 56, "I", 9), "9 is not a type of the entries of an array"),
        (lambda data: data[:-32], "is the file whole?"),
        (lambda data: data.replace(b"llama.block_count", b"llama.block_c\0unt"), "is no name"),
        (lambda data: data.replace(b"llama.block_count", b"other.block_count"), "lacks llama.block_count"),
        (lambda data: data.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_up.weigh\n"), "is no name"),
        (lambda data: data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"), "attn_k.weight twice"),
        (lambda data: data.replace(b"llama.rope.freq_base", b"llama.context_length"), "llama.context_length twice"),
    ],
)
def test_damage(whole, scratch, change, named):
    data = change(whole)
    assert data != whole
    scratch.write_bytes(data)
    assert named in refusal(scratch)


@pytest.mark.parametrize(
    ("axes", "sizes", "offset", "named"),
    [
        (0, [], 0, "has 0 axes"),
        (5, [1] * 5, 0, "has 5 axes"),
        (2**32 - 1, [1], 0, "has 4294967295 axes"),
        (1, [2**63], 0, "must be within"),
        (2, [2**32, 2**32], 0, "must be within"),
        (1, [4], 2**63, "must be within"),
        (1, [4], 4, "must be within"),
        (1, [0], 0, "of shape (0,)"),
    ],
)
def test_a_tensor_that_is_not_in_the_file(tmp_path, axes, sizes, offset, named):
    info = struct.pack("<Q", 1) + b"t" + struct.pack("<I", axes) + b"".join(struct.pack("<Q", n) for n in sizes)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info + struct.pack("<IQ", 0, offset)
    (tmp_path / "t.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(16))
    with pytest.raises(CheckpointError) as error:
        GGUFFile(tmp_path / "t.gguf")
    assert named in str(error.value)


def test_tensors_that_share_their_bytes(tmp_path):
    """A thousand tensors of the same bytes would otherwise ask for a thousand times the file's size."""
    path = tiny(tmp_path / "model.gguf")
    data, name = path.read_bytes(), b"blk.0.attn_v.weight"
    place = data.index(name) + len(name) + 4 + 16 + 4
    path.write_bytes(patched(data, place, "Q", 0))
    assert "must be within" in refusal(path)


def test_a_file_that_is_called_otherwise_is_known_by_its_first_bytes(tmp_path):
    path = tiny(tmp_path / "model")
    assert checkpoints.read(path).family == "decoder"
    path.write_bytes(b"something else")
    assert "is neither a GGUF file nor a CTranslate2 model" in refusal(path)


def test_the_command_line(isoformer, tmp_path):
    path = tiny(tmp_path / "model.gguf", tokenizer=bpe("smollm"))
    done = isoformer("export", "-m", path, tmp_path / "package", "-o", "max_positions=2")
    assert done.returncode == 0, done.stderr
    for name, data in content(checkpoints.read(path)).items():
        assert json.loads((tmp_path / "package" / name).read_text(encoding="utf-8")) == data
    path.write_bytes(path.read_bytes()[:-100])
    done = isoformer("export", "-m", path, tmp_path / "other")
    assert done.returncode == 2
    assert "is the file whole?" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


# the real file


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Any:
    checkpoint = checkpoints.read(smollm2)
    return checkpoint, Tokenizer.from_str(json.dumps(content(checkpoint)["tokenizer.json"]))


def feed(ids: list[int]) -> dict[str, Tensor]:
    row = torch.tensor([ids])
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "position_ids": torch.arange(len(ids))[None]}


def test_smollm2_knows_the_capital_of_france(real):
    checkpoint, tokenizer = real
    model = checkpoint.model().requires_grad_(False)
    ids = tokenizer.encode("The capital of France is").ids
    assert ids == [504, 3575, 282, 4649, 314]
    for _ in range(2):
        ids.append(int(our_logits(model, feed(ids))[0, -1].argmax()))
    assert tokenizer.decode(ids) == "The capital of France is Paris."


@pytest.mark.slow  # the reader of `gguf`, which transformers uses, takes a minute
def test_smollm2_has_the_logits_of_transformers(real, smollm2, tmp_path):
    checkpoint, _ = real
    (tmp_path / "config.json").write_text(json.dumps(content(checkpoint)["config.json"]))
    feeds = feed([504, 3575, 282, 4649, 314, 7042, 30, 198])
    ours = checkpoint.model().double().requires_grad_(False)
    with float64_throughout():
        config = transformers.LlamaConfig.from_pretrained(tmp_path, attn_implementation="eager")
        model = transformers.LlamaForCausalLM(config).double().eval().requires_grad_(False)
    parameters = dict(model.named_parameters())
    for name, tensor in load_their_weights(smollm2, model).items():
        parameters.pop(name).copy_(tensor)
    assert not parameters
    want = their_logits(model, feeds)
    assert want.std() > 1
    torch.testing.assert_close(our_logits(ours, feeds), want, atol=1e-8, rtol=0)


def load_their_weights(path: Path, model: Any) -> dict[str, Tensor]:
    """As transformers reads and reorders them."""
    return load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
