"""Pictures of a private run's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lit_methods.differential_privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plan_figure(plan: PrivacyPlan) -> Figure:
    """Epsilon against the step, and the strategy's coefficients.

    Args:
        plan: The run.

    Returns:
        A figure of two panels.
    """
    from matplotlib.figure import Figure

    strategy, schedule = plan.accounting.strategy, plan.accounting.strategy.participation
    steps = np.unique(np.linspace(1, schedule.steps, min(schedule.steps, 200)).astype(int))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    spent, column = figure.subplots(1, 2)
    spent.step(steps, [plan.epsilon_after(int(step)) for step in steps], where="post")
    spent.set(title=f"Budget spent (δ = {plan.accounting.delta:g})", xlabel="step", ylabel="ε", ylim=(0, None))
    column.plot(strategy.coefficients.numpy(), marker="o", markersize=3)
    column.set(title=f"{strategy.name}, p = {strategy.bandwidth}", xlabel="lag j", ylabel="$c_j$", ylim=(0, None))
    return figure
