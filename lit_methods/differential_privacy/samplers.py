"""Batch samplers whose participation pattern is known, which is what the noise is accounted for with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler

from lit_methods.differential_privacy.factorization import Participation
from lit_methods.differential_privacy.ledger import ParticipationLedger


class AccountedBatchSampler(BatchSampler, ABC):
    """What accounting, loaders and resume ask of a batch sampler.

    Attributes:
        num_examples: Number ``N`` of examples.
        batch_size: Examples per batch and process, in expectation where they are drawn.
        global_batch_size: The same over all processes.
        rank: This process.
        world_size: Number of processes that share each batch.
        ledger: For debugging: sees each batch as it is drawn, and raises where the schedule is broken.
        before_pass: Called with the batch that a pass is about to begin with.

    Raises:
        ValueError: On sizes below 1, or a rank outside ``[0, world_size)``.
    """

    def __init__(self, num_examples: int, batch_size: int, rank: int, world_size: int) -> None:
        for name, value in (("num_examples", num_examples), ("batch_size", batch_size), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value!r}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), but is {rank!r}.")
        self.num_examples, self.batch_size = num_examples, batch_size
        self.rank, self.world_size = rank, world_size
        self.global_batch_size = batch_size * world_size
        self.ledger: ParticipationLedger | None = None
        self.before_pass: Callable[[int], None] | None = None
        self._start, self._lost = 0, False
        self._position: Callable[[], int] | None = None

    @abstractmethod
    def participation(self, steps: int, accumulation: int = 1, batches_per_epoch: int | None = None) -> Participation:
        """Who takes part when, if training follows this sampler.

        Args:
            steps: Optimizer steps ``n`` of the whole run.
            accumulation: Batches per optimizer step.
            batches_per_epoch: Batches of a pass that are trained on, where that is not all of them.

        Returns:
            Steps, most participations and least separation of one example.
        """

    @abstractmethod
    def position_after(self, steps: int, accumulation: int = 1, batches_per_epoch: int | None = None) -> int:
        """The batch with which training goes on, for :meth:`start_at` and :meth:`follow`.

        Args:
            steps: Optimizer steps taken.
            accumulation: Batches per optimizer step.
            batches_per_epoch: Batches of a pass that are trained on, where that is not all of them.

        Returns:
            A batch of the epoch where all epochs are alike, else a batch of the run.
        """

    @abstractmethod
    def share(self, batch: int) -> list[int]:
        """This process's indices of one batch, counted as in :meth:`position_after`."""

    def start_at(self, batch: int) -> None:
        """Lets the next pass, and only that, begin where a resumed run stopped.

        Args:
            batch: Of :meth:`position_after`. A loader's workers draw ahead, so that only the training loop knows it.

        Raises:
            ValueError: On a negative number.
        """
        if batch < 0:
            raise ValueError(f"batch must be at least 0, but is {batch!r}.")
        self._start, self._lost = batch, False

    def follow(self, position: Callable[[], int] | None) -> None:
        """Lets every pass begin at the batch that ``position`` names when the pass is begun, until told otherwise."""
        self._position = position

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What a sampler of the same run must share."""

    @abstractmethod
    def _batches(self, start: int) -> Iterator[list[int]]:
        """This process's share of each batch of a pass, from that batch on."""

    def state_dict(self) -> dict[str, Any]:
        """What the order depends on, as plain containers; where a run stands, :meth:`start_at` is told."""
        return self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the order of another sampler of the same run; :meth:`start_at` or :meth:`follow` must be next.

        Args:
            state: Its :meth:`state_dict`.

        Raises:
            ValueError: Naming what differs.
        """
        own = self._identity()
        changed = [
            f"{name} (saved {state.get(name)!r}, now {own[name]!r})" for name in own if state.get(name) != own[name]
        ]
        if changed:
            raise ValueError(
                f"The saved order of the data is another one: {'; '.join(changed)}. Resume with the settings that the"
                " run was started with, or train anew and count both runs."
            )
        self._lost = True

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this process's share of each batch of a pass.

        Raises:
            RuntimeError: Where the next pass has no known beginning.
        """
        if self._position is None and self._lost:
            raise RuntimeError(
                "Where in the order of the data the run stands is not known: its order was restored, or the last pass"
                " was left before its end. Examples would come again before their time. Call start_at with"
                " position_after of the optimizer steps taken, or follow."
            )
        start = self._start if self._position is None else self._position()
        if self.before_pass is not None:
            self.before_pass(start)
        batches = self._batches(start)
        yield from batches if self.ledger is None else self.ledger.watch(batches)


class FixedOrderBatchSampler(AccountedBatchSampler):
    """One random partition into batches, frozen, and visited in the same order in every epoch.

    An example then takes part once per epoch, exactly ``len(sampler)`` batches apart.

    Args:
        num_examples: Number ``N`` of examples.
        batch_size: Examples per batch and process.
        seed: Seed of the partition; the same on every process.
        drop_last: Leave out the last batch where it is short.
        rank: This process, where several share each batch.
        world_size: Number of processes.

    Guarantees:
        - Every index comes at most once per epoch, in the same batch of every epoch.
        - The global batches depend on ``num_examples``, ``batch_size * world_size``, ``seed`` and ``drop_last`` only.

    Raises:
        ValueError: On sizes below 1, no batch at all, or a last batch too short to give every process an example.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(num_examples, batch_size, rank, world_size)
        self.drop_last, self.seed = drop_last, seed
        last = num_examples % self.global_batch_size
        if drop_last and num_examples < self.global_batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch: {num_examples} examples are fewer than one batch of"
                f" {self.global_batch_size}. Lower batch_size."
            )
        if not drop_last and 0 < last < world_size:
            raise ValueError(
                f"The last batch has {last} examples for {world_size} processes. Pass drop_last=True, or a batch_size"
                " that does not leave so few."
            )
        self._order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))

    def participation(self, steps: int, accumulation: int = 1, batches_per_epoch: int | None = None) -> Participation:
        """See :meth:`AccountedBatchSampler.participation`: once per pass, one pass apart."""
        separation = -(-(batches_per_epoch or len(self)) // accumulation)
        return Participation(steps, -(-steps // separation), separation)

    def position_after(self, steps: int, accumulation: int = 1, batches_per_epoch: int | None = None) -> int:
        """See :meth:`AccountedBatchSampler.position_after`."""
        return steps % self.participation(max(1, steps), accumulation, batches_per_epoch).separation * accumulation

    def share(self, batch: int) -> list[int]:
        """See :meth:`AccountedBatchSampler.share`."""
        members = self._order[batch * self.global_batch_size : (batch + 1) * self.global_batch_size]
        return members[self.rank :: self.world_size].tolist()

    def start_at(self, batch: int) -> None:
        """See :meth:`AccountedBatchSampler.start_at`; batches past the epoch's end begin it anew."""
        super().start_at(batch)
        self._start %= len(self)

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "fixed order",
            "num_examples": self.num_examples,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }

    def __len__(self) -> int:
        """Batches per full pass."""
        whole, rest = divmod(self.num_examples, self.global_batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def _batches(self, start: int) -> Iterator[list[int]]:
        self._start = 0
        for batch in range(start % len(self), len(self)):
            yield self.share(batch)
