"""Packages on disk: what `load` gives, and everything that it must refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, numpy_helper

from isoformer.models.families import encoder
from isoformer.runtime import Session
from isoformer.runtime.errors import PackageError
from isoformer.runtime.package import MANIFEST, SCHEMA, WEIGHTS, Package, Signature, load, sha256

Copy = Callable[..., Path]


def edit(package: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest of a package."""
    manifest = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (package / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def list_file(package: Path, name: str) -> None:
    """Puts a file into the manifest, with its true digest."""
    edit(package, lambda manifest: manifest["files"].update({name: sha256(package / name)}))


def refused(package: Path, *words: str) -> None:
    """`load` raises one line that holds the words."""
    with pytest.raises(PackageError) as caught:
        load(package)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# ------------------------------------------------------------------------------------------ good packages


def test_load(tiny_package: Path) -> None:
    package = load(str(tiny_package))
    assert package.path == tiny_package
    assert package.model == tiny_package / "model.onnx"
    assert package.task == {"name": "embed"}
    assert package.signature == Signature.read(encoder.signature(encoder.TINY).to_dict())
    on_disk = {f.relative_to(tiny_package).as_posix() for f in tiny_package.rglob("*") if f.is_file()}
    assert set(package.manifest["files"]) == on_disk - {MANIFEST}


def test_signature_of_the_manifest(tiny_package: Path) -> None:
    signature = load(tiny_package).signature
    ids, mask, types = signature.inputs
    assert (ids.name, ids.dtype, ids.axes) == ("input_ids", "int64", ("batch_size", "sequence_length"))
    assert (ids.low, ids.high, ids.default, ids.kind) == (0, 101, None, "value")
    assert (mask.kind, mask.default) == ("mask", 1)
    assert (types.high, types.default) == (2, 0)
    assert signature.outputs[1].axes == ("batch_size", 33)
    assert signature.axes == {"batch_size": (1, None), "sequence_length": (1, 64)}


def test_golden_vectors_are_what_onnx_reads(tiny_package: Path) -> None:
    sets = list(load(tiny_package).golden())
    assert [name for name, _, _ in sets] == [f"test_data_set_{i}" for i in range(len(sets))]
    assert sets
    for name, inputs, outputs in sets:
        for kind, arrays in (("input", inputs), ("output", outputs)):
            for index, array in enumerate(arrays.values()):
                tensor = TensorProto.FromString((tiny_package / name / f"{kind}_{index}.pb").read_bytes())
                np.testing.assert_array_equal(array, numpy_helper.to_array(tensor))
        assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
        assert list(outputs) == ["last_hidden_state", "sentence_embedding"]


def test_package_without_a_task(copy_package: Copy) -> None:
    package = copy_package()
    edit(package, lambda manifest: manifest.update(task=None))
    assert load(package).task == {}


def test_package_behind_a_link(copy_package: Copy, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy_package(), target_is_directory=True)
    assert load(tmp_path / "link").path == tmp_path / "link"


def test_link_within_the_package(copy_package: Copy) -> None:
    package = copy_package()
    (package / "parity.npz").rename(package / "elsewhere.npz")
    (package / "parity.npz").symlink_to("elsewhere.npz")
    load(package)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ------------------------------------------------------------------------------------------ the manifest


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such folder")


def test_file_for_a_folder(tiny_package: Path) -> None:
    refused(tiny_package / "model.onnx", "not a package")


def test_no_manifest(copy_package: Copy) -> None:
    package = copy_package()
    (package / MANIFEST).unlink()
    refused(package, "not a package", MANIFEST)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"\0", b"[" * 100_000], ids=range(5))
def test_broken_json(copy_package: Copy, text: bytes) -> None:
    package = copy_package()
    (package / MANIFEST).write_bytes(text)
    refused(package, MANIFEST, "JSON")


@pytest.mark.parametrize("text", ["[]", "null", "1", "{}", '{"schema": "1"}', '{"schema": null}'])
def test_json_that_is_no_manifest(copy_package: Copy, text: str) -> None:
    package = copy_package()
    (package / MANIFEST).write_text(text)
    refused(package, MANIFEST, "schema")


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, -1])
def test_other_schema(copy_package: Copy, schema: int) -> None:
    package = copy_package()
    edit(package, lambda manifest: manifest.update(schema=schema))
    refused(package, f"schema {schema};", f"reads {SCHEMA}")


@pytest.mark.parametrize("key", ["files", "golden", "grid", "signature", "task", "tolerances"])
def test_manifest_without_a_part_that_the_runtime_reads(copy_package: Copy, key: str) -> None:
    package = copy_package()
    edit(package, lambda manifest: manifest.pop(key))
    refused(package, f"lacks {key}")


