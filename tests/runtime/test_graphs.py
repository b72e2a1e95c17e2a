"""A package of several graphs: an encoder–decoder from its files to a translated text."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors

from isoformer.models.families import encoder_decoder
from isoformer.models.families.encoder_decoder import DECODER, ENCODER
from isoformer.runtime import Graphs, InputError, PackageError, Session, load
from isoformer.runtime.binding import CrossDecoder, Decoder
from isoformer.runtime.generation import Settings
from isoformer.runtime.tasks import translate
from isoformer.runtime.verify import verify
from tests.conftest import export_small

from .conftest import END, byte_tokenizer

TEXTS = ["once upon", "there was a fox", "a", "upon a time there was once", "x y z", "où"]
MAX = 40


def tokenizer() -> Tokenizer:
    made = byte_tokenizer()
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"$A {END}", special_tokens=[(END, made.token_to_id(END))]
    )
    return made


@pytest.fixture(scope="session")
def model() -> encoder_decoder.Model:
    words = tokenizer()
    config = encoder_decoder.Config(
        vocab_size=words.get_vocab_size(),
        hidden_size=64,
        num_heads=2,
        num_layers=1,
        num_decoder_layers=2,
        intermediate_size=20,
        max_positions=MAX,
        embedding_scale=8.0,
        logit_bias=True,
        decoder_start_token_id=3,
        eos_token_id=words.token_to_id(END) or 0,
        tied_embeddings=False,
    )
    torch.manual_seed(3)
    made = encoder_decoder.Model(config).eval()
    with torch.no_grad():  # as they start, answers hardly depend on the source
        for name, weight in made.named_parameters():
            if "linear" in name or "head" in name:
                weight.mul_(4)
    return made


@pytest.fixture(scope="session")
def package(model: encoder_decoder.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    tokenizer().save(str(folder / "tokenizer.json"))
    return export_small(
        model,
        encoder_decoder.signature(model.config),
        folder / "package",
        task=encoder_decoder.task(model.config),
        files=[folder / "tokenizer.json"],
    ).path


@pytest.fixture(scope="session")
def graphs(package: Path) -> Graphs:
    return Graphs(package)


# ----------------------------------------------------------------------------------------------- files


def test_files_and_records(package: Path) -> None:
    found = load(package)
    assert list(found.graphs) == [ENCODER, DECODER]
    assert [part.model.name for part in found.graphs.values()] == [f"{ENCODER}.onnx", f"{DECODER}.onnx"]
    assert not (package / "model.onnx").exists()
    for name, part in found.graphs.items():
        assert (package / name / "test_data_set_0" / "input_0.pb").is_file()
        assert part.manifest["parity"]["onnxruntime cpu"]["worst_share_of_bound"] <= 1
        assert part.task["name"] == "translate"
        assert f"## {name}.onnx" in (package / "README.md").read_text()
        report = verify(part, Session(part).run, name, seed=1)
        assert report.passed, [failure.line() for failure in report.failures]


def test_weights_of_several_graphs_are_written_once(model: encoder_decoder.Model, package: Path) -> None:
    table = model.tokens.weight.detach().numpy()
    data = (package / "model.onnx_data").read_bytes()
    assert data.count(table.tobytes()) == 1
    for name in (ENCODER, DECODER):
        assert table.tobytes() not in (package / f"{name}.onnx").read_bytes()
    sinusoids = model.decoder.embeddings.positions.weight  # pyright: ignore[reportOptionalMemberAccess]
    assert sinusoids.numpy().tobytes() not in data  # small ones stay where they are


def test_a_graph_alone_and_one_that_is_not_there(package: Path, graphs: Graphs, tiny_package: Path) -> None:
    with pytest.raises(PackageError, match=f"has the graphs {ENCODER}, {DECODER}; open them with Graphs"):
        Session(package)
    with pytest.raises(PackageError, match=f"has no graph decoder, but {ENCODER}, {DECODER}"):
        graphs["decoder"]
    assert list(Graphs(tiny_package)) == ["model"]
    with pytest.raises(PackageError, match="is not a decoder with a cache"):
        CrossDecoder(graphs[ENCODER])


@pytest.mark.parametrize("file", [f"{ENCODER}.onnx", "model.onnx_data", f"{DECODER}/parity.npz"])
def test_a_file_that_is_missing_is_named(package: Path, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    (copy / file).unlink()
    with pytest.raises(PackageError, match=f"{file} is missing"):
        load(copy)


@pytest.mark.parametrize("key", ["signature", "grid", "tolerances"])
def test_a_graph_without_its_records(package: Path, tmp_path: Path, key: str) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    manifest = json.loads((copy / "isoformer.json").read_text())
    del manifest["graphs"][DECODER][key]
    (copy / "isoformer.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=f"lacks {DECODER}.{key}"):
        load(copy)


def test_a_changed_weight_that_graphs_share_is_seen(
    package: Path, tmp_path: Path, sign: Callable[[Path], None], isoformer: Callable[..., Any]
) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    data = bytearray((copy / "model.onnx_data").read_bytes())
    values = np.frombuffer(data, np.float32)
    values[: 64 * 280] *= 1.1
    (copy / "model.onnx_data").write_bytes(values.tobytes())
    sign(copy)
    done = isoformer("verify", copy, "--runtime", "ort", "--seed", "1", "--json")
    assert done.returncode == 1
    failures = json.loads(done.stdout.splitlines()[-1])["failures"]
    for name in (ENCODER, DECODER):
        assert any(line.startswith(f"{name}, onnxruntime cpu") for line in failures)


# ----------------------------------------------------------------------------------------------- steps


def encoded(graphs: Graphs, rows: list[list[int]]) -> dict[str, np.ndarray]:
    """What the decoder reads of these sources, padded on the right."""
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows])
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return translate.known(graphs, {"input_ids": ids, "attention_mask": mask}, mask)


def exact(model: encoder_decoder.Model, source: list[int], target: list[int]) -> np.ndarray:
    """The logits (L, vocabulary) of one pair in float64."""
    model = model.double()
    try:
        with torch.no_grad():
            found = model(torch.tensor([source]), torch.ones(1, len(source)), torch.tensor([target]))
    finally:
        model.float()
    return found[0].numpy()


def test_steps_are_the_whole_pass(model: encoder_decoder.Model, graphs: Graphs) -> None:
    """Sources and prompts of different lengths; rows leave, change places and come twice."""
    rng = np.random.default_rng(5)
    sources = [rng.integers(0, 250, n).tolist() for n in (13, 2, 7)]
    targets = [rng.integers(0, 250, 11).tolist() for _ in sources]
    started = [1, 5, 3]
    decoder = CrossDecoder(graphs[DECODER])
    decoder.condition(encoded(graphs, sources))
    logits, reused = decoder.start([row[:n] for row, n in zip(targets, started, strict=True)])
    assert reused == 0
    full = [exact(model, *pair) for pair in zip(sources, targets, strict=True)]
    rows, done = [0, 1, 2], list(started)
    for step, taken in enumerate(([0, 1, 2], [2, 0, 1], [1, 1, 2], [2, 0], [1])):
        for place, row in enumerate(rows):
            np.testing.assert_allclose(logits[place], full[row][done[row] - 1], rtol=0, atol=1e-5)
        decoder.take(taken)
        rows = [rows[place] for place in taken]
        logits = decoder.append([[targets[row][done[row]]] for row in rows])
        done = [n + 1 for n in done] if step < 4 else done


def test_conditions_that_do_not_fit(graphs: Graphs) -> None:
    decoder, known = CrossDecoder(graphs[DECODER]), encoded(graphs, [[5, 6], [7]])
    with pytest.raises(InputError, match="there are 1 prompts for 0 rows"):
        decoder.start([[3]])
    decoder.condition(known)
    with pytest.raises(InputError, match="there are 1 prompts for 2 rows"):
        decoder.start([[3]])
    with pytest.raises(InputError, match=r"the decoder reads past_key_values\.0\.encoder\.key"):
        decoder.condition({name: value for name, value in known.items() if name != "encoder_attention_mask"})
    with pytest.raises(InputError, match="differ in rows"):
        decoder.condition(known | {"encoder_attention_mask": np.ones((1, 2), np.int64)})
    with pytest.raises(PackageError, match="is not a decoder with a cache"):
        Decoder(graphs[ENCODER])


# ----------------------------------------------------------------------------------------------- translate


def greedy(model: encoder_decoder.Model, source: list[int], length: int) -> list[int]:
    target = [model.config.decoder_start_token_id]
    while len(target) <= length and target[-1] != model.config.eos_token_id:
        target.append(int(exact(model, source, target)[-1].argmax()))
    return target[1:]


def test_greedy_is_the_models_own(model: encoder_decoder.Model, graphs: Graphs) -> None:
    found = translate.run(graphs, TEXTS, settings=Settings(max_tokens=9))
    words = tokenizer()
    assert [result["input"] for result in found] == TEXTS
    for text, result in zip(TEXTS, found, strict=True):
        assert result["token_ids"] == greedy(model, words.encode(text).ids, 9)
        assert result["text"] == words.decode(result["token_ids"])
    assert len({tuple(result["token_ids"]) for result in found}) > 3


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_does_not_depend_on_its_neighbours(graphs: Graphs, beams: int) -> None:
    settings = Settings(beams=beams, max_tokens=7)
    together = translate.run(graphs, TEXTS, settings=settings)
    assert together == [translate.run(graphs, [text], settings=settings)[0] for text in TEXTS]


def test_beams_find_a_likelier_answer(model: encoder_decoder.Model, graphs: Graphs) -> None:
    def likelihood(text: str, answer: list[int]) -> float:
        logits = exact(model, tokenizer().encode(text).ids, [model.config.decoder_start_token_id, *answer])
        logp = torch.from_numpy(logits).log_softmax(-1)
        return float(sum(logp[i, token] for i, token in enumerate(answer)))

    settings = [Settings(beams=beams, max_tokens=6, length_penalty=0.0, eos=(999,)) for beams in (1, 8)]
    one, many = ([r["token_ids"] for r in translate.run(graphs, TEXTS, settings=s)] for s in settings)
    gains = [likelihood(t, b) - likelihood(t, a) for t, a, b in zip(TEXTS, one, many, strict=True)]
    assert sum(gains) > 0
    assert max(gains) > 0.01


def test_tokens_that_must_or_must_not_come(graphs: Graphs) -> None:
    free = translate.run(graphs, ["a fox"], settings=Settings(max_tokens=5))[0]["token_ids"]
    task = {"forced_bos": 17, "forced_eos": 19, "suppressed": free[:1]}
    manifest = graphs.package.manifest | {"task": graphs.package.task | task}
    held = Graphs(dataclasses.replace(graphs.package, manifest=manifest))
    for beams in (1, 2):
        (found,) = translate.run(held, ["a fox"], settings=Settings(max_tokens=5, beams=beams))
        assert (found["token_ids"][0], found["token_ids"][-1], len(found["token_ids"])) == (17, 19, 5)
        assert free[0] not in found["token_ids"]


def test_an_answer_ends_with_the_models_positions(graphs: Graphs) -> None:
    (found,) = translate.run(graphs, ["a fox"], settings=Settings(max_tokens=500, eos=(999,)))
    assert len(found["token_ids"]) == MAX - 1


@pytest.mark.parametrize(
    ("text", "words"), [("", "a text is empty"), (" \n", "a text is empty"), ("x" * 60, "takes 40 at most")]
)
def test_texts_that_are_refused(graphs: Graphs, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        translate.run(graphs, ["a", text])


def test_a_text_that_is_cut(graphs: Graphs) -> None:
    cut = translate.run(graphs, ["xy" * 60], truncate=True, settings=Settings(max_tokens=3))
    assert len(cut[0]["token_ids"]) == 3


# ----------------------------------------------------------------------------------------------- command line


def test_the_command_line(package: Path, graphs: Graphs, isoformer: Callable[..., Any]) -> None:
    done = isoformer("run", package, "a fox", "x y z", "--json", "--max-tokens", "4", "--beams", "2")
    assert done.returncode == 0, done.stderr
    expected = translate.run(graphs, ["a fox", "x y z"], settings=Settings(max_tokens=4, beams=2))
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    plain = isoformer("run", package, "a fox", "--max-tokens", "4", "--stats")
    assert plain.stdout.rstrip("\n") == translate.run(graphs, ["a fox"], settings=Settings(max_tokens=4))[0]["text"]
    assert "new 4 tokens" in plain.stderr
    for arguments, words in (
        (("run", package, "a", "--stop", "x"), "--stop: not for the task translate"),
        (("run", package, "a", "--language", "de"), "--language: not for the task translate"),
        (("run", package, "a", "--task", "translate"), "--task: not for the task translate"),
        (("run", package, "a", "--no-timestamps"), "--timestamps: not for the task translate"),
        (("run", package, "a", "--srt", "x.srt"), "--srt: not for the task translate"),
        (("chat", package), "holds no dialogue: its task is translate"),
        (("run", package, ""), "a text is empty"),
        (("attention", package, "a", "--png", "x.png"), "open them with Graphs"),
    ):
        refused = isoformer(*arguments, stdin="x\n")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert words in refused.stderr


def test_inspect_and_bench_show_each_graph(package: Path, isoformer: Callable[..., Any]) -> None:
    shown = isoformer("inspect", package).stdout
    for name in (ENCODER, DECODER):
        assert f"{name}: inputs and outputs" in shown
    found = json.loads(isoformer("inspect", package, "--json").stdout)
    assert found["graphs"].keys() == {ENCODER, DECODER}
    assert "grid" not in found["graphs"][ENCODER]
    done = isoformer("bench", package, "--batch", "1", "--length", "5", "--json")
    assert [json.loads(line)["graph"] for line in done.stdout.splitlines()] == [ENCODER, DECODER]


def test_a_family_by_its_name(tmp_path: Path, isoformer: Callable[..., Any]) -> None:
    done = isoformer("export", "-m", "encoder_decoder", tmp_path / "made", "-o", "max_positions=7")
    assert done.returncode == 0, done.stderr
    assert f"{DECODER}, onnxruntime cpu: " in done.stdout
    refused = isoformer("export", "-m", "encoder_decoder", tmp_path / "b", "--precision", "int4")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "precision int4 is for decoders alone; this model has float32 and int8" in refused.stderr
