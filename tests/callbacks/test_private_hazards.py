"""Ways in which an example could count more than once, or noise be known: each is refused or undone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.differential_privacy import (
    CorrelatedNoise,
    CorrelatedNoiseOptimizer,
    FixedOrderBatchSampler,
    PerSampleGradients,
)
from tests.callbacks.test_private_resume import interrupted, save_every_step
from tests.callbacks.toys import EXAMPLES, FEATURES, Toy, flat, private, toy_data, toy_loader, toy_trainer


class Views(Toy):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = torch.cat([batch[0], 1.1 * batch[0]]), torch.cat([batch[1], batch[1]])
        return nn.functional.cross_entropy(self.net(inputs), labels)


class Tokens(Toy):
    def __init__(self) -> None:
        super().__init__(network=nn.Linear(2, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.net(batch[0].reshape(-1, 2))
        return nn.functional.cross_entropy(logits, batch[1].repeat_interleave(3))


class TimeFirst(Tokens):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.net(batch[0].reshape(-1, 3, 2).transpose(0, 1))
        return nn.functional.cross_entropy(logits.mean(dim=0), batch[1])


@pytest.mark.parametrize("kind", [Views, Tokens, TimeFirst])
def test_rows_that_are_not_examples_are_refused(kind: type[Toy]) -> None:
    with pytest.raises(MisconfigurationException, match="per-sample gradients for a batch of 8 examples"):
        toy_trainer(private()).fit(kind(), toy_loader())


@pytest.mark.parametrize("network", [nn.Linear(FEATURES, 3), nn.Sequential(nn.Linear(FEATURES, 9), nn.Linear(9, 3))])
@pytest.mark.parametrize("left_out", [0, 17])
def test_leaving_one_example_out_moves_the_sum_by_at_most_the_clip_norm(network: nn.Module, left_out: int) -> None:
    """End to end, without noise: one step of all examples, with one example's loss weighed by zero."""

    class WithoutOne(Toy):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            losses = nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
            return (losses * (batch[0] != toy_data().tensors[0][left_out]).any(dim=1)).mean()

    weights = []
    for kind in (Toy, WithoutOne):
        model = kind(0.0, 0.0, network)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        callback = private(noise_multiplier=0.0, max_grad_norm=0.5)
        toy_trainer(callback, max_epochs=1).fit(model, toy_loader(batch_size=EXAMPLES))
        weights.append(flat(model).clone())
        network.load_state_dict(state)
    moved = float((weights[0] - weights[1]).norm()) * EXAMPLES / 0.2
    assert 0.05 < moved <= 0.5 * (1 + 1e-4)


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None")  # the batch is left out on purpose
def test_a_step_without_a_loss_does_not_stop_learning() -> None:
    class Skips(Toy):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if self.global_step == 2 else loss

    class Gradients(Callback):
        def __init__(self) -> None:
            self.moved: list[bool] = []

        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            self.before = flat(module).clone()

        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            self.moved.append(not torch.equal(self.before, flat(module)))

    watch = Gradients()
    toy_trainer(private(noise_multiplier=0.0), watch).fit(Skips(momentum=0.0, weight_decay=0.0), toy_loader())
    assert watch.moved == [True, True, False, *[True] * 15]


