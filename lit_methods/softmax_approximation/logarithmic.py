"""Logarithmic codecs: 8, 4 or 2 bits a weight, no sort, no index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.functional import (
    log_codes,
    log_weights,
    pack_bits,
    packed_width,
    stochastic_log_codes,
    stochastic_log_weights,
    unpack_bits,
)


class Logarithmic(Codec):
    """Rounds the logarithm of each weight to ``2 ** bits - 1`` levels below its row's maximum, and normalizes again.

    Args:
        bits: 2, 4 or 8.

    Guarantees:
        - Decoded rows sum to 1.
        - Weights of 0 come back as 0, and take no part in the row's range.
        - Encoding from scores and from weights is the same up to rounding.

    Raises:
        ValueError: On another number of bits.
    """

    def __init__(self, bits: int = 4) -> None:
        if bits not in (2, 4, 8):
            raise ValueError(f"bits must be 2, 4 or 8, but is {bits!r}.")
        self.bits = bits
        self.name = f"log{bits}"

    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`."""
        keys = weights.shape[-1]
        codes, span = log_codes(weights.log() if scores is None else scores, self.bits)
        if scores is None:
            span.masked_fill_(weights.amax(-1, keepdim=True) == 0, torch.inf)
        return pack_bits(codes.view(-1, keys), self.bits), span.view(-1)

    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See :meth:`Codec.decode`."""
        packed, span = stored
        wide = torch.promote_types(dtype, torch.float32)
        weights = log_weights(unpack_bits(packed, self.bits, size[-1]), span.unsqueeze(-1), self.bits, wide)
        empty = span.isposinf()
        if empty.any():
            weights[empty] = 0.0
        return weights.view(size).to(dtype)

    def bytes_per_row(self, keys: int) -> float:
        """See :meth:`Codec.bytes_per_row`."""
        return packed_width(keys, self.bits) + 4.0


class StochasticLogarithmic(Codec):
    """Rounds each weight up or down to a logarithmic level at random, so that its mean is the weight.

    With the exact row constant the gradients are then unbiased. Decoded rows sum to 1 in the mean only, so that the
    codec must not be used where that constant is not at hand.

    Args:
        bits: 2, 4 or 8.
        seed: Of the codec's own generator, one for each device.

    Guarantees:
        - The mean of decoded rows over draws is the encoded row.
        - Weights of 0 come back as 0, and each row's maximum as it was.
        - The global random state is neither read nor moved; after ``load_state_dict`` the draws go on bit for bit.

    Raises:
        ValueError: On another number of bits.
    """

    conserves_mass = False
    is_stochastic = True

    def __init__(self, bits: int = 2, seed: int = 0) -> None:
        if bits not in (2, 4, 8):
            raise ValueError(f"bits must be 2, 4 or 8, but is {bits!r}.")
        self.bits = bits
        self.seed = seed
        self.name = "log2" if bits == 2 else f"log{bits}-stochastic"
        self._generators: dict[str, torch.Generator] = {}

    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`."""
        keys = weights.shape[-1]
        codes, scale = stochastic_log_codes(weights, self.bits, generator or self._generator(weights.device))
        return pack_bits(codes.view(-1, keys), self.bits), scale.view(-1, 2)

    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See :meth:`Codec.decode`."""
        packed, scale = stored
        wide = torch.promote_types(dtype, torch.float32)
        weights = stochastic_log_weights(unpack_bits(packed, self.bits, size[-1]), scale, self.bits, wide)
        return weights.view(size).to(dtype)

    def bytes_per_row(self, keys: int) -> float:
        """See :meth:`Codec.bytes_per_row`."""
        return packed_width(keys, self.bits) + 8.0

    def _generator(self, device: torch.device) -> torch.Generator:
        return self._generators.setdefault(str(device), torch.Generator(device).manual_seed(self.seed))

    def state_dict(self) -> dict[str, Any]:
        """The generators' states by device."""
        return {device: generator.get_state() for device, generator in self._generators.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Codec.load_state_dict`."""
        for device, saved in state.items():
            self._generator(torch.device(device)).set_state(saved.cpu())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_generators": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_generators": {}}
        self.load_state_dict(state["_generators"])
