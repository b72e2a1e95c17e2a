"""Trains a SASRec recommender on MovieLens-100k, ships it as ONNX, and compares both on every user's last film.

    make assets
    python -m examples.train_recommender demo/recommender

Of each user the last film is the test's and the one before it the validation's; the model learns from the rest, and the
epoch that is best on the validation's films is shipped. A ranking is over the whole catalogue but for what the user
has rated already. Beside the model stand three baselines that learn from the same ratings.

The ratings are for research, so neither they nor a model made from them are part of this project: the package, which
carries the films' titles from your copy, is yours.

    recommender_data.py    files → histories → split → batches, baselines, Hit@10 and NDCG@10
    training.py            the loop and the checkpoint
    train_recommender.py   this file: the settings, and one after the other

The checkpoint and the pictures stand beside the package, in demo/recommender-training. Ctrl-C ends the training after
the last whole epoch, and `--resume` goes on from there to the very same result.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from examples import recommender_data as data
from examples.common import Minutes, Resume, Target, export_package, program, side_by_side, table
from examples.training import Picture, Step, Training
from isoformer.models.families import recommender
from isoformer.models.families.recommender import Config, Model
from isoformer.runtime import Session

# The better of two settings on the validation part; the other had RATE 1e-3, LONGEST 200 and nothing cropped.
RATE = 3e-3
BATCH = 64
CROPPED = 0.5
EPOCHS = 45
LONGEST = 100
SEED = 0
RATINGS = Path(".assets/recbole/dataset_example/ml-100k")

BASELINES = {
    "most popular": data.popularity,
    "item-based neighbours": data.item_neighbours,
    "what followed the last film": data.followers,
}


def configuration(num_items: int, **changes: int | float) -> Config:
    """Near the paper's shape for dense ratings: two layers, histories of up to 100 items in place of 200."""
    shape = {"hidden_size": 64, "num_heads": 2, "num_layers": 2, "intermediate_size": 128, "max_positions": LONGEST}
    shape |= {"dropout": 0.2} | changes
    return Config(num_items=num_items, top_k=data.AT, **shape)  # pyright: ignore[reportArgumentType]


