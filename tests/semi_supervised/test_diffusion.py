"""The diffusion module: its loss written out, its moving average, draws, classes and latents."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lit_methods.backbones import MLP
from lit_methods.semi_supervised import (
    ClassifierChoice,
    DiscriminatorWeightedDiffusion,
    FixedClass,
    FrozenRelevance,
    NearestLabeled,
    RandomBalanced,
    Transformation,
    UniformRelevance,
)
from lit_methods.semi_supervised.batches import check_training_batch
from lit_methods.semi_supervised.draws import DiffusionDraws, mixed_seed, seeded, seeded_generator
from lit_methods.semi_supervised.ema import ExponentialMovingAverage
from lit_methods.semi_supervised.functional import per_sample_error, weighted_diffusion_loss
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import (
    fit_diffusion,
    tiny_diffusion,
    tiny_discriminator,
    tiny_unet,
    toy_data,
    toy_images,
)


def _batch() -> dict[str, Any]:
    images, labels, pool = toy_images(8, 16)
    return {"labeled": (images, labels), "unlabeled": (pool, torch.arange(16), torch.ones(16))}


class Recording(DiscriminatorWeightedDiffusion):
    """Keeps the loss of one fixed batch and what went into it."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.noisy: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.handle = self.unet.register_forward_hook(
            lambda module, args, kwargs, out: self.noisy.append((*args, kwargs["class_labels"], out.sample)),
            with_kwargs=True,
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.loss = super().training_step(batch, batch_idx)
        self.batch = batch
        return self.loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.handle.remove()


def _recorded(folder: Path, relevance: object, label_dropout: float = 0.0) -> tuple[Recording, Tensor]:
    """A module after one step, and the error of each sample found again from what the U-Net saw."""
    module = Recording(
        tiny_unet(), 2, relevance, label_dropout=label_dropout, optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    fit_diffusion(module, folder, limit_train_batches=1, limit_val_batches=0)
    ((noisy, timesteps, classes, prediction),) = module.noisy
    clean = torch.cat([module.batch["labeled"][0], module.batch["unlabeled"][0]])
    alpha_bar = module.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = (noisy - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
    assert classes[8:].tolist() == [2] * 16
    return module, ((prediction - noise) ** 2).flatten(1).mean(1)


def test_with_equal_weights_the_loss_is_plain_diffusion_on_the_concatenated_batch(tmp_path: Path) -> None:
    module, errors = _recorded(tmp_path, UniformRelevance(1.0))
    torch.testing.assert_close(module.loss, errors.mean(), rtol=1e-4, atol=1e-5)
    assert module.noisy[0][2][:8].tolist() == module.batch["labeled"][1].tolist()


def test_without_weight_only_labelled_images_count(tmp_path: Path) -> None:
    module, errors = _recorded(tmp_path, UniformRelevance(0.0))
    torch.testing.assert_close(module.loss, errors[:8].sum() / 24, rtol=1e-4, atol=1e-5)


def test_weights_are_those_of_the_samples_they_stand_beside(tmp_path: Path) -> None:
    relevance = FrozenRelevance(tiny_discriminator(), prior=0.5)
    module, errors = _recorded(tmp_path, relevance)
    with torch.no_grad():
        logits = tiny_discriminator()(module.batch["unlabeled"][0]).flatten()
    weights = [3.0 / (0.5 + 0.5 * (1 / torch.sigmoid(g) - 1)) for g in logits]
    expected = errors[:8].sum() + sum(w * e for w, e in zip(weights, errors[8:], strict=True))
    torch.testing.assert_close(module.loss, expected / 24, rtol=1e-4, atol=1e-5)
    assert torch.stack(weights).std() > 0.1


def test_dropped_labels_train_the_null_class(tmp_path: Path) -> None:
    module, _ = _recorded(tmp_path, UniformRelevance(1.0), label_dropout=1.0)
    assert module.noisy[0][2].tolist() == [2] * 24


def test_permuted_pool_gives_the_same_loss_and_gradient() -> None:
    labeled, unlabeled = torch.rand(4, requires_grad=True), torch.rand(6, requires_grad=True)
    weight = torch.rand(6, requires_grad=True)
    order = torch.randperm(6)
    straight = weighted_diffusion_loss(labeled, unlabeled, weight)
    permuted = weighted_diffusion_loss(labeled, unlabeled[order], weight[order])
    torch.testing.assert_close(permuted, straight)
    (a,), (b,) = (torch.autograd.grad(loss, [unlabeled], retain_graph=True) for loss in (straight, permuted))
    torch.testing.assert_close(a, b)
    assert torch.autograd.grad(straight, [weight], allow_unused=True) == (None,)
    with pytest.raises(ValueError, match=r"weight has shape \(5,\) and unlabeled \(6,\)"):
        weighted_diffusion_loss(labeled, unlabeled, weight[:5])


def test_equal_weights_have_the_gradient_of_the_plain_mean_bit_for_bit() -> None:
    def gradients(weight: float) -> tuple[Tensor, ...]:
        errors = torch.rand(5, requires_grad=True), torch.rand(7, requires_grad=True)
        return torch.autograd.grad(weighted_diffusion_loss(*errors, torch.full((7,), weight)), errors)

    plain = torch.rand(12, requires_grad=True)
    (expected,) = torch.autograd.grad(plain.mean(), [plain])
    assert torch.equal(torch.cat(gradients(1.0)), expected)
    labeled, unlabeled = gradients(0.0)
    assert torch.equal(labeled, expected[:5])
    assert torch.equal(unlabeled, torch.zeros(7))


def test_average_follows_the_warm_up_rule_and_owns_its_weights() -> None:
    network = MLP(2, [], 2)
    average = ExponentialMovingAverage(network, decay=0.6)
    expected = [p.detach().clone() for p in network.parameters()]
    for n in range(12):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        average.update(network)
        decay = min(0.6, (1 + n) / (10 + n))
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, network.parameters(), strict=True)]
    for found, e in zip(average.network.parameters(), expected, strict=True):
        torch.testing.assert_close(found, e)
        assert not found.requires_grad
    assert not average.train().network.training
    with pytest.raises(ValueError, match=r"ema_decay=1\.0 must lie in \[0, 1\)"):
        ExponentialMovingAverage(network, 1.0)


