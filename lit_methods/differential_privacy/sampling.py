"""Rules that make the training batches of a private run, and the place in a Trainer where they are applied."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import Trainer
from torch import distributed
from torch.utils.data import DataLoader

from lit_methods.differential_privacy.loaders import AccountedLoader, cyclic_poisson_loader, fixed_order_loader
from lit_methods.differential_privacy.samplers import AccountedBatchSampler


class Sampling(ABC):
    """A rule that says who takes part when, applied to a plain training loader."""

    @abstractmethod
    def loader(
        self, loader: DataLoader[Any], *, accumulation: int = 1, rank: int = 0, world_size: int = 1
    ) -> AccountedLoader:
        """Rebuilds a loader so that its participation is known.

        Args:
            loader: A ``DataLoader`` over a map-style data set, shuffled or not.
            accumulation: Batches per optimizer step.
            rank: This process.
            world_size: Number of processes; all of them must call.

        Returns:
            A loader of the same data, collation and workers, whose ``batch_sampler`` is accounted for.

        Raises:
            ValueError: For a loader whose order can't be taken over.
        """


@dataclass(frozen=True)
class FixedOrder(Sampling):
    """One random partition into batches, visited in the same order in every epoch; nothing is gained from sampling.

    Attributes:
        seed: Seed of the partition.
    """

    seed: int = 0

    def loader(
        self, loader: DataLoader[Any], *, accumulation: int = 1, rank: int = 0, world_size: int = 1
    ) -> AccountedLoader:
        """See :meth:`Sampling.loader`."""
        return fixed_order_loader(loader, self.seed, rank, world_size)


@dataclass(frozen=True)
class CyclicPoisson(Sampling):
    """Groups take turns, and coin tosses decide who of a group joins: amplified by sampling, at a narrower band.

    The noise's band can be at most ``cycle_length`` wide, and takes that width unless told otherwise: long cycles let
    noise cancel over more steps, short ones are amplified more. ``cycle_length=1`` with independent noise is DP-SGD.

    Attributes:
        cycle_length: Number ``g`` of groups.
        unsafe_seed: Known seed of the coins, for tests: whoever knows it knows who took part, which voids
            amplification.

    Raises:
        ValueError: If ``cycle_length`` is below 1.
    """

    cycle_length: int
    unsafe_seed: int | None = None

    def __post_init__(self) -> None:
        """Refuses a cycle of no steps."""
        if self.cycle_length < 1:
            raise ValueError(f"cycle_length must be at least 1, but is {self.cycle_length!r}.")

    def loader(
        self, loader: DataLoader[Any], *, accumulation: int = 1, rank: int = 0, world_size: int = 1
    ) -> AccountedLoader:
        """See :meth:`Sampling.loader`; a batch may be empty."""
        shared = world_size > 1 and self.unsafe_seed is None
        return cyclic_poisson_loader(
            loader,
            self.cycle_length,
            accumulation=accumulation,
            shared_seed=_common_secret() if shared else None,
            unsafe_seed=self.unsafe_seed,
            rank=rank,
            world_size=world_size,
        )


def _common_secret() -> int:
    """128 bits of the first process's operating system, known to all processes."""
    box = [secrets.randbits(128)]
    distributed.broadcast_object_list(box, src=0)
    return int(box[0])


class AccountedSource:
    """Stands between a Trainer and the source of its training loader, wherever the user gave that.

    Args:
        trainer: The Trainer that is about to fit.
        sampling: How batches are made.
        position: Where a pass that is begun now must start, as in
            :meth:`~lit_methods.differential_privacy.samplers.AccountedBatchSampler.position_after`.
        saved: The state of the sampler of a run that is resumed; its workers may draw before the plan is made.

    Attributes:
        sampler: What makes the batches, once the Trainer asked for its loader.
    """

    def __init__(
        self,
        trainer: Trainer,
        sampling: Sampling,
        position: Callable[[], int],
        saved: Callable[[], dict[str, Any] | None],
    ) -> None:
        self.sampler: AccountedBatchSampler | None = None
        self._source = cast(Any, trainer.fit_loop._data_source)
        request = self._source.dataloader

        def dataloader() -> AccountedLoader:
            loader = sampling.loader(
                request(),
                accumulation=trainer.accumulate_grad_batches,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
            )
            self.sampler = cast(AccountedBatchSampler, loader.batch_sampler)
            state = saved()
            if state is not None:
                self.sampler.load_state_dict(state)
            self.sampler.follow(position)
            return loader

        self._source.dataloader = dataloader

    def remove(self) -> None:
        """Gives the Trainer its own source back."""
        self._source.__dict__.pop("dataloader", None)
        if self.sampler is not None:
            self.sampler.follow(None)
