"""The cheapest hypergradient: of a network's last linear layer alone, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_methods.data_manipulation.functional import last_layer_gains
from lit_methods.data_manipulation.hypergradient import Gains, Hypergradient, Record
from lit_methods.data_manipulation.lookahead import LookAhead, TrainingStep
from lit_methods.data_manipulation.problem import Problem


class LayerRecord:
    """Inputs and residuals of one linear layer, taken out of a training step while it runs.

    Args:
        layer: The layer; a hook stays on it until the step's losses are seen, or `remove`.
        name: What the user called it, for the error.

    Attributes:
        features: Inputs of the layer, `(B, D)`.
        residuals: Derivatives of each example's unweighted loss by the layer's outputs, `(B, C)`.
    """

    def __init__(self, layer: nn.Linear, name: str | None) -> None:
        self._name = name
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._handle = layer.register_forward_hook(self._see)
        self.features: Tensor | None = None
        self.residuals: Tensor | None = None

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            self._seen.append((inputs[0].detach(), output))

    def __call__(self, losses: Tensor) -> None:
        """Takes the residuals of losses `(B,)`; the training step's own graph stays whole.

        Raises:
            ValueError: If the layer did not run once as `(B, D)`.
        """
        if self.features is None:
            self.remove()
            self.features, self.residuals = _residuals(self._seen, losses, self._name, retain_graph=True)
            self._seen = []

    def remove(self) -> None:
        """Takes the hook off the layer."""
        self._handle.remove()


class LastLayer(Hypergradient):
    """Gains by the gradients of one linear layer: a pass over the validation batch, and two matrix products.

    The layer's inputs, and the derivatives of any loss per example by its outputs, are taken out of the training step
    itself, as they are there: with its dropout and its BatchNorm statistics. The validation gradient is taken at
    `theta'`, after the step.

    Args:
        layer: Name of the `nn.Linear` inside the module, such as `network.fc`; None for the last one registered. Its
            inputs must be `(B, D)`.
        lookahead: None for `TrainingStep()`. `AtTheta()` is for strategies that weigh by the gains of this batch, such
            as Ren et al.'s: it comes before the training step, and passes the training batch once more, without a
            graph.

    Raises:
        ValueError: If the look-ahead is another.
    """

    keeps_origin = False

    def __init__(self, layer: str | None = None, lookahead: LookAhead | None = None) -> None:
        super().__init__(lookahead=lookahead or TrainingStep())
        if self.lookahead.moves:
            raise ValueError(
                f"lookahead={type(self.lookahead).__name__} moves all parameters, but LastLayer knows one layer's"
                " gradient. Use TrainingStep() or AtTheta(), or Hypergradient(lookahead=...)."
            )
        self.layer = layer

    def watch(self, module: nn.Module) -> Record | None:
        """See the base class."""
        return LayerRecord(self.find(module), self.layer) if self.lookahead.follows_training else None

    def gains(
        self,
        problem: Problem,
        weights: Tensor | None = None,
        origin: Sequence[Tensor] | None = None,
        records: Sequence[Record] = (),
    ) -> Gains:
        """See the base class; without records, the training batch passes the network here.

        Raises:
            ValueError: If there is no such layer, it is not trained, or a batch does not run through it once as
                `(B, D)`.
        """
        layer = self.find(problem.module)
        rate = next((r for p, r in zip(problem.parameters, problem.rates, strict=True) if p is layer.weight), None)
        if rate is None:
            raise ValueError(f"layer={self.layer!r} is not trained by the optimizer. Name another linear layer.")
        val_features, val_residuals, val_loss = self._pass(layer, problem.val_loss)
        slope = [val_residuals.T @ val_features, val_residuals.sum(0)]  # residuals of a mean: already over V
        if problem.reduce is not None:
            problem.reduce(slope)
        bias_slope = slope[1] if layer.bias is not None and layer.bias.requires_grad else None
        taken = [record for record in records if isinstance(record, LayerRecord)]
        if taken:
            features = torch.cat([record.features for record in taken if record.features is not None])
            residuals = torch.cat([record.residuals for record in taken if record.residuals is not None])
        else:
            features, residuals, _ = self._pass(layer, problem.train_losses)
        features, residuals = features.to(slope[0].dtype), residuals.to(slope[0].dtype)
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
        return *_residuals(seen, losses, self.layer), losses.detach()


def _residuals(
    seen: Sequence[tuple[Tensor, Tensor]], losses: Tensor, name: str | None, retain_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """The layer's inputs, and the derivatives of the summed losses by its outputs."""
    if len(seen) != 1 or seen[0][0].ndim != 2:
        raise ValueError(
            f"layer={name!r} ran {len(seen)} times with inputs {[tuple(x.shape) for x, _ in seen]}, but"
            " LastLayer needs one pass of (B, D). Name the classification layer, or use Hypergradient()."
        )
    features, outputs = seen[0]
    (found,) = torch.autograd.grad(losses.sum(), outputs, retain_graph=retain_graph, allow_unused=True)
    if found is None:
        raise ValueError(f"layer={name!r} has no part in the loss. Name the classification layer.")
    return features, found