def test_average_copies_the_buffers() -> None:
    network = torch.nn.BatchNorm1d(3)
    average = ExponentialMovingAverage(network)
    network(torch.randn(5, 3))
    average.update(network)
    torch.testing.assert_close(average.network.running_mean, network.running_mean)
    assert average.network.num_batches_tracked == 1


def test_draws_of_two_processes_make_up_those_of_one() -> None:
    def draws(rank: int, world_size: int) -> list[Tensor]:
        source = DiffusionDraws(seeded_generator(1, 2), rank, world_size)
        size = 6 // world_size
        return [source.timesteps(size, 1000), source.noise(torch.Size((size, 2))), source.coins(size, 0.5)]

    for whole, first, second in zip(draws(0, 1), draws(0, 2), draws(1, 2), strict=True):
        assert torch.equal(torch.stack([first, second], 1).flatten(0, 1), whole)


def test_seeds_differ_by_every_number_and_leave_the_global_state_alone() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(seeds) == 12**3
    assert all(0 <= seed < 2**63 for seed in seeds)
    state = torch.get_rng_state()
    with seeded(torch.device("cpu"), 1, 2):
        first = torch.rand(3)
    with seeded(torch.device("cpu"), 1, 2):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_classes_are_balanced_and_depend_on_the_position_alone() -> None:
    choice, images = RandomBalanced(seed=3), torch.zeros(103, 1)
    labels = choice(images, torch.arange(103), 5)
    counts = torch.bincount(labels)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(choice(images[:40], torch.arange(40, 80), 5), labels[40:80])
    assert not torch.equal(RandomBalanced(seed=4)(images, torch.arange(103), 5), labels)
    assert labels[:5].tolist() != labels[5:10].tolist() or labels[5:10].tolist() != labels[10:15].tolist()


def test_other_class_choices(tmp_path: Path) -> None:
    images, labels, pool = toy_images(8, 16)
    assert FixedClass(2)(pool, torch.arange(16), 2).tolist() == [2] * 16
    nearest = NearestLabeled(torch.nn.Flatten())
    nearest.remember(images, labels)
    flat, known = (torch.nn.functional.normalize(x.flatten(1), dim=1) for x in (pool, images))
    expected = [labels[min(range(8), key=lambda j: float((x - known[j]).norm()))] for x in flat]
    assert nearest(pool, torch.arange(16), 2).tolist() == [int(label) for label in expected]
    network = MLP(16, [], 3)
    assert torch.equal(ClassifierChoice(network)(pool, torch.arange(16), 2), network(pool)[:, :2].argmax(1))
    module, data = tiny_diffusion(transformation=Transformation(class_choice=NearestLabeled())), toy_data()
    with pytest.raises(Exception, match="has seen no labelled image"):
        toy_trainer(Parts(module, [], data), tmp_path).predict(module, datamodule=data)


