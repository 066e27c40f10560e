"""Rounds of federated training with user-level privacy: who takes part when, and the noisy mean of what they send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_methods.differential_privacy.budget import check_budget
from lit_methods.differential_privacy.factorization import Factorization, Participation
from lit_methods.differential_privacy.server import PrivateServerUpdate
from lit_methods.differential_privacy.workload import Workload
from lit_methods.errors import check_above


class UserLevelRounds:
    """Shuffles the users once into cohorts that take turns, and averages their updates with correlated noise.

    With ``b`` cohorts a user takes part in every ``b``-th round and never sooner, which is what the noise is planned
    for: uniform draws would allow all rounds, and cost far more noise. All users count alike, whatever data they hold.

    Args:
        rounds: Planned rounds.
        workload: What the server does with the mean update.
        max_norm: Clip norm of one user's update.
        epsilon: Budget of the whole run. Either this or ``noise_multiplier``.
        noise_multiplier: Noise over sensitivity of the whole run.
        delta: The ``delta`` of the guarantee.
        factorization: The strategy; BSR by default.
        unsafe_seed: Seed of the noise for tests; whoever knows it can subtract the noise.

    Attributes:
        taken: Rounds before the first one here, which a resumed run has taken already; 0 unless set.
        server: The noisy mean; None before the first round, when the number of users is not known yet.

    Raises:
        ValueError: On parameters out of range.
    """

    def __init__(
        self,
        rounds: int,
        workload: Workload,
        *,
        max_norm: float = 1.0,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        factorization: Factorization | None = None,
        unsafe_seed: int | None = None,
    ) -> None:
        check_budget(epsilon, noise_multiplier, delta)
        check_above("max_norm", max_norm)
        self.rounds, self.taken = rounds, 0
        self.server: PrivateServerUpdate | None = None
        self._options: dict[str, Any] = {
            "max_norm": max_norm, "epsilon": epsilon, "noise_multiplier": noise_multiplier, "delta": delta,
            "factorization": factorization, "workload": workload, "unsafe_seed": unsafe_seed,
        }  # fmt: skip
        self._saved: dict[str, Any] | None = None
        self._users, self._cohorts = 0, 1

    def sample(self, clients: int, size: int, round_number: int, seed: int) -> list[int]:
        """Users of a round, ascending: one of ``clients // size`` cohorts, in turn.

        Args:
            clients: Number of users.
            size: Users wanted in a round; cohorts have as many, or some more where it does not divide the users.
            round_number: Rounds before this one.
            seed: Seed of the shuffle.
        """
        self._users, self._cohorts = clients, max(1, clients // size)
        order = torch.randperm(clients, generator=torch.Generator().manual_seed(seed))
        return sorted(order[round_number % self._cohorts :: self._cohorts].tolist())

    def combine(self, updates: Tensor, shares: Tensor, clients: Sequence[int]) -> Tensor:
        """The noisy mean update ``(D,)``.

        Args:
            updates: What each user's model moved by, ``(K, D)``.
            shares: Each user's part of the examples ``(K,)``, which is not used.
            clients: Numbers of the users.

        Raises:
            RuntimeError: After the last planned round.
            ValueError: Where a user takes part too soon, or the saved state is of another run or missing.
        """
        if self.server is None:
            self.server = self._planned(updates)
        mean = self.server.step(list(updates), users=clients)
        return torch.as_tensor(mean).to(updates)

    def _planned(self, updates: Tensor) -> PrivateServerUpdate:
        # A user may come once in each turn of the cohorts, so ceil(rounds / cohorts) times at most.
        times = -(-self.rounds // self._cohorts)
        participation = Participation(self.rounds, times, self._cohorts)
        expected = -(-self._users // self._cohorts)
        server = PrivateServerUpdate(
            torch.zeros_like(updates[0]), participation, expected_users=expected, **self._options
        )
        if self._saved is not None:
            server.load_state_dict(self._saved)
        if server.noise.step != self.taken:
            raise ValueError(
                f"Training would go on after round {self.taken}, but the noise stands after round {server.noise.step}:"
                " the checkpoint holds no state of the noise. Start a new run with a new Trainer, and count both."
            )
        return server

    def state_dict(self) -> dict[str, Any]:
        """The noise and who took part when; empty before the first round. Secret: with it the noise can go."""
        return self._saved or {} if self.server is None else self.server.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps a saved state until the first round shows that it fits."""
        self._saved = state or None
