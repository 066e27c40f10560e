"""Discriminator-weighted diffusion as a LightningModule."""

from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lit_methods.errors import check_object, check_strategy
from lit_methods.logging import log_figure
from lit_methods.semi_supervised.batches import OpenSetBatch, check_equal_shapes, check_labels, check_training_batch
from lit_methods.semi_supervised.draws import DiffusionDraws, seeded_generator
from lit_methods.semi_supervised.functional import effective_sample_size, per_sample_error, weighted_diffusion_loss
from lit_methods.semi_supervised.latents import LatentCache, check_image_shape, encode
from lit_methods.semi_supervised.module.transforming_module import TransformingModule
from lit_methods.semi_supervised.relevance import JointRelevance, Relevance, UniformRelevance
from lit_methods.semi_supervised.samples import ClassSamples
from lit_methods.semi_supervised.training import CLASS_COUNT, check_class_count, draws_figures, with_scheduler
from lit_methods.semi_supervised.transformation import Transformation

_CACHED, _COUNT = "lit_methods_relevance", "lit_methods_diffusion_draws"
_TRAINING, _EVALUATION = 0, 1


class DiscriminatorWeightedDiffusion(TransformingModule):
    """Class-conditional diffusion on labelled images and, under the null class, on weighted unlabelled ones (DWD).

    Trains on batches `{"labeled": (images, labels), "unlabeled": (images, index, known)}`. Labelled images count 1
    under their class, unlabelled ones the weight that `relevance` gives them under the null class.

    Prediction transforms each image of batches `(images, index, known)` and gives `images`, `label`, `index` and
    `strength`; `SyntheticImageWriter` writes them to a folder. The moving average of the U-Net is what validates and
    generates; it is part of the checkpoint. An untrained one is refused.

    Logs `train/loss`, `train/loss_labeled`, `train/loss_unlabeled`, `train/weight`, `train/ess` (as a share of the
    unlabelled batch), `val/loss` and `test/loss` (error under the true class, with the same noise each time). With a
    `JointRelevance`, optimization is manual: it logs `train/loss_discriminator`, and each batch counts as two steps of
    the Trainer. Pictures: `val/samples`, drawn from noise, and `train/transformations`. With a judge in `samples`,
    `val/null_known_share` is the share of known classes in what the null class generates.

    Args:
        unet: Maps noisy latents, timesteps and classes to an object with the noise as `sample`, as diffusers'
            `UNet2DModel(num_class_embeds=num_classes + 1)`.
        num_classes: Number K of known classes; index K is the null class.
        relevance: Weights of unlabelled images: `FrozenRelevance`, `JointRelevance`, or `UniformRelevance` (None).
        transformation: How prediction transforms images; None for `Transformation()`, the paper's.
        autoencoder: diffusers' `AutoencoderKL`, frozen; None for diffusion on pixels.
        cache_latents: Whether the pool's latents are kept in memory between steps, one for each mirroring; labelled
            images, the small part of a batch, are encoded in each step. Not in the checkpoint.
        noise_schedule: Arguments of diffusers' `DDPMScheduler`; None for 1000 steps of the linear schedule.
        label_dropout: Share of labelled images that train the null class instead.
        horizontal_flip: Whether images are mirrored at random.
        ema_decay: Decay of the moving average, approached as `(1 + n) / (10 + n)`.
        seed: Seed of timesteps, noise and label dropout.
        samples: What validation draws from noise; None for `ClassSamples()`, a picture without a judge.
        pretrained: Whether `unet` comes trained, so that prediction needs neither a fit nor a checkpoint.
        optimizer: Takes the U-Net's parameters; None for AdamW at rate 2e-4, weight decay 0.003, as the paper's code.
        scheduler: Takes the optimizer and returns a scheduler that is stepped after each step.

    Guarantees:
        - With every weight 1 and no label dropout the loss is plain diffusion on the concatenated batch.
        - No gradient of the diffusion loss reaches the discriminator.
        - A run resumed after an epoch, with the same data, continues bit for bit; with `cache_latents` up to rounding.
        - The transformation of an image depends on its index, not on the batch, the process or a resume.

    Raises:
        ValueError: If an argument is out of its range or the U-Net has another number of classes.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        unet: nn.Module,
        num_classes: int,
        relevance: Relevance | None = None,
        transformation: Transformation | None = None,
        autoencoder: nn.Module | None = None,
        cache_latents: bool = False,
        noise_schedule: dict[str, Any] | None = None,
        label_dropout: float = 0.1,
        horizontal_flip: bool = False,
        ema_decay: float = 0.9999,
        seed: int = 0,
        samples: ClassSamples | None = None,
        pretrained: bool = False,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1.")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout={label_dropout} must lie in [0, 1].")
        check_object("relevance", relevance, Relevance, "UniformRelevance()")
        check_object("transformation", transformation, Transformation, "Transformation()")
        embedded = getattr(getattr(unet, "config", None), "num_class_embeds", num_classes + 1)
        if embedded != num_classes + 1:
            raise ValueError(
                f"unet has num_class_embeds={embedded}, but num_classes={num_classes} needs {num_classes + 1}: "
                "one for each class and one for the null class."
            )
        super().__init__(unet, num_classes, transformation, autoencoder, noise_schedule, ema_decay, pretrained)
        self.save_hyperparameters("num_classes", "label_dropout", "horizontal_flip", "ema_decay", "seed")
        self.label_dropout, self.horizontal_flip, self.seed = label_dropout, horizontal_flip, seed
        self.relevance = UniformRelevance() if relevance is None else relevance
        self._latents = LatentCache() if cache_latents and autoencoder is not None else None
        self.register_buffer("alphas_cumprod", self.noise_scheduler.alphas_cumprod.clone(), persistent=False)
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._batches, self._restored = 0, False
        self.samples = ClassSamples() if samples is None else samples
        self._validated: Tensor | None = None
        self.automatic_optimization = not self.relevance.trains

    def setup(self, stage: str) -> None:
        """Refuses strategies that shard: the moving average reads whole parameters.

        Raises:
            MisconfigurationException: If the strategy is one of them.
        """
        check_strategy(self.trainer, "DiscriminatorWeightedDiffusion keeps a moving average of whole ones")

    def on_fit_start(self) -> None:
        """Starts the weights and the draws afresh, unless a checkpoint brought them."""
        if not self._restored:
            self.relevance.start()
            self._batches = 0
        if self._latents is not None:
            self._latents.clear()
        self._restored = False

    def training_step(self, batch: OpenSetBatch, batch_idx: int) -> Tensor | None:
        """DWD's loss of one batch."""
        check_training_batch(batch, self.num_classes if self.current_epoch == 0 else None)
        check_equal_shapes(batch)
        (labeled, labels), (unlabeled, index, _) = batch["labeled"], batch["unlabeled"]
        check_image_shape(self.unet, self.autoencoder, labeled.shape)
        weight, discriminator_loss = self.relevance(labeled, unlabeled, index.cpu())
        self._preview = batch["unlabeled"]
        self._batches += 1
        draws = [self._draws(_TRAINING, self._batches, part) for part in range(2)]
        labels = labels.masked_fill(draws[0].coins(len(labels), self.label_dropout), self.num_classes)
        null = labels.new_full((len(unlabeled),), self.num_classes)
        latents = [
            self._training_latents(labeled, draws[0], None),
            self._training_latents(unlabeled, draws[1], index.cpu()),
        ]
        errors = self._errors(self.unet, latents, torch.cat([labels, null]), draws)
        of_labeled, of_unlabeled = errors[: len(labeled)], errors[len(labeled) :]
        loss = weighted_diffusion_loss(of_labeled, of_unlabeled, weight)
        self._log_training(loss, of_labeled.detach().mean(), of_unlabeled.detach().mean(), weight)
        if discriminator_loss is None:
            return loss
        self._step_both(discriminator_loss, loss)
        return None

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs `val/loss` of labelled batches; batches of the pool are passed over."""
        self._evaluate("val", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs images of each class from noise and, where a judge is given, what the null class holds."""
        like, self._validated = self._validated, None
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        passed = fitting and (self.current_epoch + 1) % self.samples.every_n_epochs
        if like is None or self.trainer.sanity_checking or passed:
            return
        pictured = draws_figures(self.trainer)
        drawn = self.samples.draw(self.pipeline(), like, self.transformation.guidance_scale, pictured)
        if drawn.null_known_share is not None:
            self.log("val/null_known_share", drawn.null_known_share, sync_dist=True)
        if drawn.rows:
            from lit_methods.semi_supervised.figures import image_rows

            log_figure(self.trainer, "val/samples", image_rows(drawn.rows, *self.transformation.value_range))

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Logs `test/loss`."""
        self._evaluate("test", batch, batch_idx)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then moves the average."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.unet)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the relevance keeps and the count that the draws depend on."""
        checkpoint[_CACHED], checkpoint[_COUNT] = self.relevance.cached(), self._batches
        checkpoint[CLASS_COUNT] = self.num_classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back, unless they are of another number of classes."""
        check_class_count(checkpoint, self.num_classes)
        self.relevance.load_cached(checkpoint.get(_CACHED, {}))
        self._batches = checkpoint.get(_COUNT, 0)
        self._restored = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The U-Net's optimizer, its scheduler if given, and the discriminator's optimizer if it trains too."""
        trained = [p for p in self.unet.parameters() if p.requires_grad]
        if self._make_optimizer is None:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=3e-3)
        else:
            optimizer = self._make_optimizer(trained)
        if isinstance(self.relevance, JointRelevance):
            scheduler = None if self._make_scheduler is None else self._make_scheduler(optimizer)
            return [optimizer, self.relevance.configure_optimizer()], cast(Any, [scheduler] if scheduler else [])
        return with_scheduler(optimizer, self._make_scheduler)

    def _draws(self, purpose: int, count: int, part: int) -> DiffusionDraws:
        generator = seeded_generator(self.seed, purpose, count, part, device=self.device)
        return DiffusionDraws(generator, self.global_rank, self.trainer.world_size)

    def _training_latents(self, images: Tensor, draws: DiffusionDraws, index: Tensor | None) -> Tensor:
        """Latents of images, mirrored at random if so wished; those of the pool have an index, and may be kept."""
        flips = torch.zeros(len(images), dtype=torch.bool)
        if self.horizontal_flip:
            flips = draws.coins(len(images), 0.5)
            images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
        if self._latents is None or index is None:
            return encode(self.autoencoder, images)
        return self._latents.encode(self.autoencoder, images, index, flips.cpu())

    def _errors(self, network: nn.Module, parts: list[Tensor], classes: Tensor, draws: list[DiffusionDraws]) -> Tensor:
        """Squared error of the noise prediction of each latent, `(B,)`; each part has its own draws."""
        latents, sizes = torch.cat(parts), [len(part) for part in parts]
        steps = len(self.alphas_cumprod)
        timesteps = torch.cat([draw.timesteps(size, steps) for draw, size in zip(draws, sizes, strict=True)])
        shape = latents.shape[1:]
        noise = torch.cat([draw.noise(torch.Size((size, *shape))) for draw, size in zip(draws, sizes, strict=True)])
        alpha_bar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        return per_sample_error(network(noisy, timesteps, class_labels=classes).sample, noise)

    def _evaluate(self, stage: str, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        if len(batch) == 3:
            return
        images, labels = batch
        check_labels(labels, self.num_classes, f"{stage} batch")
        check_image_shape(self.unet, self.autoencoder, images.shape)
        if stage == "val":
            self._validated = images[:1]
        draws = [self._draws(_EVALUATION, batch_idx, 0)]
        loss = self._errors(self.ema.network, [encode(self.autoencoder, images)], labels, draws).mean()
        self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(images), add_dataloader_idx=False)

    def _log_training(self, loss: Tensor, labeled: Tensor, unlabeled: Tensor, weight: Tensor) -> None:
        values = {
            "train/loss_labeled": labeled,
            "train/loss_unlabeled": unlabeled,
            "train/weight": weight.mean(),
            "train/ess": (effective_sample_size(weight) / len(weight)).float(),
        }
        settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": 1}
        self.log("train/loss", loss, prog_bar=True, **settings)
        self.log_dict(values, **settings)

    def _step_both(self, discriminator_loss: Tensor, loss: Tensor) -> None:
        settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": 1}
        self.log("train/loss_discriminator", discriminator_loss, **settings)
        optimizers = cast(list[LightningOptimizer], self.optimizers())[::-1]
        for optimizer in optimizers:
            optimizer.zero_grad()
        # The two share no parameter; DDP waits for the gradients of all of them in one backward pass.
        self.manual_backward(discriminator_loss + loss)
        for optimizer in optimizers:
            optimizer.step()
        self.ema.update(self.unet)
        if (scheduler := self.lr_schedulers()) is not None:
            cast(Any, scheduler).step()
