"""Which codec to take when the gradient's error is too large."""

from __future__ import annotations

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.registry import as_codec

STEPS = {"log2": "log4", "log8": "recompute", "bf16": "recompute"}


def more_accurate(codec: Codec) -> Codec | None:
    """The next more accurate codec: log4 after log2, exact after log8 and bf16, log8 after all others.

    Args:
        codec: The one in use.

    Returns:
        The next one, or None if gradients are exact already.
    """
    return None if codec.is_exact else as_codec(STEPS.get(codec.name, "log8"))
