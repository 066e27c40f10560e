"""`lit-methods fit -c CONFIG -c trainer/ddp_cpu.yaml` trains configs of all rooms in two processes, or says why not."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SHARES_OUT_ITSELF = "--trainer.use_distributed_sampler=false"
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2")
RAW_POOL = ("--data.synthetic_dir=null", "--data.steps_per_epoch=3", "--trainer.max_epochs=1")
TRAINED = {
    "federated/digits.yaml": ("--trainer.max_epochs=2",),
    "differential_privacy/digits.yaml": ("--trainer.max_epochs=1", SHARES_OUT_ITSELF),
    "data_manipulation/digits_noise.yaml": ("--trainer.max_epochs=2",),
    "data_manipulation/docstrings_augment.yaml": (*SHORT, "--trainer.callbacks.warmup_epochs=0"),
    "data_manipulation/docstrings_pretrain.yaml": SHORT,
    "softmax_approximation/docstrings.yaml": SHORT,
    "image_text/digit_scenes.yaml": ("--trainer.max_epochs=1",),
    "semi_supervised/digits_discriminator.yaml": SHORT,
    "semi_supervised/digits_diffusion.yaml": (
        *SHORT,
        "--model.relevance=lit_methods.semi_supervised.UniformRelevance",
    ),
    "semi_supervised/digits_diffusion_paper_parity.yaml": SHORT,
    "semi_supervised/digits_fixmatch.yaml": RAW_POOL,
    "semi_supervised/digits_supervised.yaml": RAW_POOL,
    "compositions/private_attention.yaml": ("--trainer.max_epochs=1", SHARES_OUT_ITSELF),
    "compositions/spectral_mack.yaml": ("--trainer.max_epochs=1",),
    "compositions/weighted_attention.yaml": (*SHORT, "--trainer.callbacks.warmup_epochs=0"),
}
REFUSED = {
    "differential_privacy/digits.yaml": "--trainer.use_distributed_sampler=false on the command line",
    "compositions/private_federated_digits.yaml": "each would add its own. Use --trainer.devices=1.",
}


def _fit(config: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    overlay = ["-c", config, "-c", "trainer/ddp_cpu.yaml", *flags, "--trainer.callbacks+=tests.cli.parts.Witness"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return subprocess.run(
        [sys.executable, "-m", "lit_methods", "fit", *overlay, *quiet],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.parametrize("config", TRAINED)
def test_two_processes_train(config: str, tmp_path: Path) -> None:
    done = _fit(config, *TRAINED[config], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["processes"] == second["processes"] == 2
    assert first["steps"] == second["steps"] > 0
    assert first["weights"] == second["weights"]
    assert first["examples"] != second["examples"]
    assert len(first["metrics"]) > 1
    assert all(math.isfinite(value) for value in first["metrics"].values()), first["metrics"]


@pytest.mark.parametrize("config", REFUSED)
def test_refusal_names_the_way_out(config: str, tmp_path: Path) -> None:
    done = _fit(config, folder=tmp_path)
    assert done.returncode != 0
    assert REFUSED[config] in done.stderr
    assert not list(tmp_path.glob("rank-*.json"))


def test_each_room_is_here() -> None:
    rooms = {path.parent.name for path in (ROOT / "lit_methods").glob("*/functional.py")}
    assert rooms <= {config.split("/")[0] for config in TRAINED}
    compositions = {f"compositions/{path.name}" for path in (ROOT / "configs/compositions").glob("*.yaml")}
    assert compositions <= {*TRAINED, *REFUSED}
