"""The cheapest hypergradient: of a network's last linear layer alone, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_methods.data_manipulation.functional import last_layer_gains
from lit_methods.data_manipulation.hypergradient import Gains, Hypergradient
from lit_methods.data_manipulation.lookahead import AtTheta
from lit_methods.data_manipulation.problem import Problem


class LastLayer(Hypergradient):
    """Gains by the gradients of one linear layer: two forward passes without a graph, and two matrix products.

    The validation gradient is taken at `theta`. Any loss per example will do: its derivative by the layer's outputs
    comes from autograd, on the loss alone.

    Args:
        layer: Name of the `nn.Linear` inside the module, such as `network.fc`; None for the last one registered. Its
            inputs must be `(B, D)`.
    """

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(lookahead=AtTheta())
        self.layer = layer

    def gains(self, problem: Problem, weights: Tensor | None = None, origin: Sequence[Tensor] | None = None) -> Gains:
        """See the base class.

        Raises:
            ValueError: If there is no such layer, it is not trained, or a batch does not run through it once as
                `(B, D)`.
        """
        layer = self.find(problem.module)
        rate = next((r for p, r in zip(problem.parameters, problem.rates, strict=True) if p is layer.weight), None)
        if rate is None:
            raise ValueError(f"layer={self.layer!r} is not trained by the optimizer. Name another linear layer.")
        features, residuals, _ = self._pass(layer, problem.train_losses)
        val_features, val_residuals, val_loss = self._pass(layer, problem.val_loss)
        slope = [val_residuals.T @ val_features, val_residuals.sum(0)]  # residuals of a mean: already over V
        if problem.reduce is not None:
            problem.reduce(slope)
        bias_slope = slope[1] if layer.bias is not None and layer.bias.requires_grad else None
        return Gains(rate * last_layer_gains(features, residuals, slope[0], bias_slope), val_loss)

    def find(self, module: nn.Module) -> nn.Linear:
        """The layer.

        Raises:
            ValueError: If there is no linear layer of that name.
        """
        found: Any = None
        if self.layer is None:
            found = next((layer for layer in reversed(list(module.modules())) if isinstance(layer, nn.Linear)), None)
        elif self.layer in dict(module.named_modules()):
            found = module.get_submodule(self.layer)
        if not isinstance(found, nn.Linear):
            names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
            raise ValueError(f"layer={self.layer!r} names no nn.Linear of {type(module).__name__}; it has {names}.")
        return found

    def _pass(self, layer: nn.Linear, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the layer, derivatives of the summed loss by its outputs, and the loss."""
        seen: list[tuple[Tensor, Tensor]] = []

        def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)  # the graph begins here: nothing below the layer is kept
            output = output.detach().requires_grad_()
            seen.append((inputs[0].detach(), output))
            return output

        handle = layer.register_forward_hook(cut)
        try:
            with torch.no_grad():
                losses = loss()
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0][0].ndim != 2:
            raise ValueError(
                f"layer={self.layer!r} ran {len(seen)} times with inputs {[tuple(x.shape) for x, _ in seen]}, but"
                " LastLayer needs one pass of (B, D). Name the classification layer, or use Hypergradient()."
            )
        features, outputs = seen[0]
        return features, torch.autograd.grad(losses.sum(), outputs)[0], losses.detach()
