"""Each strategy's loss against sums written out image by image, in float64 where it matters."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_methods.backbones import MLP
from lit_methods.semi_supervised import ssl_functional as ssl
from lit_methods.semi_supervised.strategies import (
    FixAStep,
    FixMatch,
    IOMatch,
    MixMatch,
    OpenMatch,
    OpenSetNetwork,
    Step,
    Strategy,
    Supervised,
)

K, D, SIZE = 3, 5, 4


def _weak(images: Tensor) -> Tensor:
    return images * 1.1


def _strong(images: Tensor) -> Tensor:
    return -images


def _step(strategy: Strategy, **changes: Any) -> Step:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = OpenSetNetwork(MLP(SIZE * SIZE, [8], D), D, K, strategy.heads(D, K)).double().requires_grad_(False)
        for p in network.parameters():
            p.data.mul_(3)
        labels = torch.tensor([0, 1, 2, 1])
        settings: dict[str, Any] = {
            "network": network,
            "labeled": torch.randn(4, 1, SIZE, SIZE, dtype=torch.float64),
            "labels": labels,
            "targets": nn.functional.one_hot(labels, K).double(),
            "second": torch.randn(12, 1, SIZE, SIZE, dtype=torch.float64),
            "weak": _weak,
            "strong": _strong,
            "weak_labeled": _weak,
            "progress": 1.0,
            "epoch": 20,
        }
    return Step(**(settings | changes))


def _probabilities(network: OpenSetNetwork, image: Tensor) -> list[float]:
    return network(image[None])[0].softmax(0).tolist()


def _cross_entropy(probabilities: list[float], targets: list[float]) -> float:
    return -sum(t * math.log(p) for p, t in zip(probabilities, targets, strict=True))


def _binary(network: OpenSetNetwork, image: Tensor, projected: bool = False) -> list[tuple[float, float]]:
    """(out, in) of each class."""
    features = network.features(image[None])
    if projected:
        features = network.heads["projection"](features)
    raw = network.heads["one_vs_all"](features)[0].tolist()
    pairs = [(raw[k], raw[K + k]) for k in range(K)]
    return [(1 / (1 + math.exp(i - o)), 1 / (1 + math.exp(o - i))) for o, i in pairs]


def _ova(outputs: list[tuple[float, float]], label: int) -> float:
    hardest = max(-math.log(outputs[k][0]) for k in range(K) if k != label)
    return -math.log(outputs[label][1]) + hardest


def _supervised_loss(step: Step) -> float:
    total = 0.0
    for image, label in zip(step.labeled, step.labels.tolist(), strict=True):
        total -= math.log(_probabilities(step.network, step.weak_labeled(image))[label])
    return total / len(step.labeled)


def test_supervised_smooths_and_takes_synthetic_images_into_one_mean() -> None:
    labels = torch.arange(12) % K
    step = _step(Supervised(), second_labels=labels)
    expected = 0.0
    for image, label in zip(
        torch.cat([step.labeled, step.second]), [*step.labels.tolist(), *labels.tolist()], strict=True
    ):
        targets = [0.85 * (k == label) + 0.15 / K for k in range(K)]
        expected += _cross_entropy(_probabilities(step.network, _strong(image)), targets) / 16
    assert float(Supervised(0.15).losses(step).total()) == pytest.approx(expected)
    alone = Supervised().losses(_step(Supervised()))
    assert alone.unlabeled is None
    assert float(alone.total()) == pytest.approx(_supervised_loss(_step(Supervised(), weak_labeled=_strong)))


@pytest.mark.parametrize("chosen", [None, [True, False, True] * 4, [False] * 12])
def test_fixmatch(chosen: list[bool] | None) -> None:
    strategy = FixMatch(threshold=0.6, unlabeled_weight=2.0)
    step = _step(strategy, selected=None if chosen is None else torch.tensor(chosen))
    total, used = 0.0, 0
    for i, image in enumerate(step.second):
        p = _probabilities(step.network, _weak(image))
        if max(p) >= 0.6:
            used += 1
            if chosen is None or chosen[i]:
                total -= math.log(_probabilities(step.network, _strong(image))[p.index(max(p))])
    count = 12 if chosen is None else max(sum(chosen), 1)
    losses = strategy.losses(step)
    assert 0 < used < 12
    assert float(losses.unlabeled) == pytest.approx(total / count)
    assert float(losses.total()) == pytest.approx(_supervised_loss(step) + 2 * total / count)
    assert float(losses.logged["train/used"]) == pytest.approx(used / 12)


def test_fixmatch_sends_no_gradient_through_the_weak_views() -> None:
    seen: list[Tensor] = []

    def weak(images: Tensor) -> Tensor:
        seen.append(images.clone().requires_grad_())
        return seen[-1]

    strategy = FixMatch(threshold=0.0)
    strategy.losses(_step(strategy, weak=weak)).unlabeled.backward()
    assert seen[0].grad is None or float(seen[0].grad.abs().sum()) == 0


def test_mixmatch() -> None:
    strategy = MixMatch(num_views=2, unlabeled_weight=10.0, ramp=0.4)
    step = _step(strategy, progress=0.1, generator=torch.Generator().manual_seed(7))
    images, targets = [_weak(x) for x in step.labeled], [t.tolist() for t in step.targets]
    guesses = []
    for image in step.second:
        p = _probabilities(step.network, _weak(image))
        powered = [x**2 for x in p]
        guesses.append([x / sum(powered) for x in powered])
    for _ in range(2):
        images += [_weak(x) for x in step.second]
        targets += guesses
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(28, generator=generator).tolist()
    gammas = torch._standard_gamma(torch.full((2,), 0.75, dtype=torch.float64), generator)
    mix = max(float(gammas[0] / gammas.sum()), float(gammas[1] / gammas.sum()))
    labeled = unlabeled = 0.0
    for i, j in enumerate(order):
        p = _probabilities(step.network, mix * images[i] + (1 - mix) * images[j])
        target = [mix * a + (1 - mix) * b for a, b in zip(targets[i], targets[j], strict=True)]
        if i < 4:
            labeled += _cross_entropy(p, target) / 4
        else:
            unlabeled += sum((a - b) ** 2 for a, b in zip(p, target, strict=True)) / (24 * K)
    losses = strategy.losses(step)
    assert mix >= 0.5
    assert float(losses.labeled) == pytest.approx(labeled, rel=1e-5)
    assert float(losses.unlabeled) == pytest.approx(unlabeled, rel=1e-5)
    assert losses.weight == pytest.approx(2.5)
    assert strategy.losses(_step(strategy, progress=0.9)).weight == 10.0


@pytest.mark.parametrize("epoch", [0, 10])
def test_openmatch(epoch: int) -> None:
    strategy = OpenMatch(threshold=0.0, em_weight=0.1, socr_weight=0.5, start_epoch=10)
    noises = iter([1.0, 1.2, 0.9, 1.3])
    calls: list[float] = []

    def weak(images: Tensor) -> Tensor:
        calls.append(next(noises))
        return images * calls[-1]

    selected = torch.tensor([True, False] * 6)
    step = _step(strategy, weak=weak, weak_labeled=weak, epoch=epoch, selected=selected)
    losses = strategy.losses(step)
    assert calls == [1.0, 1.2, 0.9, 1.3]
    labeled = 0.0
    for factor in (1.0, 1.2):
        for image, label in zip(step.labeled, step.labels.tolist(), strict=True):
            labeled -= math.log(_probabilities(step.network, factor * image)[label]) / 8
            labeled += _ova(_binary(step.network, factor * image), label) / 8
    entropy = consistency = fix = 0.0
    for i, image in enumerate(step.second):
        views = [_binary(step.network, factor * image) for factor in (0.9, 1.3)]
        entropy -= sum(p * math.log(p) for view in views for pair in view for p in pair) / (2 * 12 * K)
        consistency += sum((a - b) ** 2 for x, y in zip(*views, strict=True) for a, b in zip(x, y, strict=True)) / 12
        p = _probabilities(step.network, 0.9 * image)
        if selected[i]:
            fix -= math.log(_probabilities(step.network, -image)[p.index(max(p))]) / 6
    expected = 0.1 * entropy + 0.5 * consistency + (fix if epoch >= 10 else 0.0)
    assert float(losses.labeled) == pytest.approx(labeled)
    assert float(losses.unlabeled) == pytest.approx(expected)


def test_openmatch_selects_by_the_head_of_the_most_likely_class() -> None:
    strategy = OpenMatch()
    step = _step(strategy)
    found = strategy.select(step.network, step.second).tolist()
    expected = []
    for image in step.second:
        p = _probabilities(step.network, image)
        expected.append(_binary(step.network, image)[p.index(max(p))][0] < 0.5)
    assert found == expected
    assert 0 < sum(found) < 12


def _joint_targets(
    network: OpenSetNetwork, image: Tensor
) -> tuple[list[float], list[tuple[float, float]], list[float]]:
    """Closed probabilities, one-vs-all outputs, and the open-set targets of an image's weak view."""
    p, o = _probabilities(network, _weak(image)), _binary(network, _weak(image), projected=True)
    return p, o, [p[k] * o[k][1] for k in range(K)] + [sum(p[k] * o[k][0] for k in range(K))]


