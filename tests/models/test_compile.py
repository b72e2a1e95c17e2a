"""`torch.compile` and `torch.export` take attention as written, in one graph, with its sizes left open."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from isoformer.models import masks
from isoformer.models.attention import MultiHeadAttention, attend
from isoformer.models.families import attention as family
from isoformer.models.mask_rule import INPUTS
from tests.properties.drawn import Call, assert_same, rounding

H, K, D, V, E = 6, 3, 4, 5, 12
SIZES = [(2, 3, 5), (3, 7, 11), (5, 5, 2)]  # batch, queries, keys
MASKS = {
    "none": lambda batch, queries, keys: None,  # noqa: ARG005
    "keys": lambda batch, queries, keys: holes(batch, keys),  # noqa: ARG005
    "queries and keys": lambda batch, queries, keys: holes(queries, keys)[None],  # noqa: ARG005
    "rank 3": lambda batch, queries, keys: holes(batch, queries, keys),
    "rank 4": lambda batch, queries, keys: holes(batch, H, queries, keys),
    "built": lambda batch, queries, keys: masks.combine(
        masks.padding(holes(batch, keys)), masks.sliding_window(queries, keys, 3, 2)
    ),
}
OPTIONS = {"plain": (), "all": ("bias", "softcap", "sinks")}
LAYERS = {"plain": {}, "all": {"num_kv_heads": 2, "softcap": 2.0, "sinks": True}}


def holes(*shape: int) -> Tensor:
    """0 and 1 with whole rows of 0."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.6
    mask.view(-1, shape[-1])[0] = False
    return mask.to(torch.int64)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_call(sizes: tuple[int, int, int], mask: str, options: str) -> Call:
    batch, queries, keys = sizes
    choices = {"bias": rand(batch, 1, queries, keys, seed=3), "softcap": 2.0, "sinks": rand(H, seed=4)}
    q, k, v = rand(batch, H, queries, D, seed=0), rand(batch, K, keys, D, seed=1), rand(batch, K, keys, V, seed=2)
    return Call(q, k, v, MASKS[mask](*sizes), {name: choices[name] for name in OPTIONS[options]})


def outputs(function, call: Call) -> list[Tensor]:
    """The answer and the gradients of query, key and value."""
    q, k, v = (x.clone().requires_grad_() for x in (call.query, call.key, call.value))
    out = function(q, k, v, call.mask, **call.options)
    return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]


def tiers(names: str, choices, fast):
    """Every combination, those that are not `fast` in the slow tier."""
    return pytest.mark.parametrize(
        names, [pytest.param(*c, marks=[] if fast(*c) else [pytest.mark.slow]) for c in product(*choices)]
    )


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@tiers(
    "dynamic, mask, options",
    [(None, True, False), MASKS, OPTIONS],
    lambda dynamic, mask, options: (dynamic, mask, options) in ((True, "rank 4", "all"), (None, "keys", "plain")),
)
def test_attend_compiles_whole(dynamic, mask, options):
    """With the same operators, so bit for bit, forward and backward."""
    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="eager")
    for sizes in SIZES:
        call = make_call(sizes, mask, options)
        for have, want in zip(outputs(compiled, call), outputs(attend, call), strict=True):
            assert torch.equal(have, want), sizes


@tiers(
    "dynamic, mask, options",
    [(None, True, False), MASKS, LAYERS],
    lambda dynamic, mask, options: (dynamic, mask, options) in ((True, "built", "plain"), (None, "rank 3", "all")),
)
def test_a_layer_compiles_whole(dynamic, mask, options):
    torch.manual_seed(0)
    layer = MultiHeadAttention(E, H, head_dim=D, **LAYERS[options])
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="eager")
    for batch, queries, keys in SIZES:
        inputs = rand(batch, queries, E, seed=5), rand(batch, keys, E, seed=6), rand(batch, keys, E, seed=7)
        made = MASKS[mask](batch, queries, keys)
        answers = []
        for function in (compiled, layer):
            out = function(*inputs, made)
            answers.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
        for have, want in zip(*answers, strict=True):
            assert torch.equal(have, want)


@pytest.mark.slow
def test_masks_are_built_within_what_is_compiled():
    def windowed(q, k, v, lengths):
        mask = masks.combine(masks.lengths(lengths, k.shape[2]), masks.sliding_window(q.shape[2], k.shape[2], 3))
        return attend(q, k, v, mask)

    compiled = torch.compile(windowed, fullgraph=True, dynamic=True, backend="eager")
    for sizes in SIZES:
        call = make_call(sizes, "none", "plain")
        upto = torch.arange(sizes[0]) % (sizes[2] + 1)
        assert torch.equal(
            compiled(call.query, call.key, call.value, upto), windowed(call.query, call.key, call.value, upto)
        )


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["keys", "rank 4"])
def test_aot_autograd_traces_the_gradient(mask):
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in SIZES[:2]:
        call = make_call(sizes, mask, "all")
        have, want = outputs(compiled, call)[0], call.run()
        assert_same(have, want, 2 * rounding(call))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own parts
