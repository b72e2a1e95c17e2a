"""Encoder–decoders in 8 bits: what is measured before the variant is kept, and what a package does with it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import soundfile
import torch

from isoformer.export import ExportError, encoded_variants, variants
from isoformer.models.families import decoder, encoder_decoder, speech
from isoformer.models.families.encoder_decoder import DECODER, ENCODER
from isoformer.runtime import Graphs, InputError, PackageError, Session, load
from isoformer.runtime.binding import CrossDecoder
from isoformer.runtime.generation import Settings, stream
from isoformer.runtime.package import MANIFEST, sha256
from isoformer.runtime.tasks import translate
from isoformer.runtime.verify import verify
from tests.conftest import export_small

NAME = "cpu-int8"
CONFIG = dataclasses.replace(
    encoder_decoder.TINY, vocab_size=131, hidden_size=64, num_heads=2, intermediate_size=96, max_positions=40
)


def model_of() -> encoder_decoder.Model:
    torch.manual_seed(5)
    model = encoder_decoder.Model(CONFIG).eval()
    with torch.no_grad():
        model.tokens.weight.mul_(0.3)
    return model


def written(path: Path, **options) -> Path:
    model = model_of()
    edge, task = encoder_decoder.signature(CONFIG), encoder_decoder.task(CONFIG)
    return export_small(model, edge, path, task=task, precision="int8", **options).path


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("encoded") / "package", text="upon a time\nthere was a fox\n\nx y z\n")


def test_a_package_says_how_its_variants_were_measured(package):
    for name, part in load(package).graphs.items():
        low = part.variant(NAME)
        assert low["path"] == f"variants/{NAME}/{name}.onnx"
        assert part.manifest["preferred"] == "int8"
        assert low["gate"]["limits"] == dataclasses.asdict(variants.GATES["int8"])
        assert low["gate"]["tokens"] >= 3
        for output, entry in low["tolerances"].items():
            assert entry["absolute"] == 2 * entry["error"]
            assert entry["error"] > 30 * part.manifest["tolerances"][output]["torch_float32_max_error"]  # fewer bits
        assert low["operators"]["com.microsoft::MatMulIntegerToFloat"] > 0
        assert (package / low["path"]).stat().st_size < 2**20
    assert NAME in (package / "README.md").read_text()


def test_graphs_run_the_variants_unless_asked_otherwise(package):
    assert {name: session.variant for name, session in Graphs(package).items()} == {ENCODER: NAME, DECODER: NAME}
    assert {session.variant for session in Graphs(package, precision="float32").values()} == {None}
    with pytest.raises(PackageError, match="has no int4 for cpu, but float32, int8; export it again"):
        Graphs(package, precision="int4")


def test_a_graph_without_the_precision_runs_in_its_own(package):
    loaded = load(package)
    part = loaded.parts[ENCODER]
    plain = dataclasses.replace(part, manifest=part.manifest | {"variants": {}, "preferred": "float32"})
    graphs = Graphs(dataclasses.replace(loaded, parts=loaded.parts | {ENCODER: plain}), precision="int8")
    assert (graphs[ENCODER].variant, graphs[DECODER].variant) == (None, NAME)


def test_the_variants_pass_verification(package):
    for part in load(package).graphs.values():
        report = verify(part, Session(part, variant=NAME).run, NAME, seed=3, variant=NAME)
        assert report.passed, [failure.line() for failure in report.failures]
        assert {comparison.check for comparison in report.comparisons} == {"golden", "grid", "relation"}
        exact = verify(part, Session(part, variant=NAME).run, NAME, seed=3)
        assert not exact.passed  # float32's bounds are not its


def test_a_variant_whose_weights_moved_is_found_out(package, tmp_path):
    """Some scales of the last layer, under a manifest with the right digests."""
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    file = copy / f"variants/{NAME}/{ENCODER}.onnx"
    graph = ir.load(file)
    scale = next(v for n, v in graph.graph.initializers.items() if n == "product.1.scale")
    assert scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(3.0), name=scale.name)
    ir.save(graph, file)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][f"variants/{NAME}/{ENCODER}.onnx"] = sha256(file)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    part = load(copy).parts[ENCODER]
    assert not verify(part, Session(part, variant=NAME).run, NAME, seed=3, variant=NAME).passed


@pytest.mark.parametrize("broken", [{}, {"logits": {}}, 3])
def test_a_variant_that_nothing_holds_is_refused(package, tmp_path, broken):
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["graphs"][DECODER]["variants"][NAME]["tolerances"] = broken
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="cannot be read"):
        load(copy)


def test_what_misses_its_gate_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(variants.GATES, "int8", variants.Gate(0.5, 0.85))
    with pytest.raises(ExportError, match=r"quality gate is missed: perplexity .* \(at most 0.5\)"):
        written(tmp_path / "low")
    assert not list(tmp_path.iterdir())


def test_nothing_to_measure_is_no_quality(package):
    loaded = load(package)
    asked = list(encoded_variants._texts(Graphs(package), loaded.task, " \n\n"))
    with pytest.raises(ExportError, match="the quality gate has nothing to measure: its sample is empty"):
        encoded_variants.gate(Graphs(package), Graphs(package), asked, [])


def test_answers_are_those_of_the_task(package):
    """The gate's greedy answers are what float32 translates."""
    graphs, loaded = Graphs(package, precision="float32"), load(package)
    (question,) = encoded_variants._texts(graphs, loaded.task, "upon a time")
    answer = encoded_variants._answer(graphs, loaded.task, question)
    decoder = CrossDecoder(graphs[DECODER])
    decoder.condition(translate.known(graphs, question.inputs, question.mask))
    settings = translate.with_package(loaded.task, Settings(max_tokens=encoded_variants.MOST_TOKENS))
    assert answer == [token for _, token in stream(decoder, {0: question.prompt}, settings)]
    assert question.prompt == loaded.task["decoder_start"]


