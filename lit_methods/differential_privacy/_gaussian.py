"""The Gaussian mechanism: delta, epsilon and noise multiplier by the tight analytic formula (Balle & Wang 2018)."""

from __future__ import annotations

import math

from scipy import optimize, special


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """Tight ``delta`` of the Gaussian mechanism at ``epsilon`` (Balle & Wang 2018, Theorem 8).

    Args:
        noise_multiplier: Standard deviation over sensitivity, above 0.
        epsilon: At least 0.

    Returns:
        ``Phi(1/(2 sigma) - epsilon sigma) - e^epsilon Phi(-1/(2 sigma) - epsilon sigma)``.

    Raises:
        ValueError: On parameters out of range.
    """
    if not (0 < noise_multiplier < math.inf and 0 <= epsilon < math.inf):
        raise ValueError(
            "noise_multiplier must be finite and above 0, and epsilon finite and at least 0, but are"
            f" {noise_multiplier!r}, {epsilon!r}."
        )
    half, shift = 0.5 / noise_multiplier, epsilon * noise_multiplier
    first = float(special.log_ndtr(half - shift))
    second = epsilon + float(special.log_ndtr(-half - shift))
    return math.exp(first) * -math.expm1(min(second - first, 0.0))


def _check_budget(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie in (0, 1), but is {delta!r}.")


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Smallest noise multiplier ``sigma`` of an ``(epsilon, delta)`` Gaussian mechanism, rounded up.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).

    Returns:
        ``sigma``: standard deviation of the noise over the sensitivity.

    Guarantees:
        - ``gaussian_delta(sigma, epsilon) <= delta`` holds for the returned number itself.
        - Within one part in 1e12 of the smallest such number.

    Raises:
        ValueError: On parameters out of range.
    """
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be a finite number above 0, but is {epsilon!r}.")
    _check_budget(delta)
    low, high = 1e-4, 1.0
    while gaussian_delta(high, epsilon) > delta:
        low, high = high, 2.0 * high
    while gaussian_delta(low, epsilon) <= delta:
        low, high = 0.5 * low, low
    while high - low > 1e-13 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if gaussian_delta(middle, epsilon) <= delta else (middle, high)
    return high


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The ``epsilon`` that a Gaussian mechanism spends at ``delta``: the inverse of the calibration.

    Args:
        noise_multiplier: Standard deviation over sensitivity; 0 gives infinity, infinity gives 0.
        delta: In (0, 1).

    Returns:
        ``epsilon``, at least 0.

    Raises:
        ValueError: On parameters out of range.
    """
    _check_budget(delta)
    if noise_multiplier < 0 or math.isnan(noise_multiplier):
        raise ValueError(f"noise_multiplier must be at least 0, but is {noise_multiplier!r}.")
    if noise_multiplier < 1e-100:
        return math.inf
    if math.isinf(noise_multiplier) or gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    upper = 1.0
    while gaussian_delta(noise_multiplier, upper) > delta:
        upper *= 2.0
    root = optimize.brentq(lambda eps: gaussian_delta(noise_multiplier, eps) - delta, 0.0, upper, xtol=1e-12)
    return float(root)
