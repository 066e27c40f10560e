"""One fit's learning of weights: what happens around each training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_methods.data_manipulation.functional import effective_sample_size
from lit_methods.data_manipulation.guards import Reader, check_batch_size, check_repeatable, read_index, read_labels
from lit_methods.data_manipulation.hypergradient import Hypergradient, Record
from lit_methods.data_manipulation.problem import ModesKept, Problem, random_state_kept
from lit_methods.data_manipulation.processes import Share, average, gather, is_distributed, share_of
from lit_methods.data_manipulation.reduction import PerSampleLosses, Reduction
from lit_methods.data_manipulation.strategies import SampleBatch, WeightingStrategy
from lit_methods.data_manipulation.validation import ValidationStream

METERS = ("effective_sample_size", "evenness", "max_weight", "zero_batches", "batches", "val_loss", "val_losses")


@dataclass(frozen=True)
class Reading:
    """How batches are read and the look-ahead is run; see `DataWeighting`."""

    index_fn: Reader | None
    label_fn: Reader | None
    val_batches: int
    eval_mode: bool
    seed: int


@dataclass(frozen=True)
class Weighed:
    """A batch between its weights and what is learned from it."""

    batch: Any
    known: SampleBatch
    share: Share
    weights: Tensor
    record: Record | None = None


class WeightingRun:
    """State of one fit.

    Args:
        module: The module in training.
        losses: Its loss per example.
        strategy: Started anew here.
        hypergradient: Finds the gains.
        optimizer: Its parameters and learning rates make the look-ahead; it is only read.
        num_samples: Number N of training examples.
        class_counts: For strategies that need labels.
        val_loader: For strategies that need gains.
        reading: How batches are read.
        to_device: Moves a validation batch.
    """

    def __init__(
        self,
        module: LightningModule,
        losses: PerSampleLosses,
        strategy: WeightingStrategy,
        hypergradient: Hypergradient,
        optimizer: Optimizer,
        num_samples: int,
        class_counts: Tensor | None,
        val_loader: Iterable[Any] | None,
        reading: Reading,
        to_device: Any,
    ) -> None:
        self.module, self.losses, self.strategy, self.hypergradient = module, losses, strategy, hypergradient
        self.optimizer, self.num_samples, self.reading = optimizer, num_samples, reading
        self.device = module.device
        strategy.start(num_samples, class_counts, self.device)
        self.stream = None
        if val_loader is not None:
            self.stream = ValidationStream(val_loader, to_device, self.device, reading.seed)
        self.last = torch.full((num_samples,), torch.nan, device=self.device)
        self.meters = {name: torch.zeros((), device=self.device) for name in METERS}
        self._modes = ModesKept(module)
        self._origin: list[Tensor] | None = None
        self._pending: list[Weighed] = []
        self._step = -1
        self._draws = reading.seed

    def probe(self, batch: Any) -> None:
        """Two passes over a batch, so that what cannot work is refused before any step."""
        index = read_index(batch, self.reading.index_fn, self.num_samples, self.strategy.needs_index)
        with self._quiet(), torch.no_grad():
            losses = self._losses_of(batch)
            check_batch_size(losses, index)
            check_repeatable(losses, self._losses_of(batch))

    def before_step(self, batch: Any, learns: bool, global_step: int) -> Reduction:
        """This process' weights of a batch; they learn first where the look-ahead comes first."""
        self._draws = self.reading.seed + global_step
        known, share = self._read(batch)
        first = learns and not self.hypergradient.lookahead.follows_training
        if first:
            self._learn([Weighed(batch, known, share, self.strategy.weights(known))])
        weights, record = self.strategy.weights(known), None
        if learns and not first:
            if not self._pending:
                if self.hypergradient.keeps_origin:
                    self._origin = [p.data.clone() for p in self._problem([]).parameters]
                self._step = global_step
            record = self.hypergradient.watch(self.module)
            self._pending.append(Weighed(batch, known, share, weights, record))
        self._note(known, weights)
        own = share.own(weights)
        return Reduction(own if share.scale == 1 else own * share.scale, record)

    def after_step(self, global_step: int) -> None:
        """The weights learn from the training step, once it was taken."""
        if self._pending and global_step > self._step:
            self._learn(self._pending)
            self.drop_pending()

    def drop_pending(self, batch: Any = None) -> None:
        """Forgets batches whose training step was left out: one, or all."""
        for one in self._pending:
            if one.record is not None:
                one.record.remove()
        self._pending = [] if batch is None else [one for one in self._pending if one.batch is not batch]
        if not self._pending:
            self._origin = None

    def take_figures(self) -> dict[str, float]:
        """Mean figures of the batches since the last call; empty without any."""
        meters = {name: float(meter) for name, meter in self.meters.items()}
        for meter in self.meters.values():
            meter.zero_()
        if not meters["batches"]:
            return {}
        figures = {
            name: meters[name] / meters["batches"] for name in ("effective_sample_size", "evenness", "zero_batches")
        }
        figures["max_weight"] = meters["max_weight"]
        if meters["val_losses"]:
            figures["val_loss"] = meters["val_loss"] / meters["val_losses"]
        return figures

    def _problem(self, weighed: list[Weighed]) -> Problem:
        val_batches = (
            [] if self.stream is None or not weighed else [self.stream.next() for _ in range(self.reading.val_batches)]
        )
        return Problem(
            self.module,
            train_losses=lambda: torch.cat([self._losses_of(one.batch) for one in weighed]),
            val_loss=lambda: torch.stack([self._losses_of(batch).mean() for batch in val_batches]).mean(),
            groups=self.optimizer.param_groups,
            reduce=average if is_distributed() else None,
        )

    def _learn(self, weighed: list[Weighed]) -> None:
        """One hypergradient over all micro-batches of a training step, then a step of each one's weights."""
        problem = self._problem(weighed)
        own = torch.cat([one.share.own(one.weights) * one.share.scale for one in weighed])
        records = [one.record for one in weighed if one.record is not None]
        with self._quiet():
            gains, val_loss = self.hypergradient.gains(problem, own, self._origin, records)
        if val_loss is not None:
            self.meters["val_loss"] += val_loss
            self.meters["val_losses"] += 1
        parts = torch.split(gains / len(weighed), [one.share.size for one in weighed])
        for one, part in zip(weighed, parts, strict=True):
            found = gather(part, one.share)
            if bool(found.isfinite().all()):
                self.strategy.update(one.known, one.weights, found)
            else:
                rank_zero_warn(
                    "A look-ahead gave a gain that is not finite; the weights of its batch stay as they are. Look at"
                    " the losses of the training and validation batches."
                )

    def _losses_of(self, batch: Any) -> Tensor:
        with random_state_kept(self.device, self._draws):  # what is random is so alike in all passes of a step
            return self.losses(batch)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Context that leaves modes and buffers as they were."""
        if self.reading.eval_mode:
            with self._modes:
                yield
            return
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    def _read(self, batch: Any) -> tuple[SampleBatch, Share]:
        strategy, reading, losses = self.strategy, self.reading, None
        index = read_index(batch, reading.index_fn, self.num_samples, strategy.needs_index)
        labels = read_labels(batch, reading.label_fn) if strategy.needs_labels else None
        if strategy.needs_losses or (index is None and labels is None):
            with self._quiet(), torch.no_grad():
                losses = self._losses_of(batch)
        size = next(len(found) for found in (index, labels, losses) if found is not None)
        share = share_of(size, self.device)
        index, labels, losses = (
            None if found is None else gather(found.to(self.device), share) for found in (index, labels, losses)
        )
        return SampleBatch(index, labels, losses, share.total, self.device), share

    def _note(self, known: SampleBatch, weights: Tensor) -> None:
        if known.index is not None:
            self.last[known.index] = weights.to(self.last)
        effective = effective_sample_size(weights)
        self.meters["effective_sample_size"] += effective
        self.meters["evenness"] += (len(weights) * effective - 1) / (len(weights) - 1) if len(weights) > 1 else 1.0
        self.meters["max_weight"].clamp_(min=weights.max())
        self.meters["zero_batches"] += weights.max() == 0
        self.meters["batches"] += 1

    def sample_weights(self) -> Tensor:
        """Weight of each example, `(N,)`: the strategy's, or the last that it had; NaN where it never had one."""
        own = self.strategy.sample_weights()
        return (self.last if own is None else own).detach().to("cpu", copy=True)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        return {
            "strategy": self.strategy.state_dict(),
            "hypergradient": self.hypergradient.state_dict(),
            "last": self.last.to("cpu", copy=True),
            "meters": {name: float(meter) for name, meter in self.meters.items()},
            "stream": self.stream.state_dict() if self.stream is not None else {"round": 0, "position": 0},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Raises:
            ValueError: If it belongs to another training set.
        """
        if len(state["last"]) != self.num_samples:
            raise ValueError(
                f"The checkpoint has weights of {len(state['last'])} examples, but num_samples={self.num_samples}: it"
                " belongs to another training set. Resume on that one, or train anew."
            )
        self.strategy.load_state_dict(state["strategy"])
        slope = [value.to(self.device) for value in state["hypergradient"]["slope"]]
        self.hypergradient.load_state_dict({**state["hypergradient"], "slope": slope})
        self.last.copy_(state["last"])
        for name, value in state["meters"].items():
            self.meters[name].fill_(value)
        if self.stream is not None:
            self.stream.load_state_dict(state["stream"])
