"""What a client may send: good requests in JSON and in binary, and everything else refused in one line."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoformer.runtime.errors import InputError
from isoformer.runtime.package import Signature, TensorSpec
from isoformer.runtime.serve.inference import DATATYPES, MAX_ID, Request, answer, metadata, parse
from isoformer.runtime.serve.limits import Limits, RefusedError

SIGNATURE = Signature(
    inputs=(
        TensorSpec("input_ids", "int64", ("batch_size", "sequence_length"), high=101),
        TensorSpec("attention_mask", "int64", ("batch_size", "sequence_length"), kind="mask"),
        TensorSpec("scale", "float32", ("batch_size", 3), default=1.0),
    ),
    outputs=(
        TensorSpec("out", "float32", ("batch_size", 5)),
        TensorSpec("ids", "int64", ("batch_size",)),
    ),
    axes={"batch_size": (1, None), "sequence_length": (1, 17)},
    padding=("right",),
)
LIMITS = Limits(tokens=40, length=13)
IDS = {"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
MASK = {"name": "attention_mask", "datatype": "BOOL", "shape": [2, 3], "data": [True] * 6}


def read(data: Any, tail: bytes = b"", header: str | None = None) -> Request:
    head = data if isinstance(data, bytes) else json.dumps(data).encode()
    return parse(head + tail, str(len(head)) if tail and header is None else header, SIGNATURE, LIMITS)


def with_ids(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{name: value for name, value in (IDS | changes).items() if value is not None}, MASK]}


@pytest.mark.parametrize("data", [IDS["data"], [[1, 2, 3], [4, 5, 6]]], ids=["flat", "nested"])
def test_json(data: list) -> None:
    request = read({"id": "seven", "inputs": [IDS | {"data": data}, MASK], "outputs": [{"name": "ids"}]})
    np.testing.assert_array_equal(request.feeds["input_ids"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(request.feeds["attention_mask"], np.ones((2, 3), np.int64))
    np.testing.assert_array_equal(request.feeds["scale"], np.ones((2, 3), np.float32))  # its default
    assert (request.outputs, request.id) == ({"ids": False}, "seven")


def test_binary() -> None:
    ids, mask = np.arange(6, dtype="<i8"), np.array([1, 1, 0, 1, 0, 0], np.uint8)
    scale = np.array([[0.5, 1, 2], [3, 4, 5]], "<f4")
    entries = [
        {"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "parameters": {"binary_data_size": 48}},
        {"name": "attention_mask", "datatype": "BOOL", "shape": [2, 3], "parameters": {"binary_data_size": 6}},
        {"name": "scale", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
    ]
    data = {"inputs": entries, "parameters": {"binary_data_output": True}}
    request = read(data, ids.tobytes() + mask.tobytes() + scale.tobytes())
    np.testing.assert_array_equal(request.feeds["input_ids"], ids.reshape(2, 3))
    np.testing.assert_array_equal(request.feeds["attention_mask"], mask.reshape(2, 3))
    np.testing.assert_array_equal(request.feeds["scale"], scale)
    assert request.outputs == {"out": True, "ids": True}


def test_answers() -> None:
    arrays = {"out": np.arange(10, dtype=np.float32).reshape(2, 5) / 3, "ids": np.array([7, 8])}
    content, headers = answer(Request({}, {"out": False, "ids": False}, "x"), "m", arrays)
    assert headers == {"Content-Type": "application/json"}
    data = json.loads(content)
    assert (data["model_name"], data["id"]) == ("m", "x")
    assert data["outputs"][1] == {"name": "ids", "datatype": "INT64", "shape": [2], "data": [7, 8]}
    assert np.array_equal(np.array(data["outputs"][0]["data"], np.float32), arrays["out"].ravel())
    content, headers = answer(Request({}, {"ids": False, "out": True}), "m", arrays)
    length = int(headers["Inference-Header-Content-Length"])
    head = json.loads(content[:length])["outputs"]
    assert head[0]["data"] == [7, 8]
    assert head[1]["parameters"] == {"binary_data_size": 40}
    assert np.array_equal(np.frombuffer(content[length:], "<f4"), arrays["out"].ravel())


def test_what_json_cannot_say() -> None:
    arrays = {"out": np.array([[1, np.nan, np.inf]], np.float32)}
    assert json.loads(answer(Request({}, {"out": False}), "m", arrays)[0])["outputs"][0]["data"] == [1.0, None, None]


def test_metadata() -> None:
    found = metadata("m", SIGNATURE)
    assert found["inputs"][2] == {"name": "scale", "datatype": "FP32", "shape": [-1, 3]}
    assert [output["name"] for output in found["outputs"]] == ["out", "ids"]


BINARY = {"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "parameters": {"binary_data_size": 48}}
HOSTILE: list[tuple[Any, bytes, str | None]] = [
    (b"", b"", None),
    (b"\xff\xfe", b"", None),
    (b"[]", b"", None),
    (b"null", b"", None),
    (b"[" * 100_000, b"", None),
    (b'{"inputs": ' + b"[" * 100_000, b"", None),
    (b'{"inputs": [{"name": "input_ids", "shape": [1], "data": [NaN]}]}', b"", None),
    (b'{"inputs": [{"name": "input_ids", "shape": [1], "data": [' + b"9" * 5000 + b"]}]}", b"", None),
    ({}, b"", None),
    ({"inputs": {}}, b"", None),
    ({"inputs": []}, b"", None),
    ({"inputs": [IDS] * 1000}, b"", None),
    ({"inputs": [IDS, IDS]}, b"", None),
    ({"inputs": [IDS]}, b"", None),  # the mask is missing
    ({"inputs": ["input_ids", MASK]}, b"", None),
    (with_ids(name=None), b"", None),
    (with_ids(name=["input_ids"]), b"", None),
    (with_ids(name="no\nsuch" * 1000), b"", None),
    (with_ids(datatype=None), b"", None),
    (with_ids(datatype="BYTES", data=["a"] * 6), b"", None),
    (with_ids(datatype=["INT64"]), b"", None),
    (with_ids(datatype="INT32"), b"", None),
    (with_ids(shape=None), b"", None),
    (with_ids(shape=6), b"", None),
    (with_ids(shape=[2, -3]), b"", None),
    (with_ids(shape=[2, 3.0]), b"", None),
    (with_ids(shape=[True, 6]), b"", None),
    (with_ids(shape=[6]), b"", None),
    (with_ids(shape=[3, 2]), b"", None),
    (with_ids(shape=[2, 4]), b"", None),
    (with_ids(shape=[2**31, 2**31]), b"", None),
    (with_ids(shape=[10**30, 1]), b"", None),
    (with_ids(shape=[1] * 10_000), b"", None),
    (with_ids(shape=[0, 3], data=[]), b"", None),
    (with_ids(data=None), b"", None),
    (with_ids(data="abcdef"), b"", None),
    (with_ids(data=["1"] * 6), b"", None),
    (with_ids(data=[1.5] * 6), b"", None),
    (with_ids(data=[None] * 6), b"", None),
    (with_ids(data=[{}] * 6), b"", None),
    (with_ids(data=[10**30] * 6), b"", None),
    (with_ids(data=[[1, 2], [3, 4, 5], [6]]), b"", None),
    (with_ids(data=[[1, 2], [3, 4], [5, 6]]), b"", None),
    (with_ids(data=[101] * 6), b"", None),
    (with_ids(data=[-1] * 6), b"", None),
    (with_ids(parameters="x"), b"", None),
    (with_ids(parameters={"shared_memory_region": "/dev/mem"}), b"", None),
    (with_ids(parameters={"binary_data_size": 48}), b"\0" * 48, None),  # data as well
    ({"inputs": [BINARY, MASK]}, b"", None),
    ({"inputs": [BINARY, MASK]}, b"\0" * 47, None),
    ({"inputs": [BINARY, MASK]}, b"\0" * 49, None),
    ({"inputs": [BINARY | {"parameters": {"binary_data_size": 47}}, MASK]}, b"\0" * 47, None),
    ({"inputs": [BINARY | {"parameters": {"binary_data_size": -48}}, MASK]}, b"\0" * 48, None),
    ({"inputs": [BINARY | {"parameters": {"binary_data_size": "48"}}, MASK]}, b"\0" * 48, None),
    ({"inputs": [BINARY | {"shape": [2**30, 2**30]}, MASK]}, b"\0" * 48, None),
    ({"inputs": [IDS, MASK]}, b"\0" * 8, None),
    ({"inputs": [IDS, MASK]}, b"", "-1"),
    ({"inputs": [IDS, MASK]}, b"", "1e3"),
    ({"inputs": [IDS, MASK]}, b"", "99999999999999999999"),
    ({"inputs": [IDS, MASK]}, b"", "100000"),
    ({"inputs": [IDS, MASK]}, b"", "²"),
    ({"inputs": [IDS, MASK | {"data": [2] * 6, "datatype": "INT8"}]}, b"", None),
    ({"inputs": [IDS, MASK | {"data": [7.0] * 6}]}, b"", None),
    ({"inputs": [IDS, MASK], "id": 7}, b"", None),
    ({"inputs": [IDS, MASK], "id": "x" * (MAX_ID + 1)}, b"", None),
    ({"inputs": [IDS, MASK], "id": "a\r\nSet-Cookie: b"}, b"", None),
    ({"inputs": [IDS, MASK], "parameters": 3}, b"", None),
    ({"inputs": [IDS, MASK], "outputs": "out"}, b"", None),
    ({"inputs": [IDS, MASK], "outputs": [{"name": "absent"}]}, b"", None),
    ({"inputs": [IDS, MASK], "outputs": [{"name": "out"}] * 2}, b"", None),
    ({"inputs": [IDS, MASK], "outputs": [{"name": "out", "parameters": {"classification": 3}}]}, b"", None),
    ({"inputs": [IDS, MASK, {"name": "scale", "datatype": "FP32", "shape": [2, 3], "data": [1e300] * 6}]}, b"", None),
]


@pytest.mark.parametrize(("data", "tail", "header"), HOSTILE, ids=range(len(HOSTILE)))
def test_refused(data: Any, tail: bytes, header: str | None) -> None:
    with pytest.raises(InputError) as error:
        read(data, tail, header)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_too_large() -> None:
    long = {"shape": [1, 14], "data": [1] * 14}
    with pytest.raises(RefusedError, match="takes 13 at most") as error:
        read({"inputs": [IDS | long, MASK | long]})
    assert error.value.status == 413
    many = {"shape": [41, 1], "data": [1] * 41}
    with pytest.raises(RefusedError, match="takes 40 in a request"):
        read({"inputs": [IDS | many, MASK | many]})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(list(DATATYPES)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "data", "datatype", "parameters", "binary_data_size"]), inner
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(list(IDS)), VALUES), VALUES, st.binary(max_size=20), st.none() | st.text(max_size=4)
)
def test_anything_else_is_an_answer_or_one_line(change: Any, more: Any, tail: bytes, header: str | None) -> None:
    try:
        data = json.dumps({"inputs": [IDS | change, MASK], "outputs": more}).encode()
    except UnicodeEncodeError:
        return
    try:
        request = parse(data + tail, header, SIGNATURE, LIMITS)
    except (InputError, RefusedError) as error:
        assert "\n" not in str(error)  # noqa: PT017  whatever is raised
        return
    assert request.feeds["input_ids"].dtype == np.int64


@given(st.binary(max_size=60), st.none() | st.integers(-2, 70).map(str))
def test_bytes_are_an_answer_or_one_line(body: bytes, header: str | None) -> None:
    with pytest.raises((InputError, RefusedError)):
        parse(body, header, SIGNATURE, LIMITS)
