"""Generation beside transformers' on the same weights: the tokens of greedy and beam search are the same.

All numbers are random and in float32, so two scores that come closer to each other than rounding are
not to be expected; where a search takes another token, the cause is not rounding.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from torch import Tensor

from isoformer.export.graph import to_onnx
from isoformer.models.families import decoder
from isoformer.runtime import Package, Session, sampling
from isoformer.runtime.generation import Settings, generate
from isoformer.runtime.package import Signature

VOCABULARY, POSITIONS, NEW = 61, 128, 64
PAD = 0
PROMPTS = [
    np.random.default_rng([3, length]).integers(1, VOCABULARY, length).tolist()
    for length in (1, 2, 3, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 24, 29, 31, 37, 41, 43, 47)
]
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_heads": 4,
    "num_layers": 2,
    "intermediate_size": 40,
    "max_positions": POSITIONS,
    "tied_embeddings": False,
}


@dataclass(frozen=True)
class Pair:
    """One set of weights, in transformers and as a package; `eos` is a token that ends some greedy answers early."""

    theirs: Any
    session: Session
    eos: int = -1
    greedy: list[list[int]] = field(default_factory=list)

    def expected(self, prompts: Sequence[list[int]], **settings: Any) -> list[list[int]]:
        """transformers' new tokens, one batch padded on the left; what stands behind the end is cut off."""
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = self.theirs.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, **settings
        )
        return [cut(row, settings.get("eos_token_id", ())) for row in made[:, width:].tolist()]


def cut(tokens: list[int], eos: int | Sequence[int]) -> list[int]:
    """The tokens up to the first that ends a text, with it."""
    ends = (eos,) if isinstance(eos, int) else eos
    place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: place + 1]


def llama() -> tuple[Any, decoder.Config]:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=40,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config), decoder.Config(**SHAPE, num_kv_heads=2)


def mistral() -> tuple[Any, decoder.Config]:
    """Llama with a sliding window shorter than most prompts, which padding must not shorten further."""
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=40,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        sliding_window=7,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return transformers.MistralForCausalLM(config), decoder.Config(**SHAPE, num_kv_heads=2, sliding_window=7)


def gpt2() -> tuple[Any, decoder.Config]:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=24,
        n_head=4,
        n_layer=2,
        n_inner=40,
        n_positions=POSITIONS,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    ours = decoder.Config(
        **SHAPE,
        norm_kind="layer",
        position_kind="learned",
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        feed_forward_bias=True,
    )
    return transformers.GPT2LMHeadModel(config), ours


KINDS: dict[str, Callable[[], tuple[Any, decoder.Config]]] = {"llama": llama, "mistral": mistral, "gpt2": gpt2}

NAMES = (
    (r"^(model|transformer)\.", ""),
    (r"^(embed_tokens|wte)\.", "tokens."),
    (r"^wpe\.", "positions."),
    (r"^(norm|ln_f)\.", "final_norm."),
    (r"^lm_head\.", "head."),
    (r"^(layers|h)\.", "blocks."),
    (r"\.(input_layernorm|ln_1)\.", ".attention_norm."),
    (r"\.(post_attention_layernorm|ln_2)\.", ".feed_forward_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.attn\.c_proj\.", ".attention.out_linear."),
    (r"\.attn\.", ".attention."),
    (r"\.q_proj\.", ".query_linear."),
    (r"\.k_proj\.", ".key_linear."),
    (r"\.v_proj\.", ".value_linear."),
    (r"\.o_proj\.", ".out_linear."),
    (r"\.mlp\.(gate|up|down)_proj\.", r".feed_forward.\1."),
    (r"\.mlp\.c_fc\.", ".feed_forward.up."),
    (r"\.mlp\.c_proj\.", ".feed_forward.down."),
)


