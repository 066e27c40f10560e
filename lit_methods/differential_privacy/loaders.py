"""The user's training loader, rebuilt in fixed order and handed to the Trainer in place of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from lit_methods.differential_privacy.samplers import FixedOrderBatchSampler

_WAY_OUT = "Pass a plain DataLoader with a batch_size, or one with batch_sampler=FixedOrderBatchSampler(...)."


def _refusal(found: str, way_out: str = _WAY_OUT) -> ValueError:
    return ValueError(
        f"Private training needs a training DataLoader whose order it can fix, but found {found}. {way_out}"
    )


class FixedOrderLoader(DataLoader[Any]):
    """A loader whose place in the epoch is restored by the privacy callback, from the noise's own step count."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own: it tells Lightning that the loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def fixed_order_loader(loader: DataLoader[Any], seed: int = 0, rank: int = 0, world_size: int = 1) -> FixedOrderLoader:
    """Rebuilds a plain training loader so that it visits one frozen random partition in every epoch.

    Args:
        loader: A ``DataLoader`` over a map-style data set, shuffled or not; one that already has a
            :class:`FixedOrderBatchSampler` keeps it.
        seed: Seed of the partition.
        rank: This process.
        world_size: Number of processes.

    Returns:
        A loader of the same data, batch size, collation and workers in fixed order.

    Raises:
        ValueError: For iterable data sets, custom samplers, sampling with replacement, or loaders without batches.
    """
    if not isinstance(loader, DataLoader):
        raise _refusal(f"a {type(loader).__name__}")
    if isinstance(order := loader.batch_sampler, FixedOrderBatchSampler):
        if (order.rank, order.world_size, order.num_examples) != (rank, world_size, len(cast(Any, loader.dataset))):
            raise ValueError(
                f"The loader's FixedOrderBatchSampler is for rank {order.rank} of {order.world_size} and"
                f" {order.num_examples} examples, but this is rank {rank} of {world_size} with"
                f" {len(cast(Any, loader.dataset))}. Make it with these, or pass a plain DataLoader."
            )
        return _rebuild(loader, order)
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        raise _refusal("an iterable data set, which has no fixed order", "Use a map-style data set.")
    if type(loader).__iter__ is not DataLoader.__iter__ or type(loader.batch_sampler) is not BatchSampler:
        name = type(loader).__name__ if type(loader) is not DataLoader else type(loader.batch_sampler).__name__
        raise _refusal(f"its own batching in {name} (Poisson sampling, for one, bounds nothing)")
    sampler = loader.sampler
    replaced = isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != len(loader.dataset)
    )
    if type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler) or replaced:
        kind = " with replacement or a changed length" if replaced else ""
        raise _refusal(f"the sampler {type(sampler).__name__}{kind}")
    order = FixedOrderBatchSampler(
        len(loader.dataset), int(loader.batch_size or 1), seed, loader.drop_last, rank, world_size
    )
    return _rebuild(loader, order)


def _rebuild(loader: DataLoader[Any], order: FixedOrderBatchSampler) -> FixedOrderLoader:
    return FixedOrderLoader(
        loader.dataset,
        batch_sampler=order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        # An own generator, because a loader without one draws from the global state whenever it is begun.
        generator=loader.generator or torch.Generator().manual_seed(order.seed),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class FixedOrderSource:
    """Stands between a Trainer and the source of its training loader, wherever the user gave that.

    Args:
        trainer: The Trainer that is about to fit.
        seed: Seed of the partition.
        position: The batch of the epoch at which a pass that is begun now must start.
    """

    def __init__(self, trainer: Trainer, seed: int, position: Callable[[], int]) -> None:
        self.sampler: FixedOrderBatchSampler | None = None
        self._source = cast(Any, trainer.fit_loop._data_source)
        request = self._source.dataloader

        def dataloader() -> FixedOrderLoader:
            loader = fixed_order_loader(request(), seed, trainer.global_rank, trainer.world_size)
            self.sampler = cast(FixedOrderBatchSampler, loader.batch_sampler)
            self.sampler.follow(position)
            return loader

        self._source.dataloader = dataloader

    def remove(self) -> None:
        """Gives the Trainer its own source back."""
        self._source.__dict__.pop("dataloader", None)