@pytest.mark.parametrize(
    ("task", "names", "precision", "words"),
    [
        ({"name": "embed"}, ["model"], "int8", "precision int8 is for models that generate; this one has float32"),
        ({"name": "translate"}, [ENCODER, DECODER], "int4", "precision int4 is for decoders alone; this model has"),
        ({"name": "transcribe"}, [ENCODER, DECODER], "int8", "needs a recording to measure its quality on: --sound"),
        (None, [ENCODER, DECODER], "int8", "needs a task whose quality can be measured; None has no measure"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(task, names, precision, words):
    with pytest.raises(ExportError) as caught:
        encoded_variants.refuse(task, names, precision, None)
    assert words in str(caught.value)


def test_a_recording_is_for_speech_and_is_read_at_once(tmp_path):
    graphs, missing = [ENCODER, DECODER], tmp_path / "missing.wav"
    with pytest.raises(ExportError, match="is for transcribe; the quality of translate is measured on --text"):
        encoded_variants.refuse({"name": "translate"}, graphs, "int8", missing)
    with pytest.raises(InputError, match=r"missing.wav is not a file"):
        encoded_variants.refuse({"name": "transcribe"}, graphs, "int8", missing)
    config = decoder.TINY
    with pytest.raises(ExportError, match="is for transcribe; the quality of a decoder is measured on --text"):
        export_small(decoder.Model(config), decoder.signature(config), tmp_path / "x", precision="int8", sound=missing)


@pytest.mark.slow
def test_speech_is_measured_on_a_recording(tmp_path):
    torch.manual_seed(5)
    sound = tmp_path / "noise.wav"
    soundfile.write(sound, np.random.default_rng(0).standard_normal(16_000) * 0.1, 16_000)
    config = dataclasses.replace(speech.TINY, hidden_size=64, num_heads=2, intermediate_size=96)
    made = export_small(
        speech.Model(config).eval(),
        speech.signature(config),
        tmp_path / "package",
        task=speech.task(config),
        precision="int8",
        sound=sound,
    )
    graphs = Graphs(made.path)
    assert {name for name, session in graphs.items() if session.variant == NAME} == {ENCODER, DECODER}
