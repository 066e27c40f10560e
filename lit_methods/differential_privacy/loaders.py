"""The user's training loader, rebuilt with known participation."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from lit_methods.differential_privacy.poisson import CyclicPoissonBatchSampler
from lit_methods.differential_privacy.samplers import AccountedBatchSampler, FixedOrderBatchSampler


def _refusal(found: str, way_out: str) -> ValueError:
    return ValueError(
        f"Private training needs a training DataLoader whose order it can fix, but found {found}. {way_out}"
    )


def _check_loader(loader: DataLoader[Any], kind: type[AccountedBatchSampler]) -> None:
    way_out = f"Pass a plain DataLoader with a batch_size, or one with batch_sampler={kind.__name__}(...)."
    if not isinstance(loader, DataLoader):
        raise _refusal(f"a {type(loader).__name__}", way_out)
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        raise _refusal("an iterable data set, which has no fixed order", "Use a map-style data set.")
    if type(loader).__iter__ is not DataLoader.__iter__ or type(loader.batch_sampler) is not BatchSampler:
        plain = type(loader) in (DataLoader, AccountedLoader)
        name = type(loader.batch_sampler if plain else loader).__name__
        raise _refusal(f"its own batching in {name} (plain Poisson sampling, for one, bounds nothing)", way_out)
    sampler = loader.sampler
    replaced = isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != len(cast(Sized, loader.dataset))
    )
    if type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler) or replaced:
        changed = " with replacement or a changed length" if replaced else ""
        raise _refusal(f"the sampler {type(sampler).__name__}{changed}", way_out)


def _of_this_process(
    loader: DataLoader[Any], sampler: AccountedBatchSampler, rank: int, world_size: int
) -> AccountedBatchSampler:
    examples = len(cast(Sized, loader.dataset))
    if (sampler.rank, sampler.world_size, sampler.num_examples) != (rank, world_size, examples):
        raise ValueError(
            f"The loader's {type(sampler).__name__} is for rank {sampler.rank} of {sampler.world_size} and"
            f" {sampler.num_examples} examples, but this is rank {rank} of {world_size} with {examples}. Make it with"
            " these, or pass a plain DataLoader."
        )
    return sampler


class AccountedLoader(DataLoader[Any]):
    """A loader whose place in the run is restored by the privacy callback, from the noise's own step count."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own: it tells Lightning that the loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def _rebuild(
    loader: DataLoader[Any],
    batch_sampler: AccountedBatchSampler,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> AccountedLoader:
    return AccountedLoader(
        loader.dataset,
        batch_sampler=batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=collate_fn or loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        # An own generator, because a loader without one draws from the global state whenever it is begun.
        generator=loader.generator or torch.Generator().manual_seed(0),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def fixed_order_loader(loader: DataLoader[Any], seed: int = 0, rank: int = 0, world_size: int = 1) -> AccountedLoader:
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
    if isinstance(loader, DataLoader) and isinstance(loader.batch_sampler, FixedOrderBatchSampler):
        return _rebuild(loader, _of_this_process(loader, loader.batch_sampler, rank, world_size))
    _check_loader(loader, FixedOrderBatchSampler)
    order = FixedOrderBatchSampler(
        len(cast(Sized, loader.dataset)), int(loader.batch_size or 1), seed, loader.drop_last, rank, world_size
    )
    return _rebuild(loader, order)


def cyclic_poisson_loader(
    loader: DataLoader[Any],
    cycle_length: int,
    *,
    accumulation: int = 1,
    shared_seed: int | None = None,
    unsafe_seed: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> AccountedLoader:
    """Rebuilds a plain training loader so that its batches are drawn by cyclic Poisson sampling.

    Its batch size becomes the expected one, ``drop_last`` loses its meaning, and a batch may be empty: tensors with
    zero rows, in the structure that ``collate_fn`` gives to the first example.

    Args:
        loader: A ``DataLoader`` over a map-style data set, shuffled or not; one that already has a
            :class:`CyclicPoissonBatchSampler` keeps it.
        cycle_length: Number of groups that take turns; at least the bandwidth of the noise.
        accumulation: Batches per optimizer step.
        shared_seed: Secret seed, where several processes need the same.
        unsafe_seed: Known seed, for tests.
        rank: This process.
        world_size: Number of processes.

    Returns:
        A loader of the same data, workers and collation.

    Raises:
        ValueError: As :func:`fixed_order_loader` and :class:`CyclicPoissonBatchSampler`, or where ``collate_fn``
            gives something that has no empty counterpart.
    """
    if isinstance(loader, DataLoader) and isinstance(loader.batch_sampler, CyclicPoissonBatchSampler):
        own = _of_this_process(loader, loader.batch_sampler, rank, world_size)
        return _rebuild(loader, own, collate_with_empty(loader.collate_fn, loader.dataset[0]))
    _check_loader(loader, CyclicPoissonBatchSampler)
    sampler = CyclicPoissonBatchSampler(
        len(cast(Sized, loader.dataset)),
        int(loader.batch_size or 1),
        cycle_length,
        accumulation=accumulation,
        shared_seed=shared_seed,
        unsafe_seed=unsafe_seed,
        rank=rank,
        world_size=world_size,
    )
    return _rebuild(loader, sampler, collate_with_empty(loader.collate_fn, loader.dataset[0]))


def collate_with_empty(collate_fn: Callable[[list[Any]], Any], example: Any) -> Callable[[list[Any]], Any]:
    """Lets a collation make batches of no examples.

    Args:
        collate_fn: The collation of one or more examples.
        example: An example, whose batch shows the structure, shapes and dtypes.

    Returns:
        The same collation, which makes tensors of shape ``(0, ...)`` out of an empty list.

    Raises:
        ValueError: Where the batch holds anything but tensors, in tuples, lists and mappings.
    """
    from opacus.data_loader import wrap_collate_with_empty

    collate = wrap_collate_with_empty(collate_fn=collate_fn)
    collate([example])
    try:
        collate([])
    except (TypeError, IndexError) as error:
        raise ValueError(
            "Poisson sampling can draw an empty batch, but the collate_fn's batches can't be emptied: they hold"
            f" something else than tensors with the examples along the first dimension ({error}). Pass a collate_fn"
            " that returns such tensors, in tuples, lists or dictionaries."
        ) from error
    return cast(Callable[[list[Any]], Any], collate)
