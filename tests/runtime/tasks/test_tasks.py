"""The tasks on packages with small tokenizers: what they answer, in which order, and how it is shown."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from isoformer.models.families import encoder
from isoformer.runtime import InputError, Package, PackageError, Session, load, tasks
from isoformer.runtime.package import MANIFEST, sha256
from isoformer.runtime.tasks import classify, embed, fill_mask
from isoformer.runtime.text import TextEncoder
from tests.conftest import export_small

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
LABELS = ("bad", "good", "so so")
SMALL = dataclasses.replace(
    encoder.TINY,
    vocab_size=len(WORDS),
    hidden_size=15,
    num_layers=1,
    intermediate_size=17,
    max_positions=11,
    num_token_types=0,
)
TEXTS = ["a b c d e f", "a", "h g f", "b b b b b b b", "", "c d"]


def tokenizer(words: Sequence[str] = WORDS) -> str:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens([word for word in words if word.startswith("[")])
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made.to_str()


def exported(folder: Path, **changes: Any) -> Path:
    """A verified package of a small encoder with a tokenizer."""
    config = dataclasses.replace(SMALL, **changes)
    torch.manual_seed(11)
    (folder / "tokenizer.json").write_text(tokenizer())
    return export_small(
        encoder.Model(config),
        encoder.signature(config),
        folder / "package",
        task=encoder.task(config),
        files=[folder / "tokenizer.json"],
    ).path


def edited(package: Path, target: Path, task: dict[str, Any] | None, text: str | None = None) -> Path:
    """A copy of the package with another task and, if given, another tokenizer."""
    shutil.copytree(package, target)
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    manifest["task"] = task
    if text is not None:
        (target / "tokenizer.json").write_text(text, encoding="utf-8")
    manifest["files"]["tokenizer.json"] = sha256(target / "tokenizer.json")
    (target / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def embed_session(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    package = Path(shutil.copytree(tiny_package, tmp_path_factory.mktemp("embed") / "package"))
    (package / "tokenizer.json").write_text(tokenizer())
    return Session(edited(package, package.parent / "signed", {"name": "embed"}))


@pytest.fixture(scope="module")
def classify_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("classify"), task="classify", labels=LABELS)


@pytest.fixture(scope="module")
def mask_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("fill-mask"), task="fill-mask")


@pytest.fixture(scope="module")
def mask_session(mask_package: Path) -> Session:
    return Session(mask_package)


def logits_of(session: Session, text: str, output: str = "logits") -> np.ndarray:
    """What the model says to one text alone, in float64."""
    made = TextEncoder(session)
    return session.run(made.inputs(made.encode([text])))[output][0].astype(np.float64)


def shown(show: Callable[[Any, Console], None], results: Any) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    show(results, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert text.endswith("\n")
    return text


def ready_for_json(results: list[dict[str, Any]], texts: Sequence[str], *fields: str) -> None:
    """A dict a text, in order, that is the same after a way through JSON."""
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert [result["input"] for result in results] == list(texts)
    assert all(list(result) == ["input", *fields] for result in results)


# ------------------------------------------------------------------------------------------ the registry


def test_names() -> None:
    assert {"classify", "embed", "fill-mask"} <= set(tasks.names())
    assert tasks.names() == sorted(tasks.names())


def test_of(tiny_package: Path, classify_package: Path, mask_package: Path) -> None:
    modules = [tasks.of(load(path)) for path in (tiny_package, classify_package, mask_package)]
    names = [module.__name__ for module in modules]
    assert names == [f"isoformer.runtime.tasks.{name}" for name in ("embed", "classify", "fill_mask")]


@pytest.mark.parametrize(
    ("task", "words"),
    [({}, "has no task"), (None, "has no task"), ({"name": "juggle"}, "'juggle'.*classify, .*embed, ")],
)
def test_of_a_package_without_a_known_task(tiny_package: Path, task: dict[str, Any] | None, words: str) -> None:
    loaded = load(tiny_package)
    with pytest.raises(PackageError, match=words):
        tasks.of(Package(loaded.path, loaded.manifest | {"task": task}, loaded.signature))


@pytest.mark.parametrize("task", [embed, classify, fill_mask])
def test_package_without_a_tokenizer(tiny_package: Path, task: Any) -> None:
    with pytest.raises(PackageError, match=r"has no tokenizer\.json"):
        task.run(Session(tiny_package), ["a"])


# ------------------------------------------------------------------------------------------------- embed


def test_embed(embed_session: Session) -> None:
    results = embed.run(embed_session, TEXTS)
    ready_for_json(results, TEXTS, "embedding")
    for text, result in zip(TEXTS, results, strict=True):
        alone = logits_of(embed_session, text, "sentence_embedding")
        np.testing.assert_allclose(result["embedding"], alone, rtol=0, atol=1e-6)
        assert np.linalg.norm(result["embedding"]) == pytest.approx(1)


def test_embed_keeps_the_order_over_several_batches(embed_session: Session) -> None:
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 23))) for _ in range(71)]
    done: list[int] = []
    results = embed.run(embed_session, texts, progress=done.append)
    ready_for_json(results, texts, "embedding")
    assert sum(done) == 71
    for index in (0, 1, 35, 69, 70):
        (alone,) = embed.run(embed_session, [texts[index]])
        np.testing.assert_allclose(results[index]["embedding"], alone["embedding"], rtol=0, atol=1e-6)


def test_embeddings(embed_session: Session) -> None:
    vectors = embed.embeddings(embed_session, TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 33))
    assert embed.embeddings(embed_session, []).shape == (0, 33)
    np.testing.assert_array_equal(vectors.tolist(), [result["embedding"] for result in embed.run(embed_session, TEXTS)])


def test_embed_too_long(embed_session: Session) -> None:
    long = "a " * 100
    with pytest.raises(InputError, match="has 102 tokens; this model takes 64 at most"):
        embed.run(embed_session, ["b", long])
    cut, same = embed.run(embed_session, [long, "a " * 62], truncate=True)
    np.testing.assert_allclose(cut["embedding"], same["embedding"], rtol=0, atol=1e-6)


def test_similarities() -> None:
    vectors = np.array([[3.0, 0.0], [0.0, 5.0], [-2.0, 0.0], [7.0, 7.0], [0.0, 0.0]])
    half = 0.5**0.5
    wanted = [[1, 0, -1, half, 0], [0, 1, 0, half, 0], [-1, 0, 1, -half, 0], [half, half, -half, 1, 0], [0] * 5]
    np.testing.assert_allclose(embed.similarities(vectors), wanted, rtol=0, atol=1e-12)


def test_show_embeddings() -> None:
    text = shown(
        embed.show, [{"input": "first", "embedding": [1.0, 0.0]}, {"input": "second", "embedding": [0.6, 0.8]}]
    )
    assert "cosine similarity" in text
    for word in ("first", "second", "1.0000", "0.6000"):
        assert word in text


def test_show_one_embedding() -> None:
    text = shown(embed.show, [{"input": "first", "embedding": [0.125] * 7}])
    assert text.startswith("7 numbers")
    assert "0.125" in text
    assert "--json" in text


# ---------------------------------------------------------------------------------------------- classify


def test_classify(classify_package: Path) -> None:
    session = Session(classify_package)
    assert session.package.task == {"name": "classify", "labels": list(LABELS), "problem": "single_label"}
    results = classify.run(session, TEXTS)
    ready_for_json(results, TEXTS, "label", "scores")
    for text, result in zip(TEXTS, results, strict=True):
        exponents = np.exp(logits_of(session, text))
        assert list(result["scores"]) == list(LABELS)
        np.testing.assert_allclose(list(result["scores"].values()), exponents / exponents.sum(), atol=1e-6)
        assert sum(result["scores"].values()) == pytest.approx(1)
        assert result["label"] == max(result["scores"], key=result["scores"].__getitem__)


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_classify_other_problems(classify_package: Path, problem: str, tmp_path: Path) -> None:
    task = {"name": "classify", "labels": list(LABELS), "problem": problem}
    session = Session(edited(classify_package, tmp_path / "other", task))
    results = classify.run(session, TEXTS)
    ready_for_json(results, TEXTS, "label", "scores")
    for text, result in zip(TEXTS, results, strict=True):
        logits = logits_of(session, text)
        wanted = logits if problem == "regression" else 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(list(result["scores"].values()), wanted, atol=1e-6)
        assert result["label"] == LABELS[int(logits.argmax())]


def test_problem_of_the_family_is_the_tasks() -> None:
    config = dataclasses.replace(SMALL, task="classify", labels=("price",), problem="regression")
    assert encoder.task(config) == {"name": "classify", "labels": ["price"], "problem": "regression"}


def test_classify_too_long(classify_package: Path) -> None:
    session = Session(classify_package)
    with pytest.raises(InputError, match="has 13 tokens; this model takes 11 at most"):
        classify.run(session, ["a " * 11])
    cut, same = classify.run(session, ["a " * 100, "a " * 9], truncate=True)
    assert cut["scores"] == pytest.approx(same["scores"])


def test_scores() -> None:
    logits = np.array([0.0, np.log(3.0)])
    np.testing.assert_allclose(classify.to_scores(logits, "single_label"), [0.25, 0.75])
    np.testing.assert_allclose(classify.to_scores(logits, "multi_label"), [0.5, 0.75])
    np.testing.assert_array_equal(classify.to_scores(logits, "regression"), logits)


def test_scores_of_extreme_logits_are_finite() -> None:
    logits = np.array([-1000.0, 0.0, 1000.0])
    np.testing.assert_allclose(classify.to_scores(logits, "single_label"), [0, 0, 1])
    np.testing.assert_allclose(classify.to_scores(logits, "multi_label"), [0, 0.5, 1])


def test_show_classes() -> None:
    scores = {"bad": 0.1, "good": 0.6, "so so": 0.25, "none": 0.05}
    text = shown(classify.show, [{"input": "a text", "label": "good", "scores": scores}])
    places = [text.index(word) for word in ("good", "so so", "bad")]
    assert places == sorted(places)
    assert "none" not in text
    assert "0.6000" in text
    assert "a text" in text


# --------------------------------------------------------------------------------------------- fill-mask


def test_fill_mask(mask_session: Session) -> None:
    texts = ["a b [MASK] d e f", "[MASK]", "[MASK] b [MASK]"]
    results = fill_mask.run(mask_session, texts)
    ready_for_json(results, texts, "tokens")
    for text, result, positions in zip(texts, results, ([3], [1], [1, 3]), strict=True):
        logits = logits_of(mask_session, text)
        assert [token["position"] for token in result["tokens"]] == [p for p in positions for _ in range(5)]
        for number, position in enumerate(positions):
            best = result["tokens"][5 * number : 5 * number + 5]
            scores = np.exp(logits[position]) / np.exp(logits[position]).sum()
            order = np.argsort(-scores)[:5]
            assert [token["token"] for token in best] == [WORDS[i] for i in order]
            np.testing.assert_allclose([token["score"] for token in best], scores[order], atol=1e-6)


def test_fill_mask_keeps_the_order_over_several_batches(mask_session: Session) -> None:
    texts = ["a " * (index % 7) + "[MASK]" for index in range(40)]
    done: list[int] = []
    results = fill_mask.run(mask_session, texts, progress=done.append)
    ready_for_json(results, texts, "tokens")
    assert sum(done) == 40
    assert [result["tokens"][0]["position"] for result in results] == [index % 7 + 1 for index in range(40)]


def test_text_without_a_mask_token(mask_session: Session) -> None:
    with pytest.raises(InputError, match=r"'a b c' has no \[MASK\]"):
        fill_mask.run(mask_session, ["a [MASK]", "a b c"])


def test_mask_token_that_is_cut_away(mask_session: Session) -> None:
    with pytest.raises(InputError, match=r"has no \[MASK\]"):
        fill_mask.run(mask_session, ["a " * 20 + "[MASK]"], truncate=True)


@pytest.mark.parametrize("truncate", [False, True])
def test_text_that_is_no_unicode(mask_session: Session, truncate: bool) -> None:
    with pytest.raises(InputError) as caught:
        fill_mask.run(mask_session, ["[MASK]", "\udcff [MASK]"], truncate=truncate)
    assert "\n" not in str(caught.value)


def test_fill_mask_too_long(mask_session: Session) -> None:
    with pytest.raises(InputError, match="has 23 tokens; this model takes 11 at most"):
        fill_mask.run(mask_session, ["[MASK] " + "a " * 20])


def test_tokenizer_without_a_mask_token(mask_package: Path, tmp_path: Path) -> None:
    words = [*WORDS[:4], "x", *WORDS[5:]]
    session = Session(edited(mask_package, tmp_path / "other", {"name": "fill-mask"}, tokenizer(words)))
    with pytest.raises(PackageError, match="has no mask token"):
        fill_mask.run(session, ["a [MASK]"])


def test_vocabulary_with_room_behind_the_tokenizer(mask_package: Path, tmp_path: Path) -> None:
    """Many models have more rows than their tokenizer has words; a row without a word is nobody's answer."""
    session = Session(edited(mask_package, tmp_path / "other", {"name": "fill-mask"}, tokenizer(WORDS[:7])))
    results = fill_mask.run(session, ["a [MASK] b"])
    assert all(isinstance(token["token"], str) for token in results[0]["tokens"])
    shown(fill_mask.show, results)


