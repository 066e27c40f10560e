"""Every test leaves the process as it found it, and none of them needs the network."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from tests.gloo import GlooPool

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _hygiene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fixes the seeds, and restores environment, random states, torch's switches and the process group."""
    monkeypatch.setattr("sys.argv", ["lit-methods"])
    environment = dict(os.environ)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "WANDB_DIR": str(tmp_path),
        "WANDB_MODE": "disabled",
        "WANDB_SILENT": "true",
    }
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    switches = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        rank_zero_only.rank,
    )
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    deterministic, warn_only, dtype, threads, benchmark, cudnn_deterministic, rank = switches
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = cudnn_deterministic
    rank_zero_only.rank = rank
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    os.environ.clear()
    os.environ.update(environment)
    if dist.is_initialized():
        dist.destroy_process_group()
        pytest.fail("the test left a torch.distributed process group behind")


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    """Two gloo processes, started by the first test that asks and shared by all."""
    pool = GlooPool()
    yield pool
    pool.close()


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets W&B write offline runs; it reads its environment once per process unless torn down."""
    import wandb

    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_DIR")
    yield
    wandb.finish()
    wandb.teardown()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets that tests marked `data` read."""
    root = os.environ.get("LIT_METHODS_DATA")
    if root is None:
        pytest.skip("LIT_METHODS_DATA does not name a folder of real data sets")
    return Path(root)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, each with its reason."""
    for item in items:
        if item.get_closest_marker("data") and "LIT_METHODS_DATA" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="LIT_METHODS_DATA does not name a folder of real data sets"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
