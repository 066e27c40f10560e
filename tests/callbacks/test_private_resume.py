"""A private run that was killed goes on bit for bit, or not at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_methods.differential_privacy import CyclicPoisson, FixedOrder, Sampling
from tests.callbacks.toys import Toy, flat, private, toy_loader, toy_trainer


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def save_every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def interrupted(folder: Path, step: int, **options: Any) -> str:
    trainer = toy_trainer(private(), save_every_step(folder), Kill(step + 1), enable_checkpointing=True, **options)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(Toy(), toy_loader())
    return str(folder / f"step={step}.ckpt")


@pytest.mark.parametrize(
    ("step", "options"),
    [(4, {}), (6, {}), (9, {}), (2, {"accumulate_grad_batches": 2}), (4, {"accumulate_grad_batches": 2})],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, step: int, options: dict[str, Any]) -> None:
    whole = Toy()
    straight = private()
    toy_trainer(straight, **options).fit(whole, toy_loader())
    checkpoint = interrupted(tmp_path, step, **options)
    resumed, callback = Toy(), private(unsafe_seed=99)
    trainer = toy_trainer(callback, **options)
    trainer.fit(resumed, toy_loader(), ckpt_path=checkpoint, weights_only=True)
    assert torch.equal(flat(resumed), flat(whole))
    assert trainer.global_step == straight.noise.steps
    assert float(trainer.callback_metrics["dp/epsilon"]) == pytest.approx(8.0)
    for name, value in straight.state_dict()["noise"].items():
        assert torch.equal(torch.as_tensor(callback.state_dict()["noise"][name]), torch.as_tensor(value)), name


def test_workers_resume_in_the_middle_of_an_epoch_too(tmp_path: Path) -> None:
    whole = Toy()
    toy_trainer(private()).fit(whole, toy_loader(num_workers=1))
    checkpoint = interrupted(tmp_path, 8)
    resumed = Toy()
    toy_trainer(private()).fit(resumed, toy_loader(num_workers=1), ckpt_path=checkpoint)
    assert torch.equal(flat(resumed), flat(whole))


@pytest.mark.parametrize(
    ("changed", "batch_size", "trainer_options", "names"),
    [
        ({"epsilon": 4.0}, 8, {}, "noise_multiplier"),
        ({"max_grad_norm": 2.0}, 8, {}, "max_grad_norm"),
        ({"bandwidth": 2}, 8, {}, "coefficients"),
        ({}, 8, {"max_epochs": 4}, "steps"),
    ],
)
def test_a_changed_plan_is_refused(
    tmp_path: Path, changed: dict[str, Any], batch_size: int, trainer_options: dict[str, Any], names: str
) -> None:
    checkpoint = interrupted(tmp_path, 3)
    model = Toy()
    with pytest.raises(ValueError, match=f"another private run.*{names}"):
        toy_trainer(private(**changed), **trainer_options).fit(model, toy_loader(batch_size), ckpt_path=checkpoint)
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())


@pytest.mark.parametrize(
    ("sampling", "batch_size", "names"),
    [
        (FixedOrder(1), 8, r"seed \(saved 0, now 1\)"),
        (FixedOrder(), 7, r"global_batch_size \(saved 8, now 7\)"),
        (CyclicPoisson(4), 8, r"kind \(saved 'fixed order', now 'cyclic Poisson'\)"),
    ],
)
def test_a_changed_order_is_refused(tmp_path: Path, sampling: Sampling, batch_size: int, names: str) -> None:
    checkpoint = interrupted(tmp_path, 3)
    with pytest.raises(ValueError, match=f"saved order of the data is another one: {names}"):
        toy_trainer(private(sampling=sampling)).fit(Toy(), toy_loader(batch_size), ckpt_path=checkpoint)


def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    class Frozen(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.net[0].requires_grad_(False)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], **self.options)

    checkpoint = interrupted(tmp_path, 3)
    with pytest.raises(ValueError, match=r"another private run.*parameters"):
        toy_trainer(private()).fit(Frozen(), toy_loader(), ckpt_path=checkpoint)


def test_a_checkpoint_without_noise_state_is_refused(tmp_path: Path) -> None:
    trainer = toy_trainer(max_epochs=1)
    trainer.fit(Toy(), toy_loader())
    trainer.save_checkpoint(tmp_path / "public.ckpt")
    with pytest.raises(ValueError, match=r"from step 6, but the noise stands at step 0"):
        toy_trainer(private()).fit(Toy(), toy_loader(), ckpt_path=tmp_path / "public.ckpt")


def test_a_checkpoint_in_the_middle_of_an_accumulation_is_refused(tmp_path: Path) -> None:
    class SaveEarly(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, o: Any, b: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    toy_trainer(private(), SaveEarly(), accumulate_grad_batches=2, max_epochs=1).fit(Toy(), toy_loader())
    with pytest.raises(ValueError, match="middle of a gradient accumulation"):
        toy_trainer(private(), accumulate_grad_batches=2).fit(Toy(), toy_loader(), ckpt_path=tmp_path / "early.ckpt")


def test_fitting_on_with_the_same_trainer_is_refused() -> None:
    trainer = toy_trainer(private(), max_epochs=1)
    model = Toy()
    trainer.fit(model, toy_loader())
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(ValueError, match="fit was called again"):
        trainer.fit(model, toy_loader())
