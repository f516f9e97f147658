"""Classifiers trained on views: their steps against written-out ones, and what they leave as it was."""

import copy
import math
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ssl_zoo.data.sources import Files, Loader, Resident
from ssl_zoo.encoders import Encoder, NarrowResNet
from ssl_zoo.evaluation.augmented import FINETUNE, LINEAR, crop_and_flip, finetune_simclr, learn, linear_simclr
from ssl_zoo.views import Augmentation, Key, ViewSpec
from tests.conftest import same

CLASSES, SIZE = 3, 16
both = pytest.mark.parametrize("evaluate", [linear_simclr, finetune_simclr])


@pytest.fixture
def parts(data):
    data.setup("validate")
    return data.train, data.test


def loaders(parts, batch=8):
    return Loader(parts[0], batch, training=True), Loader(parts[1], 10)


def untrained(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NarrowResNet(4, 2)


class Dropped(Encoder):
    """The mean colour, from which training drops a third."""

    def __init__(self):
        super().__init__()
        self.dim, self.arguments = 3, {}
        self.backbone = nn.Dropout(1 / 3)

    def maps(self, images):
        return self.backbone(self.normalize(images))


def by_hand(encoder, parts, lr, epochs, batch=8, seed=0, training=False):
    """Weights after Nesterov's descent, step by step: v = 0.9 v + gradient, w -= lr (gradient + 0.9 v)."""
    encoder, augment = copy.deepcopy(encoder), Augmentation([ViewSpec(SIZE, scale=(0.08, 1.0), flip=0.5)])
    encoder.train(training).requires_grad_(training)
    weight, bias = torch.zeros(CLASSES, encoder.dim, requires_grad=True), torch.zeros(CLASSES, requires_grad=True)
    learning = [weight, bias, *(p for p in encoder.parameters() if p.requires_grad)]
    velocities = [torch.zeros_like(p) for p in learning]
    loader, steps = loaders(parts, batch)[0], 60 // batch
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for step, (images, labels, *_) in enumerate(loader):
            view, = augment(images, Key(seed, epoch, step, 0))
            logits = encoder(view.images) @ weight.T + bias
            loss = (torch.logsumexp(logits, 1) - logits[torch.arange(batch), labels]).mean()
            rate = lr * batch / 256 * (1 + math.cos(math.pi * (epoch * steps + step) / (epochs * steps))) / 2
            with torch.no_grad():
                for p, g, v in zip(learning, torch.autograd.grad(loss, learning), velocities, strict=True):
                    v.mul_(0.9).add_(g)
                    p -= rate * (g + 0.9 * v)
    return encoder, weight.detach(), bias.detach()


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize(("protocol", "lr", "training"), [(LINEAR, 0.1, False), (FINETUNE, 0.05, True)])
def test_training_takes_the_steps_of_the_protocol(protocol, lr, training, parts, monkeypatch, seed):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    encoder, epochs = untrained(), 2
    expected, weight, bias = by_hand(encoder, parts, lr, epochs, seed=seed, training=training)
    found = learn(protocol, encoder, loaders(parts)[0], CLASSES, SIZE, epochs)
    assert torch.allclose(found[1].weight, weight, atol=1e-6)
    assert torch.allclose(found[1].bias, bias, atol=1e-6)
    assert not torch.allclose(weight, torch.zeros(()), atol=1e-3)
    for (name, value), there in zip(expected.state_dict().items(), found[0].state_dict().values(), strict=True):
        assert torch.allclose(value, there, atol=1e-6), name
    moved = [not torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), found[0].state_dict().values(),
                                                   strict=True)]
    assert any(moved) == training


