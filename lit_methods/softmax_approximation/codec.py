"""The one interface of everything that can stand for a softmax output until backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor


class Codec(ABC):
    """A way to keep rows of attention weights for backward.

    A codec knows nothing of heads, masks or dropout: it takes rows that are probability vectors over ``N`` keys and
    gives rows back. Keys of weight 0 (masked ones, above all) come back as exactly 0.

    Attributes:
        name: Short name for tables, unique among codecs with the same settings.
        is_exact: Whether gradients are those of eager up to rounding.
        conserves_mass: Whether decoded rows sum to 1 whatever the input. Where the exact row constant is not at
            hand (saved-tensor hooks) only such codecs may be used.
        is_stochastic: Whether encoding draws random numbers; decoded rows are then unbiased.
        needs_scores: Whether nothing is kept because the weights are computed again from query and key. Such a codec
            has no ``encode`` and works only where the attention function has query and key.
    """

    name: str
    is_exact: ClassVar[bool] = False
    conserves_mass: bool = True
    is_stochastic: bool = False
    needs_scores: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Compresses rows of weights.

        Args:
            weights: Softmax outputs ``(..., N)`` of float32 or float64, rows summing to 1.
            scores: The rows before the softmax, same shape, masks included, where they are at hand: they spare
                logarithmic codecs the logarithm. The result is the same up to rounding.
            generator: Source of random numbers of a stochastic codec; ``None`` takes the codec's own. The global
                random state is never read or moved.

        Returns:
            The only tensors that are kept. Each has the shape ``(R, ...)`` with ``R`` the number of rows (the product
            of the leading sizes), so that rows may be sliced before decoding.
        """

    @abstractmethod
    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Rebuilds rows of weights.

        Args:
            stored: What ``encode`` returned, or the same rows of each of its tensors.
            size: Shape ``(..., N)`` of the weights to give back, ``N`` as encoded.
            dtype: Floating dtype of the result.

        Returns:
            Weights of that shape: a fresh tensor, or a stored one, which must not be written to.
        """

    @abstractmethod
    def bytes_per_row(self, keys: int) -> float:
        """Bytes kept for one row of ``keys`` float32 weights, without the bit per key that masked top-k rows add."""

    def state_dict(self) -> dict[str, Any]:
        """What the next draws of a stochastic codec depend on; empty for all others."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  most codecs hold no state
        """Goes on where the saved codec stopped.

        Args:
            state: Of :meth:`state_dict`.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"
