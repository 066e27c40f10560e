"""Opacus' accountant interface over our accounting, registered as ``"mf"``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opacus.accountants import IAccountant, register_accountant

from lit_methods.differential_privacy.accounting import Accounting


def _refuse_sample_rate(sample_rate: float | None) -> None:
    if sample_rate is not None:
        raise ValueError(
            f"sample_rate={sample_rate!r} is what Opacus' PrivacyEngine passes, which replaces the sampler and adds"
            " independent noise: its epsilon and this run's have nothing in common. Use BandedSquareRootNoise or"
            " CorrelatedNoiseOptimizer, without PrivacyEngine.make_private."
        )


class MatrixFactorizationAccountant(IAccountant):  # type: ignore[misc]  # Opacus has no types
    """Counts the steps of a run with correlated noise, and tells what they have spent.

    Everything that epsilon depends on is fixed in the accounting. What Opacus' own accountants are fed, a noise
    multiplier and a sample rate per step, does not determine it: the noise of different steps is correlated. So a
    sample rate is refused wherever one is given, which stops ``PrivacyEngine.make_private`` before it trains, and a
    noise multiplier must be the one that was planned.

    Args:
        accounting: The run's. Opacus' registry makes accountants without arguments: then call :meth:`bind`.

    Attributes:
        history: Always empty: there is no list of independent steps.
    """

    def __init__(self, accounting: Accounting | None = None) -> None:
        self.history: list[tuple[float, float, int]] = []
        self._accounting = accounting
        self._steps = 0

    def bind(self, accounting: Accounting) -> None:
        """Says whose steps are counted.

        Args:
            accounting: The run's.

        Raises:
            ValueError: If it is bound to another run already.
        """
        if self._accounting is not None and self._accounting.fingerprint() != accounting.fingerprint():
            raise ValueError("The accountant counts the steps of another run. Make a new one for this run.")
        self._accounting = accounting

    @property
    def accounting(self) -> Accounting:
        """The run's accounting.

        Raises:
            ValueError: Before there is one.
        """
        if self._accounting is None:
            raise ValueError(
                "The mf accountant has no accounting yet, so that its epsilon is unknown. Pass what"
                " lit_methods.differential_privacy.calibrate returns, or call bind with it."
            )
        return self._accounting

    def step(self, *, noise_multiplier: float | None = None, sample_rate: float | None = None) -> None:
        """Counts an optimizer step.

        Args:
            noise_multiplier: The optimizer's standard deviation for clip norm 1, to compare with the planned one.
            sample_rate: Must stay ``None``.

        Raises:
            ValueError: On a sample rate, or noise that was not planned.
            RuntimeError: After the last planned step.
        """
        _refuse_sample_rate(sample_rate)
        if noise_multiplier is not None and noise_multiplier != self.accounting.noise_std:
            raise ValueError(
                f"The step's noise {noise_multiplier!r} is not the planned {self.accounting.noise_std!r}. Pass"
                " accounting.noise_std to the optimizer, and no noise scheduler."
            )
        planned = self.accounting.strategy.participation.steps
        if self._steps >= planned:
            raise RuntimeError(f"All {planned} planned steps are spent. Plan more from the start, and train anew.")
        self._steps += 1

    def get_epsilon(self, delta: float) -> float:
        """What the steps so far have spent.

        Args:
            delta: In (0, 1); may differ from the accounting's own.

        Returns:
            ``epsilon``.

        Raises:
            ValueError: Without an accounting, or on a ``delta`` out of range.
        """
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta must lie in (0, 1), but is {delta!r}.")
        return self.accounting.at(delta).epsilon_after(self._steps)

    def __len__(self) -> int:
        """Steps so far."""
        return self._steps

    @classmethod
    def mechanism(cls) -> str:
        """Name in Opacus' registry."""
        return "mf"

    def get_optimizer_hook_fn(self, sample_rate: float | None = None) -> Callable[[Any], None]:
        """A step hook for an optimizer with correlated noise.

        Args:
            sample_rate: Must stay ``None``.

        Returns:
            A function of the optimizer that counts its step.

        Raises:
            ValueError: On a sample rate.
        """
        _refuse_sample_rate(sample_rate)

        def hook(optimizer: Any) -> None:
            if not hasattr(optimizer, "noise"):
                raise TypeError(
                    f"{type(optimizer).__name__} adds independent noise, which the mf accountant does not account for."
                    " Use CorrelatedNoiseOptimizer."
                )
            self.step(noise_multiplier=optimizer.noise_multiplier)

        return hook

    def state_dict(self, destination: Any = None) -> Any:
        """Steps so far, and the fingerprint of the run, as plain containers.

        Args:
            destination: A dictionary to fill.

        Returns:
            The filled dictionary.
        """
        state = {} if destination is None else destination
        state.update(mechanism=self.mechanism(), steps=self._steps, fingerprint=self.accounting.fingerprint())
        return state

    def load_state_dict(self, state_dict: Any) -> None:
        """Goes on counting where a saved accountant stopped.

        Args:
            state_dict: Of :meth:`state_dict`.

        Raises:
            ValueError: For the state of another accountant or another run.
        """
        if not state_dict or state_dict.get("mechanism") != self.mechanism():
            found = (state_dict or {}).get("mechanism")
            raise ValueError(f"The state is of the accountant {found!r}, not of 'mf'. Resume with its own.")
        own, saved = self.accounting.fingerprint(), state_dict["fingerprint"]
        changed = [name for name in own if saved.get(name) != own[name]]
        if changed:
            raise ValueError(
                f"The state counts the steps of another run: {', '.join(changed)} differ. Resume with the settings that"
                " it was started with, or train anew and count both runs."
            )
        self._steps = int(state_dict["steps"])


# A reloaded module defines the class anew, and the newest must count.
register_accountant(MatrixFactorizationAccountant.mechanism(), MatrixFactorizationAccountant, force=True)
