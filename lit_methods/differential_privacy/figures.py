"""Pictures of a private run's plan: the budget, the coefficients, and what other bandwidths would have given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lit_methods.differential_privacy.accounting import Accounting, FixedOrderAccounting
from lit_methods.differential_privacy.factorization import (
    BandedInverseSquareRoot,
    BandedSquareRoot,
    Participation,
)
from lit_methods.differential_privacy.functional import lower_bound
from lit_methods.differential_privacy.optimized import OptimalBandedToeplitz
from lit_methods.differential_privacy.plan import PrivacyPlan
from lit_methods.differential_privacy.workload import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_STEPS = 20_000
MOST_STEPS_FOR_BOUND = 2_000


def plan_figure(plan: PrivacyPlan) -> Figure:
    """Epsilon against the step, the strategy's coefficients, and the error against the bandwidth.

    Args:
        plan: The run.

    Returns:
        A figure of three panels; of two for runs so long that the third would take seconds.
    """
    from matplotlib.figure import Figure

    strategy, schedule = plan.accounting.strategy, plan.accounting.strategy.participation
    compared = schedule.steps <= MOST_STEPS
    figure = Figure(figsize=(12 if compared else 8, 3.2), layout="constrained")
    axes = figure.subplots(1, 3 if compared else 2)
    # Amplified budgets are composed numerically, a few hundredths of a second each.
    points = 200 if isinstance(plan.accounting, FixedOrderAccounting) else 50
    steps = np.unique(np.linspace(1, schedule.steps, min(schedule.steps, points)).astype(int))
    axes[0].step(steps, [plan.epsilon_after(int(step)) for step in steps], where="post")
    axes[0].set(title=f"Budget spent (δ = {plan.accounting.delta:g})", xlabel="step", ylabel="ε", ylim=(0, None))
    column, name = (strategy.coefficients, "c") if strategy.noising is None else (strategy.noising, "d")
    axes[1].plot(column.numpy(), marker="o", markersize=3)
    axes[1].set(title=f"{strategy.name}, p = {strategy.bandwidth}", xlabel="lag j", ylabel=f"${name}_j$")
    if compared:
        _draw_errors(axes[2], plan.accounting)
    return figure


def error_curves(workload: Workload, schedule: Participation, widest: int) -> dict[str, list[tuple[int, float]]]:
    """Expected error against bandwidth for each closed form and the numerical optimum.

    Args:
        workload: The optimizer.
        schedule: Steps, participations and separation.
        widest: Largest bandwidth.

    Returns:
        Points ``(bandwidth, E)`` by name.
    """
    widths = sorted({round(width) for width in np.geomspace(1, widest, 10)})
    rules: dict[str, type[BandedSquareRoot | BandedInverseSquareRoot | OptimalBandedToeplitz]] = {
        "BSR": BandedSquareRoot,
        "BISR": BandedInverseSquareRoot,
        "optimal band": OptimalBandedToeplitz,
    }
    return {
        name: [(width, rule(width).strategy(workload, schedule, 1).expected_error()) for width in widths]
        for name, rule in rules.items()
    }


def _draw_errors(axes: Axes, accounting: Accounting) -> None:
    strategy, workload, schedule = accounting.strategy, accounting.strategy.workload, accounting.accounted
    widest = min(strategy.participation.separation, schedule.steps)
    for name, points in error_curves(workload, schedule, widest).items():
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.plot(strategy.bandwidth, accounting.expected_error(), "k*", markersize=10, label="this run")
    if workload.momentum is not None and workload.weight_decay_factor and schedule.steps <= MOST_STEPS_FOR_BOUND:
        bound = lower_bound(schedule.steps, schedule.participations, workload.momentum, workload.weight_decay_factor)
        axes.axhline(bound, color="grey", linestyle=":", label="lower bound")
    axes.set(title="Expected error E", xlabel="bandwidth p", xscale="log", yscale="log")
    axes.legend(fontsize="small")
