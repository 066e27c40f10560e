"""What all routes share: the codec of the moment, and who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_methods.softmax_approximation._random import unmoved
from lit_methods.softmax_approximation.attention import softmax_attention
from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.comparison import watch_gradient
from lit_methods.softmax_approximation.coverage import Coverage, Row
from lit_methods.softmax_approximation.exact import Merged
from lit_methods.softmax_approximation.logarithmic import Logarithmic
from lit_methods.softmax_approximation.meters import ErrorMeter, SavedBytes, others_pack, paused


@dataclass
class Approximation:
    """The state that the routes of one model read at each call.

    Attributes:
        codec: What to keep of the weights where query and key are at hand.
        coverage: Filled while it is not None.
        errors: Filled while it is not None.
    """

    codec: Codec
    coverage: Coverage | None = None
    errors: ErrorMeter | None = None

    @property
    def weights_codec(self) -> Codec:
        """The codec where only the weights are at hand: the same, or the nearest one that can be used there.

        Such a codec must not need query and key, and its rows must sum to 1.
        """
        if self.codec.needs_scores:
            return Merged()
        return self.codec if self.codec.conserves_mass and not self.codec.is_stochastic else Logarithmic(4)

    def attend(
        self,
        name: str,
        route: str,
        former: Callable[[], Any],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None,
        dropout_p: float,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes attention with the codec of the moment.

        Args:
            name: The module's name.
            route: Of the report.
            former: Computes the same in the model's own way, for the report.
            query: As of :func:`~.attention.softmax_attention`, and so are the others.
            key: Keys.
            value: Values.
            mask: Boolean or additive mask.
            dropout_p: Probability that a weight is dropped.
            **settings: Further keywords of :func:`~.attention.softmax_attention`.

        Returns:
            As of :func:`~.attention.softmax_attention`.
        """
        settings |= {"mask": mask, "dropout_p": dropout_p}
        if not torch.is_grad_enabled():
            return softmax_attention(query, key, value, codec=self.codec, **settings)
        call = (query, key, value)

        def run() -> tuple[Tensor, Tensor | None]:
            if self.errors is not None and not others_pack():
                return watch_gradient(self.errors, self.codec, call, settings)
            return softmax_attention(query, key, value, codec=self.codec, **settings)

        if self.coverage is None:
            return run()
        row = Row(name, route, self.codec.name)
        if not any(tensor is not None and tensor.requires_grad for tensor in (*call, mask)):
            row.codec, row.note = "", "frozen: no gradient passes, and nothing is kept"
            self.coverage.add(row)
            return run()
        if others_pack():
            row.note = "inside activation checkpointing"
            self.coverage.add(row)
            return run()
        masks = [] if mask is None else [mask]
        row.before = _kept_by(former, call, masks)
        with SavedBytes() as meter:
            output, weights = run()
        row.after = _beyond(meter, call, [output, *self.coverage.masks])
        self.coverage.masks += masks
        self.coverage.add(row)
        return output, weights


def _kept_by(former: Callable[[], Any], call: tuple[Tensor, ...], masks: list[Tensor]) -> int:
    with paused(), unmoved(call[0].device), SavedBytes() as meter:
        output = former()
    return _beyond(meter, call, [output[0] if isinstance(output, tuple) else output, *masks])


def _beyond(meter: SavedBytes, call: tuple[Tensor, ...], exclude: list[Tensor]) -> int:
    """Bytes kept beyond query, key and value, which every way keeps, eager attention as copies of its own."""
    inputs = {tensor.data_ptr(): tensor.nbytes for tensor in call}
    return max(0, meter.nbytes(exclude) - sum(inputs.values()))
