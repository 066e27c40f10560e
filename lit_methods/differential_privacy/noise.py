"""The online noise ``C^-1 Z`` of a banded Toeplitz strategy, in a ring buffer (Section 3, Algorithm 1)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from scipy.linalg import solve_triangular, toeplitz
from torch import Tensor

from lit_methods.differential_privacy.factorization import Strategy

COLUMNS = 1 << 14


@contextmanager
def _exact_products() -> Iterator[None]:
    """Keeps TF32 and bf16 products out of the recurrence: rounding there widens the sensitivity."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


class CorrelatedNoise:
    """Rows of ``C^-1 Z`` one after another, ``Z`` standard normal, in unit scale.

    For a banded ``C`` this is the recurrence ``y_t = (z_t - sum_j c_j y_{t-j}) / c_0`` over past outputs; for a banded
    ``C^-1`` the sum ``y_t = sum_j d_j z_{t-j}`` over past normals. Either runs ``block_size`` steps at a time: one
    matrix product takes the past vectors and the block's fresh normals to the block's outputs, so that each past
    vector is read once per block instead of once per step. Memory is about ``p - 1 + block_size`` vectors.

    Args:
        coefficients: First column ``c`` of a banded ``C``, shape ``(p,)``, or of ``C^-1`` with ``inverse=True``.
        dimension: Length ``d`` of the noise vectors.
        steps: Number ``n`` of vectors that may be drawn.
        inverse: Whether the coefficients are those of a banded ``C^-1`` (BISR).
        generator_seed: Seed of the own generator; ``None`` takes one from the operating system's entropy. A known
            seed voids every privacy guarantee.
        block_size: Steps per matrix product; 1 is the plain recurrence, ``None`` chooses by the bandwidth.
        device: Where the buffer and the generator live.
        dtype: Of the buffer; at least float32, because a rounded state widens the sensitivity.

    Guarantees:
        - ``C y = z`` with ``z`` independent standard normal draws of the own generator alone: the global random
          state is neither read nor moved.
        - After ``load_state_dict`` the sequence goes on bit for bit.
        - No more than ``steps`` vectors are ever given out.

    Raises:
        ValueError: On a dimension, step count or block size below 1, or a dtype below float32.
    """

    def __init__(
        self,
        coefficients: Tensor,
        dimension: int,
        steps: int,
        *,
        inverse: bool = False,
        generator_seed: int | None = None,
        block_size: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, value in (("dimension", dimension), ("steps", steps), ("block_size", block_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value!r}.")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, but is {dtype}.")
        column = torch.as_tensor(coefficients, dtype=torch.float64).detach().cpu()
        if column.ndim != 1 or column.numel() == 0 or not column[0] > 0 or not column.isfinite().all():
            raise ValueError(f"coefficients must be a finite vector with positive start, but are {coefficients!r}.")
        self.dimension = dimension
        self.steps = steps
        self.step = 0
        self.inverse = inverse
        past = min(column.numel(), steps) - 1
        self.block_size = block_size or max(1, min(32, past // 3))
        self._row_count = self.block_size * (1 - (-past // self.block_size))
        self.generator = torch.Generator(device)
        self.generator.manual_seed(secrets.randbits(63) if generator_seed is None else generator_seed)
        self._product = self._block_product(column, past).to(device, dtype)

    @classmethod
    def of(cls, strategy: Strategy, dimension: int, **options: Any) -> CorrelatedNoise:
        """The noise of a strategy for as many steps as its participation schedule has.

        Args:
            strategy: Banded in ``C`` or in ``C^-1``.
            dimension: Length ``d`` of the noise vectors.
            **options: See the class.

        Returns:
            The noise.
        """
        inverse = strategy.noising is not None
        coefficients = strategy.coefficients if strategy.noising is None else strategy.noising
        return cls(coefficients, dimension, strategy.participation.steps, inverse=inverse, **options)

    @cached_property
    def _rows(self) -> Tensor:
        """The ring buffer, made at the first draw: a process that only counts needs none."""
        return torch.zeros(self._row_count, self.dimension, device=self._product.device, dtype=self._product.dtype)

    @cached_property
    def _outputs(self) -> Tensor:
        """The block's outputs: in place of its normals, unless these are what later blocks need."""
        shape = (self.block_size if self.inverse else 0, self.dimension)
        return torch.zeros(shape, device=self._product.device, dtype=self._product.dtype)

    def _block_product(self, column: Tensor, past: int) -> Tensor:
        """The matrix that takes (past vectors, fresh normals), oldest row first, to a block's outputs."""
        total, block = self._row_count, self.block_size
        padded = torch.zeros(total + block, dtype=torch.float64)
        padded[: past + 1] = column[: past + 1]
        if self.inverse:
            lags = torch.arange(total - block, total)[:, None] - torch.arange(total)[None, :]
            return torch.where(lags >= 0, padded[lags.clamp(min=0)], 0.0)
        lags = torch.arange(total - block, total)[:, None] - torch.arange(total - block)[None, :]
        feedback = padded[lags]
        inside = toeplitz(padded[:block].numpy(), torch.zeros(block).numpy())
        return torch.from_numpy(
            solve_triangular(inside, torch.cat([-feedback, torch.eye(block)], dim=1).numpy(), lower=True)
        )

    @torch.no_grad()
    def next(self) -> Tensor:
        """Draws the next noise vector.

        Returns:
            ``y_t`` of shape ``(dimension,)``: a view that the next call may overwrite.

        Raises:
            RuntimeError: After ``steps`` vectors: a further one would be a release that nobody accounted for.
        """
        self._check_horizon()
        slot = self.step % self._row_count
        if slot % self.block_size == 0:
            self._advance(slot)
        self.step += 1
        return self._outputs[slot % self.block_size] if self.inverse else self._rows[slot]

    def count(self) -> None:
        """Counts a step whose vector another process draws.

        Raises:
            RuntimeError: After ``steps`` vectors.
        """
        self._check_horizon()
        self.step += 1

    def _check_horizon(self) -> None:
        if self.step >= self.steps:
            raise RuntimeError(
                f"All {self.steps} planned steps of private training are spent: another step would release"
                " gradients that the privacy guarantee does not cover. Plan more steps from the start (max_epochs,"
                " max_steps) and train anew."
            )

    def _advance(self, first: int) -> None:
        fresh = self._rows[first : first + self.block_size]
        outputs = self._outputs if self.inverse else fresh
        fresh[self.steps - self.step :].zero_()
        for vector in fresh[: self.steps - self.step]:
            vector.normal_(generator=self.generator)
        product = self._product.roll(first + self.block_size, dims=1)
        device_type = self._rows.device.type
        columns = COLUMNS if device_type == "cpu" else self._rows.shape[1]
        with _exact_products(), torch.autocast(device_type, enabled=False):
            for start in range(0, self._rows.shape[1], columns):
                outputs[:, start : start + columns] = product @ self._rows[:, start : start + columns]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next draws depend on. Secret: it lets its holder subtract the noise."""
        return {
            "rows": self._rows.detach().to("cpu", copy=True),
            "outputs": self._outputs.detach().to("cpu", copy=True),
            "product": self._product.detach().to("cpu", copy=True),
            "step": self.step,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the saved noise stopped.

        Args:
            state: Of :meth:`state_dict`, from a noise of the same coefficients, dimension, dtype and block size.

        Raises:
            ValueError: If it comes from another noise.
        """
        rows, product = state["rows"], state["product"].to(self._product)
        if rows.shape != (self._row_count, self.dimension) or not torch.equal(product, self._product):
            raise ValueError(
                f"The saved noise has {tuple(rows.shape)} rows and columns or other coefficients, but"
                f" {(self._row_count, self.dimension)} are needed: it belongs to another model or strategy."
            )
        if rows.dtype != self._product.dtype:
            raise ValueError(f"The saved noise is of {rows.dtype}, but {self._product.dtype} is needed.")
        self._rows.copy_(rows)
        self._outputs.copy_(state["outputs"])
        self.step = int(state["step"])
        self.generator.set_state(state["generator"].cpu())
