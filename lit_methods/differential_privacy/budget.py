"""What every private run is asked for first: one budget, and constants in their range."""

from __future__ import annotations

from collections.abc import Sequence

from lit_methods.errors import check_above, check_at_least


def check_noise(noise_multiplier: float, delta: float) -> None:
    """Refuses a noise multiplier or a delta out of range.

    Args:
        noise_multiplier: Noise over sensitivity; 0 is no noise.
        delta: The ``delta`` of the guarantee.

    Raises:
        ValueError: Naming the argument and its value.
    """
    check_at_least("noise_multiplier", noise_multiplier)
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), but is {delta!r}.")


def check_budget(epsilon: float | None, noise_multiplier: float | None, delta: float) -> None:
    """Refuses a budget that is not exactly one, and constants out of range.

    Args:
        epsilon: Budget of the whole run, or:
        noise_multiplier: Noise over sensitivity; 0 is no noise.
        delta: The ``delta`` of the guarantee.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise ValueError(
            f"Give either epsilon or noise_multiplier, but got epsilon={epsilon!r} and"
            f" noise_multiplier={noise_multiplier!r}."
        )
    if epsilon is not None:
        check_above("epsilon", epsilon)
    check_noise(0.0 if noise_multiplier is None else noise_multiplier, delta)


def check_patterns(allowed_buffers: Sequence[str]) -> tuple[str, ...]:
    """Refuses patterns that are no sequence of strings: of a single string each character would be a pattern.

    Args:
        allowed_buffers: What was passed for it.

    Returns:
        The patterns.

    Raises:
        TypeError: On a string, or anything else that is no list of strings.
    """
    single = isinstance(allowed_buffers, str) or not isinstance(allowed_buffers, Sequence)
    if single or not all(isinstance(one, str) for one in allowed_buffers):
        way_out = f" Write allowed_buffers=[{allowed_buffers!r}]." if isinstance(allowed_buffers, str) else ""
        raise TypeError(f"allowed_buffers must be a list of patterns, but is {allowed_buffers!r}.{way_out}")
    return tuple(allowed_buffers)
