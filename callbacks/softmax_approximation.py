"""Attention of any LightningModule that keeps a compressed softmax for backward, as a callback."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_methods.errors import check_lightning, check_strategy
from lit_methods.logging import log_table
from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.attachment import Attachment, check_model
from lit_methods.softmax_approximation.back_off import more_accurate
from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.coverage import Coverage
from lit_methods.softmax_approximation.meters import ErrorMeter
from lit_methods.softmax_approximation.registry import as_codec
from lit_methods.softmax_approximation.selection import choose_codec

AUTO = "auto"


class SoftmaxApproximation(Callback):
    """Trains attention with a compressed softmax output (Lee & Lee, NeurIPS 2023), or with none at all.

    Forward values stay exact; backward sees what the codec kept. Hugging Face models take the way of their attention
    interface, ``nn.MultiheadAttention`` (and so ``nn.Transformer``) gets another forward, and every other softmax is
    compressed among what autograd saves. After the fit, on an exception too, the model is as it was.

    Takes automatic and manual optimization, gradient accumulation, bf16, activation checkpointing, DDP, checkpoint
    and resume.

    Args:
        codec: A codec or its name, or ``"auto"`` for the one that reaches ``memory_target``: chosen anew, among those
            that need no query and key, if the model offers only its softmax outputs.
        modules: Patterns (``fnmatch``) of names of the modules to cover, with all that is inside; None for all.
        report: Whether to print and log the coverage table before the first step.
        memory_target: With ``codec="auto"``: how many times less is to be kept than eager attention keeps; 6.2, the
            paper's factor, if None.
        keys: With ``codec="auto"``: usual number of keys of a row.
        error_every_n_steps: How often to compare gradients with the exact ones, layer by layer, on one batch; such a
            step takes about three times the attention's time. None never does.
        max_error: Relative error of the gradient at which a more accurate codec takes over.
        allow_uncovered: Train also where no softmax is reached, instead of refusing.

    Guarantees:
        - With the same weights and the same random state, loss and predictions are those without the callback, up to
          rounding; with ``recompute`` and ``merged`` gradients are too.
        - Parameters, and so the weights in checkpoints, are under the same names.
        - A resumed run goes on with the codec that it had backed off to.

    Raises:
        ValueError: On an unknown codec or arguments that do not fit together.
    """

    def __init__(
        self,
        codec: str | Codec = "log4",
        modules: str | Sequence[str] | None = None,
        report: bool = True,
        memory_target: float | None = None,
        keys: int = 512,
        error_every_n_steps: int | None = None,
        max_error: float | None = None,
        allow_uncovered: bool = False,
    ) -> None:
        super().__init__()
        self.selection = None
        self.keys, self.memory_target = keys, 6.2 if memory_target is None else memory_target
        if codec == AUTO:
            self.selection = choose_codec(keys, memory_target=self.memory_target)
            codec = self.selection.codec
        elif memory_target is not None:
            raise ValueError(f"memory_target={memory_target!r} belongs to codec='auto', but codec is {codec!r}.")
        if error_every_n_steps is not None and error_every_n_steps < 1:
            raise ValueError(f"error_every_n_steps must be at least 1 or None, but is {error_every_n_steps!r}.")
        if max_error is not None and (error_every_n_steps is None or not 0 < max_error < math.inf):
            raise ValueError(
                f"max_error={max_error!r} must be above 0 and finite, and error_every_n_steps says how often to look,"
                f" but is {error_every_n_steps!r}."
            )
        self.codec = as_codec(codec)
        self.modules = (modules,) if isinstance(modules, str) else None if modules is None else tuple(modules)
        self.report, self.allow_uncovered = report, allow_uncovered
        self.error_every_n_steps, self.max_error = error_every_n_steps, max_error
        self.coverage: Coverage | None = None
        self._approximation: Approximation | None = None
        self._attachment: Attachment | None = None
        self._backed_off: str | None = None
        self._reported = False
        self._measured = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies that store the model elsewhere, and begins with the codec that was asked for."""
        check_lightning(pl_module)
        if stage != "fit":
            return
        check_strategy(trainer, "SoftmaxApproximation reaches attention in unwrapped modules of whole ones")
        self._approximation = Approximation(copy.deepcopy(self.codec))
        self._backed_off, self._reported, self._measured, self.coverage = None, False, -1, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches to the model."""
        if self._approximation is None:
            return
        check_model(pl_module)
        self._approximation.coverage = Coverage()
        self._attachment = Attachment(pl_module, self._approximation, self.modules)
        if self.selection is not None:
            chosen = self.selection
            if not self._attachment.scores_at_hand:
                chosen = choose_codec(self.keys, memory_target=self.memory_target, scores_at_hand=False)
                if self._backed_off is None:
                    self._approximation.codec = chosen.codec
            rank_zero_info(chosen.reason)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Opens the hooks for the forward pass that follows."""
        if self._attachment is None or self._approximation is None:
            return
        every = self.error_every_n_steps
        if every is not None and trainer.global_step % every == 0 and trainer.global_step != self._measured:
            self._approximation.errors, self._measured = ErrorMeter(), trainer.global_step
        self._attachment.begin()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Counts what the first forward pass kept."""
        if self._attachment is not None and self._approximation is not None:
            coverage = self._approximation.coverage
            if coverage is not None and coverage.total == 0:
                coverage.total = self._attachment.kept()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on the first forward pass, and refuses to train if it reached nothing."""
        self._close_report(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Closes the hooks, and takes a more accurate codec if the error was too large."""
        if self._attachment is None or self._approximation is None:
            return
        self._attachment.end()
        self._close_report(trainer, pl_module)
        errors, self._approximation.errors = self._approximation.errors, None
        if errors is not None:
            self._judge(trainer, pl_module, errors)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the hooks if a batch was broken off."""
        if self._attachment is not None:
            self._attachment.end()

    def _close_report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._approximation is None or self._approximation.coverage is None:
            return
        coverage, self._approximation.coverage = self._approximation.coverage, None
        coverage.masks.clear()
        self.coverage = coverage
        if not coverage.any:
            found = "; ".join(f"{row.module}: {row.note}" for row in coverage.rows.values())
            sentence = (
                f"No softmax of {type(pl_module).__name__} was reached, so that nothing is saved"
                f" ({found or 'the training step computed no attention'}). Attention that calls"
                " F.scaled_dot_product_attention keeps nothing quadratic with a fused kernel and needs no help;"
                " allow_uncovered=True trains all the same."
            )
            if not self.allow_uncovered:
                raise MisconfigurationException(sentence)
            rank_zero_warn(sentence)
        if self.report:
            rank_zero_info(coverage.describe())
            log_table(trainer, "softmax/coverage", coverage.columns(), coverage.table())
        if not self._reported:
            _log(trainer, coverage.figures(), trainer.global_step)
            self._reported = True

    def _judge(self, trainer: Trainer, pl_module: LightningModule, errors: ErrorMeter) -> None:
        figures = {
            "softmax/relative_error": errors.relative_error,
            "softmax/cosine": errors.cosine,
            "softmax/kept_mass": errors.kept_mass,
        }
        known = {name: torch.tensor(value, device=pl_module.device) for name, value in figures.items()}
        shared = {name: float(trainer.strategy.reduce(value, reduce_op="mean")) for name, value in known.items()}
        _log(trainer, {name: value for name, value in shared.items() if value == value}, self._measured)
        if self.max_error is None or not shared["softmax/relative_error"] > self.max_error:
            return
        if self._approximation is None or (better := more_accurate(self._approximation.codec)) is None:
            return
        rank_zero_info(
            f"The gradient's relative error {shared['softmax/relative_error']:.3g} is above max_error="
            f"{self.max_error:g} with codec {self._approximation.codec.name}: {better.name} takes over."
        )
        self._approximation.codec, self._backed_off = better, better.name

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the model as it was found."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the model as it was found."""
        if stage == "fit" and self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def state_dict(self) -> dict[str, Any]:
        """The codec that the run backed off to, and the random state of a stochastic codec."""
        if self._approximation is None:
            return {}
        return {
            "backed_off": self._backed_off,
            "codec": self._approximation.codec.state_dict(),
            "measured": self._measured,
            "reported": self._reported,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the saved run stopped."""
        if self._approximation is None:
            return
        self._backed_off, self._reported = state_dict["backed_off"], state_dict["reported"]
        self._measured = state_dict["measured"]
        if self._backed_off is not None:
            self._approximation.codec = as_codec(self._backed_off)
        self._approximation.codec.load_state_dict(state_dict["codec"])

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no model."""
        return self.__dict__ | {"_attachment": None}


def _log(trainer: Trainer, figures: dict[str, float], step: int) -> None:
    """Logs figures once: ``LightningModule.log`` would repeat them until the end of the epoch."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=step)
