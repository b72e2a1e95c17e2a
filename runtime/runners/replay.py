"""Replays a package's golden vectors in the onnxruntime of this Python, whichever that is.

    python replay.py PACKAGE [--variant NAME]... [--provider cpu|openvino]
    python replay.py --values MODEL INPUTS.npz OUTPUTS.npz [--provider NAME] [--weights FOLDER]

It needs numpy and onnxruntime, and nothing of isoformer: it is run in environments that hold an older release.
docs/decisions/runners.md says what it reads and prints. The second form runs one model file on some inputs and keeps
its outputs: bisecting compares them.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime

# TensorProto.data_type → numpy
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
WEIGHTS = "model.onnx_data"
SAMPLES = 16
OPENVINO = "OpenVINOExecutionProvider"


class CannotRunError(Exception):
    """One line for people: what is wrong and what to do."""


def main(arguments=None):
    """Exit status: 0 all passed, 1 a mismatch, 2 it could not be done."""
    parser = argparse.ArgumentParser(description="Replay a package's golden vectors in this onnxruntime.")
    parser.add_argument("paths", nargs="+", metavar="PACKAGE, or MODEL INPUTS OUTPUTS")
    parser.add_argument("--values", action="store_true", help="run one model and keep its outputs")
    parser.add_argument("--weights", default=None, help="the folder of the weights that MODEL names")
    parser.add_argument(
        "--variant", action="append", default=[], help="only this one; `canonical` is the package's own"
    )
    parser.add_argument("--provider", choices=("cpu", "openvino"), default="cpu")
    given = parser.parse_args(arguments)
    try:
        if given.values:
            model, inputs, outputs = given.paths
            keep_values(Path(model), Path(inputs), Path(outputs), given.provider, given.weights)
            return 0
        return replay(Path(given.paths[0]), given.variant, given.provider)
    except Exception as error:  # onnxruntime's share no narrower base
        print(f"{given.paths[0]}: {' '.join(str(error).split())[:400]}", file=sys.stderr)
        return 2


def replay(package, variants, provider):
    """Prints a line a comparison and a summary; returns the exit status."""
    manifest = json.loads((package / "isoformer.json").read_text(encoding="utf-8"))
    lines, cases = [], set()
    for graph, records in (manifest.get("graphs") or {"model": manifest}).items():
        for name, path, precision, bounds in files(graph, records, provider):
            if variants and (name or "canonical") not in variants:
                continue
            where = {
                "runtime": "openvino" if provider == "openvino" else "ort",
                "version": version(provider),
                "provider": provider,
                "precision": precision,
                "graph": graph,
                "variant": name,
                "check": "golden",
            }
            session, trouble = None, None
            try:
                session = opened(package / path, provider, package)
            except CannotRunError:
                raise
            except Exception as error:
                trouble = error
            if provider != "cpu" and session is not None:
                where["elsewhere"] = strayed(session)
            for line in checks(package, session, trouble, records["signature"], bounds):
                lines.append(where | line)
                cases.add((graph, name, line["case"]))
                print(json.dumps(lines[-1]), flush=True)
    if not lines:
        raise CannotRunError(f"nothing to replay{' of ' + ', '.join(variants) if variants else ''}")
    failures = [f"{line['case']}, {line['output']}: {said(line)}" for line in lines if not line["passed"]]
    values = sum(line["values"] for line in lines)
    print(json.dumps({"passed": not failures, "cases": len(cases), "values": values, "failures": failures}), flush=True)
    return 1 if failures else 0


def files(graph, records, provider):
    """(variant or None, file, precision, data set → output → bound) of the graph's files that have vectors."""
    golden = records["golden"]
    yield (
        None,
        f"{graph}.onnx",
        records["precision"],
        {case: {name: one["bound"] for name, one in outputs.items()} for case, outputs in golden.items()},
    )
    for name, variant in records.get("variants", {}).items():
        own = provider == "openvino" and (variant["provider"], variant["precision"]) == ("openvino", "float32")
        if variant["provider"] != "cpu" and not own:
            continue
        if "golden" in variant:
            bounds = {
                case: {output: one["bound"] for output, one in outputs.items()}
                for case, outputs in variant["golden"].items()
            }
        elif "tolerances" in variant:
            bounds = {
                case: {output: variant["tolerances"][output]["absolute"] for output in outputs}
                for case, outputs in golden.items()
            }
        else:
            continue
        yield name, variant["path"], variant["precision"], bounds


def checks(package, session, trouble, signature, bounds):
    """The comparisons of one file, as the fields that differ from line to line; trouble: why there is no session."""
    for case, allowed in bounds.items():
        inputs, expected = vectors(package / case, "input"), vectors(package / case, "output")
        try:
            if session is None:
                raise trouble
            names = [value.name for value in session.get_outputs()]
            found = dict(zip(names, session.run(None, inputs), strict=True))
        except Exception as error:
            note = " ".join(str(error).split())[:300]
            yield {
                "case": case,
                "output": "run",
                "values": 0,
                "error": None,
                "bound": 0.0,
                "note": note,
                "passed": False,
            }
            continue
        found, expected = chosen(signature, found), chosen(signature, expected)
        for output, bound in allowed.items():
            yield (
                {"case": case, "output": output}
                | compare(found[output], expected[output], bound)
                | {"sample": sample(found[output])}
            )