@pytest.mark.parametrize(("mask", "options"), [("keys", "plain"), ("rank 4", "all")])
def test_inductor_computes_the_same(mask, options):
    """Needs a C++ compiler."""
    compiled = torch.compile(attend, fullgraph=True, dynamic=True)
    for sizes in SIZES[:2]:
        call = make_call(sizes, mask, options).to(torch.float64)
        have, want = outputs(compiled, call), outputs(attend, call)
        blind = ~call.visible().any(-1)
        assert_same(have[0], want[0], 2 * rounding(call))
        assert (have[0][blind] == 0).all()
        assert (have[1][blind] == 0).all()
        for one, other in zip(have, want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


class Attend(nn.Module):
    def __init__(self, options: dict) -> None:
        super().__init__()
        self.options = options

    def forward(self, query, key, value, mask=None):
        return attend(query, key, value, mask, **self.options)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = MultiHeadAttention(E, H, K, head_dim=D, softcap=2.0, sinks=True)

    def forward(self, query, key, value, mask=None):
        return self.attention(query, key, value, mask)


BATCH, QUERIES, KEYS = (Dim(name, min=1, max=64) for name in ("batch", "queries", "keys"))
MASK_SHAPES = {
    "none": None,
    "keys": {0: BATCH, 1: KEYS},
    "queries and keys": {1: QUERIES, 2: KEYS},
    "rank 3": {0: BATCH, 1: QUERIES, 2: KEYS},
    "rank 4": {0: BATCH, 2: QUERIES, 3: KEYS},
    "built": {0: BATCH, 2: QUERIES, 3: KEYS},
}


@tiers(
    "strict, mask, what",
    [(True, False), MASKS, ("attend", "softcap", "layer")],
    lambda strict, mask, what: (
        what == "attend" if not strict else (mask, what) in (("keys", "attend"), ("rank 4", "layer"))
    ),
)
def test_attention_exports_with_open_sizes(strict, mask, what):
    module = Layer() if what == "layer" else Attend({"softcap": 2.0} if what == "softcap" else {})
    axis = 1 if what == "layer" else 2

    def inputs(sizes: tuple[int, int, int]) -> tuple[Tensor | None, ...]:
        call = make_call(sizes, mask, "plain")
        if what != "layer":
            return call.query, call.key, call.value, call.mask
        return *(
            rand(sizes[0], length, E, seed=length + i) for i, length in enumerate((*sizes[1:], sizes[2]))
        ), call.mask

    shapes = ({0: BATCH, axis: QUERIES}, {0: BATCH, axis: KEYS}, {0: BATCH, axis: KEYS}, MASK_SHAPES[mask])
    program = torch.export.export(module, inputs(SIZES[0]), dynamic_shapes=shapes, strict=strict)
    for sizes in SIZES:
        assert torch.equal(program.module()(*inputs(sizes)), module(*inputs(sizes))), sizes


FAMILIES = {
    "tiny": family.TINY,
    "rank 4": family.Config(E, 2, mask_rank=4, mask_heads=2, softcap=2.0, sinks=True, output_attentions=True),
    "inputs": family.Config(E, 2, causal=True, mask_inputs=INPUTS, position_kind="alibi"),
    "cross": family.Config(E, 2, cross=True, key_size=7, mask_rank=3),
}


class Positional(nn.Module):
    """A model with its inputs in a row: torch.export takes no open sizes for `**inputs`."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        return self.model(**dict(zip(self.names, tensors, strict=True)))


@tiers("strict, name", [(True, False), FAMILIES], lambda strict, _: not strict)
def test_the_family_exports_with_open_sizes(strict, name):
    config = FAMILIES[name]
    model, signature = family.Model(config).eval(), family.signature(config)

    def inputs(batch: int, length: int, other: int) -> dict[str, Tensor]:
        sizes = {"batch_size": batch, family.LENGTH: length, family.PAST: other, family.ENCODER: other}
        sizes[family.TOTAL] = length + other
        made = {}
        for seed, spec in enumerate(signature.inputs):
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
            if spec.kind == "value":
                made[spec.name] = rand(*shape, seed=seed)
            else:
                made[spec.name] = holes(*shape) if spec.kind == "mask" else torch.ones(shape, dtype=torch.int64)
        return made

    open_sizes: dict[str, Any] = {
        name: Dim(name, min=int(name != family.PAST), max=64) for name in signature.axis_names()
    }
    open_sizes[family.TOTAL] = Dim.DYNAMIC  # a sum of two others
    shapes = [{i: open_sizes[a] for i, a in enumerate(spec.axes) if isinstance(a, str)} for spec in signature.inputs]
    module = Positional(model, [spec.name for spec in signature.inputs])
    with torch.no_grad():
        samples = tuple(inputs(2, 3, 5).values())
        program = torch.export.export(module, samples, dynamic_shapes=(tuple(shapes),), strict=strict)
        for sizes in [*SIZES, (1, 1, 3), (4, 9, 1)]:  # torch guards the sum as if each part were at least 2
            have, want = program.module()(*inputs(*sizes).values()), model(**inputs(*sizes))
            assert have.keys() == want.keys()
            for output in want:
                assert torch.equal(have[output], want[output]), (output, sizes)
