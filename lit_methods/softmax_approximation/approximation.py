"""What all routes share: the codec of the moment, and who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
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
        former: Callable[[], tuple[Tensor, Tensor | None]],
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
            former: Computes the same in the model's own way: called while a report is made, and compared.
            query: As of :func:`~.attention.softmax_attention`, and so are the others.
            key: Keys.
            value: Values.
            mask: Boolean or additive mask.
            dropout_p: Probability that a weight is dropped.
            **settings: Further keywords of :func:`~.attention.softmax_attention`.

        Returns:
            As of :func:`~.attention.softmax_attention`.

        Raises:
            MisconfigurationException: If a report is made and the model's own way gives another output.
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
        row.before, expected = _formerly(former, call, masks)
        with SavedBytes() as meter:
            output, weights = run()
        row.after = _beyond(meter, call, [output, *self.coverage.masks])
        if dropout_p == 0 or output.device.type == "cpu":  # elsewhere fused kernels draw other dropout masks
            _check_same(name, output, expected)
        self.coverage.masks += masks
        self.coverage.add(row)
        return output, weights


def _formerly(
    former: Callable[[], tuple[Tensor, Tensor | None]], call: tuple[Tensor, ...], masks: list[Tensor]
) -> tuple[int, Tensor]:
    """Bytes that the model's own way keeps of a call, and its output ``(B, H, T_q, d_v)``."""
    with paused(), unmoved(call[0].device), SavedBytes() as meter:
        output, _ = former()
    return _beyond(meter, call, [output, *masks]), output.detach()


def _check_same(name: str, output: Tensor, expected: Tensor) -> None:
    """Refuses to take the place of attention that computes something else."""
    exact = output.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(output.device.type)
    scale = float(expected.nan_to_num().abs().max())
    difference = float((output.detach() - expected).nan_to_num().abs().max())
    if difference > (1e-3 if exact else 0.1) * scale:
        raise MisconfigurationException(
            f"The attention of {name} computes something else than softmax(Q K^T) V: its output differs by"
            f" {difference:.2g} where values reach {scale:.2g}. Leave the module out with `modules=`."
        )


def _beyond(meter: SavedBytes, call: tuple[Tensor, ...], exclude: list[Tensor]) -> int:
    """Bytes kept beyond query, key and value, which every way keeps, eager attention as copies of its own."""
    inputs = {tensor.data_ptr(): tensor.nbytes for tensor in call}
    return max(0, meter.nbytes(exclude) - sum(inputs.values()))
