"""SASRec from its definition: causality, positions from the end, and what is recommended."""

import dataclasses

import pytest
import torch

from isoformer.models.families import recommender
from isoformer.models.families.recommender import TINY, Model, count_back, last_real


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(3)
    return Model(TINY).double().eval().requires_grad_(False)


def of(model: Model, *rows: list[int | None]) -> dict[str, torch.Tensor]:
    """The outputs for histories in which None is padding."""
    ids = torch.tensor([[7 if item is None else item for item in row] for row in rows])
    return model(ids, torch.tensor([[int(item is not None) for item in row] for row in rows]))


def test_positions_count_from_the_last_real_item():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    assert count_back(mask).tolist() == [[2, 1, 0, 0], [2, 1, 1, 0], [0, 0, 0, 0]]
    x = torch.arange(12.0).reshape(3, 4, 1)
    assert last_real(x, mask)[:, 0].tolist() == [2, 7, 0]


def test_padding_anywhere_changes_nothing(model: Model):
    n = None
    rows = [[5, 9, 2, n, n], [n, n, 5, 9, 2], [5, n, 9, n, 2]]
    logits = of(model, *rows)["logits"]
    assert torch.allclose(logits, of(model, [5, 9, 2])["logits"].expand(3, -1), atol=1e-12)


def test_the_order_of_the_history_matters(model: Model):
    assert not torch.allclose(of(model, [5, 9, 2])["logits"], of(model, [9, 5, 2])["logits"])


def test_no_place_sees_a_later_one(model: Model):
    """Under positions of its own: those of the first three places move when an item is added behind them."""
    ids, mask = torch.tensor([[5, 9, 2, 4]]), torch.ones(1, 4, dtype=torch.int64)
    one, other = model.hidden(ids, mask), model.hidden(torch.tensor([[5, 9, 2, 8]]), mask)
    assert torch.allclose(one[:, :3], other[:, :3], atol=1e-12)
    assert not torch.allclose(one[:, 3], other[:, 3])


def test_the_best_items_outside_the_history(model: Model):
    found = of(model, [5, 9, 2, 9, None])
    logits = found["logits"][0].clone()
    logits[[5, 9, 2]] = -torch.inf
    expected = logits.sort(descending=True)
    assert found["items"][0].tolist() == expected.indices[:5].tolist()
    assert torch.equal(found["scores"][0], expected.values[:5])


def test_the_history_may_be_recommended_where_that_is_wanted(model: Model):
    free = Model(dataclasses.replace(TINY, exclude_history=False)).double().eval()
    free.load_state_dict(model.state_dict())
    free.items.weight.data[7] *= 50
    with torch.no_grad():
        both = [of(free, [3, 4]), of(free, [7, 3, 4])]
    for found in both:
        assert torch.equal(found["scores"], found["logits"].topk(5).values)
    assert torch.equal(both[0]["items"][0, 0] == 7, both[0]["logits"][0, 7] > 0)


def test_an_empty_history_has_zero_scores_and_finite_gradients(model: Model):
    found = of(model, [5, 9, 2], [None, None, None])
    assert (found["logits"][1] == 0).all()
    assert (found["scores"][1] == 0).all()
    assert torch.equal(found["items"][0], of(model, [5, 9, 2])["items"][0])
    learns = Model(TINY)
    learns(torch.tensor([[1, 2]]), torch.zeros(1, 2, dtype=torch.int64))["logits"].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in learns.parameters())


def test_sizes_that_leave_nothing_to_recommend():
    with pytest.raises(ValueError, match="of 101 items, 38 must be left to recommend behind a history of 64"):
        dataclasses.replace(TINY, top_k=38)
    assert dataclasses.replace(TINY, top_k=101, exclude_history=False).top_k == 101
    with pytest.raises(ValueError, match="102 must be left"):
        dataclasses.replace(TINY, top_k=102, exclude_history=False)
    with pytest.raises(ValueError, match="num_items is 0"):
        dataclasses.replace(TINY, num_items=0)


def test_the_signature_says_what_the_choices_are_of():
    items, scores, logits = recommender.signature(TINY).outputs
    assert (items.kind, items.along) == ("choices", logits.name)
    assert items.axes == scores.axes == ("batch_size", TINY.top_k)
