"""Cyclic Poisson sampling, under which sampling amplifies the privacy of banded noise."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_methods.differential_privacy.factorization import Participation
from lit_methods.differential_privacy.samplers import AccountedBatchSampler


class CyclicPoissonBatchSampler(AccountedBatchSampler):
    """Each example joins the steps of its group by independent coin tosses; the groups take turns.

    Every example is put into one of ``g`` groups, uniformly and independently of the others. In step ``t`` the members
    of group ``t mod g`` join with probability ``q = B g / N`` each, so that a step has ``B`` examples in expectation,
    and possibly none: the batch is then empty. A step's draw is dealt out over the processes and over the batches of
    gradient accumulation, so that no example comes twice in it.

    The draw of a step is a function of the seed and the step's number. A resumed run thus sees the batches that it
    would have seen, however far a loader's workers had drawn ahead.

    Args:
        num_examples: Number ``N`` of examples.
        batch_size: Expected examples per batch and process; ``B`` is this times ``world_size * accumulation``.
        cycle_length: Number ``g`` of groups: at least the bandwidth of the noise.
        accumulation: Batches per optimizer step.
        shared_seed: Secret seed, where several processes need the same: ``secrets.randbits(128)`` of the first,
            broadcast. ``None`` takes the operating system's entropy.
        unsafe_seed: Known seed, for tests: whoever knows it knows who took part, which voids amplification.
        rank: This process, where several share each batch.
        world_size: Number of processes.

    Guarantees:
        - Two participations of an example are a multiple of ``cycle_length`` steps apart, if every pass is trained on
          to its end.
        - Draws of different steps and examples are independent; the global random states are neither read nor moved.
        - A pass of ``len(sampler)`` batches has ``N`` examples in expectation, up to rounding to whole steps.

    One sampler serves one run and its resumption: a second run on the same draws is not independent of the first, and
    is refused when it begins.

    Raises:
        ValueError: On sizes below 1, ``q`` above 1, both seeds, or several processes without a shared seed.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        cycle_length: int,
        *,
        accumulation: int = 1,
        shared_seed: int | None = None,
        unsafe_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(num_examples, batch_size, rank, world_size)
        for name, value in (("cycle_length", cycle_length), ("accumulation", accumulation)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value!r}.")
        for name, seed in (("shared_seed", shared_seed), ("unsafe_seed", unsafe_seed)):
            if seed is not None and seed < 0:
                raise ValueError(f"{name} must be at least 0, but is {seed!r}.")
        if shared_seed is not None and unsafe_seed is not None:
            raise ValueError("Both shared_seed and unsafe_seed are given. Drop unsafe_seed: it is for tests.")
        if world_size > 1 and shared_seed is None and unsafe_seed is None:
            raise ValueError(
                f"world_size={world_size} processes must draw the same batches, but shared_seed is None. Broadcast"
                " secrets.randbits(128) from the first process and pass it to all."
            )
        self.cycle_length, self.accumulation = cycle_length, accumulation
        self.sampling_probability = self.global_batch_size * accumulation * cycle_length / num_examples
        if self.sampling_probability > 1.0:
            raise ValueError(
                f"Groups of about {num_examples / cycle_length:g} examples can't fill steps of"
                f" {self.global_batch_size * accumulation}: the sampling probability would be"
                f" {self.sampling_probability:.3g}. Lower cycle_length ({cycle_length}) or batch_size ({batch_size})."
            )
        self.seed_is_known = unsafe_seed is not None
        self._seed = next((s for s in (shared_seed, unsafe_seed) if s is not None), secrets.randbits(128))
        self._begun = False
        self._assign()

    def _assign(self) -> None:
        groups = self._generator(0).integers(self.cycle_length, size=self.num_examples)
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups, minlength=self.cycle_length)
        self._groups = np.split(order, np.cumsum(sizes)[:-1])

    def _generator(self, stream: int) -> np.random.Generator:
        # numpy's, because torch's on the CPU keeps 32 bits of its seed, which can be searched.
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(stream,)))

    def _draw(self, step: int) -> NDArray[np.intp]:
        group = self._groups[step % self.cycle_length]
        return group[self._generator(step + 1).random(group.size) < self.sampling_probability]

    def participation(self, steps: int, accumulation: int = 1, batches_per_epoch: int | None = None) -> Participation:
        """See :meth:`AccountedBatchSampler.participation`: at most once per cycle, a multiple of it apart.

        Raises:
            ValueError: Where training would not follow the sampler's steps: other accumulation, or shortened passes.
        """
        if accumulation != self.accumulation:
            raise ValueError(
                f"accumulation={accumulation} batches per step would join draws of several groups: the sampler was made"
                f" with accumulation={self.accumulation}. Make it with the number that is trained with."
            )
        used = len(self) if batches_per_epoch is None else batches_per_epoch
        if used != len(self) and steps * accumulation > used:
            raise ValueError(
                f"Passes of {used} of {len(self)} batches, with {accumulation} batches per step, would skip draws or"
                " cut one short, so that examples come again too early or push others out. Train on whole epochs (no"
                " limit_train_batches, no overfit_batches) or on a subset of the data set, and let fast_dev_run be a"
                " multiple of the accumulation."
            )
        return Participation(steps, -(-steps // self.cycle_length), self.cycle_length)

    def position_after(self, steps: int, accumulation: int = 1, batches_per_epoch: int | None = None) -> int:
        """See :meth:`AccountedBatchSampler.position_after`: no two epochs are alike, so a batch of the run."""
        return steps * accumulation

    def share(self, batch: int) -> list[int]:
        """See :meth:`AccountedBatchSampler.share`."""
        step, part = divmod(batch, self.accumulation)
        parts = self.accumulation * self.world_size
        indices: list[int] = self._draw(step)[part * self.world_size + self.rank :: parts].tolist()
        return indices

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "cyclic Poisson",
            "num_examples": self.num_examples,
            "global_batch_size": self.global_batch_size,
            "cycle_length": self.cycle_length,
            "accumulation": self.accumulation,
        }

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`AccountedBatchSampler.state_dict`. Secret: it tells who takes part when."""
        return {**super().state_dict(), "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`AccountedBatchSampler.load_state_dict`."""
        super().load_state_dict(state)
        self._seed, self._begun = int(state["seed"]), False
        self._assign()

    def __len__(self) -> int:
        """Batches per pass: as many whole steps as have the data set's number of examples in expectation."""
        return self.accumulation * -(-self.num_examples // (self.global_batch_size * self.accumulation))

    def _batches(self, start: int) -> Iterator[list[int]]:
        if start == 0 and self._begun:
            raise RuntimeError(
                "The coins of this CyclicPoissonBatchSampler were tossed for an earlier run (or an earlier look at its"
                " loader), and amplification does not cover a second run on the same coins. Make a new sampler, or pass"
                " a plain DataLoader, from which each run gets its own; to resume, restore the run's state."
            )
        self._lost = self._begun = True
        stop = (start // len(self) + 1) * len(self)
        for batch in range(start, stop):
            if batch + 1 == stop:
                self._start, self._lost = stop, False
            yield self.share(batch)
