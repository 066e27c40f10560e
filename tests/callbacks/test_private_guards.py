"""What voids the guarantee is refused with a sentence, and the module stays clean."""

import math
import re
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from lit_methods.callbacks import BandedSquareRootNoise
from lit_methods.differential_privacy import FixedOrderBatchSampler
from lit_methods.differential_privacy.guards import check_trainer
from tests.callbacks.toys import EXAMPLES, FEATURES, Toy, flat, private, toy_data, toy_loader, toy_trainer


def refused(match: str, *, model: Toy | None = None, loader: Any = None, callbacks: Any = (), **options: Any) -> None:
    model = model or Toy()
    before = flat(model).clone()
    with pytest.raises((ValueError, MisconfigurationException, RuntimeError), match=match):
        toy_trainer(private(), *callbacks, **options).fit(model, toy_loader() if loader is None else loader)
    assert torch.equal(flat(model), before)
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gradient_clip_val": 1.0}, "gradient_clip_val=1.0 has no effect.*max_grad_norm"),
        ({"limit_train_batches": 2}, "limit_train_batches=2.*allow_limited_batches"),
        ({"limit_train_batches": 0.5}, "limit_train_batches=0.5"),
        ({"overfit_batches": 2}, "overfit_batches=2"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs=1"),
        ({"max_epochs": -1}, "max_epochs=-1"),
        ({"callbacks": [LearningRateFinder()]}, "LearningRateFinder"),
        ({"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]}, "GradientAccumulationScheduler"),
    ],
)
@pytest.mark.filterwarnings("ignore:You have overridden")  # hooks of the refused loaders
def test_flags(options: dict[str, Any], match: str) -> None:
    refused(match, **options)


def test_batch_size_finder() -> None:
    with pytest.raises(MisconfigurationException, match="BatchSizeFinder trains on the private data"):
        check_trainer(toy_trainer(BatchSizeFinder()))


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_half_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toy_trainer(private())
    monkeypatch.setattr(type(trainer), "precision", precision)
    with pytest.raises(MisconfigurationException, match=f"precision='{precision}' scales the loss"):
        trainer.fit(Toy(), toy_loader())


def batch_norm(kind: str) -> nn.Module:
    norm = nn.BatchNorm1d(8, affine=kind != "affine-free", track_running_stats=kind != "untracked")
    norm.requires_grad_(kind not in ("frozen", "frozen and untracked"))
    return norm


@pytest.mark.parametrize("kind", ["plain", "frozen", "affine-free", "untracked"])
def test_batch_norm_in_any_form(kind: str) -> None:
    network = nn.Sequential(nn.Linear(FEATURES, 8), batch_norm(kind), nn.Linear(8, 3))

    class Trained(Toy):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], **self.options)

    refused("BatchNorm1d that uses statistics of the batch", model=Trained(network=network))


def test_instance_norm_with_running_statistics() -> None:
    network = nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 3)
    )
    refused("track_running_stats", model=Toy(network=network))


def test_batch_norm_with_fixed_statistics_is_accepted() -> None:
    network = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8, affine=False).eval(), nn.Linear(8, 3))
    model = Toy(network=network)
    toy_trainer(private(), max_epochs=1).fit(model, toy_loader())
    assert torch.equal(network[1].running_mean, torch.zeros(8))


class TwoOptimizers(Toy):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]


class Manual(TwoOptimizers):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Forgotten(Toy):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1)


class Functional(Toy):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        hidden = nn.functional.linear(batch[0], self.net[0].weight)
        return nn.functional.cross_entropy(self.net[2](hidden.relu()), batch[1])


class Bare(Toy):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        hidden = nn.functional.linear(batch[0], self.net[0].weight, self.net[0].bias)
        return nn.functional.cross_entropy(nn.functional.linear(hidden, self.net[2].weight), batch[1])


def test_second_optimizer() -> None:
    with pytest.raises(RuntimeError, match="multiple optimizers"):
        toy_trainer(private()).fit(TwoOptimizers(), toy_loader())
    refused("manually", model=Manual())


def test_parameters_outside_the_optimizer() -> None:
    refused(r"net.2.weight.*no optimizer", model=Forgotten())


def test_weights_used_outside_their_layer() -> None:
    refused("net.0.weight has a gradient but no per-sample gradients", model=Functional())
    refused("net.0.weight has a gradient but no per-sample gradients", model=Bare())


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(toy_data())


@pytest.mark.parametrize(
    ("loader", "match"),
    [
        (lambda: DataLoader(Stream(), batch_size=4), "iterable data set"),
        (lambda: DataLoader(toy_data(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 42, 42)), "Weighted"),
        (lambda: DataLoader(toy_data(), 4, sampler=RandomSampler(toy_data(), replacement=True)), "with replacement"),
        (lambda: DataLoader(toy_data(), 4, sampler=RandomSampler(toy_data(), num_samples=20)), "changed length"),
        (lambda: DataLoader(toy_data(), batch_size=None), "batch"),
        (lambda: {"a": toy_loader(), "b": toy_loader()}, "a dict"),
    ],
)
def test_loaders_without_a_known_order(loader: Any, match: str) -> None:
    refused(match, loader=loader())


