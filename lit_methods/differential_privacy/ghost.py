"""Ghost clipping: the clipped sum by two backward passes, without a gradient per example in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from opacus.grad_sample import GradSampleHooksFastGradientClipping
from torch import Tensor, nn

from lit_methods.differential_privacy.gradients import LayerHooks
from lit_methods.errors import check_above

_PER_SAMPLE = "Use clipping='per_sample'"


class _OneUse(GradSampleHooksFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """Says what Opacus means where a layer runs twice."""

    def capture_activations_hook(self, module: nn.Module, *arguments: Any) -> None:
        try:
            super().capture_activations_hook(module, *arguments)
        except NotImplementedError as error:
            raise MisconfigurationException(
                f"A {type(module).__name__} runs a second time before the backward pass, and ghost clipping can't add"
                " up the norms of its uses. Put forward passes that nobody trains on under torch.no_grad(), or use"
                " clipping='per_sample'."
            ) from error


class GhostGradients(LayerHooks):
    """Puts the sum of clipped per-sample gradients into ``p.grad``: the first pass takes norms, the second weighs.

    Linear and embedding layers never hold a gradient per example; others hold theirs one layer at a time (Opacus'
    fast gradient clipping). The price is the second backward pass. A forward pass in training mode that no backward
    pass follows belongs under ``torch.no_grad()``.

    Args:
        module: The module; its state-dict keys and classes stay as they are.
        max_grad_norm: Clip norm ``zeta`` of an example's gradient.

    Guarantees:
        - The sum that a call of :meth:`backward` adds moves by at most ``max_grad_norm``, up to float32 rounding of
          the norms, when one example is left out.
        - After :meth:`remove` the module carries no hook and no attribute of ours.

    Raises:
        ValueError: On a clip norm that is not finite and above 0.
        MisconfigurationException: For trained layers with buffers, or parameters that two layers share.
    """

    def __init__(self, module: nn.Module, max_grad_norm: float) -> None:
        check_above("max_grad_norm", max_grad_norm)
        owners: dict[int, str] = {}
        for prefix, layer in module.named_modules():
            for name, p in layer.named_parameters(prefix, recurse=False):
                if p.requires_grad and owners.setdefault(id(p), name) != name:
                    raise MisconfigurationException(
                        f"{owners[id(p)]} and {name} are one parameter, whose norms ghost clipping can't add up."
                        f" {_PER_SAMPLE}, or untie them."
                    )
        super().__init__(module, _OneUse, loss_reduction="sum", max_grad_norm=max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self._trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._tested = False
        self._examples = 0

    def expect(self, examples: int) -> None:
        """After :meth:`backward`: was there one loss per example?

        Args:
            examples: Length of the batch.

        Raises:
            MisconfigurationException: Where losses are not examples, so that one example would be clipped in parts.
        """
        if self._examples != examples:
            raise MisconfigurationException(
                f"{self._examples} losses came for a batch of {examples} examples: one example would count several"
                " times. Return one loss per example from per_sample_loss."
            )

    def backward(self, losses: Tensor) -> None:
        """Adds the sum of the examples' clipped gradients to ``p.grad``.

        Args:
            losses: One loss per example, shape ``(B,)``, not divided by anything.

        Raises:
            ValueError: On another shape, or where an example's gradient is not finite.
            MisconfigurationException: Where norms are rounded to 16 bits, or miss a part of a gradient.
        """
        before = [p.grad for _, p in self._trained]
        self._examples = len(losses) if losses.ndim else 0
        try:
            norms = self._norms(losses)
            self._set_gradients(before)
            self._hooks.disable_hooks()
            if not self._tested and len(losses) > 0:
                self._self_test(losses, norms)
            factors = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
            torch.autograd.backward(losses, grad_tensors=factors.to(losses))
        except Exception:
            self._set_gradients(before)
            self.forget()
            raise
        finally:
            self._hooks.enable_hooks()

    def _norms(self, losses: Tensor) -> Tensor:
        """The first pass; leaves a gradient in ``p.grad`` that nobody clipped."""
        if losses.ndim != 1:
            raise ValueError(f"losses must have shape (B,), one per example, but have {tuple(losses.shape)}.")
        self._set_gradients([None] * len(self._trained))
        torch.autograd.backward(losses.sum(), retain_graph=True)
        return self._take_norms(losses)

    def check(self) -> bool:
        """Refuses gradients of a backward pass that was not :meth:`backward`, which nobody clipped.

        Returns:
            False: it must be asked each time.

        Raises:
            RuntimeError: If there are such gradients.
        """
        if any(hasattr(p, "_norm_sample") for _, p in self._trained):
            raise RuntimeError(
                "A gradient was computed by loss.backward(), which ghost clipping can't clip. Pass the losses of shape"
                " (B,) to backward() of the private training instead."
            )
        return False

    def _set_gradients(self, gradients: list[Tensor | None]) -> None:
        for (_, p), gradient in zip(self._trained, gradients, strict=True):
            p.grad = gradient

    @torch.no_grad()
    def _take_norms(self, losses: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for name, p in self._trained:
            part: Tensor | None = p.__dict__.pop("_norm_sample", None)
            if part is None and p.grad is not None:
                raise _outside(name)
            if part is not None:
                parts.append(part)
        if any(part.dtype in (torch.float16, torch.bfloat16) for part in parts):
            raise MisconfigurationException(
                f"Under 16-bit precision ghost clipping would round the norms that it clips by. {_PER_SAMPLE}, which"
                " clips in float32, or precision='32-true'."
            )
        if any(len(part) != len(losses) for part in parts) or not parts:
            raise ValueError(
                f"{len(losses)} losses came from layers that saw {sorted({len(part) for part in parts})} examples."
                " Every layer with trained parameters must see the batch as its first dimension."
            )
        norms: Tensor = torch.stack(parts, dim=1).norm(dim=1)
        if not bool(norms.isfinite().all()):
            raise ValueError(
                "An example's gradient is not finite, and ghost clipping can't leave one example out."
                f" {_PER_SAMPLE}, where it counts as zero."
            )
        return norms

    def _self_test(self, losses: Tensor, norms: Tensor) -> None:
        """Is the norm that the hooks found for one example the norm of its loss's gradient?"""
        largest = int(norms.argmax())
        alone = torch.autograd.grad(
            losses[largest], [p for _, p in self._trained], retain_graph=True, allow_unused=True
        )
        true = torch.stack([g.norm() for g in alone if g is not None]).norm()
        if abs(float(true) - float(norms[largest])) > 0.01 * float(true) + 1e-6:
            raise MisconfigurationException(
                f"One example's gradient has norm {float(true):.6g}, but its layers account for"
                f" {float(norms[largest]):.6g}: a weight is used outside of its own layer's forward, or the loss of"
                " one example depends on others. Call layers instead of their weights, and keep examples apart."
            )
        self._tested = True