def test_an_epoch_that_is_cut_short_is_refused() -> None:
    class Hasty(Toy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    with pytest.raises(RuntimeError, match="Batch 0 of the epoch came where batch 2 was due"):
        toy_trainer(private()).fit(Hasty(), toy_loader())


def test_a_step_that_is_left_out_is_refused() -> None:
    class Sparing(Toy):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
            if batch_idx % 2:
                super().optimizer_step(epoch, batch_idx, optimizer, closure)
            else:
                closure()

    with pytest.raises(RuntimeError, match="Batch 1 of the epoch came where batch 0 was due"):
        toy_trainer(private()).fit(Sparing(), toy_loader())


def test_a_glance_at_the_loader_does_not_move_a_resumed_run(tmp_path: Path) -> None:
    class Glance(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            next(iter(trainer.train_dataloader))

    whole = Toy()
    toy_trainer(private()).fit(whole, toy_loader())
    checkpoint = interrupted(tmp_path, 4)
    resumed = Toy()
    toy_trainer(private(), Glance()).fit(resumed, toy_loader(), ckpt_path=checkpoint)
    assert torch.equal(flat(resumed), flat(whole))


@pytest.mark.parametrize("step", [4, 6])
def test_dropout_goes_on_bit_for_bit(tmp_path: Path, step: int) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def fit(folder: Path, **options: Any) -> Tensor:
        model = Toy(network=network())
        torch.manual_seed(1)
        saving = [] if options else [save_every_step(folder)]
        trainer = toy_trainer(private(), *saving, enable_checkpointing=bool(saving))
        trainer.fit(model, toy_loader(), **options)
        return flat(model)

    whole = fit(tmp_path / "whole")
    torch.rand(3)
    resumed = fit(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / f"step={step}.ckpt", weights_only=True)
    assert torch.equal(whole, resumed)


def test_a_second_fit_of_a_finished_run_claims_nothing(caplog: pytest.LogCaptureFixture) -> None:
    trainer, model = toy_trainer(private(), max_epochs=1), Toy()
    trainer.fit(model, toy_loader())
    caplog.clear()
    with caplog.at_level("INFO"):
        trainer.fit(model, toy_loader())
    assert "differential privacy" not in caplog.text


def test_max_steps_alone_plans_the_run() -> None:
    callback = private()
    toy_trainer(callback, max_epochs=-1, max_steps=10).fit(Toy(), toy_loader())
    schedule = callback.plan.accounting.strategy.participation
    assert (schedule.steps, schedule.separation, schedule.participations) == (10, 6, 2)


def test_logging_can_be_off() -> None:
    toy_trainer(private(), log_every_n_steps=0, max_epochs=1).fit(Toy(), toy_loader())


def test_one_limited_batch_is_refused_too() -> None:
    with pytest.raises(MisconfigurationException, match="limit_train_batches=1"):
        toy_trainer(private(), limit_train_batches=1).fit(Toy(), toy_loader())


def test_a_sampler_of_another_rank_is_refused() -> None:
    loader = DataLoader(toy_data(), batch_sampler=FixedOrderBatchSampler(EXAMPLES, 4, rank=1, world_size=2))
    with pytest.raises(ValueError, match="rank 1 of 2"):
        toy_trainer(private()).fit(Toy(), loader)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.LSTM(FEATURES, 3), "opacus.layers.DPLSTM"),
        (nn.MultiheadAttention(FEATURES, 2), "opacus.layers.DPMultiheadAttention"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "class weights"),
    ],
)
def test_layers_without_per_sample_gradients_are_named(layer: nn.Module, match: str) -> None:
    model = Toy()
    model.extra = layer
    with pytest.raises(MisconfigurationException, match=match):
        toy_trainer(private()).fit(model, toy_loader())


def test_the_padding_row_of_an_embedding_is_left_alone() -> None:
    class Words(Toy):
        def __init__(self) -> None:
            super().__init__(0.0, 0.0, nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3)))

    words = torch.randint(5, (EXAMPLES, 3), generator=torch.Generator().manual_seed(0))
    model = Words()
    before = model.net[0].weight.detach().clone()
    data = TensorDataset(words, words[:, 0] % 3)
    toy_trainer(private(noise_multiplier=0.0)).fit(model, DataLoader(data, batch_size=8))
    assert torch.equal(model.net[0].weight[0], before[0])
    assert (model.net[0].weight[1:] != before[1:]).all()


def test_all_of_the_generators_state_is_secret() -> None:
    """A seed reaches 32 bits of torch's Mersenne twister; two noises must differ in (nearly) all of its 624 words."""
    states = [
        CorrelatedNoise(torch.ones(1), 4, 4).generator.get_state()[24 : 24 + 8 * 624].view(torch.int64)
        for _ in range(2)
    ]
    seeded = torch.Generator().manual_seed(5).get_state()[24 : 24 + 8 * 624].view(torch.int64)
    assert (states[0] != states[1]).sum() > 600
    assert 0 <= int(states[0].min()) < int(states[0].max()) < 2**32
    assert seeded.shape == states[0].shape
    noise = CorrelatedNoise(torch.ones(1), 200_000, 1).next()
    assert abs(float(noise.mean())) < 0.012
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)


def test_an_empty_batch_adds_nothing() -> None:
    layer = nn.Linear(FEATURES, 3)
    hooks = PerSampleGradients(layer)
    optimizer = CorrelatedNoiseOptimizer(
        torch.optim.SGD(layer.parameters(), lr=0.1),
        noise=CorrelatedNoise(torch.ones(1), 3 * FEATURES + 3, 2),
        noise_std=0.0,
        max_grad_norm=1.0,
        expected_batch_size=4,
    )
    before = flat(layer).clone()
    layer(torch.zeros(0, FEATURES)).sum().backward()
    optimizer.step()
    hooks.remove()
    assert torch.equal(flat(layer), before)
