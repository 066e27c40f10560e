"""Looks into a module for what would leak past the noise: buffers that learn, losses that mix examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric

from lit_methods.differential_privacy.budget import check_patterns


class BufferWatch:
    """Notices buffers that change during training: they leave with the model, and nobody adds noise to them.

    The states of torchmetrics are not looked at.

    Args:
        module: The module, before its first step.
        allowed: Patterns (``fnmatch``) of buffers that may change because they do not depend on the data: averages of
            the weights, counters.

    Raises:
        TypeError: Where ``allowed`` is no list of strings.
    """

    def __init__(self, module: nn.Module, allowed: Sequence[str] = ()) -> None:
        self._module, self._allowed = module, check_patterns(allowed)
        self._before = {name: buffer.detach().clone() for name, buffer in self._buffers()}

    def _buffers(self) -> list[tuple[str, Tensor]]:
        metrics = {id(b) for layer in self._module.modules() if isinstance(layer, Metric) for b in layer.buffers()}
        return [
            (name, buffer)
            for name, buffer in self._module.named_buffers()
            if id(buffer) not in metrics and not any(fnmatchcase(name, pattern) for pattern in self._allowed)
        ]

    def check(self) -> None:
        """Compares with the beginning; worth a call after the first step and at the end.

        Raises:
            MisconfigurationException: Naming the buffers that changed, came or went.
        """
        now = dict(self._buffers())
        changed = [name for name, old in self._before.items() if name not in now or not _same(old, now[name])]
        changed += [name for name in now if name not in self._before]
        if changed:
            raise MisconfigurationException(
                f"The buffers {changed[:5]} changed during private training: what they learn about the data leaves"
                " without noise. Freeze them, or if they depend on the weights or the step alone, allow them by name"
                " in allowed_buffers."
            )


def _same(old: Tensor, new: Tensor) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    new = new.detach().to(old.device)
    return bool(((old == new) | ((old != old) & (new != new))).all())


def check_loss_mixing(module: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> None:
    """Refuses a loss in which examples have a part in each other's gradients (contrastive, weighted by the batch).

    Takes the gradient of two examples together and of each alone, on a copy in eval mode, so that dropout can't hide
    the difference. Those that are random by other means fail it.

    Args:
        module: The module; stays untouched.
        loss: Maps module and batch to the examples' losses of shape ``(B,)``, or to their mean.
        batch: A batch of at least two examples: tensors with the batch first, in any nesting.

    Raises:
        ValueError: If the batch has fewer than two examples.
        MisconfigurationException: If the gradients do not add up.
    """
    sizes: list[int] = []
    apply_to_collection(batch, Tensor, lambda tensor: sizes.append(len(tensor)))
    if min(sizes, default=0) < 2:
        raise ValueError(f"batch must hold at least 2 examples, but its tensors hold {sizes}.")
    copy = deepcopy(module).eval()
    trained = [p for p in copy.parameters() if p.requires_grad]

    def gradient(first: int, last: int) -> Tensor:
        part = apply_to_collection(batch, Tensor, lambda tensor: tensor[first:last])
        with torch.enable_grad():
            losses = loss(copy, part)
            total = losses.sum() if losses.ndim else losses * (last - first)
            parts = torch.autograd.grad(total, trained, allow_unused=True)
        return torch.cat([(p * 0 if g is None else g).flatten().double() for p, g in zip(trained, parts, strict=True)])

    together, apart = gradient(0, 2), gradient(0, 1) + gradient(1, 2)
    if float((together - apart).norm()) > 1e-3 * max(float(together.norm()), float(apart.norm())) + 1e-6:
        raise MisconfigurationException(
            "The gradient of two examples together is not the sum of their gradients alone: the loss mixes examples,"
            " as contrastive losses and means weighted by the batch do, and can't be clipped per example. Use a loss"
            " that is a plain mean over examples."
        )
