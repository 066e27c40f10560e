"""What every private run is asked for first: one budget, and constants in their range."""

from __future__ import annotations


def check_noise(noise_multiplier: float, delta: float) -> None:
    """Refuses a noise multiplier or a delta out of range.

    Args:
        noise_multiplier: Noise over sensitivity; 0 is no noise.
        delta: The ``delta`` of the guarantee.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if not noise_multiplier >= 0:
        raise ValueError(f"noise_multiplier must be at least 0, but is {noise_multiplier!r}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), but is {delta!r}.")


def check_budget(epsilon: float | None, noise_multiplier: float | None, delta: float, max_grad_norm: float) -> None:
    """Refuses a budget that is not exactly one, and constants out of range.

    Args:
        epsilon: Budget of the whole run, or:
        noise_multiplier: Noise over sensitivity; 0 is no noise.
        delta: The ``delta`` of the guarantee.
        max_grad_norm: Clip norm.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise ValueError(
            f"Give either epsilon or noise_multiplier, but got epsilon={epsilon!r} and"
            f" noise_multiplier={noise_multiplier!r}."
        )
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, but is {epsilon!r}.")
    check_noise(0.0 if noise_multiplier is None else noise_multiplier, delta)
    if not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be above 0, but is {max_grad_norm!r}.")