@pytest.mark.parametrize("epoch", [0, 1])
def test_iomatch(epoch: int) -> None:
    step = _step(IOMatch(), epoch=epoch)
    sureness = sorted(max(_joint_targets(step.network, image)[2]) for image in step.second)
    between = (sureness[5] + sureness[6]) / 2
    strategy = IOMatch(threshold=0.5, open_threshold=between)
    labeled = 0.0
    for image, label in zip(step.labeled, step.labels.tolist(), strict=True):
        labeled += _ova(_binary(step.network, _weak(image), projected=True), label) / 4
    closed = open_set = 0.0
    counts = [0, 0]
    for image in step.second:
        p, _, targets = _joint_targets(step.network, image)
        assert sum(targets) == pytest.approx(1.0)
        if max(p) >= 0.5 and targets[-1] < 0.5:
            counts[0] += 1
            closed += _cross_entropy(_probabilities(step.network, _strong(image)), p) / 12
        if max(targets) >= between:
            counts[1] += 1
            projected = step.network.heads["projection"](step.network.features(_strong(image)[None]))
            q = step.network.heads["open"](projected)[0].softmax(0).tolist()
            open_set += _cross_entropy(q, targets) / 12
    losses = strategy.losses(step)
    assert all(0 < count < 12 for count in counts), counts
    assert float(losses.labeled) == pytest.approx(labeled + _supervised_loss(step))
    assert float(losses.unlabeled) == pytest.approx(closed + (open_set if epoch >= 1 else 0.0))


