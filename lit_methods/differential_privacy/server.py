"""User-level privacy for federated training: correlated noise on the server's sums of users' updates."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_methods.differential_privacy.accounting import FixedOrderAccounting
from lit_methods.differential_privacy.budget import check_budget
from lit_methods.differential_privacy.factorization import BandedSquareRoot, Factorization, Participation
from lit_methods.differential_privacy.functional import gaussian_noise_multiplier
from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.workload import Workload
from lit_methods.errors import check_above, check_object

Update = Tensor | Mapping[str, Tensor]


class PrivateServerUpdate:
    """Clips each user's update, sums, adds correlated noise, divides by the constant expected number of users.

    Args:
        like: A tensor or a dictionary of tensors of the updates' shapes: what users train.
        participation: Rounds ``n``, check-ins of one user ``k`` and rounds between them ``b``, as the server enforces
            them.
        expected_users: The constant that each round's sum is divided by.
        max_norm: Clip norm of one user's update, over all its tensors together.
        epsilon: Budget of the whole run. Either this or ``noise_multiplier``.
        noise_multiplier: Noise over sensitivity of the whole run.
        delta: The ``delta`` of the guarantee; well below one over the number of users.
        factorization: The strategy; BSR by default.
        workload: What the server does with the mean update: its momentum and decay; summing up by default.
        unsafe_seed: Seed of the noise for tests; whoever knows it can subtract the noise.

    Guarantees:
        - All models of the run together are ``(epsilon, delta)``-DP against leaving out one user, where nobody takes
          part more often than ``participation`` says. Rounds that name their users are held to it.
        - A round's sum moves by at most ``max_norm`` when one user is left out; an update that is not finite counts
          as zero.
        - No round beyond the planned number is released.

    Raises:
        ValueError: On parameters out of range.
        TypeError: If ``like`` is not of floating point.
    """

    def __init__(
        self,
        like: Update,
        participation: Participation,
        *,
        expected_users: int,
        max_norm: float = 1.0,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        factorization: Factorization | None = None,
        workload: Workload | None = None,
        unsafe_seed: int | None = None,
    ) -> None:
        check_budget(epsilon, noise_multiplier, delta)
        check_above("max_norm", max_norm)
        check_object("factorization", factorization, Factorization, "BandedSquareRoot(bandwidth=8)")
        check_object("workload", workload, Workload, "Workload.sgd(momentum=0.9)")
        if expected_users < 1:
            raise ValueError(f"expected_users must be at least 1, but is {expected_users!r}.")
        self._single = isinstance(like, Tensor)
        self._like = {name: tensor.detach() for name, tensor in _tensors(like).items()}
        foreign = [name for name, tensor in self._like.items() if not tensor.is_floating_point()]
        if foreign:
            raise TypeError(
                f"{foreign[:5]} are not of floating point: counters can't be averaged with noise. Drop them."
            )
        dimension = sum(tensor.numel() for tensor in self._like.values())
        strategy = (factorization or BandedSquareRoot()).strategy(workload or Workload.sgd(), participation, dimension)
        if epsilon is not None:
            noise_multiplier = gaussian_noise_multiplier(epsilon, delta)
        self.accounting = FixedOrderAccounting(strategy, noise_multiplier or 0.0, delta)
        self.max_norm, self.expected_users = max_norm, expected_users
        device = next(iter(self._like.values())).device
        self.noise = CorrelatedNoise.of(strategy, dimension, generator_seed=unsafe_seed, device=device)
        self._seen: dict[str, list[int]] = {}

    @torch.no_grad()
    def step(self, updates: Sequence[Update], users: Sequence[Hashable] | None = None) -> Any:
        """Takes one round of updates.

        Args:
            updates: One per user, each in the structure of ``like``; none is a round as well.
            users: Names of the users, in the same order, where participation shall be enforced.

        Returns:
            The noisy mean update, in the structure of ``like``.

        Raises:
            ValueError: On updates of another structure, or a user who takes part too often or too soon.
            RuntimeError: After the last planned round.
        """
        device = self.noise.generator.device
        total = torch.zeros(self.noise.dimension, device=device)
        for update in updates:
            total += self._clipped(update).to(device)
        names = None if users is None else self._admitted(users, len(updates))
        total.add_(self.noise.next(), alpha=self.accounting.noise_std * self.max_norm)
        for name in names or ():
            self._seen.setdefault(name, []).append(self.noise.step)
        pieces = torch.split(total / self.expected_users, [tensor.numel() for tensor in self._like.values()])
        mean = {
            name: piece.view_as(tensor).to(tensor.dtype)
            for (name, tensor), piece in zip(self._like.items(), pieces, strict=True)
        }
        return mean[""] if self._single else mean

    def _clipped(self, update: Update) -> Tensor:
        tensors = _tensors(update)
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self._like.items()}:
            shapes = {name: tuple(t.shape) for name, t in tensors.items()}
            raise ValueError(f"An update has the tensors {shapes!r:.200}, which are not those of like. Send these.")
        flat = torch.cat([tensors[name].detach().float().flatten() for name in self._like])
        norm = flat.norm()
        if not bool(norm.isfinite()):
            return torch.zeros_like(flat)
        return flat.mul_((self.max_norm / (norm + 1e-6)).clamp(max=1.0))

    def _admitted(self, users: Sequence[Hashable], count: int) -> list[str]:
        names, schedule = [str(user) for user in users], self.accounting.strategy.participation
        if len(names) != count or len(set(names)) != count:
            raise ValueError(f"users must name {count} different users, one per update, but are {users!r:.200}.")
        for name in names:
            rounds = self._seen.get(name, [])
            early = bool(rounds) and self.noise.step + 1 - rounds[-1] < schedule.separation
            if early or len(rounds) >= schedule.participations:
                raise ValueError(
                    f"User {name} took part in rounds {rounds} and can't in round {self.noise.step + 1}: at most"
                    f" {schedule.participations} times, at least {schedule.separation} rounds apart, is what the noise"
                    " was planned for. Leave this update out."
                )
        return names

    def epsilon(self) -> float:
        """``epsilon`` that the rounds so far have spent."""
        return self.accounting.epsilon_after(self.noise.step)

    def guarantee(self) -> str:
        """What may be claimed so far, in one sentence."""
        schedule = self.accounting.strategy.participation
        return (
            f"({self.epsilon():.4g}, {self.accounting.delta:g})-differential privacy for the model after each of the"
            f" {self.noise.step} of {schedule.steps} rounds together, against leaving out any one user (zero-out"
            f" adjacency; the unit is one user with all their data, who takes part at most {schedule.participations}"
            f" times, at least {schedule.separation} rounds apart; updates clipped at {self.max_norm:g}). Not covered:"
            " metrics that users report, and the server's saved noise state."
        )

    def _fingerprint(self) -> dict[str, Any]:
        strategy = self.accounting.strategy
        return {
            "rounds": strategy.participation.steps,
            "participations": strategy.participation.participations,
            "separation": strategy.participation.separation,
            "strategy": strategy.name,
            "coefficients": (strategy.coefficients if strategy.noising is None else strategy.noising).tolist(),
            "noise_multiplier": self.accounting.noise_multiplier,
            "delta": self.accounting.delta,
            "max_norm": self.max_norm,
            "expected_users": self.expected_users,
            "tensors": [[name, list(tensor.shape)] for name, tensor in self._like.items()],
        }

    def state_dict(self) -> dict[str, Any]:
        """The noise, who took part when, and the settings. Secret: with it the noise can be subtracted."""
        seen = {name: list(rounds) for name, rounds in self._seen.items()}
        return {"fingerprint": self._fingerprint(), "noise": self.noise.state_dict(), "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the saved run stopped.

        Args:
            state: Of :meth:`state_dict`.

        Raises:
            ValueError: Naming the settings that differ.
        """
        now, saved = self._fingerprint(), state["fingerprint"]
        changed = [name for name in now if saved.get(name) != now[name]]
        if changed:
            raise ValueError(
                f"The state belongs to another private run: {', '.join(changed)} changed. Resume with the settings that"
                " it was started with, or start anew and count both runs."
            )
        self.noise.load_state_dict(state["noise"])
        self._seen = {name: list(rounds) for name, rounds in state["seen"].items()}


def _tensors(update: Update) -> dict[str, Tensor]:
    return {"": update} if isinstance(update, Tensor) else dict(update)
