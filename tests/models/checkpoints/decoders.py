"""Decoders of `transformers` with random weights, and their logits and ours, all in float64."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from isoformer.models import checkpoints

SPLIT = 8
MASKS = {
    "none": [[1] * 13] * 3,
    "right": [[1] * 13, [1] * 9 + [0] * 4, [1] + [0] * 12],
    "left": [[1] * 13, [0] * 5 + [1] * 8, [0] * 12 + [1]],
}
SIZES = {
    "vocab_size": 101,
    "hidden_size": 42,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "num_hidden_layers": 3,
    "intermediate_size": 53,
    "max_position_embeddings": 97,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
GPT2_SIZES = {
    "vocab_size": 101,
    "n_embd": 33,
    "n_head": 3,
    "n_layer": 3,
    "n_positions": 41,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 31,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 3.0, "original_max_position_embeddings": 31}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES | {"rms_norm_eps": 0.01}),
    "llama, heads of hidden / num_heads": ("Llama", SIZES | {"head_dim": None, "hidden_size": 36}),
    "llama, as many keys as queries": ("Llama", SIZES | {"num_key_value_heads": None}),
    "llama, one key": ("Llama", SIZES | {"num_key_value_heads": 1}),
    "llama, biases": ("Llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "llama, attention biases": ("Llama", SIZES | {"attention_bias": True}),
    "llama, gelu": ("Llama", SIZES | {"hidden_act": "gelu_pytorch_tanh"}),
    "llama, tied": ("Llama", SIZES | {"tie_word_embeddings": True}),
    "llama, base": ("Llama", SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "llama, linear": (
        "Llama",
        SIZES | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "llama, dynamic": (
        "Llama",
        SIZES | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "llama, yarn": ("Llama", SIZES | {"rope_parameters": YARN}),
    "llama, llama3": ("Llama", SIZES | {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", SIZES | {"sliding_window": 5}),
    "mistral, no window": ("Mistral", SIZES | {"sliding_window": None}),
    "qwen2": ("Qwen2", SIZES | {"sliding_window": 3}),
    "qwen2, window": ("Qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("Qwen3", SIZES),
    "qwen3, window and biases": (
        "Qwen3",
        SIZES
        | {
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "attention_bias": True,
        },
    ),
    "gpt2": ("GPT2", GPT2_SIZES),
    "gpt2, other": (
        "GPT2",
        GPT2_SIZES
        | {
            "n_inner": 51,
            "activation_function": "relu",
            "layer_norm_epsilon": 0.1,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
        },
    ),
}


@contextmanager
def float64_throughout() -> Iterator[None]:
    """transformers computes norms, rotary angles and softmax in float32, whatever its model's precision is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def theirs(case: str, **changes: Any) -> Any:
    """A model of `transformers` with random weights everywhere: what is zero or one would hide errors."""
    name, options = CASES[case]
    with float64_throughout():
        config = getattr(transformers, name + "Config")(**options | changes)
        model = getattr(transformers, name + ("LMHeadModel" if name == "GPT2" else "ForCausalLM"))(config)
        model = model.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        norm = re.search(r"(norm|ln_.)\.weight", parameter_name)
        drawn = torch.empty(parameter.shape).normal_(1.0 if norm else 0.0, 0.2, generator=generator)
        parameter.copy_(drawn)  # numbers of float32, which the checkpoint's model has
    return model


def inputs(side: str) -> dict[str, Tensor]:
    mask = torch.tensor(MASKS[side])
    ids = torch.randint(2, 101, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def their_logits(model: Any, feeds: dict[str, Tensor]) -> Tensor:
    with float64_throughout():
        return model(**feeds).logits


def read_model(path: Path) -> Any:
    return checkpoints.read(path).model().double().requires_grad_(False)


def our_logits(model: Any, feeds: dict[str, Tensor], splits: tuple[int, ...] = ()) -> Tensor:
    """All logits, the sequence given in parts behind a cache."""
    config, batch = model.config, feeds["input_ids"].shape[0]
    layer = model.blocks[0].attention
    past = {
        f"past_key_values.{i}.{kind}": torch.zeros(
            batch, layer.num_kv_heads, 0, layer.head_dim, dtype=layer.query_linear.weight.dtype
        )
        for i in range(config.num_layers)
        for kind in ("key", "value")
    }
    parts = []
    for start, end in zip((0, *splits), (*splits, feeds["input_ids"].shape[1]), strict=True):
        outputs = model(
            feeds["input_ids"][:, start:end],
            feeds["attention_mask"][:, :end],
            feeds["position_ids"][:, start:end],
            torch.arange(end - start).expand(batch, -1),
            **past,
        )
        parts.append(outputs["logits"])
        past = {f"past_key_values.{n[8:]}": t for n, t in outputs.items() if n.startswith("present.")}
    return torch.cat(parts, 1)


def assert_same(model: Any, path: Path, side: str = "none", splits: tuple[int, ...] = ()) -> None:
    feeds = inputs(side)
    want, have = their_logits(model, feeds), our_logits(read_model(path), feeds, splits)
    real = feeds["attention_mask"] == 1
    assert want.std() > 0.05  # an answer that hardly varies would prove little
    torch.testing.assert_close(have[real], want[real], atol=1e-9, rtol=0)