@pytest.mark.parametrize("files", [[], "model.onnx", None, 7])
def test_files_of_another_kind(copy_package: Copy, files: object) -> None:
    package = copy_package()
    edit(package, lambda manifest: manifest.update(files=files))
    refused(package, "files")


@pytest.mark.parametrize(
    "change",
    [
        lambda signature: signature.pop("inputs"),
        lambda signature: signature.pop("axes"),
        lambda signature: signature["inputs"][0].pop("axes"),
        lambda signature: signature["inputs"][0].update(shape=[2, 3]),
        lambda signature: signature["axes"].update(sequence_length=64),
        lambda signature: signature.update(outputs=7),
    ],
    ids=range(6),
)
def test_signature_that_cannot_be_read(copy_package: Copy, change: Callable[[dict], Any]) -> None:
    package = copy_package()
    edit(package, lambda manifest: change(manifest["signature"]))
    refused(package, MANIFEST, "signature")


@pytest.fixture(scope="module")
def own_copy(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path_factory.mktemp("package") / "changed"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), value=JSON)
def test_manifest_with_any_one_value_changed(tiny_package: Path, own_copy: Path, data: st.DataObject, value) -> None:
    """It loads or it is refused in one line; it never ends in another error."""
    manifest = json.loads((tiny_package / MANIFEST).read_text(encoding="utf-8"))
    place: Any = manifest
    key = data.draw(st.sampled_from(["schema", "files", "task", "golden", "signature", "tolerances"]))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = value
    (own_copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    try:
        assert isinstance(load(own_copy), Package)
    except PackageError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either way is right; one line is asked of the error


# ------------------------------------------------------------------------------------------ files and digests


@pytest.mark.parametrize("name", ["model.onnx", "README.md", "parity.npz", "test_data_set_1/output_0.pb"])
def test_missing_file_is_named(copy_package: Copy, name: str) -> None:
    package = copy_package()
    (package / name).unlink()
    refused(package, f"{name} is missing")


@pytest.mark.parametrize("name", ["model.onnx", "README.md", "parity.npz", "test_data_set_1/output_0.pb"])
def test_altered_file_is_named(copy_package: Copy, name: str) -> None:
    package = copy_package()
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(content)
    refused(package, name, "SHA-256")


def test_folder_for_a_file(copy_package: Copy) -> None:
    package = copy_package()
    (package / "README.md").unlink()
    (package / "README.md").mkdir()
    refused(package, "README.md is missing")


def test_model_that_is_not_listed(copy_package: Copy) -> None:
    package = copy_package()
    edit(package, lambda manifest: manifest["files"].pop("model.onnx"))
    refused(package, "does not list model.onnx")


def test_path_that_climbs_out(copy_package: Copy, tmp_path: Path) -> None:
    package = copy_package()
    (tmp_path / "outside.txt").write_text("outside")
    list_file(package, "../outside.txt")
    refused(package, "'../outside.txt'", "out of the package")


def test_path_that_climbs_out_and_back(copy_package: Copy) -> None:
    package = copy_package()
    list_file(package, f"../{package.name}/README.md")
    refused(package, "out of the package")


def test_absolute_path(copy_package: Copy, tmp_path: Path) -> None:
    package = copy_package()
    (tmp_path / "outside.txt").write_text("outside")
    list_file(package, str(tmp_path / "outside.txt"))
    refused(package, "outside.txt", "out of the package")


def test_link_that_leads_out(copy_package: Copy, tmp_path: Path) -> None:
    package = copy_package()
    shutil.move(package / "README.md", tmp_path / "outside.md")
    (package / "README.md").symlink_to(tmp_path / "outside.md")
    refused(package, "'README.md'", "out of the package")


def test_folder_that_is_a_link_out(copy_package: Copy, tmp_path: Path) -> None:
    package = copy_package()
    shutil.move(package / "test_data_set_0", tmp_path / "outside")
    (package / "test_data_set_0").symlink_to(tmp_path / "outside", target_is_directory=True)
    refused(package, "'test_data_set_0'", "out of the package")


@pytest.mark.parametrize("name", ["a\0b", "", ".", "x" * 300], ids=["null", "empty", "dot", "long"])
def test_names_that_are_no_file(copy_package: Copy, name: str) -> None:
    package = copy_package()
    edit(package, lambda manifest: manifest["files"].update({name: "0" * 64}))
    refused(package)


def test_golden_vectors_outside_the_package(copy_package: Copy, tmp_path: Path) -> None:
    """The names of golden sets are paths too, and what stands there is under no digest."""
    package = copy_package()
    shutil.copytree(package / "test_data_set_0", tmp_path / "outside")
    edit(package, lambda manifest: manifest["golden"].update({"../outside": manifest["golden"]["test_data_set_0"]}))
    with pytest.raises(PackageError, match="outside"):
        list(load(package).golden())


def test_golden_vectors_that_are_not_listed(copy_package: Copy) -> None:
    package = copy_package()
    edit(package, lambda manifest: manifest["golden"].update(test_data_set_97=manifest["golden"]["test_data_set_0"]))
    with pytest.raises(PackageError, match="test_data_set_97"):
        list(load(package).golden())


# ------------------------------------------------------------------------------------------ external data


def with_external_data(package: Path, location: str) -> None:
    """Moves the model's weights into `location`, which need not be inside; the digests of all listed files are true."""
    model = onnx.load(package / "model.onnx")
    (package / "model.onnx").unlink()
    onnx.save(model, package / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=256)
    model = onnx.load(package / "model.onnx", load_external_data=False)
    target = package / location
    target.parent.mkdir(exist_ok=True)
    (package / "weights.bin").rename(target)
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
    (package / "model.onnx").write_bytes(model.SerializeToString())
    list_file(package, "model.onnx")


@pytest.mark.parametrize("location", ["weights.bin", "data/weights.bin"])
def test_listed_external_data(copy_package: Copy, tiny_package: Path, location: str) -> None:
    package = copy_package()
    with_external_data(package, location)
    list_file(package, location)
    inputs = {"input_ids": np.array([[2, 3, 5]])}
    for name, value in Session(load(package)).run(inputs).items():
        np.testing.assert_array_equal(value, Session(tiny_package).run(inputs)[name])


def test_altered_external_data(copy_package: Copy) -> None:
    package = copy_package()
    with_external_data(package, "weights.bin")
    list_file(package, "weights.bin")
    with (package / "weights.bin").open("r+b") as file:
        file.write(b"\1")
    refused(package, "weights.bin", "SHA-256")


def test_external_data_that_is_not_listed(copy_package: Copy) -> None:
    package = copy_package()
    with_external_data(package, "weights.bin")
    refused(package, "model.onnx refers to 'weights.bin'", "does not list")


def test_external_data_outside(copy_package: Copy) -> None:
    package = copy_package()
    with_external_data(package, "../weights.bin")
    refused(package, "'../weights.bin'", "out of the package")


def test_external_data_outside_and_listed(copy_package: Copy) -> None:
    package = copy_package()
    with_external_data(package, "../weights.bin")
    list_file(package, "../weights.bin")
    refused(package, "'../weights.bin'", "out of the package")


def test_external_data_at_an_absolute_path(copy_package: Copy, tmp_path: Path) -> None:
    package = copy_package()
    with_external_data(package, str(tmp_path / "weights.bin"))
    refused(package, "weights.bin", "out of the package")


def test_weights_of_a_variant_stand_beside_it_or_in_the_root(copy_package: Copy) -> None:
    package = copy_package()
    (package / "variants" / "own").mkdir(parents=True)
    with_external_data(package, "weights.bin")
    list_file(package, "weights.bin")
    shutil.copy(package / "model.onnx", package / "variants" / "own" / "model.onnx")
    list_file(package, "variants/own/model.onnx")
    refused(package, "variants/own/model.onnx refers to 'weights.bin'")
    shutil.copy(package / "weights.bin", package / "variants" / "own" / "weights.bin")
    list_file(package, "variants/own/weights.bin")
    # ONNX Runtime looks for all of a graph's files in one folder, and model.onnx_data stands in the root.
    refused(package, "variants/own/model.onnx refers to 'weights.bin'")
    shutil.copy(package / WEIGHTS, package / "variants" / "own" / WEIGHTS)
    refused(package, "does not list variants/own/model.onnx_data")
    list_file(package, f"variants/own/{WEIGHTS}")
    load(package)


def test_model_that_is_no_onnx(copy_package: Copy) -> None:
    package = copy_package()
    (package / "model.onnx").write_bytes(b"\xff" * 20)
    list_file(package, "model.onnx")
    refused(package, "model.onnx")


@pytest.mark.parametrize(
    ("key", "value"), [("tolerances", {}), ("task", "x"), ("golden", {"a": 1}), ("grid", {"a": {}})]
)
def test_records_of_another_form(copy_package: Callable[..., Path], key: str, value: object) -> None:
    package = copy_package()
    manifest = json.loads((package / "isoformer.json").read_text(encoding="utf-8"))
    (package / "isoformer.json").write_text(json.dumps(manifest | {key: value}), encoding="utf-8")
    with pytest.raises(PackageError, match="cannot be read"):
        load(package)
