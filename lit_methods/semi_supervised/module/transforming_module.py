"""A class-conditional diffusion model that transforms images, inside a Trainer."""

from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_methods.logging import log_figure
from lit_methods.semi_supervised.batches import Unlabeled
from lit_methods.semi_supervised.ema import ExponentialMovingAverage
from lit_methods.semi_supervised.training import draws_figures
from lit_methods.semi_supervised.transformation import Transformation

_PREVIEW_IMAGES, _PREVIEW_STRENGTHS = 8, (0.2, 0.4, 0.6, 0.8, 1.0)


class TransformingModule(LightningModule):
    """Holds a diffusion model and predicts with its moving average; how it is trained is open.

    Args:
        unet: Maps noisy latents, timesteps and classes to an object with the noise as `sample`.
        num_classes: Number K of known classes; index K is the null class.
        transformation: How prediction transforms images; None for `Transformation()`.
        autoencoder: diffusers' `AutoencoderKL`, frozen; None for diffusion on pixels.
        noise_schedule: Arguments of diffusers' `DDPMScheduler`; None for 1000 steps of the linear schedule.
        ema_decay: Decay of the moving average.
        pretrained: Whether `unet` comes trained, so that prediction needs neither a fit nor a checkpoint.
    """

    def __init__(
        self,
        unet: nn.Module,
        num_classes: int,
        transformation: Transformation | None,
        autoencoder: nn.Module | None,
        noise_schedule: dict[str, Any] | None,
        ema_decay: float,
        pretrained: bool,
    ) -> None:
        super().__init__()
        from diffusers import DDPMScheduler  # here, because it takes seconds to import

        self.unet, self.num_classes, self.pretrained = unet, num_classes, pretrained
        self.transformation = Transformation() if transformation is None else transformation
        self.autoencoder = None if autoencoder is None else autoencoder.requires_grad_(False).eval()
        self.noise_scheduler = DDPMScheduler(**({"beta_schedule": "linear"} | (noise_schedule or {})))
        self.ema = ExponentialMovingAverage(unet, ema_decay)
        self._preview: Unlabeled | None = None

    def train(self, mode: bool = True) -> "TransformingModule":
        """Sets the mode; the autoencoder stays in evaluation mode."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    def on_predict_start(self) -> None:
        """Refuses untrained weights, and shows the labelled images to a class choice that needs them.

        Raises:
            MisconfigurationException: If the moving average has seen no step, `unet` is not `pretrained`, and this is
                no `fast_dev_run`.
        """
        trained = self.pretrained or int(self.ema.updates) > 0
        if not trained and not cast(Any, self.trainer).fast_dev_run:
            raise MisconfigurationException(
                "The diffusion is untrained and would turn the images into noise; pass the checkpoint of a fit as "
                "ckpt_path (--ckpt_path FILE on the command line), or pretrained=True where `unet` comes trained."
            )
        labeled = getattr(cast(Any, self.trainer).datamodule, "labeled_set", None)
        if self.transformation.class_choice.needs_labeled and labeled is not None:
            images, labels = labeled.__getitems__(range(len(labeled)))
            self.transformation.class_choice.remember(images.to(self.device), labels.to(self.device))

    def predict_step(self, batch: Unlabeled, batch_idx: int) -> dict[str, Tensor]:
        """Transformed images `(B, C, H, W)`, their `label`, the source's `index` and the `strength`, each `(B,)`."""
        images, index = batch[0], batch[1]
        labels = self.transformation.class_choice(images, index, self.num_classes)
        made = self.transformation(self.pipeline(), images, labels, index)
        return {
            "images": made,
            "label": labels,
            "index": index,
            "strength": torch.full((len(images),), self.transformation.strength),
        }

    def pipeline(self) -> Any:
        """The transformation with the moving average, as a diffusers pipeline to call or to save."""
        from lit_methods.semi_supervised.pipeline import ClassTransformationPipeline

        (low, high), clip_clean = self.transformation.value_range, self.transformation.clip_clean
        pipeline = ClassTransformationPipeline(
            self.ema.network, self.noise_scheduler, self.autoencoder, low, high, clip_clean
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def prediction_settings(self) -> dict[str, Any]:
        """All that decides what prediction gives, as plain values; a digest stands for the weights."""
        return {"num_classes": self.num_classes} | self.transformation.settings(self.ema.network)

    def on_train_end(self) -> None:
        """Logs sources and, below them, their transformations at several strengths."""
        if self._preview is not None and draws_figures(self.trainer):
            from lit_methods.semi_supervised.figures import image_rows

            sources, index = self._preview[0][:_PREVIEW_IMAGES], self._preview[1][:_PREVIEW_IMAGES]
            labels = (torch.arange(len(sources)) % self.num_classes).to(self.device)
            rows = [("source", sources)]
            for strength in _PREVIEW_STRENGTHS:
                made = self.transformation(self.pipeline(), sources, labels, index, strength)
                rows.append((f"t0 = {strength}", made))
            log_figure(self.trainer, "train/transformations", image_rows(rows, *self.transformation.value_range))
        self._preview = None
