import time
from pathlib import Path

import pytest
import torch
import yaml

from lit_methods.bundled import find_configs
from lit_methods.cli import main
from lit_methods.runner import run

# a resumed run has a log folder of its own
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def test_fit_ends_with_the_numbers_and_where_everything_lies(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "-c", tiny])
    main(["fit", "-c", tiny])
    closing = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line.strip())
    assert float(closing["toy/epsilon"]) == 0.25
    assert float(closing["val/loss"]) > 0
    assert "train/loss" not in closing
    assert closing["log"] == str(Path("runs/version_1"))
    assert Path(closing["curves"]).read_bytes().startswith(b"\x89PNG")
    assert Path(closing["checkpoint"]).is_file()
    assert Path("runs/version_0/config.yaml").is_file()
    assert Path("runs/version_1/config.yaml").is_file()


def test_saved_config_runs_again_to_the_same_weights(tiny: str) -> None:
    first = run(["fit", "-c", tiny, "--seed_everything=3"])
    second = run(["fit", "-c", "runs/version_0/config.yaml"])
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict(), rtol=0, atol=0)
    run(
        ["test", "-c", "runs/version_0/config.yaml", f"--ckpt_path={first.trainer.checkpoint_callback.best_model_path}"]
    )


def test_resume_keeps_the_settings_of_yaml_and_flags(tiny: str) -> None:
    first = run(["fit", "-c", tiny])
    path = first.trainer.checkpoint_callback.best_model_path
    assert torch.load(path, weights_only=True)["hyper_parameters"]["lr"] == 0.1
    resumed = run(["fit", "-c", tiny, "--model.lr=0.3", "--trainer.max_epochs=5", f"--ckpt_path={path}"])
    assert resumed.model.lr == 0.3
    assert resumed.trainer.current_epoch == 5
    assert resumed.trainer.global_step == 10
    assert yaml.safe_load(Path("runs/version_1/config.yaml").read_text())["model"]["init_args"]["lr"] == 0.3


def test_resume_equals_the_uninterrupted_run(tiny: str) -> None:
    whole = run(["fit", "-c", tiny, "--trainer.max_epochs=4"])
    half = run(["fit", "-c", tiny])
    path = half.trainer.checkpoint_callback.best_model_path
    resumed = run(["fit", "-c", tiny, "--trainer.max_epochs=4", f"--ckpt_path={path}"])
    torch.testing.assert_close(whole.model.state_dict(), resumed.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_other_subcommands_read_the_same_config(subcommand: str, tiny: str) -> None:
    main([subcommand, "-c", tiny])


def test_fast_dev_run_leaves_no_files(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "-c", tiny, "--trainer.fast_dev_run=true"])
    assert [path.name for path in Path().iterdir()] == [tiny]
    assert "val/loss" in capsys.readouterr().out


def test_errors_of_the_user_keep_their_sentence(tiny: str) -> None:
    with pytest.raises(ValueError, match="accelerator"):
        main(["fit", "-c", tiny, "--trainer.accelerator=abacus"])


def test_argument_that_a_class_of_ours_refuses_ends_in_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", "federated/digits.yaml", "--model.strategy.init_args.ratio=1.5"])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("lit-methods: ratio=1.5 must lie in (0, 1]")


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_offline_overlay_logs_beside_the_csv(tiny: str) -> None:
    run(find_configs(["fit", "-c", tiny, "-c", "logger/wandb_offline.yaml"]))
    assert Path("runs/version_0/metrics.csv").is_file()
    (log,) = Path("runs/wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # wandb's own process may still be writing
    while b"val/loss" not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"val/loss" in log.read_bytes()


def test_tensorboard_overlay_logs_beside_the_csv(tiny: str) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not a dependency")
    run(find_configs(["fit", "-c", tiny, "-c", "logger/tensorboard.yaml"]))
    assert Path("runs/version_0/metrics.csv").is_file()
    assert list(Path("runs/tensorboard/version_0").glob("events.*"))


def test_default_root_dir_is_where_the_log_goes(tiny: str, tmp_path: Path) -> None:
    run(["fit", "-c", tiny, "--trainer.default_root_dir", str(tmp_path / "elsewhere")])
    assert (tmp_path / "elsewhere" / "version_0" / "metrics.csv").is_file()
    assert not Path("runs").exists()
