"""The relevance discriminator as a LightningModule."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.aggregation import CatMetric
from torchmetrics.functional.classification import binary_auroc

from lit_methods.errors import check_factory, check_object
from lit_methods.logging import log_figure
from lit_methods.semi_supervised.batches import OpenSetBatch, Unlabeled, check_equal_shapes, check_training_batch
from lit_methods.semi_supervised.draws import seeded
from lit_methods.semi_supervised.functional import effective_sample_size
from lit_methods.semi_supervised.pu import PULoss, RelevanceWeight
from lit_methods.semi_supervised.training import draws_figures, with_scheduler


class RelevanceDiscriminator(LightningModule):
    """Learns from positives and unlabelled images which unlabelled ones are relevant (DWD's discriminator).

    Trains on batches `{"labeled": (images, labels), "unlabeled": (images, index, known)}` by nnPU under automatic
    optimization. Validation on batches of the pool, `(images, index, known)`, logs how well known classes are told
    from unknown ones where the truth is given: `val/auroc`, `val/weight_share_known`, `val/ess`. Validation on
    labelled images logs `val/recall`, the share that is scored above one half. Prediction gives `index`, `logit` and
    `weight` of each image; `selection_file` keeps which of them are scored above one half.

    Args:
        network: Maps images `(B, C, H, W)` to logits `(B,)` or `(B, 1)`. BatchNorm would let labelled and unlabelled
            images leak into each other; take GroupNorm.
        loss: The PU loss; it holds the prior.
        alpha: Factor of the weight that prediction and validation report.
        augmentation: Applied to image batches in training; None for none.
        optimizer: Takes the trainable parameters; None for AdamW at rate 2e-4, weight decay 1e-4, as the paper's code.
        scheduler: Takes the optimizer and returns a scheduler that is stepped after each step.
        seed: Seed of the augmentation.
        selection_file: JSON file that prediction over the whole pool writes: its size as `pool` and the `positions` of
            the images scored above one half. `OpenSetDataModule(pool_file=...)` reads it. None writes nothing.
        pretrained: Whether `network` comes trained, so that `selection_file` needs neither a fit nor a checkpoint.

    Raises:
        ValueError: If `alpha` is out of its range.
        TypeError: If a string stands for an object.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: PULoss,
        alpha: float = 3.0,
        augmentation: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        selection_file: str | Path | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        check_object("network", network, nn.Module, "SmallCNN(num_classes=1)")
        check_object("loss", loss, PULoss, "PULoss(prior=0.5)")
        check_factory("optimizer", optimizer)
        self.save_hyperparameters({"alpha": alpha, "seed": seed, "prior": loss.prior, "balanced": loss.balanced})
        self.network, self.loss, self.augmentation = network, loss, augmentation
        self.weight = RelevanceWeight(loss.prior, alpha, loss.balanced)
        self._make_optimizer, self._make_scheduler, self._seed = optimizer, scheduler, seed
        self._val_logits, self._val_known = CatMetric(), CatMetric()
        self.selection_file = selection_file
        self._pool_logits, self._pool_index = CatMetric(), CatMetric()
        self._steps_known = int(pretrained)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B,)` of images `(B, C, H, W)`."""
        return cast(Tensor, self.network(images)).flatten()

    def training_step(self, batch: OpenSetBatch, batch_idx: int) -> Tensor:
        """PU loss of one batch, logged as `train/loss`."""
        check_training_batch(batch, None)
        check_equal_shapes(batch)
        labeled, unlabeled = batch["labeled"][0], batch["unlabeled"][0]
        images = torch.cat([labeled, unlabeled])
        if self.augmentation is not None:
            with seeded(self.device, self._seed, self.trainer.fit_loop.total_batch_idx, self.global_rank):
                images = self.augmentation(images)
        self._steps_known += 1
        logits = self(images)
        loss = cast(Tensor, self.loss(logits[: len(labeled)], logits[len(labeled) :]))
        weight = self.weight(logits[len(labeled) :].detach())
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=1)
        self.log("train/weight", weight.mean(), on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor] | Unlabeled, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collects the scores of the pool, or logs `val/recall` of labelled images."""
        logits = self(batch[0])
        if len(batch) == 3:
            self._val_logits.update(logits.float())
            self._val_known.update(batch[2].float())
        else:
            recall = (logits > 0).float().mean()
            self.log(
                "val/recall", recall, sync_dist=True, batch_size=len(logits), add_dataloader_idx=False, prog_bar=True
            )

    def on_validation_epoch_end(self) -> None:
        """Logs what the weights would do to the pool, and how far they agree with the truth where it is given."""
        if not self._val_logits.update_called:
            return
        logits, known = self._val_logits.compute(), self._val_known.compute().long()
        self._val_logits.reset()
        self._val_known.reset()
        weight = self.weight(logits)
        self.log("val/weight", weight.mean())
        self.log("val/ess", effective_sample_size(weight).float())
        if 0 <= int(known.min()) < int(known.max()):
            self.log("val/auroc", binary_auroc(logits, known), prog_bar=True)
            self.log("val/weight_share_known", weight[known == 1].sum() / weight.sum())
        if draws_figures(self.trainer):
            from lit_methods.semi_supervised.figures import weight_histogram

            log_figure(self.trainer, "val/weights", weight_histogram(weight.cpu(), known.cpu()))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `test/recall`, the share of labelled test images scored above one half."""
        recall = (self(batch[0]) > 0).float().mean()
        self.log("test/recall", recall, sync_dist=True, batch_size=len(batch[0]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes a checkpoint after at least one step for trained weights."""
        self._steps_known += checkpoint.get("global_step", 0)

    def on_predict_start(self) -> None:
        """Refuses to write a choice by untrained weights.

        Raises:
            MisconfigurationException: If there is a `selection_file`, but no step was taken, no checkpoint read,
                `network` is not `pretrained`, and this is no `fast_dev_run`.
        """
        if self.selection_file is not None and not self._steps_known and not cast(Any, self.trainer).fast_dev_run:
            raise MisconfigurationException(
                "The discriminator is untrained and would choose at random; pass the checkpoint of a fit as ckpt_path "
                "(--ckpt_path FILE on the command line), or pretrained=True where `network` comes trained."
            )

    def predict_step(self, batch: Unlabeled, batch_idx: int) -> dict[str, Tensor]:
        """Position, logit and weight of each image of the pool, each `(B,)`."""
        logits = self(batch[0]).float()
        if self.selection_file is not None:
            self._pool_logits.update(logits)
            self._pool_index.update(batch[1].float())
        return {"index": batch[1], "logit": logits, "weight": self.weight(logits)}

    def on_predict_epoch_end(self) -> None:
        """Writes `selection_file`, whole or not at all."""
        if self.selection_file is None or not self._pool_logits.update_called:
            return
        logits, index = self._pool_logits.compute(), self._pool_index.compute().long()
        self._pool_logits.reset()
        self._pool_index.reset()
        if self.trainer.is_global_zero and not cast(Any, self.trainer).fast_dev_run:
            kept = sorted(set(index[logits > 0].tolist()))
            path = Path(self.selection_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.part")
            partial.write_text(json.dumps({"pool": int(index.max()) + 1, "positions": kept}))
            partial.replace(path)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the trainable parameters and, if given, its scheduler."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if self._make_optimizer is None:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=1e-4)
        else:
            optimizer = self._make_optimizer(trained)
        return with_scheduler(optimizer, self._make_scheduler)