def test_poisson_sampling_of_opacus() -> None:
    from opacus.data_loader import DPDataLoader

    refused("Poisson", loader=DPDataLoader(toy_data(), sample_rate=0.1))


def test_a_shuffled_loader_is_put_in_fixed_order() -> None:
    seen: list[list[float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
            seen.append(batch[0][:, 0].tolist())

    toy_trainer(private(), Watch()).fit(Toy(), toy_loader())
    values = toy_data().tensors[0][:, 0]
    assert seen == 3 * [values[batch].tolist() for batch in FixedOrderBatchSampler(EXAMPLES, 8)]


def test_step_after_the_last() -> None:
    callback = private()
    toy_trainer(callback).fit(Toy(), toy_loader())
    with pytest.raises(RuntimeError, match="All 18 planned steps"):
        callback.noise.next()


def test_thawing_during_the_run() -> None:
    class Freeze(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.net[0].requires_grad_(False)

    with pytest.raises(RuntimeError, match="trained parameters changed"):
        toy_trainer(private(), Freeze()).fit(Toy(), toy_loader())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "either epsilon or noise_multiplier"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "either epsilon or noise_multiplier"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be above 0, and finite"),
        ({"epsilon": math.inf}, "epsilon=inf must be above 0, and finite"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf must be at least 0, and finite"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan must be .*, and finite"),
        ({"epsilon": 1.0, "delta": 0.0}, "delta must lie in"),
        ({"epsilon": 1.0, "delta": math.nan}, "delta must lie in"),
        ({"epsilon": 1.0, "max_grad_norm": 0.0}, "max_grad_norm=0.0 must be above 0, and finite"),
        ({"epsilon": 1.0, "max_grad_norm": math.inf}, "max_grad_norm=inf must be .*, and finite"),
        ({"epsilon": 1.0, "clipping": "flat"}, "clipping must be one of .*'ghost'.*, but is 'flat'"),
        ({"epsilon": 1.0, "loss_reduction": "none"}, "loss_reduction must be one of .*'sum'.*, but is 'none'"),
        ({"epsilon": 1.0, "bandwidth": 0}, "bandwidth must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BandedSquareRootNoise(**arguments)


@pytest.mark.parametrize("given", ["*.mean", "mean", None, [b"mean"]])
def test_a_string_is_no_list_of_patterns(given: Any) -> None:
    # Of "*.mean" the first character alone would allow every buffer.
    with pytest.raises(TypeError, match=f"allowed_buffers must be a list of patterns, but is {re.escape(repr(given))}"):
        BandedSquareRootNoise(epsilon=1.0, allowed_buffers=given)


def test_fast_dev_run_and_allowed_limits_plan_for_the_steps_that_run() -> None:
    callback = private()
    toy_trainer(callback, fast_dev_run=True).fit(Toy(), toy_loader())
    assert callback.plan.accounting.strategy.participation.steps == 1
    callback = private(allow_limited_batches=True)
    toy_trainer(callback, limit_train_batches=2).fit(Toy(), toy_loader())
    schedule = callback.plan.accounting.strategy.participation
    assert (schedule.steps, schedule.separation, schedule.participations) == (6, 2, 3)


def test_the_summary_states_the_guarantee(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        toy_trainer(private(epsilon=2.0), max_epochs=1).fit(Toy(), toy_loader())
    assert "(2, 1e-05)-differential privacy" in caplog.text
    for part in ("zero-out adjacency", "one training example", "after each of the 6 of 6 steps", "Not covered"):
        assert part in caplog.text


def test_the_module_is_as_it_was_after_fit_and_after_an_exception() -> None:
    class Fail(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            raise ZeroDivisionError

    for callbacks in ((), (Fail(),)):
        model = Toy()
        keys, attributes = set(model.state_dict()), set(model.net[0].__dict__)
        trainer = toy_trainer(private(), *callbacks)
        try:
            trainer.fit(model, toy_loader())
        except ZeroDivisionError:
            assert callbacks
        assert set(model.state_dict()) == keys
        assert set(model.net[0].__dict__) == attributes
        assert model.net[1].inplace
        assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())
        left = {name for p in model.parameters() for name in p.__dict__}
        assert not left & {"grad_sample", "summed_grad", "_forward_counter"}
        assert type(trainer.optimizers[0]) is torch.optim.SGD


class Learning(Toy):
    """Keeps a mean of the data in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.mean += batch[0].mean(dim=0)
        return super().training_step(batch, batch_idx)


def test_buffers_that_learn() -> None:
    with pytest.raises(MisconfigurationException, match=r"The buffers \['mean'\] changed"):
        toy_trainer(private()).fit(Learning(), toy_loader())
    toy_trainer(private(allowed_buffers=["mean"])).fit(Learning(), toy_loader())
