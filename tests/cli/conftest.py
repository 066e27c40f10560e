from pathlib import Path

import pytest

TINY = """
model:
  class_path: tests.cli.parts.TinyModule
  init_args:
    lr: 0.1
data:
  class_path: tests.cli.parts.TinyData
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty current folder with one config, whose name is returned."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    return "tiny.yaml"
