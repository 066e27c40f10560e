"""Weights of the training examples, learned on a validation set inside any Trainer, as a callback."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import LBFGS

from lit_methods.data_manipulation.guards import check_optimizer, count_labels, validation_loader
from lit_methods.data_manipulation.hypergradient import Hypergradient
from lit_methods.data_manipulation.lookahead import OptimizerStep
from lit_methods.data_manipulation.problem import random_state_kept
from lit_methods.data_manipulation.processes import total
from lit_methods.data_manipulation.reduction import ATTRIBUTE, PerSampleLosses, Reduction
from lit_methods.data_manipulation.run import Reading, WeightingRun
from lit_methods.data_manipulation.strategies import LearnedWeights, WeightingStrategy
from lit_methods.data_manipulation.validation import batch_mover
from lit_methods.errors import check_lightning, check_object, check_strategy


class DataWeighting(Callback):
    """Learns a weight for each training example (Hu et al. 2019, arXiv 1910.12795), or weighs by a peer's rule.

    The module offers ``per_sample_loss(batch) -> (B,)`` without logging, and reduces by ``weighted_mean(self, losses)``
    in ``training_step``; or ``criterion`` names the loss module that ``training_step`` calls, and nothing is edited.
    Batches carry the examples' positions (``IndexedDataset``). Optimization stays as it is: clipping, accumulation,
    mixed precision, schedulers and DDP work on.

    Args:
        val_dataloader: Clean, balanced examples that the weights learn from, in batches like the module's own; None
            for the Trainer's validation loader. These examples then are no independent judge of the model.
        num_samples: Number N of training examples; None for the length of the training loader's data set.
        strategy: Rule of the weights; None for ``LearnedWeights()``.
        hypergradient: Look-ahead and backend; None for the strategy's own.
        criterion: Name of the loss submodule that ``training_step`` calls, with ``reduction="mean"``.
        optimizer: Position of the optimizer that trains on the weighted loss, where there are several.
        every_n_steps: Batches per step of the weights; the batches take turns over the epochs.
        warmup_epochs: Epochs of plain training at the start.
        freeze_after: Epoch from which the weights stay as they are; None for never.
        val_batches: Validation batches per step of the weights.
        eval_mode: Whether the look-ahead runs in evaluation mode. Without, dropout and BatchNorm act in it. Random
            numbers of torch are the same in all passes of one look-ahead, and others in the next step.
        index_fn: Takes the index `(B,)` out of a batch of another form.
        label_fn: Takes the classes `(B,)` out of a batch of another form, for strategies that need them.
        min_effective_sample_size: Least share of the batch that the weights should leave, averaged over an epoch:
            0 for one example alone, 1 for all alike. Below it a warning tells that they collapse.
        pictures: Number of examples with least weight that are listed (and shown, if they are images) at the end.
        seed: Of the order of a shuffled validation loader and of random draws in the look-ahead.

    Guarantees:
        - A step of the weights leaves parameters, optimizer state, buffers, random states, modes and ``.grad`` bit for
          bit as they were.
        - Equal weights train bit for bit like no callback.
        - A run that is resumed after an epoch equals the uninterrupted one, moments included.
        - All processes of a distributed run hold the same weights.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If a string stands for an object.
        MisconfigurationException: If look-ahead and strategy do not fit together.
    """

    def __init__(
        self,
        val_dataloader: Iterable[Any] | None = None,
        num_samples: int | None = None,
        strategy: WeightingStrategy | None = None,
        hypergradient: Hypergradient | None = None,
        criterion: str | None = None,
        optimizer: int | None = None,
        every_n_steps: int = 1,
        warmup_epochs: int = 1,
        freeze_after: int | None = None,
        val_batches: int = 1,
        eval_mode: bool = True,
        index_fn: Callable[[Any], Tensor] | None = None,
        label_fn: Callable[[Any], Tensor] | None = None,
        min_effective_sample_size: float = 0.1,
        pictures: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        least = {"num_samples": 1, "every_n_steps": 1, "warmup_epochs": 0, "freeze_after": 0, "val_batches": 1}
        for name, bound in {**least, "pictures": 0}.items():
            value = locals()[name]
            if value is not None and value < bound:
                raise ValueError(f"{name}={value} must be at least {bound}.")
        if not 0 <= min_effective_sample_size < 1:
            raise ValueError(f"min_effective_sample_size={min_effective_sample_size} must lie in [0, 1).")
        check_object("strategy", strategy, WeightingStrategy, "LearnedWeights()")
        check_object("hypergradient", hypergradient, Hypergradient, "Hypergradient()")
        self.val_dataloader, self.num_samples, self.criterion = val_dataloader, num_samples, criterion
        self.strategy = strategy or LearnedWeights()
        self.hypergradient = hypergradient or self.strategy.hypergradient()
        if self.strategy.needs_fresh_gains and (self.hypergradient.lookahead.follows_training or every_n_steps > 1):
            raise MisconfigurationException(
                f"strategy={type(self.strategy).__name__} makes each batch's weights of its own gains: it needs"
                " every_n_steps=1 and a look-ahead before the training step, such as AtTheta()."
            )
        self.optimizer, self.every_n_steps, self.warmup_epochs = optimizer, every_n_steps, warmup_epochs
        self.freeze_after, self.pictures = freeze_after, pictures
        self.min_effective_sample_size = min_effective_sample_size
        self.reading = Reading(
            index_fn=index_fn, label_fn=label_fn, val_batches=val_batches, eval_mode=eval_mode, seed=seed
        )
        self._restored: dict[str, Any] | None = None
        self._result: Tensor | None = None
        self._saved: dict[str, Any] = {}
        self._losses: PerSampleLosses | None = None
        self._run: WeightingRun | None = None
        self._probed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the last fit, and refuses strategies that shard."""
        check_lightning(pl_module)
        if stage != "fit":
            return
        check_strategy(trainer, "DataWeighting looks ahead by moving whole ones")
        self._restored = self._losses = self._run = self._result = None
        self._saved, self._probed = {}, False
        self.hypergradient.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the losses per example; a named criterion computes them one by one from here on."""
        self._losses = PerSampleLosses(pl_module, self.criterion)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the table, reads the validation examples, and goes on from a checkpoint."""
        if self._losses is None:
            return
        optimizer = check_optimizer(trainer.optimizers, self.optimizer)
        if isinstance(self.hypergradient.lookahead, OptimizerStep):
            self.hypergradient.lookahead.optimizer = optimizer
            self.hypergradient.lookahead.check()
        device, counts = pl_module.device, None
        if self.strategy.needs_labels and getattr(self.strategy, "class_counts", None) is None:
            with random_state_kept(device, self.reading.seed):
                counts = total(count_labels(trainer.train_dataloader, self.reading.label_fn).to(device))
        self._run = WeightingRun(
            module=pl_module,
            losses=self._losses,
            strategy=self.strategy,
            hypergradient=self.hypergradient,
            optimizer=optimizer,
            num_samples=_length(trainer.train_dataloader) if self.num_samples is None else self.num_samples,
            class_counts=counts,
            val_loader=validation_loader(trainer, self.val_dataloader, "a loader of clean examples")
            if self.strategy.needs_gains
            else None,
            reading=self.reading,
            to_device=batch_mover(trainer, device),
        )
        if self._restored is not None:
            self._run.load_state_dict(self._restored)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Weighs the batch; where the look-ahead comes before the training step, the weights learn here."""
        if self._run is None:
            return
        if not self._probed and self.strategy.needs_gains:
            self._run.probe(batch)
            self._probed = True
        epoch, reduction = trainer.current_epoch, Reduction(None)
        if epoch >= self.warmup_epochs:
            frozen = self.freeze_after is not None and epoch >= self.freeze_after
            due = (batch_idx + epoch) % self.every_n_steps == 0
            learns = self.strategy.needs_gains and due and not frozen
            reduction = self._run.before_step(batch, learns, trainer.global_step)
        pl_module.__dict__[ATTRIBUTE] = reduction

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lets the weights learn from the training step, where that is the look-ahead.

        Raises:
            MisconfigurationException: If the step did not use the weights, or called the criterion more than once.
        """
        reduction: Reduction | None = pl_module.__dict__.pop(ATTRIBUTE, None)
        if self._run is None or reduction is None:
            return
        if self.criterion is not None and reduction.used > 1 and not isinstance(self._run.optimizer, LBFGS):
            raise MisconfigurationException(
                f"training_step of {type(pl_module).__name__} calls criterion={self.criterion!r} {reduction.used}"
                " times, of which the weights would see the first only. Offer per_sample_loss(batch), and reduce by"
                " weighted_mean(self, losses)."
            )
        if not reduction.used:
            self._run.drop_pending(batch)
            if outputs or (outputs is not None and not pl_module.automatic_optimization):  # else it returned None
                raise MisconfigurationException(
                    f"training_step of {type(pl_module).__name__} did not ask for the weights. Return"
                    " weighted_mean(self, losses) there, or name the loss module that it calls by criterion=."
                )
        self._run.after_step(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what the weights did, and warns when they collapse."""
        if self._run is None:
            return
        self._run.drop_pending()
        figures = self._run.take_figures()
        evenness = figures.pop("evenness", 1.0)
        pl_module.log_dict({f"data_weighting/{name}": value for name, value in figures.items()}, sync_dist=True)
        if evenness < self.min_effective_sample_size:
            rank_zero_warn(
                f"The weights of epoch {trainer.current_epoch} left an effective sample size of"
                f" {figures['effective_sample_size']:.3f} of the batch ({evenness:.3f} where one example alone counts"
                f" as 0), below min_effective_sample_size={self.min_effective_sample_size}: they collapse onto few"
                " examples. Lower the step size of the weights, bound them by max_logit=, raise the temperature, or"
                " hold out more validation examples."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the histogram of the weights and the examples with the least."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]  # a property that Lightning makes by name
            return
        if self._run is not None and bool(self.weights().isfinite().any()):
            from lit_methods.data_manipulation.figures import show_weights

            dataset = getattr(trainer.train_dataloader, "dataset", None)
            show_weights(trainer, self.weights(), dataset, self.pictures, self.reading.index_fn)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the module as it was found."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the module as it was found."""
        if stage != "fit":
            return
        if self._losses is not None:
            self._losses.remove()
        if self._run is not None:
            self._run.drop_pending()
            self._result, self._saved = self._run.sample_weights(), self._run.state_dict()
        pl_module.__dict__.pop(ATTRIBUTE, None)
        self._losses = self._run = None

    def weights(self) -> Tensor:
        """Weight of each training example, mean 1, on the CPU.

        Returns:
            `(N,)`: for learned weights those that one batch of all examples would have, and else the last that each
            example had, NaN where it never had one.

        Raises:
            RuntimeError: Before the first fit.
        """
        if self._run is not None:
            return self._run.sample_weights()
        if self._result is None:
            raise RuntimeError("No example has a weight yet: call Trainer.fit with this callback first.")
        return self._result

    def export_csv(self, path: str | Path) -> Path:
        """Writes `index,weight` of each training example.

        Args:
            path: The file; its folder is made.

        Returns:
            The file's path.
        """
        path, weights = Path(path), self.weights()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["index", "weight"], *enumerate(weights.tolist())])
        return path

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments, the place in the validation set, and the epoch's running figures."""
        return self._saved if self._run is None else self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a checkpoint's state until training starts."""
        self._restored = state_dict or None


def _length(loader: Any) -> int:
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__len__"):
        raise MisconfigurationException(
            f"num_samples=None takes the length of the training set, but {type(loader).__name__} has none. Pass"
            " num_samples=, the number of training examples."
        )
    return len(dataset)
