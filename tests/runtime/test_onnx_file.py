"""The reader of ONNX files, held against onnx itself and against files that are not what they say."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from isoformer.runtime.errors import PackageError
from isoformer.runtime.onnx_file import DTYPES, MAX_DEPTH, external_files, operators, read_tensor

SHAPES = [(), (0,), (1,), (7,), (2, 3, 5), (3, 0, 2), (1,) * 8]
READERS: dict[str, Callable[[Path], object]] = {
    "read_tensor": read_tensor,
    "external_files": external_files,
    "operators": operators,
}
BREAKING = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx") / "file.pb"


def varint(number: int) -> bytes:
    """A number as protocol buffers write it, negative ones in ten bytes."""
    number %= 1 << 64
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes) -> bytes:
    """One field of a message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_bytes(dims: list[int], raw: bytes, data_type: int = TensorProto.FLOAT) -> bytes:
    return b"".join(field(1, d) for d in dims) + field(2, data_type) + field(9, raw)


# ----------------------------------------------------------------------------------------- read_tensor


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", sorted(DTYPES.values()))
def test_read_tensor_is_what_onnx_wrote(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    random = np.random.default_rng(11).integers(0, 2 if dtype == "bool" else 100, shape)
    written = np.asarray(random).astype(dtype)
    (tmp_path / "t.pb").write_bytes(numpy_helper.from_array(written, "name").SerializeToString())
    read = read_tensor(tmp_path / "t.pb")
    assert (read.dtype, read.shape) == (written.dtype, shape)
    np.testing.assert_array_equal(read, written)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES.values())))
def test_read_tensor_keeps_every_bit(data: st.DataObject, dtype: str, file: Path) -> None:
    shape = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    written = data.draw(arrays.arrays(np.dtype(dtype), shape))
    tensor = numpy_helper.from_array(written)
    file.write_bytes(tensor.SerializeToString())
    read = read_tensor(file)
    assert read.shape == written.shape == numpy_helper.to_array(tensor).shape
    assert read.tobytes() == written.tobytes()


def test_read_tensor_reads_dims_in_one_packed_field(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    message = field(1, varint(2) + varint(3)) + field(2, TensorProto.FLOAT) + field(9, values.tobytes())
    (tmp_path / "t.pb").write_bytes(message)
    np.testing.assert_array_equal(read_tensor(tmp_path / "t.pb"), values.reshape(2, 3))


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(dims=[2], data_type=TensorProto.STRING, string_data=[b"a", b"b"]),
        numpy_helper.from_array(np.ones(3, ml_dtypes.bfloat16)),
        helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0]),  # in float_data, not raw
        TensorProto(),
    ],
    ids=["string", "bfloat16", "not raw", "nothing"],
)
def test_read_tensor_refuses_other_tensors(tensor: TensorProto, tmp_path: Path) -> None:
    (tmp_path / "t.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(PackageError, match=r"t\.pb"):
        read_tensor(tmp_path / "t.pb")


@pytest.mark.parametrize(
    ("dims", "raw"),
    [
        ([2], b"\0" * 7),
        ([2], b"\0" * 12),
        ([], b""),
        ([-1], b"\0" * 4),
        ([-2, -1], b"\0" * 8),
        ([2**62], b"\0" * 8),
        ([1] * 65, b"\0" * 4),
        ([0, 2**62, 2**62], b""),
        ([0, 2**63 - 1], b""),
    ],
    ids=["short", "long", "no scalar", "negative", "negative twice", "huge", "65 axes", "empty, huge", "empty, wide"],
)
def test_read_tensor_refuses_dims_that_are_not_the_bytes(dims: list[int], raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.pb").write_bytes(tensor_bytes(dims, raw))
    with pytest.raises(PackageError, match=r"t\.pb"):
        read_tensor(tmp_path / "t.pb")


@pytest.mark.parametrize("last", [0x01, 0x02, 0x7F])
def test_read_tensor_refuses_dims_of_more_than_63_bits(last: int, tmp_path: Path) -> None:
    wide = varint(1 << 3) + b"\xff" * 9 + bytes([last])
    (tmp_path / "t.pb").write_bytes(wide + tensor_bytes([0], b""))
    with pytest.raises(PackageError, match=r"t\.pb"):
        read_tensor(tmp_path / "t.pb")


# ------------------------------------------------------------------------- external_files and operators


def external(name: str, location: str) -> TensorProto:
    """A float tensor of three values that stand in another file."""
    tensor = TensorProto(name=name, dims=[3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(location: str, indices: str) -> onnx.SparseTensorProto:
    where = external("", indices)
    where.data_type = TensorProto.INT64
    return onnx.SparseTensorProto(values=external(f"sparse {location}", location), indices=where, dims=[7])


def model_with_everything() -> onnx.ModelProto:
    """Nodes and external data in each place where the format has room for them."""
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])

    def branch(location: str, op_type: str, domain: str = "") -> onnx.GraphProto:
        node = helper.make_node(op_type, ["x", "w"], ["y"], domain=domain)
        return helper.make_graph([node], op_type, [], [y], [external("w", location)])

    chosen = helper.make_node("If", ["condition"], ["a"])
    chosen.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(branch("then.bin", "Mul"))
    chosen.attribute.add(name="else_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(
        branch("else/deep.bin", "Fused", "com.example")
    )
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(external("", "attribute.bin"))
    holed = helper.make_node("Constant", [], ["h"])
    holed.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(
        sparse("sparse_attribute.bin", "sparse_attribute_indices.bin")
    )
    listed = helper.make_node("Listed", ["c"], ["l"], domain="com.example")
    listed.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(external("", "tensors.bin"))
    listed.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS).graphs.append(branch("graphs.bin", "Sub"))
    listed.attribute.add(name="holes", type=onnx.AttributeProto.SPARSE_TENSORS).sparse_tensors.append(
        sparse("sparse_tensors.bin", "sparse_tensors_indices.bin")
    )
    inner = helper.make_node("Constant", [], ["k"])
    inner.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(external("", "function.bin"))
    function = helper.make_function(
        "local",
        "Twice",
        ["p"],
        ["q"],
        [inner, helper.make_node("Add", ["p", "k"], ["q"])],
        [helper.make_opsetid("", 20)],
        attribute_protos=[],
    )
    function.attribute_proto.add(name="default", type=onnx.AttributeProto.TENSOR).t.CopyFrom(external("", "proto.bin"))
    nodes = [
        chosen,
        constant,
        holed,
        listed,
        helper.make_node("Twice", ["a"], ["b"], domain="local"),
        helper.make_node("Add", ["b", "w"], ["d"], domain="ai.onnx"),
        helper.make_node("Add", ["d", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [condition, x],
        [y],
        [external("w", "weights.bin"), numpy_helper.from_array(np.ones(3, np.float32), "inside")],
        sparse_initializer=[sparse("sparse.bin", "sparse_indices.bin")],
    )
    return helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 20)])