def new_training(config: Config, ratings: data.Ratings) -> Training[Model]:
    """An untrained model, its weights and its dropout drawn from the seed."""
    torch.manual_seed(SEED)
    model = Model(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    training, validation, _ = data.split(ratings.histories)

    def steps(epoch: int) -> Iterator[Step]:
        for batch in batches(training, config.max_positions, epoch):
            yield Step(next_item_loss(model, batch), optimizer)

    def score() -> dict[str, float]:
        ranking = data.best(in_torch(model, validation), validation.histories)
        return {"validation": data.hit_and_ndcg(ranking, validation.targets)[1]}

    digest = hashlib.sha256(str(ratings).encode()).hexdigest()
    settings = f"{config} {RATE} {BATCH} {CROPPED} {SEED} {digest}"
    pictures = (
        Picture("loss.png", "nats an item", ("training",)),
        Picture("ndcg.png", f"NDCG@{data.AT}", ("validation",)),
    )
    count = -(-len(training) // BATCH)
    return Training(model, {"optimizer": optimizer}, settings, steps, count, pictures, score, best="validation")


def batches(training: Sequence[list[int]], longest: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """item_ids and attention_mask (B, L + 1) of all users in the epoch's order.

    A share of the histories ends early, at a place drawn anew: the last positions then see many targets, not one.
    """
    random = np.random.default_rng([SEED, epoch])
    rows = []
    for user in random.permutation(len(training)):
        end = random.integers(2, len(training[user]) + 1)
        rows.append(training[user][:end] if random.random() < CROPPED else training[user])
    return [data.pad(rows[start : start + BATCH], longest + 1) for start in range(0, len(rows), BATCH)]


def next_item_loss(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats of the item that comes next at every place, over the whole catalogue."""
    ids, mask = batch
    real = mask[:, 1:].bool()
    x = model.hidden(ids[:, :-1], mask[:, 1:])  # padding stands on the right: the same rows as without the last item
    return F.cross_entropy(model.logits(x[real]), ids[:, 1:][real])


@torch.no_grad()
def in_torch(model: Model, asked: data.Asked) -> np.ndarray:
    """(users, num_items): the model's scores."""
    return _scores(asked, model.config, lambda ids, mask: model(ids, mask)["logits"].numpy())


def in_onnx_runtime(package: Path, config: Config, asked: data.Asked) -> np.ndarray:
    """(users, num_items): the package's."""
    session = Session(package)

    def run(ids: Tensor, mask: Tensor) -> np.ndarray:
        return session.run({"item_ids": ids.numpy(), "attention_mask": mask.numpy()}, ["logits"])["logits"]

    return _scores(asked, config, run)


def _scores(asked: data.Asked, config: Config, run: Callable[[Tensor, Tensor], np.ndarray]) -> np.ndarray:
    parts = (asked.histories[start : start + BATCH] for start in range(0, len(asked.histories), BATCH))
    return np.concatenate([run(*data.pad(part, config.max_positions)) for part in parts])


def ship(training: Training[Model], ratings: data.Ratings, path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    export_package(
        recommender,
        training.model,
        path,
        console,
        example=__file__,
        weights=f"random, trained for {training.length()}",
        data="MovieLens-100k, for research use alone",
        files=data.package_files(ratings.items),
    )


def report(package: Path, model: Model, ratings: data.Ratings, console: Console) -> None:
    """Hit@10 and NDCG@10 of the test's films: the model in both runtimes, beside the baselines."""
    training, _, test = data.split(ratings.histories)
    rankings = [
        data.best(scores, test.histories)
        for scores in (in_torch(model, test), in_onnx_runtime(package, model.config, test))
    ]
    (hit, ndcg), (onnx_hit, onnx_ndcg) = (data.hit_and_ndcg(ranking, test.targets) for ranking in rankings)
    metrics = {
        f"Hit@{data.AT}": (f"{hit:.4f}", f"{onnx_hit:.4f}"),
        f"NDCG@{data.AT}": (f"{ndcg:.4f}", f"{onnx_ndcg:.4f}"),
    }
    console.print(
        side_by_side(
            metrics, rankings[0], rankings[1], f"the last film of every user, the {data.AT} best of the catalogue"
        )
    )
    found = {"this model": (onnx_hit, onnx_ndcg)}
    for name, baseline in BASELINES.items():
        ranking = data.best(baseline(training, test, len(ratings.items)), test.histories)
        found[name] = data.hit_and_ndcg(ranking, test.targets)
    rows = [(name, *(f"{value:.4f}" for value in values)) for name, values in found.items()]
    console.print(table("beside", list(metrics), rows))
    others = max(value for name, (_, value) in found.items() if name != "this model")
    console.print(
        f"In NDCG@{data.AT} the model is {'above' if onnx_ndcg > others else 'NOT above'} the best baseline. One film "
        f"a user, {len(test.targets)} users: differences of a hundredth are within chance."
    )


def main(
    package: Target,
    ratings: Annotated[Path, typer.Option(help="Folder with ml-100k.inter and ml-100k.item.")] = RATINGS,
    epochs: Annotated[int, typer.Option(min=1, help="How often every user is seen, in all.")] = EPOCHS,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Trains a recommender on MovieLens-100k and ships it as an ONNX package."""
    with program(package) as (out, err, folder):
        found = data.read_ratings(ratings)
        training = new_training(configuration(len(found.items)), found)
        training.start(folder, resume)
        users = f"{len(found.histories)} users, {len(found.items)} films"
        out.print(f"{users}; {training.rounds} epochs done", soft_wrap=True)
        training.run(folder, err, rounds=epochs, minutes=minutes)
        out.print(f"the best epoch on the validation's films: {training.take_best()} of {training.rounds}")
        ship(training, found, package, err)
        report(package, training.model, found, out)
        titles = "; ".join(item.title or item.id for item in found.items[:2])
        out.print(f"pictures: {folder}; try: isoformer run {package} {titles!r}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
