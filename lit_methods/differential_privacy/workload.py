"""What an optimizer does with a gradient, as a linear filter: the workload ``A`` that the noise is shaped for.

A wrong workload costs accuracy only, never privacy: the guarantee rests on the strategy ``C`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import signal
from torch import Tensor
from torch.optim import Optimizer

from lit_methods.differential_privacy.functional import (
    banded_inverse_square_root_coefficients,
    banded_square_root_coefficients,
    series_inverse,
    series_square_root,
    sgd_workload,
    torch_sgd_roots,
)


@dataclass(frozen=True)
class Workload:
    """A causal, time-invariant workload: parameters as a linear filter of the gradients.

    Attributes:
        numerator: Coefficients of the transfer function's numerator in the delay ``z``, first entry 1.
        denominator: Coefficients of its denominator, first entry 1.
        momentum: ``beta`` where the workload is the paper's ``A_{alpha, beta}``, else ``None``.
        weight_decay_factor: ``alpha`` where the workload is the paper's ``A_{alpha, beta}``, else ``None``.
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    momentum: float | None = None
    weight_decay_factor: float | None = None

    @classmethod
    def sgd(cls, momentum: float = 0.0, weight_decay_factor: float = 1.0) -> Workload:
        """The paper's ``A_{alpha, beta}``: SGD with momentum and multiplicative weight decay (Section 2)."""
        denominator = (1.0, -(weight_decay_factor + momentum), weight_decay_factor * momentum)
        return cls((1.0,), denominator, momentum, weight_decay_factor)

    @classmethod
    def from_optimizer(cls, optimizer: Optimizer) -> Workload:
        """Reads momentum and weight decay from a PyTorch optimizer's first parameter group.

        SGD is mapped exactly, with coupled decay, dampening and Nesterov momentum. Of adaptive optimizers the first
        moment and the decoupled decay are read; their scaling is post-processing. The learning rate is taken as
        constant at its base value.

        Args:
            optimizer: The optimizer that will run on the noisy gradients.

        Returns:
            The workload; prefix sums (``alpha=1, beta=0``) for optimizers without a known momentum.
        """
        group = optimizer.param_groups[0]
        rate, decay = float(group.get("initial_lr", group["lr"])), float(group.get("weight_decay", 0.0))
        if "betas" in group:
            decoupled = bool(group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)))
            return cls.sgd(float(group["betas"][0]), max(1.0 - rate * decay, 1e-6) if decoupled else 1.0)
        momentum = float(group.get("momentum", 0.0))
        if not isinstance(optimizer, torch.optim.SGD):
            return cls.sgd(momentum)
        kept = 1.0 - float(group["dampening"])
        if group["nesterov"]:
            return cls._feedback((1.0 + momentum * kept, -momentum), momentum, rate * decay)
        roots = torch_sgd_roots(rate * kept, momentum, decay) if rate * kept > 0 else (1.0, momentum)
        if roots is None:
            return cls._feedback((kept,), momentum, rate * decay)
        return cls.sgd(momentum=roots[1], weight_decay_factor=roots[0])

    @classmethod
    def _feedback(cls, numerator: tuple[float, ...], momentum: float, coupling: float) -> Workload:
        """SGD whose coupled decay feeds ``lr * lambda`` of the parameters back into the momentum's input."""
        plain = np.array([1.0, -(1.0 + momentum), momentum])
        plain[1 : 1 + len(numerator)] += coupling * np.array(numerator)
        return cls(tuple(value / numerator[0] for value in numerator), tuple(plain.tolist()))

    def first_column(self, steps: int) -> Tensor:
        """First column ``a`` of the workload matrix.

        Args:
            steps: Number ``n`` of steps.

        Returns:
            ``a`` of shape ``(n,)``, float64, ``a[0] == 1``.
        """
        if self.momentum is not None and self.weight_decay_factor is not None:
            return sgd_workload(steps, self.momentum, self.weight_decay_factor)
        impulse = np.zeros(steps)
        impulse[0] = 1.0
        return torch.from_numpy(signal.lfilter(self.numerator, self.denominator, impulse))

    def square_root(self, bandwidth: int) -> Tensor:
        """First ``p`` coefficients of the workload's square root: in closed form where Theorem 1 has one.

        Args:
            bandwidth: Number ``p`` of coefficients.

        Returns:
            ``c`` of shape ``(p,)``, float64.
        """
        if self.momentum is None or self.weight_decay_factor is None:
            return series_square_root(self.first_column(bandwidth), bandwidth)
        return banded_square_root_coefficients(bandwidth, self.momentum, self.weight_decay_factor)

    def inverse_square_root(self, bandwidth: int) -> Tensor:
        """First ``p`` coefficients of the inverse of the workload's square root.

        Args:
            bandwidth: Number ``p`` of coefficients.

        Returns:
            ``d`` of shape ``(p,)``, float64.
        """
        if self.momentum is None or self.weight_decay_factor is None:
            return series_inverse(self.square_root(bandwidth), bandwidth)
        return banded_inverse_square_root_coefficients(bandwidth, self.momentum, self.weight_decay_factor)