def test_settings_tell_class_choices_apart() -> None:
    network = tiny_unet()
    choices = [FixedClass(0), FixedClass(1), RandomBalanced(0), RandomBalanced(1)]
    choices += [ClassifierChoice(MLP(16, [], 3)), ClassifierChoice(MLP(16, [], 3)), NearestLabeled()]
    told = [Transformation(class_choice=choice).settings(network) for choice in choices]
    assert all(a != b for i, a in enumerate(told) for b in told[:i])
    assert told[1]["class_choice.label"] == 1
    assert Transformation(class_choice=FixedClass(1)).settings(network) == told[1]


def _autoencoder() -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 4),
            norm_num_groups=2,
            layers_per_block=1,
            latent_channels=1,
            sample_size=8,
            scaling_factor=0.5,
        )


def _fit_latents(folder: Path, **arguments: Any) -> tuple[DiscriminatorWeightedDiffusion, int]:
    """A module after four epochs on latents, and how many images were encoded."""
    images, labels, pool = toy_images(size=8)
    seen, vae = [], _autoencoder()
    vae.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    relevance = FrozenRelevance(tiny_discriminator(8), 0.5)
    module = tiny_diffusion(autoencoder=vae, relevance=relevance, horizontal_flip=True, **arguments)
    data = type(toy_data())(images, labels, pool, torch.ones(len(pool)))
    toy_trainer(Parts(module, [], data), folder, max_epochs=4, limit_val_batches=0).fit(module, datamodule=data)
    return module, sum(seen)


def test_kept_latents_are_those_of_encoding_each_step(tmp_path: Path) -> None:
    encoded, each_step = _fit_latents(tmp_path)
    kept, once = _fit_latents(tmp_path, cache_latents=True)
    torch.testing.assert_close(kept.unet.state_dict(), encoded.unet.state_dict(), rtol=1e-3, atol=1e-4)
    assert each_step == 4 * (48 + 96)
    assert 4 * 48 + 96 < once <= 4 * 48 + 2 * 96
    kept.on_fit_start()
    assert kept._latents is not None
    assert bool(kept._latents._latents.missing(torch.arange(192)).all())


def test_autoencoder_is_frozen_and_its_latents_are_diffused(tmp_path: Path) -> None:
    vae = _autoencoder()
    images, labels, pool = toy_images(size=8)
    known = torch.ones(len(pool))
    relevance = FrozenRelevance(tiny_discriminator(8), 0.5)
    module = tiny_diffusion(autoencoder=vae, relevance=relevance)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    data = type(toy_data())(images, labels, pool, known)
    trainer = toy_trainer(Parts(module, [], data), tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=data)
    torch.testing.assert_close(vae.state_dict(), before, rtol=0, atol=0)
    assert trainer.predict(module, datamodule=data)[0]["images"].shape == (24, 1, 8, 8)
    assert not vae.training


def test_transformations_are_drawn_below_their_sources(tmp_path: Path) -> None:
    module = tiny_diffusion()
    fit_diffusion(module, tmp_path, logger=CSVLogger(tmp_path))
    (picture,) = tmp_path.rglob("train_transformations.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 3}, "unet has num_class_embeds=3, but num_classes=3 needs 4"),
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"label_dropout": 1.5}, r"label_dropout=1\.5 must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorWeightedDiffusion(tiny_unet(), **({"num_classes": 2} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.2}, r"strength=1\.2 must lie in \[0, 1\]"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"value_range": (1.0, 1.0)}, r"value_range=\(1\.0, 1\.0\) must rise"),
    ],
)
def test_bad_transformations_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformation(**arguments)


def test_bad_batches_are_refused() -> None:
    check_training_batch(_batch(), 2)
    for part in ("labeled", "unlabeled"):
        batch = _batch()
        batch[part] = tuple(tensor[:0] for tensor in batch[part])
        with pytest.raises(ValueError, match=rf"batch\['{part}'\] is empty"):
            check_training_batch(batch, 2)
    batch = _batch()
    batch["labeled"][1][0] = -1
    with pytest.raises(ValueError, match="has labels -1 to 1, but num_classes=2 allows 0 to 1"):
        check_training_batch(batch, 2)


def test_checkpoint_of_another_class_count_is_refused(tmp_path: Path) -> None:
    module = tiny_diffusion()
    fit_diffusion(module, tmp_path).save_checkpoint(tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="The checkpoint is of num_classes=2, this model has num_classes=3"):
        DiscriminatorWeightedDiffusion.load_from_checkpoint(
            tmp_path / "two.ckpt",
            unet=tiny_unet(3),
            num_classes=3,
            relevance=FrozenRelevance(tiny_discriminator(), 0.5),
        )


def test_error_of_each_sample_in_float32() -> None:
    a, b = torch.randn(3, 1, 2, 2).bfloat16(), torch.randn(3, 1, 2, 2)
    found = per_sample_error(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([((x.float() - y) ** 2).mean() for x, y in zip(a, b, strict=True)]))
