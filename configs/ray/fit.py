"""Fits a config of lit-methods in several Ray workers that train as one DDP group.

From the root of a clone, in an environment with `pip install -e . "ray[train]"`:

    python configs/ray/fit.py --workers 2 -c differential_privacy/digits.yaml --trainer.use_distributed_sampler=false

The first worker prints the final numbers and where everything lies. All arguments but the two below are those of
`lit-methods fit`. On several machines, start it with `ray job submit` in a folder that they share.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import ray.train  # type: ignore[import-not-found, unused-ignore]  # Ray is no dependency
from ray.train.torch import TorchTrainer  # type: ignore[import-not-found, unused-ignore]

from lit_methods.bundled import find_configs

_PLACEMENT = [
    "--trainer.devices=auto",
    '--trainer.strategy={"class_path": "ray.train.lightning.RayDDPStrategy"}',
    '--trainer.plugins=[{"class_path": "ray.train.lightning.RayLightningEnvironment"}]',
]


def work(run: dict[str, Any]) -> None:
    """The fit, in each worker."""
    from lit_methods.runner import run as run_command  # here, because only workers need torch

    os.chdir(run["folder"])
    run_command(run["args"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="lit-methods fit, on Ray", allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each")
    own, args = parser.parse_known_args()
    TorchTrainer(
        work,
        train_loop_config={"args": [*find_configs(["fit", *args]), *_PLACEMENT], "folder": str(Path.cwd())},
        scaling_config=ray.train.ScalingConfig(num_workers=own.workers, use_gpu=own.use_gpu),
        run_config=ray.train.RunConfig(storage_path=str(Path("runs/ray").resolve())),
    ).fit()
