"""Semi-supervised classification as a LightningModule."""

from functools import partial
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lit_methods.errors import check_factory, check_object, check_strategy
from lit_methods.semi_supervised.batches import OpenSetBatch, check_labels, check_training_batch
from lit_methods.semi_supervised.draws import seeded, seeded_generator
from lit_methods.semi_supervised.ema import ExponentialMovingAverage
from lit_methods.semi_supervised.ssl_functional import gradients_agree, smoothed_targets
from lit_methods.semi_supervised.strategies import Losses, OpenSetNetwork, Step, Strategy, Supervised
from lit_methods.semi_supervised.training import CLASS_COUNT, check_class_count, with_scheduler

_COUNT = "lit_methods_classifier_batches"


class SemiSupervisedClassifier(LightningModule):
    """A classifier trained on labelled and unlabelled images by a strategy; the moving average is evaluated.

    Trains under automatic optimization on batches `{"labeled": (images, labels), "unlabeled": (images, index, known)}`,
    or with `"synthetic": (images, labels)` as the second part. `known` is never read. Views are taken on the device,
    from random numbers that depend on the seed, the process and the number of batches so far.

    Logs `train/loss`, `train/loss_labeled`, `train/loss_unlabeled`, what the strategy adds, `val/acc`, `val/loss`,
    `test/acc`, `test/loss`, and for strategies that gate gradients `train/agree`.

    Args:
        backbone: Maps images `(B, C, H, W)` to features `(B, D)`.
        num_features: Size D of a feature.
        num_classes: Number K of known classes, at least 2.
        strategy: The method; None for `Supervised()`.
        weak: Weak view of image batches; None takes the images as they are.
        strong: Strong view; None takes the images as they are.
        ema_decay: Decay of the moving average, approached as `(1 + n) / (10 + n)`.
        seed: Seed of the views and of the strategy's draws.
        optimizer: Takes the parameters; None for SGD at rate 0.03 with Nesterov momentum 0.9 and weight decay 5e-4 on
            weights of more than one axis, as FixMatch.
        scheduler: Takes the optimizer and returns a scheduler that is stepped after each step.

    Guarantees:
        - A run resumed after an epoch, with the same data, continues bit for bit.
        - The truth about unlabelled images has no influence.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If a string stands for an object.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        strategy: Strategy | None = None,
        weak: nn.Module | None = None,
        strong: nn.Module | None = None,
        ema_decay: float = 0.999,
        seed: int = 0,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2.")
        if num_features < 1:
            raise ValueError(f"num_features={num_features} must be at least 1.")
        check_object("backbone", backbone, nn.Module, "WideResNet()")
        check_object("strategy", strategy, Strategy, "FixMatch()")
        check_factory("optimizer", optimizer)
        self.save_hyperparameters("num_features", "num_classes", "ema_decay", "seed")
        self.strategy = Supervised() if strategy is None else strategy
        self.num_classes, self.seed = num_classes, seed
        heads = self.strategy.heads(num_features, num_classes)
        self.network = OpenSetNetwork(backbone, num_features, num_classes, heads)
        self.ema = ExponentialMovingAverage(self.network, ema_decay)
        self.weak = nn.Identity() if weak is None else weak
        self.strong = nn.Identity() if strong is None else strong
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._batches, self._restored = 0, False
        self._selected: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of the moving average for images `(B, C, H, W)`."""
        return cast(Tensor, self.ema.network(images))

    def setup(self, stage: str) -> None:
        """Refuses strategies that shard: the moving average reads whole parameters.

        Raises:
            MisconfigurationException: If the strategy is one of them.
        """
        check_strategy(self.trainer, "SemiSupervisedClassifier keeps a moving average of whole ones")

    def on_fit_start(self) -> None:
        """Starts the draws afresh, unless a checkpoint brought their count."""
        if not self._restored:
            self._batches = 0
        self._restored = False

    def on_train_epoch_start(self) -> None:
        """Selects unlabelled images by the moving average, where the strategy does so.

        Raises:
            MisconfigurationException: If it does, and the data come without a datamodule.
        """
        if self.strategy.selects_from is None or self.current_epoch < self.strategy.selects_from:
            return
        datamodule = cast(Any, self.trainer).datamodule
        if datamodule is None:
            raise MisconfigurationException(
                f"{type(self.strategy).__name__} goes through the pool before each epoch; "
                "fit it with a datamodule whose predict_dataloader gives (images, index, ...)."
            )
        self._selected = self._select(datamodule.predict_dataloader())
        self.log("train/selected", self._selected.float().mean())

    def training_step(self, batch: OpenSetBatch, batch_idx: int) -> Tensor:
        """The strategy's loss of one batch."""
        step = self._step(batch)
        self._batches += 1
        with seeded(self.device, self.seed, 1, self._batches, self.global_rank):
            losses = self.strategy.losses(step)
        settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": 1}
        if self.strategy.gates_gradients and losses.unlabeled is not None:
            losses, agree = self._gated(losses)
            self.log("train/agree", agree, **settings)
        loss = losses.total()
        self.log("train/loss", loss, prog_bar=True, **settings)
        self.log("train/loss_labeled", losses.labeled, **settings)
        if losses.unlabeled is not None:
            self.log("train/loss_unlabeled", losses.unlabeled, **settings)
        self.log_dict(losses.logged or {}, **settings)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs `val/loss` and `val/acc` of labelled batches; batches of the pool are passed over."""
        self._evaluate("val", batch, self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Logs `test/loss` and `test/acc`."""
        self._evaluate("test", batch, self.test_accuracy)

    def predict_step(self, batch: tuple[Tensor, ...] | Tensor, batch_idx: int) -> Tensor:
        """Class probabilities `(B, K)` of images, alone or first in a batch."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return cast(Tensor, self(images)).softmax(dim=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then moves the average."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.network)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the count that the draws depend on."""
        checkpoint[_COUNT], checkpoint[CLASS_COUNT] = self._batches, self.num_classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back, unless it is of another number of classes."""
        check_class_count(checkpoint, self.num_classes)
        self._batches, self._restored = checkpoint.get(_COUNT, 0), True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the network's parameters and, if given, its scheduler."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if self._make_optimizer is None:
            groups = [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": 5e-4},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ]
            make = partial(torch.optim.SGD, lr=0.03, momentum=0.9, nesterov=True)
            return with_scheduler(make([group for group in groups if group["params"]]), self._make_scheduler)
        return with_scheduler(self._make_optimizer(trained), self._make_scheduler)

    def _step(self, batch: OpenSetBatch) -> Step:
        second = "synthetic" if isinstance(batch, dict) and "synthetic" in batch else "unlabeled"
        check_training_batch(batch, self.num_classes if self.current_epoch == 0 else None, second)
        images, labels = batch["labeled"]
        selected = None
        if second == "unlabeled" and self._selected is not None:
            selected = self._selected[batch["unlabeled"][1].cpu()].to(self.device, non_blocking=True)
        total = self.trainer.estimated_stepping_batches
        return Step(
            network=self.network,
            labeled=images,
            labels=labels,
            targets=smoothed_targets(labels, self.num_classes),
            second=batch[second][0],
            second_labels=batch[second][1] if second == "synthetic" else None,
            selected=selected,
            weak=self.weak,
            strong=self.strong,
            weak_labeled=self.weak,
            progress=min(1.0, self.global_step / total) if total > 0 else 0.0,
            epoch=self.current_epoch,
            generator=seeded_generator(self.seed, 0, self._batches, self.global_rank),
        )

    def _gated(self, losses: Losses) -> tuple[Losses, Tensor]:
        """Drops the unlabelled loss where its gradient points against the labelled one (Fix-A-Step)."""
        shared = [p for p in self.network.parameters() if p.requires_grad]
        gradients = [
            [
                self.trainer.strategy.reduce(g, reduce_op="mean")
                for g in torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True, allow_unused=True)
            ]
            for loss in (losses.labeled, cast(Tensor, losses.unlabeled))
        ]
        agree = gradients_agree(cast(Any, gradients[0]), cast(Any, gradients[1])).float()
        return losses._replace(unlabeled=agree * cast(Tensor, losses.unlabeled)), agree

    @torch.no_grad()
    def _select(self, loader: Any) -> Tensor:
        chosen: list[tuple[Tensor, Tensor]] = []
        for batch in loader:
            found = self.strategy.select(cast(OpenSetNetwork, self.ema.network), batch[0].to(self.device))
            chosen.append((batch[1].cpu(), found.cpu()))
        index = torch.cat([index for index, _ in chosen])
        selected = torch.zeros(int(index.max()) + 1, dtype=torch.bool)
        selected[index] = torch.cat([found for _, found in chosen])
        return selected

    def _evaluate(self, stage: str, batch: tuple[Tensor, ...], accuracy: MulticlassAccuracy) -> None:
        if len(batch) == 3:
            return
        images, labels = batch
        check_labels(labels, self.num_classes, f"{stage} batch")
        logits = self(images)
        accuracy(logits, labels)
        loss = nn.functional.cross_entropy(logits, labels)
        settings: dict[str, Any] = {"on_epoch": True, "batch_size": len(labels), "add_dataloader_idx": False}
        self.log(f"{stage}/loss", loss, sync_dist=True, **settings)
        self.log(f"{stage}/acc", accuracy, prog_bar=True, **settings)
