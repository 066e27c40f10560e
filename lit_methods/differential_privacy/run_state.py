"""What a private run puts into a checkpoint, and which of it can be gone on from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.plan import PrivacyPlan
from lit_methods.differential_privacy.samplers import AccountedBatchSampler


def random_state() -> dict[str, Any]:
    """The global random states, which dropout and augmentation draw from, as tensors and plain containers."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  the state that others draw from
    if not isinstance(numpy_state, dict):
        raise TypeError(f"numpy's random state is a {type(numpy_state).__name__}, not a dictionary.")
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts the global random states back.

    Args:
        state: Of :func:`random_state`.
    """
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    inner = state["numpy"]["state"]
    key = inner["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})  # noqa: NPY002  the global state is what is saved and restored


def run_state(
    plan: PrivacyPlan, noise: CorrelatedNoise, sampler: AccountedBatchSampler, pending: bool
) -> dict[str, Any]:
    """The noise's state, the batches' seed and the plan's fingerprint. Secret: with it the noise can be subtracted.

    Args:
        plan: The run.
        noise: Its noise.
        sampler: What makes its batches.
        pending: Whether clipped gradients wait for their step.

    Returns:
        Tensors and plain containers; ``strip_private_state`` knows them by ``fingerprint`` and ``noise``.
    """
    return {
        "fingerprint": plan.fingerprint(),
        "noise": noise.state_dict(),
        "sampler": sampler.state_dict(),
        "position": sampler.position_after(noise.step, plan.accumulation, plan.batches_per_epoch),
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