def our_weights(theirs: Any) -> dict[str, Tensor]:
    """Their state dict under the names of `families.decoder`."""
    result = {}
    for name, tensor in theirs.state_dict().items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if ".c_attn." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3, dim=-1), strict=True):
                result[name.replace("c_attn", f"{part}_linear")] = piece
        else:
            result[name] = tensor
    if isinstance(theirs, transformers.GPT2LMHeadModel):  # its layers, but for the head, keep (in, out) matrices
        return {n: t.T if t.ndim == 2 and n.startswith("blocks.") else t for n, t in result.items()}
    return result


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(5)
    theirs, config = KINDS[request.param]()
    for name, weight in theirs.named_parameters():  # norms and biases too, which start as ones and zeros
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float(name.endswith("weight")), std=0.2)
    theirs.eval()
    theirs.generation_config.eos_token_id = None
    model = decoder.Model(config).eval()
    model.load_state_dict({name: tensor.detach() for name, tensor in our_weights(theirs).items()})
    folder = tmp_path_factory.mktemp(request.param)
    signature = decoder.signature(config)
    ir.save(to_onnx(model, signature, 23), folder / "model.onnx")
    session = Session(Package(folder, {"task": {"name": "generate"}}, Signature.read(signature.to_dict())))
    free = Pair(theirs, session).expected(PROMPTS)
    counts = {token: sum(token in row[8:-8] for row in free) for token in range(1, VOCABULARY)}
    eos = next(token for token, count in counts.items() if 4 <= count <= 16)
    return Pair(theirs, session, eos, [cut(row, eos) for row in free])


def test_greedy(pair: Pair) -> None:
    assert len({len(row) for row in pair.greedy}) > 3  # some end early, some do not
    assert max(map(len, pair.greedy)) == NEW
    assert len({token for row in pair.greedy for token in row}) > VOCABULARY // 3
    settings = Settings(NEW, eos=(pair.eos,))
    assert generate(pair.session, PROMPTS, settings) == pair.greedy
    assert [generate(pair.session, [prompt], settings)[0] for prompt in PROMPTS] == pair.greedy
    for number in (0, 9, 19):  # theirs, too, does not depend on the padding
        assert pair.expected([PROMPTS[number]], eos_token_id=pair.eos) == [pair.greedy[number]]


def test_greedy_with_repetition_penalty_and_two_ends(pair: Pair) -> None:
    ends, some = (pair.eos, pair.eos + 1), PROMPTS[2::5]
    # A batch of theirs would penalize the padding token too, so each prompt runs alone.
    expected = [pair.expected([p], eos_token_id=list(ends), repetition_penalty=1.3)[0] for p in some]
    assert expected != pair.greedy[2::5]
    assert generate(pair.session, some, Settings(NEW, eos=ends, repetition_penalty=1.3)) == expected


@pytest.mark.parametrize(
    "pair", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mistral", "gpt2"))], indirect=True
)
@pytest.mark.parametrize(
    ("length_penalty", "early_stopping"),
    [
        (0.0, False),
        (1.0, False),
        (2.0, True),
        *(pytest.param(*choice, marks=pytest.mark.slow) for choice in ((0.0, True), (1.0, True), (2.0, False))),
    ],
)
def test_beam_search(pair: Pair, length_penalty: float, early_stopping: bool) -> None:
    choice: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    expected = pair.expected(PROMPTS, num_beams=4, eos_token_id=pair.eos, **choice)
    assert length_penalty == 2 or any(len(row) < NEW for row in expected)  # 2 favours the longest
    assert expected != pair.greedy
    settings = Settings(NEW, beams=4, eos=(pair.eos,), **choice)
    assert generate(pair.session, PROMPTS, settings) == expected
    assert pair.expected([PROMPTS[7]], num_beams=4, eos_token_id=pair.eos, **choice) == [expected[7]]


def test_beam_search_with_two_ends(pair: Pair) -> None:
    ends = (pair.eos, pair.eos + 1)
    expected = pair.expected(PROMPTS[::3], num_beams=3, eos_token_id=list(ends))
    assert generate(pair.session, PROMPTS[::3], Settings(NEW, beams=3, eos=ends)) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *((sampling.repetition_penalty(p), transformers.RepetitionPenaltyLogitsProcessor(p)) for p in (0.7, 1.3, 5.0)),
        *((sampling.top_k(k), transformers.TopKLogitsWarper(k)) for k in (1, 2, 50, 1000)),
        *((sampling.top_p(p), transformers.TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 1.0)),
        *((sampling.min_p(p), transformers.MinPLogitsWarper(p)) for p in (0.0, 0.02, 0.5, 1.0)),
    ],
)
def test_processors(ours: sampling.Processor, theirs: Any, dtype: type) -> None:
    rng = np.random.default_rng(17)
    for spread in (0.1, 1.0, 5.0):
        logits = (rng.standard_normal(389) * spread).astype(dtype)
        ids = rng.integers(0, 389, 23)
        expected = theirs(torch.from_numpy(ids)[None], torch.from_numpy(logits.copy())[None])[0].numpy()
        found = ours(ids.tolist(), logits)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == dtype