def opened(model, provider, folder=None):
    """A session of the file, with the runtime's own optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if provider == "openvino":
        add_openvino(options)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = None
    else:
        providers = ["CPUExecutionProvider"]
    with tempfile.TemporaryDirectory() as beside:
        if folder is not None and not (model.parent / WEIGHTS).exists() and (folder / WEIGHTS).exists():
            # A variant may name the weights of the package's own folder: both under one roof, where every release
            # finds them.
            for file in (model, folder / WEIGHTS):
                place(file, Path(beside) / file.name)
            model = Path(beside) / model.name
        return onnxruntime.InferenceSession(str(model), sess_options=options, providers=providers)


def strayed(session):
    """The operators that onnxruntime's own CPU provider runs, and how many nodes of each: the other left them to it."""
    counts = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    )
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def place(file, target):
    """The file at the target too, without a copy where the file system can."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        target.symlink_to(file.resolve())


def add_openvino(options):
    """OpenVINO on the CPU in float32: by itself it computes in bfloat16 where the machine has it."""
    import onnxruntime_ep_openvino  # pyright: ignore[reportMissingImports]

    if not any(device.ep_name == OPENVINO for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(OPENVINO, onnxruntime_ep_openvino.get_library_path())
    devices = [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == OPENVINO and device.device.type == onnxruntime.OrtHardwareDeviceType.CPU
    ]
    if not devices:
        raise CannotRunError("OpenVINO finds no CPU here")
    options.add_provider_for_devices(devices, {"load_config": json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "f32"}})})


def version(provider):
    """Of onnxruntime, and of OpenVINO's provider."""
    if provider != "openvino":
        return onnxruntime.__version__
    from importlib.metadata import version as installed

    return f"{installed('onnxruntime-ep-openvino')} on onnxruntime {onnxruntime.__version__}"


def keep_values(model, inputs, outputs, provider, weights):
    """Runs the model file and writes every output it has to an .npz."""
    session = opened(model, provider, Path(weights) if weights else None)
    with np.load(inputs, allow_pickle=False) as arrays:
        feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    found = {str(n): np.asarray(array) for n, array in enumerate(session.run(names, feeds))}
    np.savez(outputs, names=np.array(names), **found)  # pyright: ignore[reportArgumentType]


def compare(candidate, reference, bound):
    """The error as a float64, None where it is none, and whether it is within the bound."""
    note, error = "", None
    if candidate.shape != reference.shape:
        note = f"shape {candidate.shape} where the reference has {reference.shape}"
    elif candidate.size == 0:
        note = "there is no value to compare"
    elif not np.isfinite(candidate).all():
        note = f"{np.count_nonzero(~np.isfinite(candidate))} of {candidate.size} values are NaN or infinite"
    else:
        error = float(np.abs(candidate.astype(np.float64) - reference.astype(np.float64)).max())
    passed = error is not None and error <= bound
    return {"values": candidate.size, "error": error, "bound": bound, "note": note, "passed": passed}


def sample(values):
    """A few values, spread by the golden ratio, for telling later what has moved; None where one is no number."""
    places = np.unique((np.arange(SAMPLES) * ((5**0.5 - 1) / 2) % 1.0 * values.size).astype(np.int64))
    chosen = values.reshape(-1)[places[places < values.size]].astype(np.float64)
    return [float(value) if np.isfinite(value) else None for value in chosen]


def said(line):
    return line["note"] or f"error {line['error']:.2e} is over the bound {line['bound']:.2e}"


def chosen(signature, outputs):
    """The outputs with the values that choices lead to, in place of the choices."""
    found = dict(outputs)
    for spec in signature["outputs"]:
        if spec.get("kind") == "choices" and spec["name"] in outputs:
            places, values = outputs[spec["name"]], outputs[spec["along"]]
            if places.shape[:-1] != values.shape[:-1]:
                found[spec["name"]] = np.full(places.shape, np.nan)
                continue
            inside = (places >= 0) & (places < values.shape[-1])
            again = np.diff(np.sort(places, -1), axis=-1, prepend=-1) == 0
            taken = np.take_along_axis(values, np.where(inside, places, 0), -1)
            found[spec["name"]] = np.where(inside & ~again.any(-1, keepdims=True), taken, np.nan)
    return found


def vectors(folder, kind):
    """name → array of the folder's input_*.pb or output_*.pb."""
    return dict(tensor(file) for file in sorted(folder.glob(f"{kind}_*.pb")))


def tensor(file):
    """The name and array of a TensorProto with raw data."""
    dims, data_type, name, raw = [], 0, "", b""
    for number, value in fields(file.read_bytes()):
        if number == 1:
            dims += [value] if isinstance(value, int) else packed(value)
        elif number == 2:
            data_type = value
        elif number == 8:
            name = value.decode()
        elif number == 9:
            raw = value
    if data_type not in DTYPES:
        raise CannotRunError(f"{file} holds a tensor of ONNX type {data_type}, which is not supported")
    return name, np.frombuffer(raw, DTYPES[data_type]).reshape(dims)


def fields(message):
    """(number, int or bytes) of a protocol-buffer message."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        if key & 7 == 0:
            value, at = varint(message, at)
        else:
            size, at = varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def packed(values):
    numbers, at = [], 0
    while at < len(values):
        number, at = varint(values, at)
        numbers.append(number)
    return numbers


def varint(message, at):
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


if __name__ == "__main__":
    sys.exit(main())
