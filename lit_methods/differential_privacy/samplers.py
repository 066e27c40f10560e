"""Batch samplers whose participation pattern is known, which is what the sensitivity is computed from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler


class FixedOrderBatchSampler(BatchSampler):
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
        """See the class."""
        for name, value in (("num_examples", num_examples), ("batch_size", batch_size), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value!r}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), but is {rank!r}.")
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.num_examples, self.rank, self.world_size = num_examples, rank, world_size
        self.global_batch_size = batch_size * world_size
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
        self._start = 0

    def start_at(self, batch: int) -> None:
        """Lets the next pass, and only that, begin at ``batch``: where a resumed run left its epoch."""
        self._start = batch % len(self)

    def __len__(self) -> int:
        """Batches per full pass."""
        whole, rest = divmod(self.num_examples, self.global_batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this process's share of each batch."""
        start, self._start = self._start, 0
        for batch in range(start, len(self)):
            members = self._order[batch * self.global_batch_size : (batch + 1) * self.global_batch_size]
            yield members[self.rank :: self.world_size].tolist()


def refuse_loader(found: str, way_out: str) -> ValueError:
    """The error for a loader whose participation pattern is not known."""
    return ValueError(
        f"Private training needs a training DataLoader whose order it can fix, but found {found}. {way_out}"
    )


def fixed_order_loader(
    loader: DataLoader[object], seed: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[object]:
    """Rebuilds a plain training loader so that it visits one frozen random partition in every epoch.

    Args:
        loader: A ``DataLoader`` over a map-style data set, shuffled or not; one that already has a
            :class:`FixedOrderBatchSampler` is returned as it is.
        seed: Seed of the partition.
        rank: This process.
        world_size: Number of processes.

    Returns:
        A loader of the same data, batch size, collation and workers in fixed order.

    Raises:
        ValueError: For iterable data sets, custom samplers, sampling with replacement, or loaders without batches.
    """
    way_out = "Pass a plain DataLoader with a batch_size, or one with batch_sampler=FixedOrderBatchSampler(...)."
    if not isinstance(loader, DataLoader):
        raise refuse_loader(f"a {type(loader).__name__}", way_out)
    if isinstance(loader.batch_sampler, FixedOrderBatchSampler):
        return loader
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        raise refuse_loader("an iterable data set, which has no fixed order", "Use a map-style data set.")
    if type(loader).__iter__ is not DataLoader.__iter__ or type(loader.batch_sampler) is not BatchSampler:
        name = type(loader).__name__ if type(loader) is not DataLoader else type(loader.batch_sampler).__name__
        raise refuse_loader(f"its own batching in {name} (Poisson sampling, for one, bounds nothing)", way_out)
    sampler = loader.sampler
    replaced = isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != len(loader.dataset)
    )
    if type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler) or replaced:
        kind = " with replacement or a changed length" if replaced else ""
        raise refuse_loader(f"the sampler {type(sampler).__name__}{kind}", way_out)
    order = FixedOrderBatchSampler(
        len(loader.dataset), int(loader.batch_size or 1), seed, loader.drop_last, rank, world_size
    )
    return DataLoader(
        loader.dataset,
        batch_sampler=order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
