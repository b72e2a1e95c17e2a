import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from isoformer.models.signature import DTYPES, Axis, Signature, TensorSpec

IDS = TensorSpec("input_ids", "int64", ("batch_size", "sequence_length"), high=101)
MASK = TensorSpec("attention_mask", "int64", ("batch_size", "sequence_length"), kind="mask", default=1)
IMAGE = TensorSpec("pixel_values", "float32", ("image_count", 3, "height", 11))
OUT = TensorSpec("logits", "float32", ("batch_size", 7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_that_is_listed_is_taken(dtype):
    assert TensorSpec("x", dtype, ("n",), high=2).dtype == dtype


def test_another_dtype_is_refused_by_name():
    with pytest.raises(ValueError, match=r"x: dtype 'int8' is not one of bool, uint8, int32, int64, .*float64"):
        TensorSpec("x", "int8", ("n",), high=2)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_an_integer_input_says_how_far_its_values_go(dtype):
    with pytest.raises(ValueError, match=r"x: .*needs `high`"):
        Signature((TensorSpec("x", dtype, ("n",)),), (TensorSpec("y", "float32", ("n",)),))
    values, mask = TensorSpec("x", "float32", ("n",)), TensorSpec("m", dtype, ("n",), kind="mask")
    counts = TensorSpec("y", dtype, ("n",))
    assert Signature((values, mask), (counts,)).outputs[0].high is None


def test_a_name_used_twice_is_refused():
    with pytest.raises(ValueError, match="names input_ids more than once"):
        Signature((IDS, MASK, IDS), (OUT,))
    with pytest.raises(ValueError, match="names logits more than once"):
        Signature((IDS, TensorSpec("logits", "float32", ("batch_size",))), (OUT,))
    with pytest.raises(ValueError, match="names attention_mask, input_ids more than once"):
        Signature((IDS, MASK, IDS, MASK), (OUT,))


def test_an_output_axis_that_no_input_has_is_refused():
    with pytest.raises(ValueError, match="output y has the axis width, which no input has"):
        Signature((IDS, MASK), (OUT, TensorSpec("y", "float32", ("batch_size", "width"))))


@pytest.mark.parametrize(("inputs", "outputs"), [((), (OUT,)), ((IDS,), ()), ((), ())])
def test_a_signature_has_inputs_and_outputs(inputs, outputs):
    with pytest.raises(ValueError, match="at least one input and one output"):
        Signature(inputs, outputs)


def test_axis_names_come_in_the_order_of_their_first_use():
    assert Signature((IMAGE, IDS, MASK), (OUT,)).axis_names() == [
        "image_count",
        "height",
        "batch_size",
        "sequence_length",
    ]


def test_to_dict_is_the_whole_signature_as_json():
    signature = Signature(
        (IDS, MASK, TensorSpec("scale", "float32", ("batch_size", 1), low=-2, pad=3, default=0.5)),
        (OUT,),
        axes={"sequence_length": Axis(2, 512)},
        padding=("right",),
    )
    expected = {
        "inputs": [
            {
                "name": "input_ids",
                "dtype": "int64",
                "axes": ["batch_size", "sequence_length"],
                "kind": "value",
                "low": 0,
                "high": 101,
                "pad": None,
                "default": None,
                "along": None,
            },
            {
                "name": "attention_mask",
                "dtype": "int64",
                "axes": ["batch_size", "sequence_length"],
                "kind": "mask",
                "low": 0,
                "high": None,
                "pad": None,
                "default": 1,
                "along": None,
            },
            {
                "name": "scale",
                "dtype": "float32",
                "axes": ["batch_size", 1],
                "kind": "value",
                "low": -2,
                "high": None,
                "pad": 3,
                "default": 0.5,
                "along": None,
            },
        ],
        "outputs": [{"name": "logits", "dtype": "float32", "axes": ["batch_size", 7]}],
        "axes": {
            "batch_size": {"min": 1, "max": None, "sum_of": [], "times": 1},
            "sequence_length": {"min": 2, "max": 512, "sum_of": [], "times": 1},
        },
        "padding": ["right"],
        "chunked": False,
        "windows": [],
    }
    assert signature.to_dict() == expected
    assert json.loads(json.dumps(signature.to_dict())) == expected


def test_an_axis_may_be_the_sum_of_others():
    past = TensorSpec("past", "float32", ("batch_size", "past_length"))
    mask = TensorSpec("mask", "int64", ("batch_size", "total_length"), kind="mask")
    axes = {"past_length": Axis(0), "total_length": Axis(sum_of=("past_length", "sequence_length"))}
    signature = Signature((IDS, past, mask), (OUT,), axes=axes)
    assert signature.to_dict()["axes"]["total_length"]["sum_of"] == ["past_length", "sequence_length"]
    for part in ("nowhere", "total_length"):
        with pytest.raises(ValueError, match=f"total_length is a sum of '{part}'"):
            Signature((IDS, past, mask), (OUT,), axes={"total_length": Axis(sum_of=(part,))})


def test_an_axis_may_be_a_multiple_of_another_that_no_input_has():
    wave = TensorSpec("waveform", "float32", ("batch_size", "num_samples"))
    features = TensorSpec("features", "float32", ("batch_size", "num_frames"))
    axes = {"num_samples": Axis(sum_of=("num_frames",), times=160), "num_frames": Axis(2, 3000)}
    signature = Signature((wave,), (features,), axes=axes)
    assert signature.axis_names() == ["batch_size", "num_samples", "num_frames"]
    assert signature.axes["num_samples"].total({"num_frames": 7}) == 1120
    for times, parts in ((0, ("num_frames",)), (2, ()), (2, ("a", "b")), (1.5, ("a",))):
        with pytest.raises(ValueError, match="it is a whole number from 1, and goes with one axis in sum_of"):
            Axis(sum_of=parts, times=times)  # pyright: ignore[reportArgumentType]


def test_an_axis_of_outputs_may_be_a_product_of_others():
    image = TensorSpec("image", "float32", ("batch_size", "rows", "columns"))
    hidden = TensorSpec("hidden", "float32", ("batch_size", "tokens", 5))
    axes = {"rows": Axis(1, 9), "tokens": Axis(product_of=("rows", "columns"), plus=1)}
    signature = Signature((image,), (hidden,), axes=axes)
    assert signature.axes["tokens"].total({"rows": 3, "columns": 7}) == 22
    assert signature.axis_names() == ["batch_size", "rows", "columns", "tokens"]
    data = json.loads(json.dumps(signature.to_dict()["axes"]))
    assert data["tokens"]["product_of"] == ["rows", "columns"]
    assert data["tokens"]["plus"] == 1
    assert "product_of" not in data["rows"]
    with pytest.raises(ValueError, match="tokens is a product of 'depth', which is not a plain axis"):
        Signature((image,), (hidden,), axes={"tokens": Axis(product_of=("rows", "depth"))})
    tokens = TensorSpec("tokens", "float32", ("batch_size", "tokens"))
    with pytest.raises(ValueError, match="tokens is a product, which is for outputs; an input has it"):
        Signature((image, tokens), (hidden,), axes=axes)
    for wrong in ({"product_of": ("a",), "sum_of": ("b",)}, {"plus": 1}, {"product_of": ("a",), "plus": 1.5}):
        with pytest.raises(ValueError, match="goes without sum_of"):
            Axis(**wrong)  # pyright: ignore[reportArgumentType]


def test_lengths_say_along_which_axis():
    with pytest.raises(ValueError, match="kind 'lengths' and along None"):
        TensorSpec("lengths", "int64", ("batch_size",), kind="lengths")
    with pytest.raises(ValueError, match="along 'nowhere' is not an axis"):
        Signature((IDS, TensorSpec("n", "int64", ("batch_size",), kind="lengths", along="nowhere")), (OUT,))


def test_a_signature_does_not_change():
    for value, name in ((IDS, "high"), (Axis(), "max"), (Signature((IDS,), (OUT,)), "inputs")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 5)


def test_signatures_need_nothing_but_the_standard_library():
    code = "import sys, isoformer.models.signature; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "isoformer" in loaded
    assert not {"torch", "numpy", "onnx", "onnxruntime"} & set(loaded)


def test_choices_say_what_they_are_of():
    best = TensorSpec("best", "int64", ("batch_size", 2), kind="choices", along="logits")
    logits = TensorSpec("logits", "float32", ("batch_size", 9))
    kept = Signature((IDS,), (best, logits)).to_dict()["outputs"]
    plain = [{"name": spec.name, "dtype": spec.dtype, "axes": list(spec.axes)} for spec in (best, logits)]
    assert kept == [plain[0] | {"kind": "choices", "along": "logits"}, plain[1]]
    for others in ((), (TensorSpec("logits", "int64", ("batch_size", 9)),), (TensorSpec("logits", "float32", (9,)),)):
        with pytest.raises(ValueError, match="best: choices along 'logits', which is no output of floats"):
            Signature((IDS,), (best, *others))
    with pytest.raises(ValueError, match="kind 'choices' and along None"):
        TensorSpec("best", "int64", ("batch_size", 2), kind="choices")
    with pytest.raises(ValueError, match="an input cannot be choices"):
        Signature((IDS, best), (logits,))
