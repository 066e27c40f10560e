"""A name that the parser does not know is answered by the nearest ones that it does."""

from pathlib import Path

import pytest

from lit_methods.cli import main

PRIVATE = ["-c", "differential_privacy/digits.yaml"]
SLIPS = {
    "abbreviated flag": (
        [*PRIVATE, "--trainer.max_epoch=2"],
        "unrecognized arguments: --trainer.max_epoch=2",
        "Nearest: --trainer.max_epochs, ",
    ),
    "key of a YAML file": (
        ["-c", "slip.yaml"],
        "Subcommand 'fit' does not accept option 'trainer.max_epoch'",
        "Nearest: trainer.max_epochs, ",
    ),
    "model": (
        ["--model=Clasifier", "--data=DigitsDataModule"],
        "--model: no class is known as Clasifier; one of yours needs its import path, such as project.models.Net",
        "Nearest: Classifier, ",
    ),
    "model like none": (
        ["--model=Nope", "--data=DigitsDataModule"],
        "--model: no class is known as Nope; one of yours needs its import path, such as project.models.Net",
        "Known: AttentionClassifier, AttentionTranslator, Classifier, ",
    ),
    "path of a class": (
        ["--model=lit_methods.classifier.Clasifier", "--data=DigitsDataModule"],
        "--model: lit_methods.classifier has no Clasifier",
        "Nearest: Classifier",
    ),
    "part of a callback": (
        [*PRIVATE, "--trainer.callbacks.sampling=CyclicPoison"],
        "--trainer.callbacks: no class is known as CyclicPoison; one of yours needs its import path, such as"
        " project.models.Net",
        "Nearest: CyclicPoisson, ",
    ),
    "argument of a callback": (
        [*PRIVATE, "--trainer.callbacks.epsilo=1"],
        "--trainer.callbacks: lit_methods.BandedSquareRootNoise takes no epsilo",
        "Nearest: epsilon",
    ),
    "argument like none": (
        [*PRIVATE, "--model.lerning_rate=1"],
        "--model: lit_methods.Classifier takes no lerning_rate",
        "Known: loss, network, num_classes, optimizer, scheduler",
    ),
    "module": (
        ["--model=projct.Net", "--data=DigitsDataModule"],
        "--model: no module projct is found; `python -m lit_methods` also looks in the current folder",
        "Every setting",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_unknown_name_is_answered_by_the_nearest(
    slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args, said, hint = SLIPS[slip]
    monkeypatch.chdir(tmp_path)
    Path("slip.yaml").write_text("trainer:\n  max_epoch: 2\n")
    with pytest.raises(SystemExit) as end:
        main(["fit", *args])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"lit-methods: {said}"
    assert lines[1].startswith(hint)
    assert lines[-1] == "Every setting: lit-methods fit --help"


def test_other_messages_of_the_parser_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *PRIVATE, "--trainer.callbacks.epsilon=much"])
    told = capsys.readouterr().err
    assert "Expected a <class 'float'>" in told
    assert "Given value: much" in told
