import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from lit_methods.bundled import bundled_configs
from lit_methods.cli import main


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"lit-methods {version('lit-methods')}\n"


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_short_help_names_subcommands_and_bundled_configs(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(args)
    out = capsys.readouterr().out
    for word in ("fit", "validate", "test", "predict", "--ckpt_path", *bundled_configs()):
        assert word in out


def test_help_of_a_subcommand_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--trainer.max_epochs", "--model", "--data", "--ckpt_path", "--seed_everything", "--trainer.logger"):
        assert flag in out
    assert "--optimizer" not in out


def test_help_needs_no_lightning() -> None:
    code = "import sys; from lit_methods.cli import main; main(['--help']); sys.exit('lightning' in sys.modules)"
    seconds = []
    for command in (["-c", code], ["-c", "import lightning"]):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    print(f"--help takes {seconds[0] / seconds[1]:.2f} of the time of `import lightning`")
