"""Per-sample gradients by Opacus hooks on a module that stays the user's own: nothing is wrapped or renamed."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from opacus.grad_sample import GradSampleHooks
from torch import nn


class LayerHooks:
    """Opacus' hooks on the layers of a module, until :meth:`remove`.

    Args:
        module: The module; its state-dict keys and classes stay as they are.
        kind: Opacus' class of hooks.
        options: What that class takes.

    Guarantees:
        - After :meth:`remove` the module carries no hook and no attribute of ours.

    Raises:
        MisconfigurationException: For trained layers with buffers, whose per-sample gradients are not defined.
    """

    def __init__(self, module: nn.Module, kind: type[GradSampleHooks], **options: Any) -> None:
        self._module = module
        self._in_place = [layer for layer in module.modules() if getattr(layer, "inplace", False) is True]
        try:
            kind.validate(module, strict=True)
        except NotImplementedError as error:
            raise MisconfigurationException(
                f"Some trained layers keep buffers, for which per-sample gradients are not defined: {error}. Replace"
                " them (BatchNorm by GroupNorm), or freeze them."
            ) from error
        # The first layer's inputs are data and need no gradient, which torch remarks on; the hook fires all the same.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        self._hooks = kind(module, **options)
        for layer in self._in_place:
            layer.inplace = False  # type: ignore[assignment]  # modules type attributes as tensors or modules

    def remove(self) -> None:
        """Leaves the module as it was found."""
        self.forget()
        self._hooks.cleanup()
        for layer in self._module.modules():
            if not layer._backward_hooks:
                layer._is_full_backward_hook = None
        for p in self._module.parameters():
            if hasattr(p, "summed_grad"):
                del p.summed_grad
        for layer in self._in_place:
            layer.inplace = True  # type: ignore[assignment]  # modules type attributes as tensors or modules

    def forget(self) -> None:
        """Drops what the hooks noted of a forward pass that no backward pass followed."""
        for layer in self._module.modules():
            for name in ("activations", "max_batch_len"):
                layer.__dict__.pop(name, None)
        for p in self._module.parameters():
            if hasattr(p, "_forward_counter"):
                p._forward_counter = 0
            p.__dict__.pop("_current_grad_sample", None)


class PerSampleGradients(LayerHooks):
    """Fills ``p.grad_sample`` in each backward pass until :meth:`remove`.

    Args:
        module: The module; its state-dict keys and classes stay as they are.
        loss_reduction: How the loss takes the batch together.

    Guarantees:
        - After :meth:`remove` the module carries no hook and no attribute of ours.

    Raises:
        MisconfigurationException: For trained layers with buffers, whose per-sample gradients are not defined.
    """

    def __init__(self, module: nn.Module, loss_reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(module, GradSampleHooks, loss_reduction=loss_reduction)
        owners = Counter(id(p) for layer in module.modules() for p in layer.parameters(recurse=False))
        self._padding = {
            id(layer.weight): layer.padding_idx
            for layer in module.modules()
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None and owners[id(layer.weight)] == 1
        }

    @torch.no_grad()
    def expect(self, examples: int) -> None:
        """After a backward pass: has every gradient one row per example, and none been missed?

        Rows of an embedding's padding index, which torch leaves without a gradient, are set to zero.

        Args:
            examples: Length of the batch.

        Raises:
            MisconfigurationException: Where rows are not examples, so that one example would be clipped in parts, or
                where a gradient has no per-sample gradients.
        """
        for name, p in self._module.named_parameters():
            if not p.requires_grad or p.grad is None:
                continue
            samples = p.grad_sample  # type: ignore[attr-defined]  # Opacus attaches it
            if samples is None:
                raise MisconfigurationException(
                    f"{name} has a gradient but no per-sample gradients, so that it can't be trained privately: it is"
                    " used outside of its own layer's forward, or a second forward pass had no backward pass."
                )
            if id(p) in self._padding:  # Opacus counts the padding row, which torch leaves without a gradient
                for part in samples if isinstance(samples, list) else [samples]:
                    part[:, self._padding[id(p)]] = 0.0
            rows = len(samples) if isinstance(samples, torch.Tensor) else sum(len(part) for part in samples)
            if rows != examples:
                raise MisconfigurationException(
                    f"{name} has {rows} per-sample gradients for a batch of {examples} examples: views or tokens folded"
                    " into the batch dimension, or time first, would let one example count several times. Keep one row"
                    " per example as the first dimension of every layer's input."
                )

    @torch.no_grad()
    def check(self) -> bool:
        """After a backward pass: do the per-sample gradients add up to the gradient?

        Returns:
            Whether they could be compared: not where an example's gradient is not finite, all are zero (an empty
            batch), or after several backward passes.

        Raises:
            MisconfigurationException: Naming the first parameter whose do not: it is used outside its layer's
                ``forward``, or outside any layer.
        """
        trained = [(name, p) for name, p in self._module.named_parameters() if p.requires_grad and p.grad is not None]
        if not all(bool(p.grad.isfinite().all()) for _, p in trained if p.grad is not None):
            return False
        if any(isinstance(p.grad_sample, list) for _, p in trained):  # type: ignore[attr-defined]  # Opacus attaches it
            return False
        if not any(bool(p.grad.any()) for _, p in trained if p.grad is not None):
            return False
        for name, p in trained:
            if p.grad is None:
                continue
            samples = p.grad_sample  # type: ignore[attr-defined]  # Opacus attaches it
            if samples is not None:
                mean = samples.float().mean(dim=0) if self._hooks.loss_reduction == "mean" else samples.float().sum(0)
                size = max(float(p.grad.float().norm()), float(mean.norm()))
                if float((mean - p.grad.float()).norm()) <= 0.05 * size + 1e-6:
                    continue
            raise MisconfigurationException(
                f"The per-sample gradients of {name} do not add up to its gradient, so that it can't be trained"
                " privately: it is used outside of its own layer's forward. Call the layer instead of its weight, and"
                " move bare parameters into a layer."
            )
        return True
