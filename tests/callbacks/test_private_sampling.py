"""Cyclic Poisson sampling under the callback: the drawn batches, their amplified budget, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_methods.differential_privacy import (
    BandedInverseSquareRoot,
    CyclicPoisson,
    CyclicPoissonAccounting,
    CyclicPoissonBatchSampler,
    FixedOrder,
    strip_private_state,
)
from tests.callbacks.test_private_resume import save_every_step
from tests.callbacks.toys import EXAMPLES, Toy, flat, private, toy_data, toy_loader, toy_trainer

CYCLE, BATCH = 3, 8


class SelfJudging(Toy):
    """Tells its losses one by one."""

    def per_sample_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).mean()


def by_hand(accumulation: int, batch_size: int, clip: float) -> Tensor:
    """Clipped SGD on the drawn steps, one example at a time, divided by the expected size."""
    model = Toy()
    optimizer = model.configure_optimizers()
    sampler = CyclicPoissonBatchSampler(EXAMPLES, batch_size, CYCLE, accumulation=accumulation, unsafe_seed=5)
    data = toy_data()
    for step in range(3 * len(sampler) // accumulation):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for part in range(accumulation):
            for index in sampler.share(step * accumulation + part):
                inputs, label = data[index]
                loss = nn.functional.cross_entropy(model.net(inputs[None]), label[None])
                gradient = torch.autograd.grad(loss, list(model.parameters()))
                norm = torch.cat([g.flatten() for g in gradient]).norm()
                for summed, g in zip(total, gradient, strict=True):
                    summed += g * min(1.0, clip / float(norm))
        for p, summed in zip(model.parameters(), total, strict=True):
            p.grad = summed / (batch_size * accumulation)
        optimizer.step()
    return flat(model)


@pytest.mark.parametrize("clipping", ["per_sample", "ghost"])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(BATCH, 1), (BATCH // 2, 2), (1, 1)])
def test_without_noise_it_is_clipped_sgd_on_the_drawn_batches(
    batch_size: int, accumulation: int, clipping: str
) -> None:
    sampling = CyclicPoisson(CYCLE, unsafe_seed=5)
    callback = private(noise_multiplier=0.0, sampling=sampling, max_grad_norm=0.5, clipping=clipping, ledger=True)
    model = SelfJudging()
    toy_trainer(callback, accumulate_grad_batches=accumulation).fit(model, toy_loader(batch_size))
    torch.testing.assert_close(flat(model), by_hand(accumulation, batch_size, 0.5), rtol=1e-4, atol=1e-6)


def test_some_of_these_batches_were_empty() -> None:
    sampler = CyclicPoissonBatchSampler(EXAMPLES, 1, CYCLE, unsafe_seed=5)
    assert any(not sampler.share(batch) for batch in range(3 * EXAMPLES))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_empty_first_batch_is_no_error(seed: int) -> None:
    model = Toy()
    callback = private(sampling=CyclicPoisson(CYCLE, unsafe_seed=_seed_with_empty_start(seed)))
    toy_trainer(callback, max_epochs=1).fit(model, toy_loader(1))
    assert bool(flat(model).isfinite().all())


def _seed_with_empty_start(skip: int) -> int:
    empty = (s for s in range(100) if not CyclicPoissonBatchSampler(EXAMPLES, 1, CYCLE, unsafe_seed=s).share(0))
    return [next(empty) for _ in range(skip + 1)][-1]


def test_the_same_noise_costs_less_under_sampling_and_the_claim_says_why() -> None:
    spent: dict[str, float] = {}
    for sampling in (CyclicPoisson(1), FixedOrder()):
        # One epoch of independent noise: each example takes part about once, at sensitivity one.
        callback = private(noise_multiplier=2.0, bandwidth=1, sampling=sampling)
        toy_trainer(callback, max_epochs=1).fit(Toy(), toy_loader(4))
        assert callback.plan is not None
        spent[type(sampling).__name__] = callback.plan.epsilon_after(11)
        claim = callback.plan.guarantee(3)
        assert ("drawn by secret coins" in claim) == isinstance(sampling, CyclicPoisson)
    assert 0 < spent["CyclicPoisson"] < 0.7 * spent["FixedOrder"]


def test_epsilon_ends_at_the_budget(tmp_path: Path) -> None:
    callback = private(sampling=CyclicPoisson(CYCLE))
    trainer = toy_trainer(callback)
    trainer.fit(Toy(), toy_loader())
    assert callback.plan is not None
    assert isinstance(callback.plan.accounting, CyclicPoissonAccounting)
    assert callback.plan.accounting.strategy.bandwidth == CYCLE
    assert 0.99 * 8.0 < float(trainer.callback_metrics["dp/epsilon"]) <= 8.0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [6, 8])
def test_a_resumed_run_sees_the_batches_of_its_secret_seed(tmp_path: Path, step: int, workers: int) -> None:
    whole = Toy()
    trainer = toy_trainer(private(sampling=CyclicPoisson(CYCLE)), save_every_step(tmp_path), enable_checkpointing=True)
    trainer.fit(whole, toy_loader(num_workers=workers))
    resumed, callback = Toy(), private(sampling=CyclicPoisson(CYCLE), unsafe_seed=99, ledger=True)
    toy_trainer(callback).fit(
        resumed, toy_loader(num_workers=workers), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True
    )
    assert torch.equal(flat(resumed), flat(whole))


def test_publishing_takes_the_secret_seed_away(tmp_path: Path) -> None:
    callback = private(sampling=CyclicPoisson(CYCLE))
    trainer = toy_trainer(callback, save_every_step(tmp_path), enable_checkpointing=True, max_epochs=1)
    trainer.fit(Toy(), toy_loader())
    seed = str(callback.state_dict()["sampler"]["seed"])
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    assert seed in str(saved)
    assert seed not in str(strip_private_state(saved))


@pytest.mark.parametrize(
    ("options", "trainer_options", "error", "match"),
    [
        ({"sampling": CyclicPoisson(3), "bandwidth": 4}, {}, ValueError, "bandwidth 4 overlap"),
        ({"sampling": CyclicPoisson(3), "factorization": BandedInverseSquareRoot(2)}, {}, ValueError, "not banded"),
        ({"sampling": CyclicPoisson(6)}, {}, ValueError, "can't fill steps"),
        (
            {"sampling": CyclicPoisson(3), "allow_limited_batches": True},
            {"limit_train_batches": 4},
            ValueError,
            "would skip draws",
        ),
        ({"sampling": CyclicPoisson(3)}, {"limit_train_batches": 4}, MisconfigurationException, "limit_train_batches"),
    ],
)
def test_what_the_amplification_does_not_cover_is_refused(
    options: dict[str, Any], trainer_options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        toy_trainer(private(**options), **trainer_options).fit(Toy(), toy_loader())


def test_a_cycle_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle_length must be at least 1, but is 0"):
        CyclicPoisson(0)


def test_the_ledger_speaks_up_when_an_example_comes_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CyclicPoissonBatchSampler, "share", lambda self, batch: [batch % 2])
    with pytest.raises(RuntimeError, match=r"Example 0 took part in step 0 and again in step 2: a gap of 2"):
        toy_trainer(private(sampling=CyclicPoisson(3), ledger=True)).fit(Toy(), toy_loader())