def test_external_files_finds_every_location(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model_with_everything().SerializeToString())
    sparse_files = ("sparse", "sparse_attribute", "sparse_tensors")
    assert external_files(tmp_path / "m.onnx") == {
        *("weights.bin", "then.bin", "else/deep.bin", "attribute.bin", "tensors.bin", "graphs.bin"),
        *("function.bin", "proto.bin"),
        *(f"{name}.bin" for name in sparse_files),
        *(f"{name}_indices.bin" for name in sparse_files),
    }


def test_operators_counts_every_node(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model_with_everything().SerializeToString())
    assert operators(tmp_path / "m.onnx") == Counter(
        {"Add": 3, "Constant": 3, "If": 1, "Mul": 1, "Sub": 1}
        | {"local::Twice": 1, "com.example::Fused": 1, "com.example::Listed": 1}
    )


def test_weights_are_not_read_as_a_model(tmp_path: Path) -> None:
    raw = model_with_everything().SerializeToString()
    weights = TensorProto(name="w", dims=[len(raw)], data_type=TensorProto.UINT8, raw_data=raw)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [], [weights])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert external_files(tmp_path / "m.onnx") == set()
    assert operators(tmp_path / "m.onnx") == Counter(Identity=1)


def test_graphs_nested_too_deep_are_refused(tmp_path: Path) -> None:
    message = field(4, b"Relu")
    for _ in range(MAX_DEPTH):  # a node in a graph in an attribute of a node
        message = field(5, field(6, field(1, message)))
    (tmp_path / "m.onnx").write_bytes(field(7, field(1, message)))
    with pytest.raises(PackageError, match="deep"):
        operators(tmp_path / "m.onnx")


# ------------------------------------------------------------------------------------------ broken files


@pytest.mark.parametrize("reader", READERS)
def test_empty_file(reader: str, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(PackageError, match=r"empty\.onnx"):
        READERS[reader](tmp_path / "empty.onnx")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "content",
    [b"\xff" * 20, b"\x0b", b"\x0a\x05ab", b"\x0a\x03ab", b"\x09\0\0", b"\x80", b"\x0a" + b"\x80" * 9],
    ids=["endless number", "group", "cut bytes", "one byte less", "cut fixed", "cut key", "cut length"],
)
def test_garbage(reader: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(PackageError, match=r"bad\.onnx"):
        READERS[reader](tmp_path / "bad.onnx")


def test_length_that_leads_backwards_ends(tmp_path: Path) -> None:
    """A negative length must not send the reader over the same bytes for ever."""
    (tmp_path / "t.pb").write_bytes(varint(1 << 3 | 2) + varint(-11))
    code = "import sys; from pathlib import Path; from isoformer.runtime.onnx_file import read_tensor; "
    code += "read_tensor(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.pb")], capture_output=True, text=True, timeout=10, check=False
    )
    assert "PackageError" in done.stderr


def only_package_errors(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for reader in READERS.values():
        try:
            reader(file)
        except PackageError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either way is right; one line is asked of the error


@BREAKING
@given(content=st.binary(max_size=64))
def test_random_bytes(content: bytes, file: Path) -> None:
    only_package_errors(file, content)


WHOLE = model_with_everything().SerializeToString()
TENSOR = numpy_helper.from_array(np.arange(6, dtype=np.int64).reshape(2, 3), "t").SerializeToString()


@BREAKING
@given(content=st.sampled_from([WHOLE, TENSOR]), data=st.data())
def test_random_truncations(content: bytes, data: st.DataObject, file: Path) -> None:
    only_package_errors(file, content[: data.draw(st.integers(0, len(content) - 1))])


@BREAKING
@given(content=st.sampled_from([WHOLE, TENSOR]), data=st.data())
def test_random_bytes_changed(content: bytes, data: st.DataObject, file: Path) -> None:
    changed = bytearray(content)
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=4)):
        changed[place] = value
    only_package_errors(file, bytes(changed))


@BREAKING
@given(dims=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=70), raw=st.binary(max_size=24))
def test_random_dims(dims: list[int], raw: bytes, file: Path) -> None:
    file.write_bytes(tensor_bytes(dims, raw))
    try:
        read = read_tensor(file)
    except PackageError:
        return
    assert read.shape == tuple(dims)
    assert read.tobytes() == raw