def _outside(name: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"{name} has a gradient, but no layer of its own that could tell its norm per example: it is used outside of"
        " its layer's forward. Call the layer instead of its weight, and move bare parameters into a layer."
    )


class GhostBackward:
    """Lets a LightningModule under automatic optimization be clipped by two passes.

    The module offers ``per_sample_loss(batch) -> Tensor`` of shape ``(B,)`` and its ``training_step`` returns the mean
    (or sum) of that. Until :meth:`remove` the losses are noted as they are computed, and ``module.backward``, which
    Lightning calls, is the two passes over them.

    Args:
        module: The module.
        gradients: Its hooks.
        loss_reduction: How ``training_step`` takes the losses together.
        gradient_scale: What Lightning divides the loss by (gradient accumulation).

    Raises:
        MisconfigurationException: If the module has no ``per_sample_loss``.
    """

    def __init__(
        self,
        module: LightningModule,
        gradients: GhostGradients,
        loss_reduction: Literal["mean", "sum"] = "mean",
        gradient_scale: float = 1.0,
    ) -> None:
        compute: Callable[..., Tensor] | None = getattr(module, "per_sample_loss", None)
        if compute is None:
            raise MisconfigurationException(
                f"clipping='ghost' needs the losses of single examples, but {type(module).__name__} has no method"
                " per_sample_loss(batch) -> Tensor of shape (B,). Write one whose mean training_step returns, or use"
                " clipping='per_sample'."
            )
        self._module, self._gradients = module, gradients
        self._reduction, self._scale = loss_reduction, gradient_scale
        self._compute, self._noted = compute, list[Tensor]()
        module.per_sample_loss = self._note  # type: ignore[assignment]  # put back when the run ends
        module.backward = self._backward  # type: ignore[method-assign]  # put back when the run ends

    def remove(self) -> None:
        """Gives the module its own methods back."""
        for name in ("per_sample_loss", "backward"):
            self._module.__dict__.pop(name, None)

    def _note(self, *args: Any, **kwargs: Any) -> Tensor:
        losses = self._compute(*args, **kwargs)
        if losses.requires_grad and self._module.training:
            self._noted.append(losses)
        return losses

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        noted, self._noted = self._noted, []
        if len(noted) != 1:
            raise MisconfigurationException(
                f"training_step called per_sample_loss {len(noted)} times, but ghost clipping needs exactly one call."
            )
        losses = noted[0]
        reduced = (losses.mean() if self._reduction == "mean" else losses.sum()).detach() / self._scale
        returned = loss.detach().to(reduced)
        if not torch.allclose(returned, reduced, rtol=1e-3, atol=1e-6, equal_nan=True):
            raise MisconfigurationException(
                f"training_step returned {float(returned) * self._scale:.6g}, but the {self._reduction} of"
                f" per_sample_loss is {float(reduced) * self._scale:.6g}: what else it adds is in no example's gradient"
                " and can't be clipped. Put it into per_sample_loss, or set the right loss_reduction."
            )
        self._gradients.backward(losses)
