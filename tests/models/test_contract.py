"""What every method in models/ promises, whoever wrote it. A new method is tested by being there."""

import inspect

import pytest
import torch

import models
from tests.models.stub import TinyEncoder
from tests.options import options
from util.episode import Episode

SIDE = 64  # pixels; features of stride 8 are 8 x 8


@pytest.fixture(params=models.names())
def name(request) -> str:
    return request.param


def build(name: str):
    method = models.method_class(name)
    torch.manual_seed(0)
    size = {"image_size": SIDE} if "image_size" in models.defaults(name) else {}
    return method(TinyEncoder(method.encoder_strides, method.dims), **size)


def episode(
    method, *, episodes: int = 1, shots: int = 1, queries: int = 1, seed: int = 0, answers: bool = True
) -> Episode:
    """Episodes with a bright disc (cylinder) in noise."""
    generator = torch.Generator().manual_seed(seed)
    depth = (3,) if method.dims == 3 else ()

    def draw(images: int) -> tuple[torch.Tensor, torch.Tensor]:
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        centre = 24 + 16 * torch.rand(episodes, images, 2, generator=generator)
        distance = (y - centre[..., 0, None, None]) ** 2 + (x - centre[..., 1, None, None]) ** 2
        masks = (distance < 20**2).float()
        masks = masks[:, :, None].expand(-1, -1, *depth, -1, -1) if depth else masks
        noise = torch.randn(masks.shape, generator=generator)
        return (2 * masks + noise)[:, :, None], masks

    support_images, support_masks = draw(shots)
    query_images, query_masks = draw(queries)
    return Episode(support_images, support_masks, query_images, query_masks.long() if answers else None)


def test_shapes_and_losses(name):
    method = build(name).train()
    given = episode(method, episodes=2)
    output = method(given)
    spatial = given.query_images.shape[3:]
    assert output.logits.shape == (2, 1, 2, *spatial)
    assert output.masks.shape == output.probabilities.shape == (2, 1, *spatial)
    assert output.losses and all(loss.ndim == 0 and loss.isfinite() for loss in output.losses.values())
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    assert all(value.ndim == 0 and not value.requires_grad for value in output.diagnostics.values())


def test_every_parameter_learns(name):
    method = build(name).train()
    method(episode(method)).loss.backward()
    exempt = tuple(getattr(method, "without_gradient", ()))
    silent = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in silent if not n.startswith(exempt or ("\0",))] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_answers_are_not_read(name):
    """Without answers, and with wrong ones, the prediction is the same."""
    method = build(name).eval()
    given, blind = episode(method), episode(method, answers=False)
    wrong = Episode(given.support_images, given.support_masks, given.query_images, 1 - given.query_masks)
    outputs = [method(e) for e in (given, blind, wrong)]
    assert outputs[1].losses == {}
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=0, atol=0)
    torch.testing.assert_close(outputs[2].logits, outputs[0].logits, rtol=0, atol=0)


def test_batch_equals_its_episodes_one_by_one(name):
    method = build(name).eval()
    given = [episode(method, shots=2, queries=3, seed=seed) for seed in (1, 2)]
    together = method(Episode.stack(given))
    for index, single in enumerate(given):
        alone = method(single)
        torch.testing.assert_close(together.logits[index : index + 1], alone.logits, rtol=1e-4, atol=1e-5)


def test_depths_of_support_and_query_may_differ(name):
    """Volumes: a query of one slice, of fewer and of more slices than the support."""
    method = build(name).train()
    if method.dims == 2:
        pytest.skip("sees slices")
    given = episode(method, queries=2)
    for slices in ([1], [0, 1], [2, 0, 1, 2, 0]):
        output = method(
            Episode(
                given.support_images,
                given.support_masks,
                given.query_images[:, :, :, slices],
                given.query_masks[:, :, slices],
            )
        )
        assert output.logits.shape == (1, 2, 2, len(slices), SIDE, SIDE) and output.loss.isfinite()


