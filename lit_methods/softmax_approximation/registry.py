"""Codecs by name."""

from __future__ import annotations

from collections.abc import Callable

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.exact import BFloat16, Merged, Recompute
from lit_methods.softmax_approximation.logarithmic import Logarithmic, StochasticLogarithmic
from lit_methods.softmax_approximation.paper import RankedTail
from lit_methods.softmax_approximation.top_k import TopK

CODECS: dict[str, Callable[[], Codec]] = {
    "recompute": Recompute,
    "merged": Merged,
    "bf16": BFloat16,
    "log8": lambda: Logarithmic(8),
    "log4": lambda: Logarithmic(4),
    "log2": lambda: StochasticLogarithmic(2),
    "paper": RankedTail,
    "topk": TopK,
    "topk-log4": lambda: TopK(tail=Logarithmic(4)),
}


def as_codec(codec: str | Codec) -> Codec:
    """Gives a codec of that name, with its default settings, or the codec itself.

    Args:
        codec: A name of ``CODECS`` or a codec.

    Returns:
        The codec.

    Raises:
        ValueError: If no codec has that name.
        TypeError: If it is neither.
    """
    if isinstance(codec, Codec):
        return codec
    if not isinstance(codec, str):
        raise TypeError(f"codec must be a Codec or one of {', '.join(CODECS)}, but is {codec!r}.")
    if codec not in CODECS:
        raise ValueError(
            f"codec {codec!r} is unknown: take one of {', '.join(CODECS)}, or pass a Codec with settings of your own."
        )
    return CODECS[codec]()
