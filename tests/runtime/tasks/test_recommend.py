"""Recommendations: histories as ids and as titles, what is cut off, and every mistake in one line."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from isoformer.models.checkpoints import TextFile
from isoformer.models.families import recommender
from isoformer.runtime import InputError, PackageError, Session, load, tasks
from isoformer.runtime.tasks import recommend
from isoformer.runtime.verify import verify
from tests.conftest import export_small

CONFIG = dataclasses.replace(recommender.TINY, num_items=17, hidden_size=9, num_layers=1, max_positions=7, top_k=5)
ITEMS = [{"id": str(100 + n), "title": f"The {n}; or Not (19{n:02})"} for n in range(17)]
ITEMS[3]["title"] = ITEMS[4]["title"] = "Twice"
ITEMS[5]["title"] = "Once"
ITEMS[6]["title"] = "101 Dalmatians"
HISTORIES = [[3, 5, 11], [2], [16, 0, 1, 2, 3, 4, 5], [5, 5]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(5)
    model = recommender.Model(CONFIG).eval()
    folder = tmp_path_factory.mktemp("recommend")

    def package(name: str, *files: TextFile) -> Path:
        made = export_small(
            model, recommender.signature(CONFIG), folder / name, task=recommender.task(CONFIG), files=files
        )
        return made.path

    return model, package("plain"), package("titled", TextFile("items.json", json.dumps(ITEMS)))


@pytest.fixture(scope="module")
def plain(made) -> Session:
    return Session(made[1])


@pytest.fixture(scope="module")
def titled(made) -> Session:
    return Session(made[2])


def test_the_task_is_found(plain: Session):
    assert tasks.of(plain.package) is recommend


def test_histories_of_any_length_have_the_answers_of_each_alone(made, plain: Session):
    results = recommend.run(plain, [" ".join(map(str, history)) for history in HISTORIES])
    for history, result in zip(HISTORIES, results, strict=True):
        with torch.no_grad():
            expected = made[0](torch.tensor([history]), torch.ones(1, len(history), dtype=torch.int64))
        assert result["items"] == expected["items"][0].tolist()
        assert np.allclose(result["scores"], expected["scores"][0].numpy(), atol=1e-5)
        assert not set(result["items"]) & set(history)
        assert "titles" not in result
    json.dumps(results)


def test_titles_and_ids_name_the_same(titled: Session, plain: Session):
    by_id, by_title, mixed = recommend.run(titled, ["105 106", "Once; 101 dalmatians", " once ;106;"])
    assert by_id["items"] == by_title["items"] == mixed["items"]
    (expected,) = recommend.run(plain, ["5 6"])
    assert by_id["items"] == [ITEMS[number]["id"] for number in expected["items"]]
    assert by_id["titles"] == [ITEMS[number]["title"] for number in expected["items"]]
    (alone,) = recommend.run(titled, ["The 2; or Not (1902)"])  # the separator is part of a title
    assert alone["items"] == recommend.run(titled, ["102"])[0]["items"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a history is empty"),
        (" ; ", "a history is empty"),
        ("105 7", "there is no item '7'; items are ids such as 100, with spaces"),
        ("Nowhere", "there is no item 'Nowhere'; items are ids such as 100"),
        ("Once; Nowhere", "there is no item 'Nowhere'"),
        ("Twice", "several items have the title 'Twice'; name one by its id: 103, 104"),
        ("100 " * 8, "8 items is too long; this model takes 7 at most: pass --truncate"),
    ],
)
def test_a_mistake_is_one_line(titled: Session, text: str, said: str):
    with pytest.raises(InputError) as error:
        recommend.run(titled, ["100", text])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_catalogue_items_are_numbers(plain: Session):
    for text in ("17", "-1", "x", "1.0"):
        with pytest.raises(InputError, match="there is no item"):
            recommend.run(plain, [text])


def test_what_is_cut_off_is_not_recommended(plain: Session):
    recent = [9, 10, 11, 12, 13, 14, 15]
    (whole,) = recommend.run(plain, [" ".join(map(str, recent))])
    old = whole["items"][0]
    (cut,) = recommend.run(plain, [" ".join(map(str, [old, *recent]))], truncate=True)
    assert cut["items"] == whole["items"][1:]
    assert cut["scores"] == whole["scores"][1:]


@pytest.mark.parametrize(
    "content", ["[", "{}", '["a"]', json.dumps(ITEMS[:-1]), json.dumps([*ITEMS[:-1], ITEMS[0]])], ids=range(5)
)
def test_a_broken_catalogue_is_named(made, tmp_path: Path, content: str):
    package = load(made[2])
    broken = dataclasses.replace(package, path=tmp_path)
    (tmp_path / "items.json").write_text(content, encoding="utf-8")
    with pytest.raises(PackageError, match=r"items\.json"):
        recommend.read_catalogue(broken)


def test_the_table(titled: Session, plain: Session):
    for session, history, words in ((titled, "105", ("105", "title")), (plain, "5", ("history", "score"))):
        console = Console(file=io.StringIO(), width=100)
        results = recommend.run(session, [history])
        recommend.show(results, console)
        said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert all(word in said for word in words)
        assert str(results[0]["items"][0]) in said


def test_the_command_line(made, isoformer):
    found = isoformer("run", made[2], "Once; 107", "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["input"] == "Once; 107"
    assert len(answer["items"]) == len(answer["scores"]) == len(answer["titles"]) == 5
    wrong = isoformer("run", made[2], "999")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    assert "there is no item '999'" in wrong.stderr


@pytest.mark.parametrize("wrong", [lambda items: items[:, ::-1], lambda items: items * 0, lambda items: items + 1])
def test_verification_sees_wrong_items(plain: Session, wrong):
    """Beside right scores and logits."""

    def run(inputs):
        outputs = plain.run(inputs)
        return outputs | {"items": wrong(outputs["items"])}

    assert verify(plain.package, plain.run, "onnxruntime cpu", seed=1).passed
    failures = verify(plain.package, run, "another", seed=1).failures
    assert {failure.output for failure in failures} == {"items"}
    assert {"golden", "grid"} <= {failure.check for failure in failures}