def test_query_slices_do_not_see_each_other(name):
    method = build(name).eval()
    given = episode(method, queries=3, answers=False)
    together = method(given)
    for q in range(3):
        alone = method(Episode(given.support_images, given.support_masks, given.query_images[:, q : q + 1]))
        torch.testing.assert_close(together.logits[:, q : q + 1], alone.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shots", [1, 5])
def test_shots(name, shots):
    method = build(name).train()
    output = method(episode(method, shots=shots))
    assert output.logits.isfinite().all() and output.loss.isfinite()


@pytest.mark.parametrize("training", [True, False])
def test_empty_support_is_finite(name, training):
    method = build(name).train(training)
    given = episode(method)
    empty = Episode(given.support_images, torch.zeros_like(given.support_masks), given.query_images, given.query_masks)
    output = method(empty)
    output.loss.backward()
    assert output.logits.isfinite().all() and output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_empty_query_is_finite(name):
    method = build(name).train()
    given = episode(method)
    output = method(
        Episode(given.support_images, given.support_masks, -given.query_images, torch.zeros_like(given.query_masks))
    )
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_finite(name, precision):
    method = build(name).train()
    with torch.autocast("cpu", precision):
        output = method(episode(method))
    assert output.loss.isfinite() and output.logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_match_compiles_whole(name, training):
    """fullgraph: no look at a value, no host round trip inside the match step."""
    method = build(name).train(training)
    given = episode(method, queries=1 if training else 2)
    with torch.set_grad_enabled(training):
        support, query = method._encode_both(given)
        torch._dynamo.reset()
        compiled = torch.compile(method.match, fullgraph=True, backend="eager")
        output = compiled(support, given.support_masks, query, given.query_masks if training else None)
    assert output.logits.isfinite().all()


def test_state_round_trip(name):
    method = build(name).eval()
    twin = build(name).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    twin.load_state_dict(method.state_dict(), strict=True)
    given = episode(method, answers=False)
    torch.testing.assert_close(twin(given).logits, method(given).logits, rtol=0, atol=0)


def test_hyperparameters_are_the_configuration(name):
    """The constructor's keyword-only arguments are the `model.*` keys, and recipes name only keys that exist."""
    signature = inspect.signature(models.method_class(name).__init__)
    positional = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "encoder"]
    assert models.recipe(name)["train"]["steps"] > 1
    assert unknown_keys(name) == []


@pytest.mark.parametrize("wrong", [{"train": {"stepz": 3}}, {"trian": {"steps": 3}}, {"model": {"stepz": 3}}])
def test_a_recipe_with_a_wrong_key_is_noticed(monkeypatch, wrong):
    recipe = {"train": {"steps": 3}, "variants": {"stage 2": wrong}}
    monkeypatch.setattr(models.method_class("adnet"), "recipe", recipe)
    assert len(unknown_keys("adnet")) == 1


def unknown_keys(name: str) -> list[str]:
    """Keys in the recipe of a method, and in all of its variants, that are no options."""
    recipe = models.method_class(name).recipe
    variants, sections = variants_of(recipe)
    known = {**known_keys(), "model": models.defaults(name).keys()}
    merged = models.recipe(name, variants)
    keys = [f"{section}.{key}" for section, values in merged.items() for key in values if key not in known[section]]
    return [*keys, *(sections - known.keys() - {"variants"})]


def variants_of(recipe: dict) -> tuple[list[str], set[str]]:
    """Names of a recipe's variants, and of its sections, those within variants too."""
    variants, sections = [], set(recipe)
    for name, inner in recipe.get("variants", {}).items():
        further = variants_of(inner)
        variants, sections = [*variants, name, *further[0]], sections | further[1]
    return variants, sections


def known_keys() -> dict[str, set[str]]:
    """Keys of the sections as the options define them for a method without a recipe of its own."""
    known = options()
    return {section: set(known[section]) for section in models.SECTIONS}
