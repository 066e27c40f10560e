"""Where the validation gradient is taken, and how a step answers to an example's weight (equation 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_methods.data_manipulation.functional import adam_jacobian
from lit_methods.data_manipulation.problem import Problem


class LookAhead(ABC):
    """One step of the model's optimizer as a function of its gradient.

    Attributes:
        moves: Whether the validation gradient is taken at `theta'`, which costs a pass over the training batch.
        follows_training: Whether the look-ahead is the training step itself, so that `phi` moves after `theta`.
    """

    moves = True
    follows_training = False

    @abstractmethod
    def step(self, problem: Problem, gradient: Sequence[Tensor]) -> list[Tensor]:
        """`theta'`, one tensor per trained parameter."""

    def jacobian(self, problem: Problem, gradient: Sequence[Tensor] | None, slope: Sequence[Tensor]) -> list[Tensor]:
        """The validation gradient times `-d step / d gradient`, which is diagonal.

        Args:
            problem: Owner of the parameters and their learning rates.
            gradient: Of the weighted training loss; None where the look-ahead does not need it.
            slope: Gradient of the validation loss.

        Returns:
            The direction `u`, one tensor per trained parameter.
        """
        return _scaled(problem, slope)


class PlainGradient(LookAhead):
    """`theta' = theta - lr g` at the optimizer's present learning rates, whatever the optimizer (the default form).

    Momentum and weight decay belong to the step of the whole batch, not to an example, and stay out.
    """

    def step(self, problem: Problem, gradient: Sequence[Tensor]) -> list[Tensor]:
        """See the base class."""
        return list(torch._foreach_sub([p.data for p in problem.parameters], _scaled(problem, gradient)))


class AtTheta(LookAhead):
    """The validation gradient at `theta` itself, as in Ren et al. 2018, where all weights start at zero.

    Saves a forward and a backward pass over the training batch.
    """

    moves = False

    def step(self, problem: Problem, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The present parameters."""
        return [p.data for p in problem.parameters]


class TrainingStep(AtTheta):
    """The look-ahead is the training step itself: `theta` moves before `phi`, as the paper prints Algorithm 1.

    `theta'` then costs nothing and has the optimizer's momentum, decay and clipping in it; the examples' gradients are
    still those at `theta`, of which one copy is kept. `phi` acts from the next visit of an example on.
    """

    follows_training = True


class OptimizerStep(LookAhead):
    """The step that the optimizer would take on the batch, with the diagonal Jacobian of its formula.

    SGD with momentum, Nesterov momentum and weight decay, Adam and AdamW. Momentum and decay move the point `theta'`
    and are no part of an example's own effect.

    Args:
        optimizer: The optimizer of the trained parameters; its state is only read. None for the Trainer's.
    """

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        self.optimizer = optimizer

    def check(self) -> Optimizer:
        """The optimizer.

        Raises:
            ValueError: If its formula is not known here.
        """
        if not isinstance(self.optimizer, torch.optim.SGD | torch.optim.Adam):
            raise ValueError(
                f"optimizer={type(self.optimizer).__name__} has no Jacobian here: OptimizerStep knows SGD, Adam and"
                " AdamW. Use lookahead=PlainGradient(), or TrainingStep(), which lets any optimizer take the step."
            )
        for group in self.optimizer.param_groups:
            if group.get("amsgrad") or group.get("maximize"):
                raise ValueError("OptimizerStep knows neither amsgrad=True nor maximize=True. Use PlainGradient().")
        return self.optimizer

    def step(self, problem: Problem, gradient: Sequence[Tensor]) -> list[Tensor]:
        """See the base class."""
        optimizer, ahead = self.check(), []
        for group, parameter, slope in _by_group(optimizer, problem, gradient):
            value, lr, decay = parameter.data, float(group["lr"]), float(group["weight_decay"])
            state = optimizer.state.get(parameter, {})
            if group.get("decoupled_weight_decay"):
                value = value * (1 - lr * decay)
            elif decay:
                slope = slope + decay * value
            if isinstance(optimizer, torch.optim.Adam):
                first, second, number, betas = _adam(state, slope, group)
                moment = first.lerp(slope, 1 - betas[0]) / (1 - betas[0] ** number)
                root = (second.lerp(slope.square(), 1 - betas[1]) / (1 - betas[1] ** number)).sqrt()
                ahead.append(value - lr * moment / (root + float(group["eps"])))
            else:
                momentum, buffer = float(group["momentum"]), state.get("momentum_buffer")
                if momentum:
                    fresh = slope if buffer is None else momentum * buffer + (1 - float(group["dampening"])) * slope
                    slope = slope + momentum * fresh if group["nesterov"] else fresh
                ahead.append(value - lr * slope)
        return ahead

    def jacobian(self, problem: Problem, gradient: Sequence[Tensor] | None, slope: Sequence[Tensor]) -> list[Tensor]:
        """See the base class."""
        optimizer, turned = self.check(), []
        if gradient is None:
            raise ValueError("gradient=None: the Jacobian of OptimizerStep depends on the gradient of the batch.")
        for (group, parameter, own), v in zip(_by_group(optimizer, problem, gradient), slope, strict=True):
            lr, state = float(group["lr"]), optimizer.state.get(parameter, {})
            if isinstance(optimizer, torch.optim.Adam):
                if not group["decoupled_weight_decay"]:
                    own = own + float(group["weight_decay"]) * parameter.data
                first, second, number, betas = _adam(state, own, group)
                diagonal = adam_jacobian(own, first, second, number, lr=lr, betas=betas, eps=float(group["eps"]))
                turned.append(diagonal * v)
            else:
                momentum, has_buffer = float(group["momentum"]), state.get("momentum_buffer") is not None
                fresh = 1.0 - float(group["dampening"]) if momentum and has_buffer else 1.0
                turned.append(v * lr * (1 + momentum * fresh if momentum and group["nesterov"] else fresh))
        return turned


def _scaled(problem: Problem, direction: Sequence[Tensor]) -> list[Tensor]:
    if len(set(problem.rates)) == 1:
        return list(torch._foreach_mul(list(direction), problem.rates[0]))
    return [u * rate for u, rate in zip(direction, problem.rates, strict=True)]


def _by_group(
    optimizer: Optimizer, problem: Problem, values: Sequence[Tensor]
) -> list[tuple[dict[str, Any], torch.nn.Parameter, Tensor]]:
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return [(group_of[id(p)], p, value) for p, value in zip(problem.parameters, values, strict=True)]


def _adam(
    state: dict[str, Tensor], like: Tensor, group: dict[str, Any]
) -> tuple[Tensor, Tensor, int, tuple[float, float]]:
    """Moments before the step and its number; zeros before the first step."""
    first, second = state.get("exp_avg"), state.get("exp_avg_sq")
    betas = tuple(float(beta) for beta in group["betas"])
    if first is None or second is None:
        return torch.zeros_like(like), torch.zeros_like(like), 1, (betas[0], betas[1])
    return first, second, int(state["step"]) + 1, (betas[0], betas[1])