@pytest.mark.parametrize(("evaluate", "base"), [(linear_simclr, 0.1), (finetune_simclr, 0.05)])
@pytest.mark.parametrize(("batch", "epochs"), [(30, 3), (20, 2)])
def test_the_rate_of_every_step_is_that_of_the_formula(evaluate, base, batch, epochs, parts):
    settings, steps = [], 60 // batch * epochs
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: settings.append(dict(optimizer.param_groups[0])))
    try:
        evaluate(untrained(), *loaders(parts, batch), CLASSES, SIZE, epochs=epochs)
    finally:
        hook.remove()
    expected = [base * batch / 256 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    assert [group["lr"] for group in settings] == pytest.approx(expected)
    assert all((group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 0) for group in settings)


@pytest.mark.parametrize(("evaluate", "encoder", "epochs"), [(linear_simclr, Dropped, 10),
                                                             (finetune_simclr, untrained, 60)])
def test_classes_of_colour_are_learnt_far_above_chance(evaluate, encoder, epochs, parts):
    result = evaluate(encoder(), *loaders(parts, 20), CLASSES, SIZE, epochs=epochs)
    assert result.score.value > 0.9
    assert result.score.of == "image"
    assert result.score.units.dtype == torch.float64
    assert torch.equal(result.predictions == parts[1].labels, result.score.units.bool())


@pytest.mark.parametrize(("evaluate", "protocol"), [(linear_simclr, LINEAR), (finetune_simclr, FINETUNE)])
@pytest.mark.parametrize("encoder", [Dropped, untrained])
def test_the_predictions_are_those_of_the_trained_classifier_on_plain_images_in_evaluation_mode(evaluate, protocol,
                                                                                                encoder, parts):
    model = learn(protocol, encoder(), loaders(parts, 4)[0], CLASSES, SIZE, 3).eval()
    found = evaluate(encoder(), loaders(parts, 4)[0], Loader(parts[1], 3), CLASSES, SIZE, epochs=3)
    assert torch.equal(found.predictions, model(parts[1].images).argmax(1))
    if protocol is FINETUNE or encoder is Dropped:
        assert len(found.predictions.unique()) > 1


def test_only_the_protocols_epochs_have_its_plain_name(parts):
    few = [part.subset(np.arange(8)) for part in parts]
    names = {evaluate(untrained(), *loaders(few), CLASSES, SIZE, **epochs).name
             for evaluate in (linear_simclr, finetune_simclr) for epochs in ({}, {"epochs": 2})}
    assert names == {"linear_simclr", "linear_simclr_2_epochs", "finetune_simclr", "finetune_simclr_2_epochs"}
    assert (LINEAR.epochs, FINETUNE.epochs) == (90, 30)


@both
@pytest.mark.parametrize("modes", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)])
def test_the_callers_encoder_stays_as_it_is_wherever_the_call_comes_from(evaluate, modes, parts):
    expected = evaluate(untrained(), *loaders(parts), CLASSES, SIZE, epochs=1).predictions
    encoder = untrained()
    encoder.train()
    encoder.backbone.layer1.eval()
    encoder.backbone.conv1.weight.requires_grad_(False)

    def look():
        return (copy.deepcopy(encoder.state_dict()), [module.training for module in encoder.modules()],
                [(p.requires_grad, p.grad) for p in encoder.parameters()])

    before = look()
    with modes():
        result = evaluate(encoder, *loaders(parts), CLASSES, SIZE, epochs=1)
    assert same(look(), before)
    assert torch.equal(result.predictions, expected)


class Watched(Dropped):
    """Notes at each pass whether it trains, whether there are gradients and whether autocast is on."""

    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def __deepcopy__(self, memo):
        return Watched(self.notes)

    def forward(self, images):
        self.notes.add((len(images), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return super().forward(images)


@both
@pytest.mark.parametrize("modes", [nullcontext, torch.no_grad, partial(torch.autocast, "cpu", torch.bfloat16)])
def test_gradients_are_there_for_training_alone_and_autocast_for_nothing(evaluate, modes, parts):
    notes = set()
    with modes():
        evaluate(Watched(notes), loaders(parts)[0], Loader(parts[1], 12), CLASSES, SIZE, epochs=1)
    assert notes == {(8, True, False), (12, False, False)}


@both
def test_an_encoder_in_half_precision_is_evaluated_in_float32(evaluate, parts):
    half = untrained().half()
    expected = evaluate(copy.deepcopy(half).float(), *loaders(parts), CLASSES, SIZE, epochs=1)
    assert torch.equal(evaluate(half, *loaders(parts), CLASSES, SIZE, epochs=1).predictions, expected.predictions)
    assert half.mean.dtype == torch.float16


@both
def test_the_global_random_states_are_neither_read_nor_moved(evaluate, parts):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()   # noqa: NPY002
        model = learn(FINETUNE, Dropped(), loaders(parts)[0], CLASSES, SIZE, 2)
        found.append((model[1].weight, evaluate(Dropped(), *loaders(parts), CLASSES, SIZE, epochs=2).predictions))
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])                           # noqa: NPY002
        assert before[2] == random.getstate()
    assert same(*found)


