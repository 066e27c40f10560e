"""`configs/ray/fit.py` trains privately in two Ray workers that share each batch."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_train_one_private_model(tmp_path: Path) -> None:
    pytest.importorskip("ray.train", reason='Ray is no dependency: pip install "ray[train]"')
    flags = ["-c", "differential_privacy/digits.yaml", "--trainer.use_distributed_sampler=false"]
    short = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    witness = "--trainer.callbacks+=tests.cli.parts.Witness"
    done = subprocess.run(
        [sys.executable, ROOT / "configs/ray/fit.py", "--workers=2", *flags, *short, witness],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["processes"] == second["processes"] == 2
    assert first["steps"] == second["steps"] == 2 * math.ceil(1293 / (2 * 128))
    assert first["examples"] != second["examples"]
    assert first["weights"] == second["weights"]
    assert first["metrics"]["dp/epsilon"] == pytest.approx(8.0, abs=0.01)
    assert first["metrics"]["val/acc"] > 0.5
    assert (tmp_path / "runs/version_0/checkpoints/last.ckpt").is_file()
