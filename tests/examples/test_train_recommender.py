"""The recommender example: files, a split by time, the measures, and a tiny model trained, resumed and shipped."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from matplotlib.image import imread
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the examples are not installed

from examples import recommender_data as data  # noqa: E402
from examples import train_recommender as example  # noqa: E402
from examples.recommender_data import Asked, Item, Ratings  # noqa: E402
from examples.training import Training  # noqa: E402
from isoformer.runtime import Session  # noqa: E402
from isoformer.runtime.tasks import recommend  # noqa: E402
from tests.conftest import export_small  # noqa: E402

MOVIELENS = ROOT / ".assets/recbole/dataset_example/ml-100k"


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    """Users who go around a ring of 23 items, each from a place of their own: the next item is certain."""
    items = [Item(str(100 + n), f"Item {n}") for n in range(23)]
    return Ratings(items, [[(user + step) % 23 for step in range(6 + user % 5)] for user in range(46)])


def tiny(ratings: Ratings) -> Training:
    changes = {"hidden_size": 16, "intermediate_size": 20, "num_layers": 1, "max_positions": 12, "dropout": 0.0}
    return example.new_training(example.configuration(len(ratings.items), **changes), ratings)


def trained(ratings: Ratings, folder: Path, epochs: int, minutes: float = 9, resume: bool = False) -> Training:
    training = tiny(ratings)
    training.start(folder, resume)
    training.run(folder, Console(file=io.StringIO()), rounds=epochs, minutes=minutes)
    return training


def written(folder: Path, *rows: str, items: tuple[str, ...] = ()) -> Path:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "ml-100k.inter").write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    if items:
        header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
        (folder / "ml-100k.item").write_text("\n".join((header, *items)) + "\n", encoding="utf-8")
    return folder


def test_ratings_are_histories_in_the_order_of_time(tmp_path: Path):
    rows = ["7\t30\t3\t20", "7\t4\t1\t10", "8\t30\t5\t9", "7\t100\t5\t10.5", "8\t4\t5\t1e1", '8\t"5\t5\t11']
    folder = written(tmp_path, *rows, items=("4\tFour\t1995\tx", "30\tThirty, The\t\tx", "9\tNine\t1990\tx"))
    found = data.read_ratings(folder, least=3)
    assert found.items == [
        Item("4", "Four (1995)"),
        Item("9", "Nine (1990)"),
        Item('"5', ""),
        Item("30", "Thirty, The"),
        Item("100", ""),
    ]
    assert [[found.items[n].id for n in history] for history in found.histories] == [
        ["4", "100", "30"],
        ["30", "4", '"5'],
    ]
    assert data.read_ratings(folder, least=4).histories == []


def test_movielens():
    found = data.read_ratings(MOVIELENS)
    assert (len(found.histories), len(found.items), sum(map(len, found.histories))) == (943, 1682, 100_000)
    assert found.items[0] == Item("1", "Toy Story (1995)")
    assert all(len(set(history)) == len(history) for history in found.histories)


def test_the_last_item_is_the_tests_and_the_one_before_it_the_validations():
    training, validation, test = data.split([[1, 2, 3, 4, 5], [6, 7, 8]])
    assert training == [[1, 2, 3], [6]]
    assert (validation.histories, validation.targets.tolist()) == ([[1, 2, 3], [6]], [4, 7])
    assert (test.histories, test.targets.tolist()) == ([[1, 2, 3, 4], [6, 7]], [5, 8])


def test_the_measures():
    ranking = np.array([[5, 1, 2], [3, 4, 6], [9, 8, 7]])
    hit, ndcg = data.hit_and_ndcg(ranking, np.array([5, 6, 1]))
    assert hit == pytest.approx(2 / 3)
    assert ndcg == pytest.approx((1 + 1 / 2) / 3)


def test_the_best_are_not_of_the_history_and_ties_go_to_the_lower_number():
    scores = np.array([[1.0, 5.0, 5.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    assert data.best(scores, [[3], [0, 2]], 2).tolist() == [[1, 2], [1, 3]]


def test_the_baselines():
    training = [[0, 1, 2], [1, 2, 3], [4, 2]]
    asked = Asked([[0, 1], [4]], np.array([2, 0]))
    assert data.popularity(training, asked, 5).tolist() == [[1, 2, 3, 1, 1]] * 2
    assert data.followers(training, asked, 5).tolist() == [[0, 0, 2, 0, 0], [0, 0, 1, 0, 0]]
    neighbours = data.item_neighbours(training, asked, 5)
    assert neighbours[1] == pytest.approx([0, 0, 1 / 3**0.5, 0, 1])
    assert neighbours[0, 2] == pytest.approx(1 / 3**0.5 + 2 / 6**0.5)


def test_without_the_files_one_line_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as stopped:
        example.main(tmp_path / "out", ratings=tmp_path)
    said = capsys.readouterr().err
    assert stopped.value.exit_code == 2
    assert said.count("\n") == 1
    assert "make assets" in said
    assert not list(tmp_path.iterdir())
    (tmp_path / "ml-100k.inter").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="has no column item_id:token, timestamp:float, user_id:token"):
        data.read_ratings(tmp_path)


def test_batches_hold_every_user_and_depend_on_the_epoch(ratings: Ratings):
    training = data.split(ratings.histories)[0]
    made = [example.batches(training, 12, epoch) for epoch in (0, 0, 1)]
    rows = [
        [row[: int(n)].tolist() for ids, mask in one for row, n in zip(ids, mask.sum(1), strict=True)] for one in made
    ]
    assert rows[0] == rows[1] != rows[2]
    assert sorted(row[0] for row in rows[0]) == sorted(history[0] for history in training)
    assert any(row not in training for row in rows[0])  # some end early


def test_resumed_training_is_the_very_same_and_learns(ratings: Ratings, tmp_path: Path):
    whole, first = trained(ratings, tmp_path / "whole", 6), tmp_path / "first"
    assert trained(ratings, first, 2).rounds == 2
    torch.manual_seed(99)  # another process
    second = trained(ratings, first, 6, resume=True)
    assert second.curves == whole.curves
    assert second.curves["training"][-1] < second.curves["training"][0]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name
    assert second.take_best() == whole.take_best() == 1 + np.argmax(whole.curves["validation"])
    assert sorted(path.name for path in first.iterdir()) == ["checkpoint.pt", "loss.png", "ndcg.png"]
    assert imread(first / "ndcg.png").shape == (480, 840, 4)


def test_minutes_end_the_training_and_other_data_are_refused(ratings: Ratings, tmp_path: Path):
    training = trained(ratings, tmp_path, 4, minutes=0)
    assert (training.rounds, training.take_best()) == (0, 0)
    tiny(ratings).start(tmp_path, resume=True)  # usable all the same
    with pytest.raises(ValueError, match="other settings or other data"):
        tiny(Ratings(ratings.items, ratings.histories[1:])).start(tmp_path, resume=True)


def test_from_ratings_to_a_package_that_recommends_the_same(
    ratings: Ratings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("examples.common.export", export_small)
    training, said = trained(ratings, tmp_path, 60), Console(file=io.StringIO(), width=120)
    assert training.take_best() > 0
    example.ship(training, ratings, tmp_path / "package", said)
    example.report(tmp_path / "package", training.model, ratings, said)
    printed = said.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "46 of 46 (100.00%)" in printed
    assert "most popular" in printed
    (answer,) = recommend.run(Session(tmp_path / "package"), ["Item 3; Item 4; Item 5; Item 6"])
    assert answer["titles"][0] == "Item 7"
    assert answer["items"][0] == "107"
    assert json.loads((tmp_path / "package/items.json").read_text())[7] == {"id": "107", "title": "Item 7"}


def test_ctrl_c_leaves_a_checkpoint_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "next_item_loss", interrupted)
    with pytest.raises(typer.Exit) as stopped:
        example.main(tmp_path / "package", ratings=MOVIELENS)
    said = capsys.readouterr().err
    assert stopped.value.exit_code == 130
    assert said.count("\n") == 1
    assert "--resume" in said
    assert "model" in torch.load(tmp_path / "package-training/checkpoint.pt", weights_only=True)
