"""The plain supervised classifier that the drop-in callbacks are shown on; it knows no method."""

import copy
from typing import cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lit_methods.errors import check_factory, check_object

Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


class Classifier(LightningModule):
    """Supervised classification of `(inputs, labels)` batches under automatic optimization.

    A third entry of a batch, such as the examples' positions that an `IndexedDataset` adds, is left alone.

    Logs `train/loss`, `val/loss`, `val/acc`, `test/loss` and `test/acc`, each a mean over the epoch.

    The network, the loss and the two callables are not hyperparameters: a checkpoint holds weights and plain
    values only, so that `weights_only=True` reads it. Pass `network` to `load_from_checkpoint` (and `loss`,
    `optimizer`, `scheduler` where they differ from the defaults); a run of the command line has them in its
    `config.yaml`.

    Args:
        network: Module that maps inputs `(B, ...)` to logits `(B, num_classes)`.
        num_classes: Number of classes, at least 2.
        optimizer: Takes the trainable parameters and returns the optimizer; None for SGD at rate 0.1, momentum 0.9.
        scheduler: Takes the optimizer and returns a learning-rate scheduler, stepped after each epoch
            (`ReduceLROnPlateau` watches `val/loss`); None keeps the rate constant.
        loss: Module of `(logits, labels)` with a `reduction` attribute, as in `torch.nn`; None for the mean
            cross-entropy.

    Raises:
        ValueError: If `num_classes` is below 2.
        TypeError: If `loss` has no `reduction` attribute, or a string stands for an object.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2.")
        if loss is not None and not hasattr(loss, "reduction"):
            raise TypeError(
                f"loss={type(loss).__name__} has no `reduction` attribute, which per_sample_loss needs; "
                "pass a loss that follows torch.nn, such as torch.nn.CrossEntropyLoss(label_smoothing=0.1)."
            )
        check_object("network", network, nn.Module, "MLP(64, [32], 10)")
        check_factory("optimizer", optimizer)
        check_factory("scheduler", scheduler, "partial(StepLR, step_size=10)")
        self.save_hyperparameters(ignore=["network", "loss", "optimizer", "scheduler"])
        self.network = network
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of inputs `(B, ...)`."""
        return cast(Tensor, self.network(inputs))

    def per_sample_loss(self, batch: Batch) -> Tensor:
        """Loss of each example of `(inputs, labels)`, unreduced: `(B,)`."""
        inputs, labels = batch[:2]
        unreduced = copy.copy(self.loss)
        unreduced.reduction = "none"  # type: ignore[assignment]  # torch types every attribute as a tensor
        return cast(Tensor, unreduced(self(inputs), labels))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Reduced loss of one batch, logged as `train/loss`."""
        inputs, labels = batch[:2]
        loss = cast(Tensor, self.loss(self(inputs), labels))
        self.log(
            "train/loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(labels),
        )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs `val/loss` and `val/acc`."""
        self._evaluate("val", batch, self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs `test/loss` and `test/acc`."""
        self._evaluate("test", batch, self.test_accuracy)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Class probabilities `(B, num_classes)` of inputs, with or without labels beside them."""
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        return cast(Tensor, self(inputs)).softmax(dim=-1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the trainable parameters and, if given, its scheduler."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if self._make_optimizer is None:
            optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        else:
            optimizer = self._make_optimizer(trained)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}

    def _evaluate(self, stage: str, batch: Batch, accuracy: MulticlassAccuracy) -> None:
        inputs, labels = batch[:2]
        logits = self(inputs)
        accuracy(logits, labels)
        loss = self.loss(logits, labels)
        self.log(f"{stage}/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(labels))
        self.log(f"{stage}/acc", accuracy, on_epoch=True, prog_bar=True, batch_size=len(labels))
