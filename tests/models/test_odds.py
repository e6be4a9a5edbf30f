"""Odds: kernel densities of two classes, and a decoder that begins by adding nothing."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.odds import EMPTY, SMALLEST, Odds, compare
from tests.models.stub import TinyEncoder
from util.episode import IGNORE, Episode

SIDE = 64


@pytest.fixture
def method() -> Odds:
    torch.manual_seed(0)
    return Odds(TinyEncoder(Odds.encoder_strides))


def square(top: int, left: int, side: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., top : top + side, left : left + side] = 1
    return mask


def drawn(support: torch.Tensor, query: torch.Tensor, answers: torch.Tensor | None = None) -> Episode:
    """Images that are bright on the organ, with noise."""
    noise = 0.1 * torch.randn(2, 1, 1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return Episode(2 * support[:, :, None] + noise[0], support, 2 * query[:, :, None] + noise[1], answers)


def test_odds_are_a_ratio_of_kernel_densities():
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.randn(1, count, 3, 2, 2, generator=generator) for count in (2, 1))
    masks = torch.rand(1, 2, 8, 8, generator=generator).round()
    temperature, prior = 5.0, 0.3
    found = compare(support, masks, query, torch.tensor(temperature), torch.tensor(prior))
    shares = F.avg_pool2d(masks, 4).flatten().tolist()
    cells = support.transpose(1, 2).reshape(3, -1).T
    for at, key in enumerate(query.reshape(3, 4).T):
        cosines = [float(F.cosine_similarity(key, cell, dim=0)) for cell in cells]
        density, amount = [0.0, 0.0], [sum(shares), len(shares) - sum(shares)]
        for cosine, share in zip(cosines, shares, strict=True):
            density[0] += (share + SMALLEST) * math.exp(temperature * cosine)
            density[1] += (1 - share + SMALLEST) * math.exp(temperature * cosine)
        organ, rest = (math.log(d) - (1 - prior) * math.log(a + EMPTY) for d, a in zip(density, amount, strict=True))
        assert float(found[0, 0, 0].flatten()[at]) == pytest.approx(organ - rest, abs=1e-4)


def test_training_begins_with_a_sensible_answer_for_a_small_organ(method):
    """12 x 12 of 64 x 64 pixels, elsewhere on the query: the odds alone find it."""
    given = drawn(square(40, 8, 12), square(8, 36, 12))
    with torch.inference_mode():
        probability = method.eval()(given).probabilities
    inside = square(8, 36, 12) > 0
    assert probability[inside].mean() > probability[~inside].mean() + 0.3


def test_the_decoder_corrects_the_odds(method):
    given = drawn(square(40, 8, 16), square(8, 36, 16))
    with torch.inference_mode():
        before = method.eval()(given).logits
        method.correction.bias += 3.0
        after = method(given).logits
    torch.testing.assert_close(after[:, :, 1] - before[:, :, 1], torch.full((1, 1, SIDE, SIDE), 3.0))


def test_an_empty_support_is_found_nowhere(method):
    with torch.inference_mode():
        assert not method.eval()(drawn(torch.zeros(1, 1, SIDE, SIDE), square(8, 36, 12))).masks.any()


def test_support_and_query_exchange_their_roles(method):
    support, query = square(40, 8, 16), square(8, 36, 20)
    there, back = drawn(support, query, query.long()), drawn(support, query, query.long())
    back = Episode(there.query_images, query, there.support_images, support.long())
    losses, exchanged = (method.train()(episode).losses for episode in (there, back))
    for name in ("", "_dice", "_cells"):
        torch.testing.assert_close(losses["query" + name], exchanged["swap" + name])
        torch.testing.assert_close(losses["swap" + name], exchanged["query" + name])


def test_unknown_pixels_cost_nothing(method):
    """The upper half of the query is unknown: whatever it shows, its own losses stay."""
    support, query = square(40, 8, 16), square(40, 30, 16)
    known = query.long()
    known[..., : SIDE // 2, :] = IGNORE
    given = drawn(support, query, known)
    features = method.train()._encode_both(given)
    answer, odds = method.answer(features[0], support, features[1])
    changed = answer.clone()
    changed[..., : SIDE // 2, :] += 20
    losses, same = (method.losses(one, odds, known, "query") for one in (answer, changed))
    full = method.losses(changed, odds, query.long(), "query")
    torch.testing.assert_close(losses["query"], same["query"])
    torch.testing.assert_close(losses["query_dice"], same["query_dice"])
    assert full["query"] > 2 * same["query"]