def test_every_epoch_draws_other_views_of_all_whole_batches(parts):
    seen = []

    class Seen(Dropped):
        def forward(self, images):
            seen.append(images.clone())
            return super().forward(images)

    learn(LINEAR, Seen(), loaders(parts, 30)[0], CLASSES, SIZE, 2)
    assert [images.shape for images in seen] == [(30, 3, SIZE, SIZE)] * 4
    drawn = torch.cat(seen).flatten(1)
    assert len(drawn.unique(dim=0)) == 120
    assert ((torch.cdist(drawn, parts[0].images.flatten(1) / 255) > 0.1).float().mean()) > 0.99      # none is plain


def test_workers_crops_are_the_views_that_would_be_drawn_from_memory(parts):
    files = Files(parts[0].read, [f"image {i}" for i in range(len(parts[0]))], parts[0].labels, SIZE)
    files.augment = crop_and_flip(SIZE)
    cut, resident = (learn(LINEAR, untrained(), Loader(source, 8, training=True), CLASSES, SIZE, 2)[1].weight
                     for source in (files, parts[0]))
    assert torch.allclose(cut, resident, atol=2e-4)       # bytes are rounded
    assert not torch.equal(cut, resident)


@both
def test_scores_are_in_the_order_of_the_images_whatever_the_order_of_the_batches(evaluate, parts):
    train, test = loaders(parts)
    expected = evaluate(untrained(), train, test, CLASSES, SIZE, epochs=2)
    turned = evaluate(untrained(), train, list(test)[::-1], CLASSES, SIZE, epochs=2)
    assert same(turned, expected)
    assert 0 < expected.score.value < 1


@both
def test_the_encoder_of_a_second_call_learns_what_that_of_the_first_did(evaluate, parts):
    given = loaders(parts)
    first, second = (evaluate(untrained(), *given, CLASSES, SIZE, epochs=2) for _ in range(2))
    assert same(first, second)


@both
@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_image_without_a_class_is_refused_in_a_sentence(evaluate, wrong, parts):
    labels = parts[0].labels.clone()
    labels[40] = wrong
    with pytest.raises(ValueError, match=f"labels from 0 to 2 for 3 classes, and some batch has {wrong}"):
        evaluate(untrained(), *loaders((Resident(parts[0].images, labels), parts[1])), CLASSES, SIZE, epochs=1)


@both
def test_fewer_images_than_a_batch_are_refused_in_a_sentence(evaluate, parts):
    with pytest.raises(ValueError, match="no whole batch of 64"):
        evaluate(untrained(), *loaders(parts, 64), CLASSES, SIZE, epochs=1)


@both
def test_an_encoder_whose_features_are_not_finite_is_refused_in_a_sentence(evaluate, parts):
    broken = untrained()
    with torch.no_grad():
        broken.backbone.conv1.weight[0] = math.nan
    with pytest.raises(ValueError, match=r"_simclr_2_epochs has a loss of nan after 1 of 2 epochs: .*learning rate"):
        evaluate(broken, *loaders(parts), CLASSES, SIZE, epochs=2)


@both
def test_no_epoch_is_no_training(evaluate, parts):
    with pytest.raises(ValueError, match="at least 1 epoch, not 0"):
        evaluate(untrained(), *loaders(parts), CLASSES, SIZE, epochs=0)


def test_the_views_are_crops_of_eight_to_a_hundred_percent_of_the_area_half_of_them_flipped_and_nothing_else():
    image = torch.linspace(0, 1, 64).expand(400, 3, 64, 64)                       # each pixel says how far right it is
    view, = crop_and_flip(16)(image, Key(0, 0, 0, 0))
    areas = (view.boxes[:, 2:] - view.boxes[:, :2]).prod(1)
    assert 0.07 < areas.min() < 0.12
    assert 0.93 < areas.max() <= 1
    assert 0.4 < view.flipped[:, 0].float().mean() < 0.6
    assert not view.flipped[:, 1].any()
    first, last = view.images[:, 0, 8, 0], view.images[:, 0, 8, -1]
    assert torch.equal(first > last, view.flipped[:, 0])
    middle = (view.boxes[:, 0] + view.boxes[:, 2]) / 2
    assert torch.allclose(view.images.mean((1, 2, 3)), (64 * middle - 0.5) / 63, atol=0.01)
