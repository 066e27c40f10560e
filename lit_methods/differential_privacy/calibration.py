"""Noise, sampler and accounting made together, so that they can't be mixed."""

from __future__ import annotations

from lit_methods.differential_privacy.accounting import Accounting, FixedOrderAccounting
from lit_methods.differential_privacy.amplification import CyclicPoissonAccounting
from lit_methods.differential_privacy.factorization import BandedSquareRoot, Strategy
from lit_methods.differential_privacy.poisson import CyclicPoissonBatchSampler
from lit_methods.differential_privacy.samplers import AccountedBatchSampler, FixedOrderBatchSampler
from lit_methods.differential_privacy.workload import Workload


def account(
    strategy: Strategy,
    sampler: AccountedBatchSampler,
    noise_multiplier: float,
    delta: float,
    *,
    accumulation: int = 1,
    batches_per_epoch: int | None = None,
) -> Accounting:
    """The accounting that belongs to a sampler, for noise that is given.

    Args:
        strategy: Made for ``sampler.participation(steps, accumulation)``.
        sampler: What makes the batches.
        noise_multiplier: Noise over :attr:`Accounting.sensitivity`, at least 0.
        delta: The ``delta`` of the guarantee, in (0, 1).
        accumulation: Batches per optimizer step.
        batches_per_epoch: Batches of a pass that are trained on, where that is not all of them.

    Returns:
        Fixed-order accounting for a fixed order, amplified accounting for cyclic Poisson sampling.

    Raises:
        TypeError: For a sampler that nothing is known about.
        ValueError: Where strategy and sampler do not fit, or parameters are out of range.
    """
    accounting: Accounting
    if isinstance(sampler, CyclicPoissonBatchSampler):
        accounting = CyclicPoissonAccounting(strategy, noise_multiplier, delta, sampler.sampling_probability)
    elif isinstance(sampler, FixedOrderBatchSampler):
        accounting = FixedOrderAccounting(strategy, noise_multiplier, delta)
    else:
        raise TypeError(
            f"Nothing is known about who takes part when under {type(sampler).__name__}. Use FixedOrderBatchSampler or"
            " CyclicPoissonBatchSampler."
        )
    accounting.check_sampler(sampler, accumulation, batches_per_epoch)
    return accounting


def calibrate(
    strategy: Strategy,
    sampler: AccountedBatchSampler,
    epsilon: float,
    delta: float,
    *,
    accumulation: int = 1,
    batches_per_epoch: int | None = None,
) -> Accounting:
    """The accounting that belongs to a sampler, with the least noise that keeps a run within its budget.

    Args:
        strategy: Made for ``sampler.participation(steps, accumulation)``.
        sampler: What makes the batches.
        epsilon: Budget of the whole run, above 0.
        delta: The ``delta`` of the guarantee, in (0, 1).
        accumulation: Batches per optimizer step.
        batches_per_epoch: Batches of a pass that are trained on, where that is not all of them.

    Returns:
        As :func:`account`.

    Raises:
        TypeError: As :func:`account`.
        ValueError: As :func:`account`, or where the budget is out of range.
    """
    draft = account(strategy, sampler, 0.0, delta, accumulation=accumulation, batches_per_epoch=batches_per_epoch)
    return draft.calibrated(epsilon)


def cycle_length_errors(
    workload: Workload, *, num_examples: int, batch_size: int, steps: int, epsilon: float, delta: float
) -> dict[int, float]:
    """What BSR leaves in the models under cyclic Poisson sampling, for cycles of 1, 2, 4, ... groups.

    Nothing here depends on the data, so that the best length can be taken without spending budget.

    Args:
        workload: The optimizer as a linear filter.
        num_examples: Number ``N`` of examples.
        batch_size: Expected examples per optimizer step, over all processes.
        steps: Optimizer steps of the whole run.
        epsilon: Budget of the whole run, above 0.
        delta: The ``delta`` of the guarantee, in (0, 1).

    Returns:
        :meth:`Accounting.error` by cycle length, the band as wide as the cycle; as long as groups fill a step.

    Raises:
        ValueError: On sizes below 1, or a batch of more than all examples.
    """
    errors: dict[int, float] = {}
    length = 1
    while not errors or (length * batch_size <= num_examples and length <= steps):
        sampler = CyclicPoissonBatchSampler(num_examples, batch_size, length, unsafe_seed=0)
        schedule = sampler.participation(steps)
        strategy = BandedSquareRoot(length).strategy(workload, schedule, 1)
        errors[length] = calibrate(strategy, sampler, epsilon, delta).error()
        length *= 2
    return errors
