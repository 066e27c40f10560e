"""Two processes train as one: the same batches, the same noise, once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_methods.differential_privacy import CyclicPoisson, CyclicPoissonBatchSampler, FixedOrder, Sampling
from tests.callbacks.toys import Toy, flat, private, toy_loader, toy_trainer
from tests.gloo import GlooPool, ddp_trainer_kwargs


def two_processes(
    rank: int, world_size: int, options: dict[str, Any], sampling: Sampling | None = None
) -> torch.Tensor:
    model = Toy()
    trainer = toy_trainer(private(sampling=sampling), use_distributed_sampler=False, **options, **ddp_trainer_kwargs())
    trainer.fit(model, toy_loader(batch_size=4))
    return flat(model)


@pytest.mark.ddp
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_two_processes_equal_one(gloo: GlooPool, options: dict[str, Any]) -> None:
    first, second = gloo.run(two_processes, options)
    assert torch.equal(first, second)
    model = Toy()
    toy_trainer(private(), **options).fit(model, toy_loader(batch_size=8))
    torch.testing.assert_close(first, flat(model), rtol=1e-4, atol=1e-5)


@pytest.mark.ddp
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_two_processes_draw_as_one(gloo: GlooPool, options: dict[str, Any]) -> None:
    sampling = CyclicPoisson(2, unsafe_seed=5)
    first, second = gloo.run(two_processes, options, sampling)
    assert torch.equal(first, second)
    model = Toy()
    toy_trainer(private(sampling=sampling), **options).fit(model, toy_loader(batch_size=8))
    torch.testing.assert_close(first, flat(model), rtol=1e-4, atol=1e-5)


def resumed_processes(rank: int, world_size: int, folder: str, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    models = Toy(), Toy()
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    for model, callbacks, path in zip(models, ([saving], []), (None, f"{folder}/step=8.ckpt"), strict=True):
        options: dict[str, Any] = {**ddp_trainer_kwargs(), "enable_checkpointing": bool(callbacks)}
        callback = private(sampling=sampling, ledger=True, unsafe_seed=None)
        trainer = toy_trainer(callback, *callbacks, use_distributed_sampler=False, **options)
        trainer.fit(model, toy_loader(batch_size=4), ckpt_path=path, weights_only=True)
    return flat(models[0]), flat(models[1])


@pytest.mark.ddp
@pytest.mark.parametrize("sampling", [FixedOrder(), CyclicPoisson(2)])
def test_two_processes_resume_with_the_same_noise_and_batches(
    gloo: GlooPool, tmp_path: Path, sampling: Sampling
) -> None:
    first, second = gloo.run(resumed_processes, str(tmp_path), sampling)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[1], second[1])


def single_draws(rank: int, world_size: int) -> tuple[torch.Tensor, int]:
    callback = private(sampling=CyclicPoisson(2, unsafe_seed=5), ledger=True)
    trainer = toy_trainer(callback, use_distributed_sampler=False, max_epochs=1, **ddp_trainer_kwargs())
    model = Toy()
    trainer.fit(model, toy_loader(batch_size=1))
    sampler = trainer.train_dataloader.batch_sampler
    return flat(model), sum(not sampler.share(batch) for batch in range(len(sampler)))


@pytest.mark.ddp
def test_a_process_without_examples_takes_the_step_all_the_same(gloo: GlooPool) -> None:
    (first, none_of_first), (second, none_of_second) = gloo.run(single_draws)
    assert torch.equal(first, second)
    assert none_of_first < none_of_second
    model = Toy()
    trainer = toy_trainer(private(sampling=CyclicPoisson(2, unsafe_seed=5)), max_epochs=1)
    trainer.fit(model, toy_loader(batch_size=2))
    torch.testing.assert_close(first, flat(model), rtol=1e-4, atol=1e-5)


def secret_draws(rank: int, world_size: int) -> list[list[int]]:
    callback = private(sampling=CyclicPoisson(2))
    trainer = toy_trainer(callback, use_distributed_sampler=False, **ddp_trainer_kwargs())
    trainer.fit(Toy(), toy_loader(batch_size=4))
    sampler = callback.state_dict()["sampler"]
    twin = CyclicPoissonBatchSampler(42, 4, 2, shared_seed=sampler["seed"], rank=rank, world_size=world_size)
    return [twin.share(batch) for batch in range(6)]


@pytest.mark.ddp
def test_processes_share_one_secret(gloo: GlooPool) -> None:
    first, second = gloo.run(secret_draws)
    again, _ = gloo.run(secret_draws)
    assert not any(set(a) & set(b) for a, b in zip(first, second, strict=True))
    assert first != again


def with_lightnings_sampler(rank: int, world_size: int) -> str:
    with pytest.raises(MisconfigurationException) as error:
        toy_trainer(private(), **ddp_trainer_kwargs()).fit(Toy(), toy_loader())
    return str(error.value)


@pytest.mark.ddp
def test_lightnings_own_sampler_is_refused(gloo: GlooPool) -> None:
    assert all("use_distributed_sampler=False" in message for message in gloo.run(with_lightnings_sampler))
