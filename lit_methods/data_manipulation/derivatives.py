"""Backends of the hypergradient: how the derivative of training losses along a direction is found.

The gradient of the validation loss by an example's weight is `-<u, g_i>`, with `g_i` the gradient of its loss and `u`
the validation gradient times the Jacobian of the look-ahead step. Each class here gives `<u, g_i>` for the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from lit_methods.data_manipulation.problem import Evaluation, Problem
from lit_methods.errors import check_above

RADII = {torch.float32: 1e-2, torch.float64: 1e-5}


def norm(direction: Sequence[Tensor]) -> Tensor:
    """Euclidean length of a list of tensors taken as one vector, a scalar."""
    lengths = torch._foreach_norm(list(direction))
    length: Tensor = torch.linalg.vector_norm(torch.stack(lengths))
    return length


class Derivative(ABC):
    """Derivative of losses along a direction in the space of the parameters."""

    @abstractmethod
    def per_example(self, problem: Problem, direction: Sequence[Tensor]) -> Tensor:
        """Inner product of each example's gradient with the direction.

        Args:
            problem: Its `train_losses` are differentiated at the present parameters.
            direction: One tensor per trained parameter.

        Returns:
            `<u, g_i>`, `(B,)`, detached.
        """

    def mixed(
        self,
        problem: Problem,
        loss: Callable[[], Tensor],
        variables: Sequence[Tensor],
        direction: Sequence[Tensor],
    ) -> list[Tensor]:
        """Gradient by `phi` of the inner product of `d loss / d theta` with the direction.

        Args:
            problem: Owner of the parameters `theta`.
            loss: Scalar training loss as a function of `theta` and `phi`, with the same random draws in each call.
            variables: `phi`, leaves that require a gradient.
            direction: One tensor per trained parameter.

        Returns:
            One tensor per variable.

        Raises:
            NotImplementedError: If the derivative weighs examples only.
        """
        raise NotImplementedError(
            f"{type(self).__name__} weighs examples only; augmentation takes FiniteDifference or DoubleBackward."
        )


class FiniteDifference(Derivative):
    """Central difference of two forward passes without a graph: the default.

    No second order, so that it works with fused attention, LSTM, BatchNorm and EmbeddingBag, in the memory of plain
    training plus one copy of the parameters. Needs losses that two calls repeat exactly: evaluation mode, or the same
    random draws.

    Args:
        radius: Length of the displacement `||eps u||`; None for 1e-2 in float32 and 1e-5 in float64.

    Raises:
        ValueError: If the radius is not positive.
    """

    def __init__(self, radius: float | None = None) -> None:
        if radius is not None:
            check_above("radius", radius)
        self.radius = radius

    def per_example(self, problem: Problem, direction: Sequence[Tensor]) -> Tensor:
        """See the base class.

        Raises:
            ValueError: If a parameter is of a dtype below float32.
        """
        step = self._step(direction)
        if step is None:
            with torch.no_grad():
                return torch.zeros_like(problem.train_losses())
        with torch.no_grad(), problem.along(direction, step) as to_other_side:
            ahead = problem.train_losses()
            to_other_side()
            behind = problem.train_losses()
        return (ahead.float() - behind.float() if ahead.dtype != torch.float64 else ahead - behind) / (2 * step)

    def mixed(
        self,
        problem: Problem,
        loss: Callable[[], Tensor],
        variables: Sequence[Tensor],
        direction: Sequence[Tensor],
    ) -> list[Tensor]:
        """See the base class: difference of two first-order gradients by `phi`."""
        step = self._step(direction)
        if step is None:
            return [torch.zeros_like(variable) for variable in variables]
        with problem.along(direction, step) as to_other_side:
            ahead = torch.autograd.grad(loss(), list(variables), materialize_grads=True)
            to_other_side()
            behind = torch.autograd.grad(loss(), list(variables), materialize_grads=True)
        return [(after - before) / (2 * step) for after, before in zip(ahead, behind, strict=True)]

    def _step(self, direction: Sequence[Tensor]) -> float | None:
        dtype = direction[0].dtype
        if self.radius is None and dtype not in RADII:
            raise ValueError(
                f"radius=None has no value for parameters of {dtype}, whose few digits a difference would lose. Keep"
                " the parameters in float32 (precision='bf16-mixed'), or use derivative=ForwardMode()."
            )
        length = float(norm(direction))
        radius = RADII[dtype] if self.radius is None else self.radius
        return radius / length if length != 0 else None


class ForwardMode(Derivative):
    """Jacobian-vector product by forward-mode differentiation: exact, one pass, about the memory of inference.

    Fused attention, LSTM on the CPU and EmbeddingBag have no forward-mode rule; attention takes
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the fit.
    """

    def per_example(self, problem: Problem, direction: Sequence[Tensor]) -> Tensor:
        """See the base class."""
        evaluation = Evaluation(problem.module, problem.train_losses)
        wanted = {id(parameter): tangent for parameter, tangent in zip(problem.parameters, direction, strict=True)}
        named = {name: p for name, p in evaluation.named_parameters() if id(p) in wanted}

        def losses(values: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(evaluation, values, ())
            return found

        with torch.no_grad():
            primals = {name: p.detach() for name, p in named.items()}
            tangents = {name: wanted[id(p)] for name, p in named.items()}
            derivative: Tensor = jvp(losses, (primals,), (tangents,))[1]
        return derivative.detach()


class DoubleBackward(Derivative):
    """Second derivatives by two backward passes through one graph: exact, the unrolled step of the published code.

    Equal to differentiating the validation loss through the look-ahead step, because that step is linear in the
    weights; the graph of the training batch is kept once instead of both. Takes 2 to 5 times the memory of a plain
    step, and fused attention has no second derivative.
    """

    def per_example(self, problem: Problem, direction: Sequence[Tensor]) -> Tensor:
        """See the base class."""
        with torch.enable_grad():
            losses = problem.train_losses()
            shares = torch.ones_like(losses, requires_grad=True)
            slopes = problem.gradient((losses * shares).sum(), create_graph=True)
            product = _inner(slopes, direction)
        if not product.requires_grad:
            return torch.zeros_like(losses).detach()
        return torch.autograd.grad(product, shares)[0]

    def mixed(
        self,
        problem: Problem,
        loss: Callable[[], Tensor],
        variables: Sequence[Tensor],
        direction: Sequence[Tensor],
    ) -> list[Tensor]:
        """See the base class."""
        with torch.enable_grad():
            product = _inner(problem.gradient(loss(), create_graph=True), direction)
        return list(torch.autograd.grad(product, list(variables), materialize_grads=True))


class PerSampleGradients(Derivative):
    """The gradient of each example by itself, then inner products: exact; B backward passes over one graph.

    Args:
        vectorized: One batched backward pass instead of B, with `B * P` floats of memory for P parameters; not every
            operator has a rule for it.
    """

    def __init__(self, vectorized: bool = False) -> None:
        self.vectorized = vectorized

    def per_example(self, problem: Problem, direction: Sequence[Tensor]) -> Tensor:
        """See the base class."""
        with torch.enable_grad():
            losses = problem.train_losses()
        if self.vectorized:
            rows = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
            slopes = torch.autograd.grad(
                losses, problem.parameters, rows, is_grads_batched=True, materialize_grads=True
            )
            parts = [slope.flatten(1) @ u.flatten() for slope, u in zip(slopes, direction, strict=True)]
            return torch.stack(parts).sum(0)
        return torch.stack(
            [
                _inner(
                    torch.autograd.grad(loss, problem.parameters, retain_graph=True, materialize_grads=True), direction
                )
                for loss in losses
            ]
        )


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
