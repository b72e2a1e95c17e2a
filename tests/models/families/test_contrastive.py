"""CLIP's two towers: who ends a text, masks, several sizes of pictures, the scores of a match."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from isoformer.models.families import contrastive

EOS = 3


def model(**changes: Any) -> contrastive.Model:
    """TINY in float64, every weight random."""
    torch.manual_seed(0)
    config = dataclasses.replace(contrastive.TINY, **changes)
    made = contrastive.Model(config).double().eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def close(have: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(have, want, atol=1e-12, rtol=0)


def test_a_text_is_read_at_its_first_end_and_not_beyond():
    text = model().text
    ids = torch.tensor([[5, 8, EOS, 9, EOS, 1]])
    out = text(ids)
    close(out["pooler_output"], out["last_hidden_state"][:, 2])
    close(text(ids[:, :3])["text_embeds"], out["text_embeds"])
    close(out["text_embeds"].norm(dim=1), torch.ones(1).double())


def test_without_an_end_token_the_highest_id_ends_a_text():
    text = model(eos_token_id=None).text
    out = text(torch.tensor([[5, 12, 8, 12, 1], [2, 2, 1, 0, 12]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]))
    close(out["pooler_output"][0], out["last_hidden_state"][0, 1])
    close(out["pooler_output"][1], out["last_hidden_state"][1, 0])


def test_padding_holds_no_end_and_a_text_without_tokens_is_zero():
    text = model().text
    ids, mask = torch.tensor([[5, 8, 9, EOS], [5, 8, EOS, EOS]]), torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])
    out = text(ids, mask)
    close(out["pooler_output"][0], out["last_hidden_state"][0, 0])
    assert (out["text_embeds"][1] == 0).all()
    assert all(value.isfinite().all() for value in out.values())


def test_scores_are_scaled_cosines_of_every_pair():
    ours = model()
    ids, pictures = torch.tensor([[5, EOS], [7, EOS], [9, EOS]]), torch.randn(2, 3, 6, 10).double()
    out = ours(ids, None, pictures)
    texts, images = ours.text(ids)["text_embeds"], ours.image(pictures)["image_embeds"]
    for i in range(2):
        for t in range(3):
            close(out["logits_per_image"][i, t], ours.logit_scale.exp() * (images[i] * texts[t]).sum())
    close(out["logits_per_text"], out["logits_per_image"].T)
    close(out["image_embeds"].norm(dim=1), torch.ones(2).double())


def test_pictures_of_several_sizes_share_a_batch():
    ours = model()
    canvas, mask = torch.full((2, 3, 12, 14), torch.nan).double(), torch.zeros(2, 6, 7)
    alone = []
    for row, (rows, columns) in enumerate(((3, 5), (6, 2))):
        alone.append(torch.randn(1, 3, 2 * rows, 2 * columns).double())
        canvas[row, :, : 2 * rows, : 2 * columns] = alone[-1][0]
        mask[row, :rows, :columns] = 1
    together = ours.image(canvas, mask)["image_embeds"]
    close(together, torch.cat([ours.image(one)["image_embeds"] for one in alone]))
    mask[1] = 0
    assert (ours.image(canvas, mask)["image_embeds"][1] == 0).all()


def test_mistakes():
    with pytest.raises(ValueError, match="eos_token_id is 13; the vocabulary has 0 to 12"):
        dataclasses.replace(contrastive.TINY, eos_token_id=13)
    image = dataclasses.replace(contrastive.TINY.image, special_tokens=2)
    with pytest.raises(ValueError, match="image has 2 special_tokens"):
        dataclasses.replace(contrastive.TINY, image=image)
    with pytest.raises(ValueError, match="pixel_values are missing"):
        model()(torch.tensor([[EOS]]))
