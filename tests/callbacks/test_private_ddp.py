"""Two processes train as one: the same batches, the same noise, once."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_methods.differential_privacy import CyclicPoisson, CyclicPoissonBatchSampler, Sampling
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
