"""Where the weights of unlabelled images come from: frozen and joint discriminators, and what they keep."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_methods.semi_supervised import (
    FrozenRelevance,
    JointRelevance,
    PULoss,
    RelevanceDiscriminator,
    RelevanceWeight,
    UniformRelevance,
)
from lit_methods.semi_supervised.cache import ExampleCache
from lit_methods.semi_supervised.functional import weighted_diffusion_loss
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.gloo import GlooPool, ddp_trainer_kwargs
from tests.semi_supervised.toys import fit_diffusion, tiny_diffusion, tiny_discriminator, toy_data, toy_images


def test_cached_weights_follow_their_images_in_any_order() -> None:
    network, pool = tiny_discriminator(), toy_images(8, 96)[2]
    relevance, weight = FrozenRelevance(network, 0.25), RelevanceWeight(0.25)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        index = torch.randint(96, (40,), generator=generator)
        found, _ = relevance(pool[:8], pool[index], index)
        with torch.no_grad():
            expected = weight(network(pool[index]).flatten())
        torch.testing.assert_close(found, expected)
        assert found.std() > 0.1


@pytest.mark.parametrize("joint", [False, True])
def test_no_gradient_of_the_diffusion_reaches_the_discriminator(joint: bool) -> None:
    network = tiny_discriminator()
    relevance = JointRelevance(network, PULoss(0.5)) if joint else FrozenRelevance(network, 0.5)
    images, _, pool = toy_images(8, 16)
    weight, own = relevance(images, pool, torch.arange(16))
    assert not weight.requires_grad
    assert (own is not None) == joint
    unlabeled = torch.rand(16, requires_grad=True)
    weighted_diffusion_loss(torch.rand(8), unlabeled, weight).backward()
    assert all(p.grad is None for p in network.parameters())
    assert unlabeled.grad is not None


@pytest.mark.parametrize("joint", [False, True])
def test_the_truth_about_the_pool_has_no_part(joint: bool, tmp_path: Path) -> None:
    states = []
    for known in (torch.zeros(96), torch.ones(96)):
        network = tiny_discriminator()
        relevance = JointRelevance(network, PULoss(0.5)) if joint else FrozenRelevance(network, 0.5)
        sgd = partial(torch.optim.SGD, lr=0.1)
        discriminator = RelevanceDiscriminator(tiny_discriminator(), PULoss(0.5), optimizer=sgd)
        for module in (tiny_diffusion(relevance=relevance), discriminator):
            data = toy_data(known=known)
            toy_trainer(Parts(module, [], data), tmp_path, max_epochs=1).fit(module, datamodule=data)
            states.append(module.state_dict())
    for first, second in zip(states[:2], states[2:], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_discriminator_is_asked_once_per_image(tmp_path: Path) -> None:
    relevance, seen = FrozenRelevance(tiny_discriminator(), 0.5), []
    relevance.network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    before = {k: v.clone() for k, v in relevance.state_dict().items()}
    fit_diffusion(tiny_diffusion(relevance=relevance), tmp_path, max_epochs=3)
    assert sum(seen) == 96
    torch.testing.assert_close(relevance.state_dict(), before, rtol=0, atol=0)


def test_second_fit_on_other_data_asks_again(tmp_path: Path) -> None:
    relevance, seen = FrozenRelevance(tiny_discriminator(), 0.5), []
    relevance.network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    module = tiny_diffusion(relevance=relevance)
    fit_diffusion(module, tmp_path)
    fit_diffusion(module, tmp_path)
    assert sum(seen) == 2 * 96


def test_joint_discriminator_steps_by_its_own_loss_and_before(tmp_path: Path) -> None:
    class Order(torch.optim.SGD):
        taken: list[str] = []  # noqa: RUF012  the record of the test

        def step(self, closure: Any = None) -> Any:
            self.taken.append(self.defaults["lr"])
            return super().step(closure)

    network = tiny_discriminator()
    relevance = JointRelevance(network, PULoss(0.5), optimizer=partial(Order, lr=0.1))
    module = tiny_diffusion(relevance=relevance, optimizer=partial(Order, lr=0.05))
    trainer = fit_diffusion(module, tmp_path, limit_train_batches=1, limit_val_batches=0)
    assert Order.taken == [0.1, 0.05]
    assert trainer.global_step == 2

    twin, batch = tiny_discriminator(), next(iter(toy_data().train_dataloader()))[0]
    loss = PULoss(0.5)(twin(batch["labeled"][0]).flatten(), twin(batch["unlabeled"][0]).flatten())
    loss.backward()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)
    assert module.ema.updates == 1


def _joint_weights(rank: int, world_size: int, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    module = tiny_diffusion(relevance=JointRelevance(tiny_discriminator(), PULoss(0.5)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit_diffusion(module, folder, **ddp_trainer_kwargs())
    return before, module.state_dict()


@pytest.mark.ddp
def test_two_processes_train_both_networks_alike(gloo: GlooPool, tmp_path: Path) -> None:
    (before, first), (_, second) = gloo.run(_joint_weights, tmp_path)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for part in ("unet", "relevance.network"):
        assert not all(torch.equal(before[name], first[name]) for name in before if name.startswith(part))


def test_discriminator_checkpoint_is_read_and_its_prior_checked(tmp_path: Path) -> None:
    trained = RelevanceDiscriminator(tiny_discriminator(), PULoss(0.5), optimizer=partial(torch.optim.SGD, lr=0.3))
    parts = Parts(trained, [], toy_data())
    trainer = toy_trainer(parts, tmp_path)
    trainer.fit(trained, datamodule=parts.data)
    trainer.save_checkpoint(tmp_path / "d.ckpt")
    relevance = FrozenRelevance(tiny_discriminator(), 0.5, checkpoint=tmp_path / "d.ckpt")
    fit_diffusion(tiny_diffusion(relevance=relevance), tmp_path)
    torch.testing.assert_close(relevance.network.state_dict(), trained.network.state_dict(), rtol=0, atol=0)
    for wrong in ({"prior": 0.25}, {"prior": 0.5, "balanced": False}):
        relevance = FrozenRelevance(tiny_discriminator(), checkpoint=tmp_path / "d.ckpt", **wrong)
        with pytest.raises(ValueError, match=r"does not fit checkpoint=.*take its value"):
            fit_diffusion(tiny_diffusion(relevance=relevance), tmp_path)


def test_weight_range_self_normalisation_and_bad_values() -> None:
    weight = RelevanceWeight(0.25, alpha=3.0)
    assert weight(torch.tensor([-50.0, 0.0, 50.0])).tolist() == pytest.approx([0.0, 3.0, 12.0])
    normal = RelevanceWeight(0.25, alpha=3.0, self_normalize=True, momentum=1.0)
    found = normal(torch.randn(1000) - 2)
    assert float(found.mean()) == pytest.approx(3.0, rel=1e-5)
    mean = float(normal.mean_ratio)
    normal.eval()(torch.randn(10) + 3)
    assert float(normal.mean_ratio) == mean
    for arguments in ({"alpha": -1.0}, {"momentum": 0.0}, {"prior": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))}="):
            RelevanceWeight(**({"prior": 0.5} | arguments))
    with pytest.raises(ValueError, match="value=-1"):
        UniformRelevance(-1)


def test_cache_grows_and_survives_saving() -> None:
    cache = ExampleCache()
    assert cache.missing(torch.tensor([0, 7])).tolist() == [True, True]
    cache.put(torch.tensor([7, 2]), torch.tensor([0.7, 0.2]))
    assert cache.missing(torch.tensor([2, 3, 7, 9])).tolist() == [False, True, False, True]
    cache.put(torch.tensor([9]), torch.tensor([0.9]))
    again = ExampleCache()
    again.load_state_dict(cache.state_dict())
    assert again.get(torch.tensor([9, 2, 7])).tolist() == pytest.approx([0.9, 0.2, 0.7])
    again.clear()
    with pytest.raises(KeyError, match="empty"):
        again.get(torch.tensor([2]))
