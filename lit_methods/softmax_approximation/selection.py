"""`codec="auto"`: which codec reaches a memory target, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.registry import as_codec

EXACT_BY_TIME = ("merged", "recompute")
LOSSY_BY_ERROR = ("bf16", "log8", "topk-log4", "log4", "log2")


@dataclass(frozen=True)
class Selection:
    """A chosen codec.

    Attributes:
        codec: The codec.
        reason: One sentence on why it was chosen.
    """

    codec: Codec
    reason: str


def eager_bytes_per_row(keys: int, *, dropout: bool, device_type: str = "cpu") -> float:
    """Bytes that eager float32 attention keeps of one row of ``keys`` weights.

    The softmax output is kept once for softmax and the value product. With dropout there are its mask (one byte a
    weight on accelerators, a float on CPUs) and the dropped weights on top.

    Args:
        keys: ``N``.
        dropout: Whether weights are dropped.
        device_type: ``"cpu"`` or an accelerator's type.

    Returns:
        The bytes.
    """
    if not dropout:
        return 4.0 * keys
    return (12.0 if device_type == "cpu" else 9.0) * keys


def kept_bytes_per_row(codec: Codec, keys: int, *, dropout: bool) -> float:
    """Bytes that the codec keeps of one row, with one bit a weight for dropout's mask."""
    return codec.bytes_per_row(keys) + (-(-keys // 8) if dropout else 0)


def choose_codec(
    keys: int,
    *,
    memory_target: float = 6.2,
    dropout: bool = False,
    device_type: str = "cpu",
    scores_at_hand: bool = True,
) -> Selection:
    """Chooses the exact codec that costs least time of those that reach the target, else the most accurate lossy one.

    Args:
        keys: ``N``, keys of a row.
        memory_target: How many times less than eager is to be kept of the weights.
        dropout: Whether weights are dropped.
        device_type: Where the model runs.
        scores_at_hand: Whether query and key are known (and with them the exact row constant). Where only the
            weights are, as for saved-tensor hooks, codecs must conserve mass.

    Returns:
        The codec and the reason.

    Raises:
        ValueError: If the target is not above 0, or no codec reaches it.
    """
    if not 0 < memory_target < math.inf:
        raise ValueError(
            f"memory_target must be above 0 (6.2 is the paper's factor) and finite, but is {memory_target!r}."
        )
    if keys < 1:
        raise ValueError(f"keys must be at least 1, but is {keys!r}.")
    eager = eager_bytes_per_row(keys, dropout=dropout, device_type=device_type)
    factors: dict[str, float] = {}
    for name in (*EXACT_BY_TIME, *LOSSY_BY_ERROR):
        codec = as_codec(name)
        if not scores_at_hand and (codec.needs_scores or not codec.conserves_mass):
            continue
        kept = kept_bytes_per_row(codec, keys, dropout=dropout)
        factors[name] = eager / kept if kept else float("inf")
        if factors[name] >= memory_target:
            missed = ", ".join(f"{other} {factor:.1f}" for other, factor in factors.items() if other != name)
            kind = "gradients stay exact" if codec.is_exact else "the most accurate lossy codec that reaches it"
            reason = (
                f"{name}: {factors[name]:.3g} times less than eager keeps of a row of {keys} weights, asked for"
                f" {memory_target:g}; {kind}{f' (below: {missed})' if missed else ''}."
            )
            return Selection(codec, reason)
    best = max(factors, key=lambda name: factors[name])
    raise ValueError(
        f"memory_target={memory_target:g} is out of reach for rows of {keys} weights: the most is"
        f" {factors[best]:.1f} times, with codec {best!r}."
    )
