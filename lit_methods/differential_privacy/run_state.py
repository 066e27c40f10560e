"""What a private run puts into a checkpoint, and which of it can be gone on from."""

from __future__ import annotations

from typing import Any

from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.plan import PrivacyPlan


def epoch_position(plan: PrivacyPlan, steps: int) -> int:
    """Physical batches of the current epoch that were trained on after ``steps`` optimizer steps."""
    return steps % plan.accounting.strategy.participation.separation * plan.accumulation


def run_state(plan: PrivacyPlan, noise: CorrelatedNoise, pending: bool) -> dict[str, Any]:
    """The noise's state and the plan's fingerprint. Secret: with it the noise can be subtracted.

    Args:
        plan: The run.
        noise: Its noise.
        pending: Whether clipped gradients wait for their step.

    Returns:
        Tensors and plain containers; ``strip_private_state`` knows them by ``fingerprint`` and ``noise``.
    """
    return {
        "fingerprint": plan.fingerprint(),
        "noise": noise.state_dict(),
        "position": epoch_position(plan, noise.step),
        "pending": pending,
    }


def check_complete(state: dict[str, Any]) -> None:
    """Refuses a state that a run can't go on from.

    Args:
        state: Of :func:`run_state`.

    Raises:
        ValueError: If it is stripped of its noise, or was saved in the middle of an accumulation.
    """
    if "noise" not in state:
        raise ValueError(
            "The state has no noise: it was stripped for publication, or comes from a run without privacy. Resume"
            " from the unstripped checkpoint, or start a new run and count both."
        )
    if state.get("pending"):
        raise ValueError(
            "The checkpoint was written in the middle of a gradient accumulation, whose sum is not in it. Resume"
            " from one that was written after an optimizer step (every_n_train_steps, or the end of an epoch)."
        )
