"""The training loop of `train_translation`: one call an epoch, a checkpoint that goes on to the very same result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common import load_state, save_state
from examples.translation_data import PAD_ID, Batch, batches
from isoformer.models.families.encoder_decoder import Model

Encoded = Sequence[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    tokens: target tokens of a batch, at most. The learning rate goes up to `rate` in `warmup` steps and down with the
    root of the step, as Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762) have it, so it does not depend on
    how long the training goes on. label_smoothing: the share of the target that goes to all pieces alike.
    """

    tokens: int = 256
    rate: float = 1e-3
    warmup: int = 200
    label_smoothing: float = 0.1
    clip: float = 1.0
    seed: int = 0


@dataclass
class Losses:
    """Cross-entropy in nats a target token, without label smoothing, of each epoch so far.

    training: with dropout, while the weights change; held_out: without, at the end of the epoch.
    """

    training: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)


class Trainer:
    """A model on its way: its weights, Adam's moments, the losses so far, and PyTorch's random numbers.

    data: a digest of what it is trained on; a checkpoint goes on with the same settings and data only.
    """

    def __init__(self, model: Model, recipe: Recipe, data: str = "") -> None:
        self.model = model
        self.recipe = recipe
        self.made_with = f"{model.config} {recipe} {data}"
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), eps=1e-9)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / recipe.warmup, (recipe.warmup / (step + 1)) ** 0.5)
        )
        self.losses = Losses()

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.losses.training)

    def train_epoch(self, training: Encoded, held_out: Encoded, step: Callable[[], None] = lambda: None) -> None:
        """One pass over the pairs in an order that depends on the seed and the epoch; `step` is called each batch."""
        order = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        self.model.train()
        total, count = 0.0, 0
        for batch in batches(training, self.recipe.tokens, order):
            nats, smooth, real = losses(self.model, batch)
            share = self.recipe.label_smoothing
            self.optimizer.zero_grad()
            (((1 - share) * nats + share * smooth) / real).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self.optimizer.step()
            self.schedule.step()
            total, count = total + nats.item(), count + real
            step()
        held = evaluate(self.model, held_out, self.recipe.tokens)
        self.losses.training.append(total / count)
        self.losses.held_out.append(held)

    def save(self, path: Path) -> None:
        """Writes the checkpoint beside `path` and renames it, so that a whole one always stands there."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "losses": {"training": self.losses.training, "held_out": self.losses.held_out},
            "made_with": self.made_with,
        }
        save_state(path, state)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises ValueError for one that is broken, or of another model, recipe or data."""
        state = load_state(path, self.made_with)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.losses = Losses(**state["losses"])


def losses(model: Model, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """(sum of -log p(target), sum of -log p averaged over the vocabulary, how many): padding of the target left out."""
    log_p = F.log_softmax(model(batch.source, batch.source_mask, batch.decoder_input), -1)  # (B, L, vocabulary)
    real = batch.target != PAD_ID
    nats = -log_p.gather(-1, batch.target[:, :, None])[:, :, 0]
    return nats[real].sum(), -log_p.mean(-1)[real].sum(), int(real.sum())


@torch.no_grad()
def evaluate(model: Model, held_out: Encoded, tokens: int) -> float:
    """Cross-entropy in nats a target token, without dropout."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches(held_out, tokens):
        nats, _, real = losses(model, batch)
        total, count = total + nats.item(), count + real
    return total / count


@torch.no_grad()
def translate_greedily(model: Model, sources: Sequence[list[int]], longest: int) -> list[list[int]]:
    """The likeliest token again and again, in plain PyTorch, until `</s>`, which is kept, or `longest` tokens.

    All that was said is read anew for each token: no cache, so a package's cache is compared with none.
    """
    model.eval()
    eos, start = model.config.eos_token_id, model.config.decoder_start_token_id
    answers = []
    for source in sources:  # one at a time: nothing is padded
        source_ids = torch.tensor([source])
        said = torch.tensor([[start]])
        while said.shape[1] <= longest and said[0, -1] != eos:
            logits = model(source_ids, torch.ones_like(source_ids), said)[:, -1]
            said = torch.cat([said, logits.argmax(-1, keepdim=True)], 1)
        answers.append(said[0, 1:].tolist())
    return answers
