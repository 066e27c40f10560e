"""How the weights of a batch reach the loss of a training step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn

ATTRIBUTE = "sample_weighting"


class Reduction:
    """The weights of the present batch, which a callback leaves on a module.

    Args:
        weights: Relative weights `(B,)`; None for the plain mean.
        observe: Is shown the losses before their mean.

    Attributes:
        used: Number of times that a training step has asked for them.
    """

    def __init__(self, weights: Tensor | None, observe: Callable[[Tensor], None] | None = None) -> None:
        self.weights = weights
        self.observe = observe
        self.used = 0

    def __call__(self, losses: Tensor) -> Tensor:
        """Weighted mean of losses `(B,)`, a scalar.

        Raises:
            ValueError: If losses and weights differ in shape.
        """
        self.used += 1
        if self.weights is None:
            return losses.mean()
        if losses.shape != self.weights.shape:
            raise ValueError(
                f"The loss has shape {tuple(losses.shape)} before its mean, but there is one weight per example,"
                f" {tuple(self.weights.shape)}. Reduce it to one value per example first."
            )
        if self.observe is not None:
            self.observe(losses)
        return (losses * self.weights).mean()


def weighted_mean(module: nn.Module, losses: Tensor) -> Tensor:
    """Mean of a training step's losses, weighted where a callback has weights for the batch.

    Args:
        module: The LightningModule.
        losses: Loss of each example, `(B,)`.

    Returns:
        `mean(weights * losses)`, a scalar; the plain mean without a callback, and in evaluation.
    """
    reduction: Reduction | None = getattr(module, ATTRIBUTE, None)
    return losses.mean() if reduction is None else reduction(losses)


class _Captured(Exception):
    def __init__(self, losses: Tensor) -> None:
        super().__init__()
        self.losses = losses


class PerSampleLosses:
    """The loss of each example of a batch, from a module's own method or out of its criterion.

    Args:
        module: Offers `per_sample_loss(batch) -> (B,)`, unless a criterion is named.
        criterion: Name of a submodule with `reduction="mean"` that `training_step` calls. Until `remove` it computes
            its losses one by one and takes their mean in a hook, weighted in training steps.

    Raises:
        MisconfigurationException: If there is neither, or the criterion is none whose mean can be taken later.
    """

    def __init__(self, module: LightningModule, criterion: str | None = None) -> None:
        self.module = module
        self._undo: Callable[[], None] = lambda: None
        self._capturing = False
        self._criterion: nn.Module | None = None
        if criterion is not None:
            self._install(criterion)
        elif not callable(getattr(module, "per_sample_loss", None)):
            raise MisconfigurationException(
                f"{type(module).__name__} has no method per_sample_loss(batch) that returns one loss per example. Add"
                " it and reduce by weighted_mean(self, losses) in training_step, or name the loss module that"
                ' training_step calls, such as criterion="loss_fn".'
            )

    def __call__(self, batch: Any) -> Tensor:
        """Losses of a batch, `(B,)`.

        Raises:
            ValueError: If they are not one per example.
            MisconfigurationException: If `training_step` does not call the criterion, or updates a metric before it.
        """
        module: Any = self.module
        losses = module.per_sample_loss(batch) if self._criterion is None else self._capture(batch)
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            source = "per_sample_loss" if self._criterion is None else type(self._criterion).__name__
            raise ValueError(
                f"{source} of {type(module).__name__} gives {shape}, but one loss per example, (B,), is needed: leave"
                " out its mean, or take it over all but the first dimension."
            )
        return losses

    def remove(self) -> None:
        """Leaves the criterion as it was found."""
        self._undo()
        self._undo = lambda: None

    def _install(self, name: str) -> None:
        modules: dict[str, Any] = dict(self.module.named_modules())
        found = modules.get(name)
        if found is None or getattr(found, "reduction", None) != "mean":
            able = [key for key, child in modules.items() if getattr(child, "reduction", None) == "mean"]
            raise MisconfigurationException(
                f'criterion={name!r} names no submodule of {type(self.module).__name__} with reduction="mean"; it has'
                f" {able}. Name one of these, or offer per_sample_loss(batch)."
            )
        if getattr(found, "weight", None) is not None:
            raise MisconfigurationException(
                f"criterion={name!r} has class weights, whose mean is not that of its losses. Drop them, or offer"
                " per_sample_loss(batch) with weighted_mean(self, losses)."
            )
        self._criterion = found
        found.reduction = "none"
        handle = found.register_forward_hook(self._reduce)

        def undo() -> None:
            handle.remove()
            found.reduction = "mean"

        self._undo = undo

    def _reduce(self, criterion: nn.Module, inputs: Any, losses: Tensor) -> Tensor | None:
        if criterion is not self._criterion:  # a copy, which carries the hooks along
            return None
        if self._capturing:
            raise _Captured(losses)
        return weighted_mean(self.module, losses) if self.module.training else losses.mean()

    def _capture(self, batch: Any) -> Tensor:
        from torchmetrics import Metric

        step: Any = self.module.training_step
        arguments = (batch, 0) if _takes_position(step) else (batch,)
        metrics = [metric for metric in self.module.modules() if isinstance(metric, Metric)]
        updates = [metric.update_count for metric in metrics]
        self._capturing = True
        try:
            with _silent(self.module):
                step(*arguments)
        except _Captured as captured:
            if updates != [metric.update_count for metric in metrics]:
                raise MisconfigurationException(
                    f"training_step of {type(self.module).__name__} updates a metric before the criterion, so that each"
                    " look-ahead would count. Update it after the loss, or offer per_sample_loss(batch)."
                ) from None
            return captured.losses
        finally:
            self._capturing = False
        raise MisconfigurationException(
            f"training_step of {type(self.module).__name__} does not call its {type(self._criterion).__name__}. Name"
            " the loss module that it calls, or offer per_sample_loss(batch)."
        )


def _takes_position(step: Callable[..., Any]) -> bool:
    """Whether Lightning passes the batch's position too: by name, or to any second argument."""
    parameters = inspect.signature(step).parameters.values()
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Context in which `self.log` does nothing, and a backward pass is refused."""

    def backward(*args: Any, **kwargs: Any) -> None:
        raise MisconfigurationException(
            f"training_step of {type(module).__name__} takes a backward pass before the criterion, so that each"
            " look-ahead would train. Offer per_sample_loss(batch) instead of criterion=."
        )

    module.__dict__.update(log=lambda *args, **kwargs: None, manual_backward=backward)
    try:
        yield
    finally:
        del module.__dict__["log"], module.__dict__["manual_backward"]