def test_fix_a_step_mixes_labelled_with_guessed_images() -> None:
    strategy = FixAStep(FixMatch(threshold=0.6))
    step = _step(strategy, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    partners = torch.randint(12, (4,), generator=generator).tolist()
    gammas = torch._standard_gamma(torch.full((2,), 0.5, dtype=torch.float64), generator)
    mix = max(float(gammas[0] / gammas.sum()), float(gammas[1] / gammas.sum()))
    labeled = 0.0
    for image, target, j in zip(step.labeled, step.targets.tolist(), partners, strict=True):
        powered = [x**2 for x in _probabilities(step.network, _weak(step.second[j]))]
        mixed = [mix * t + (1 - mix) * x / sum(powered) for t, x in zip(target, powered, strict=True)]
        view = mix * _weak(image) + (1 - mix) * _weak(step.second[j])
        labeled += _cross_entropy(_probabilities(step.network, view), mixed) / 4
    losses = strategy.losses(step)
    plain = FixMatch(threshold=0.6).losses(step)
    assert float(losses.labeled) == pytest.approx(labeled)
    assert float(losses.unlabeled) == pytest.approx(float(plain.unlabeled))
    for base in (OpenMatch(), IOMatch(), Supervised()):
        with pytest.raises(ValueError, match=f"base={type(base).__name__} needs hard labels"):
            FixAStep(base)


@pytest.mark.parametrize("base", [FixMatch(), MixMatch()], ids=lambda base: type(base).__name__)
def test_bases_of_fix_a_step_use_the_soft_targets_alone(base: Strategy) -> None:
    step = _step(base, targets=torch.full((4, K), 1 / K, dtype=torch.float64))
    other = replace(step, labels=(step.labels + 1) % K, generator=torch.Generator())
    assert torch.equal(base.losses(step).labeled, base.losses(other).labeled)
    sure = replace(step, targets=nn.functional.one_hot(step.labels, K).double(), generator=torch.Generator())
    assert not torch.allclose(base.losses(sure).labeled, base.losses(other).labeled)


def test_gradients_agree_by_the_sign_of_the_whole_inner_product() -> None:
    a, b = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])], [torch.tensor([1.0, -3.0]), torch.tensor([[2.0]])]
    assert bool(ssl.gradients_agree(a, b))
    assert not bool(ssl.gradients_agree(a, [b[0], -b[1]]))


def test_mix_is_drawn_from_the_beta_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    draws = torch.cat([ssl.mixup((one, one), (zero, zero), 0.75, generator)[0] for _ in range(4000)])
    folded = torch.distributions.Beta(0.75, 0.75).sample((200_000,))
    folded = torch.maximum(folded, 1 - folded)
    assert float(draws.min()) >= 0.5
    assert float(draws.mean()) == pytest.approx(float(folded.mean()), abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Supervised(1.0), r"label_smoothing=1\.0 must lie in \[0, 1\)"),
        (lambda: FixMatch(threshold=1.5), r"threshold=1\.5 must lie in \[0, 1\]"),
        (lambda: MixMatch(temperature=0.0), r"temperature=0\.0 must be above 0"),
        (lambda: MixMatch(num_views=0), "num_views=0 must be at least 1"),
        (lambda: FixMatch().losses(_step(FixMatch(), second=None)), "has no 'unlabeled' images"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
