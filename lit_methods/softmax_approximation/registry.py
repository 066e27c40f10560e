"""Codecs by name."""

from __future__ import annotations

from collections.abc import Callable

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.exact import BFloat16, Merged, Recompute

CODECS: dict[str, Callable[[], Codec]] = {"merged": Merged, "recompute": Recompute, "bf16": BFloat16}


def as_codec(codec: str | Codec) -> Codec:
    """Gives the codec of a name, or the codec itself.

    Args:
        codec: A name of ``CODECS`` (with the codec's default settings) or a codec.

    Returns:
        The codec.

    Raises:
        ValueError: If no codec has that name.
        TypeError: If it is neither.
    """
    if isinstance(codec, Codec):
        return codec
    if not isinstance(codec, str):
        raise TypeError(f"codec must be a Codec or a name out of {sorted(CODECS)}, but is {codec!r}.")
    if codec not in CODECS:
        raise ValueError(
            f"codec {codec!r} is unknown: take one of {sorted(CODECS)}, or pass a Codec with settings of your own."
        )
    return CODECS[codec]()