def test_show_words() -> None:
    tokens = [{"token": "dog", "score": 0.75, "position": 1}, {"token": "cat", "score": 0.125, "position": 1}]
    text = shown(fill_mask.show, [{"input": "a [MASK]", "tokens": tokens}])
    for word in ("a [MASK]", "dog", "0.7500", "cat", "0.1250"):
        assert word in text


# ------------------------------------------------------------------------------------------------- show

RESULTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "embed": (embed.show, {"embedding": [1.0, 2.0]}),
    "classify": (classify.show, {"label": "[good]", "scores": {"[good]": 0.75, "[/bad]": 0.25}}),
    "fill-mask": (fill_mask.show, {"tokens": [{"token": "[unused3]", "score": 0.5, "position": 1}]}),
}


@pytest.mark.parametrize("task", RESULTS)
@pytest.mark.parametrize("text", ["a [b] c", "see [/b]", "[red]x[/red]", "[link=x]y", "tail \\", ":smile:"])
def test_texts_are_shown_as_they_stand(task: str, text: str) -> None:
    """Square brackets are markup to the library that draws the tables; in a text they are letters."""
    show, result = RESULTS[task]
    found = shown(show, [{"input": text} | result] * 2)
    assert text in found
    if task == "classify":
        assert "[good]" in found
        assert "[/bad]" in found
    if task == "fill-mask":
        assert "[unused3]" in found


@pytest.mark.parametrize("task", RESULTS)
def test_nothing_can_be_shown(task: str) -> None:
    shown(RESULTS[task][0], [])


def test_classes_of_one_label_are_told_apart():
    found = classify.result("x", np.array([0.0, 1.0, 0.5]), ["crane", "crane", "dog"], "regression")
    assert found == {"input": "x", "label": "crane (1)", "scores": {"crane (0)": 0.0, "crane (1)": 1.0, "dog": 0.5}}
