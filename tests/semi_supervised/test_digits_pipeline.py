"""The whole of DWD on digits: four commands in a row, and the composition of the null class, the test of the method."""

import csv
import shlex
from pathlib import Path

import pytest

from benchmarks._null_class import PRIOR, NullClass, data, judged, trained_discriminator
from lit_methods.bundled import find_configs
from lit_methods.cli import main
from lit_methods.runner import run

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
RUNS = "runs/semi_supervised"
DIFFUSION = "semi_supervised/digits_diffusion.yaml"
README = Path(__file__).parents[2] / "lit_methods/semi_supervised/README.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")  # both runs share a folder
def test_command_for_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = [*QUICK, "--data.steps_per_epoch=2"]
    with pytest.raises(FileNotFoundError, match="train a RelevanceDiscriminator first"):
        run(find_configs(["fit", "-c", DIFFUSION, *few]))
    block = README.read_text().split("bash -e <<'END'\n")[1].split("\nEND")[0]
    stages = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [stage[0] for stage in stages] == ["fit", "fit", "predict", "fit", "fit"]
    fast = {"fit": few, "predict": [*QUICK, "--data.batch_size=512", "--model.transformation.num_inference_steps=1"]}
    for stage in stages:
        main([*stage, *fast[stage[0]], *(["--trainer.max_epochs=1"] if stage[0] == "fit" else [])])
    with Path(f"{RUNS}/digits_synthetic/metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pool = data(8, 1)
    pool.setup("fit")
    assert [int(row["index"]) for row in rows] == list(range(len(pool.unlabeled_set)))
    counts = [sum(row["label"] == str(k) for row in rows) for k in range(5)]
    assert max(counts) - min(counts) <= 1
    with pytest.raises(ValueError, match="num_inference_steps: 1 there, 2 here"):
        run(find_configs([*stages[2], *fast["predict"], "--model.transformation.num_inference_steps=2"]))
    for config in ("digits_fixmatch", "digits_supervised"):
        assert Path(f"{RUNS}/{config}/last.ckpt").is_file()


@pytest.mark.slow
def test_pool_is_filtered_by_the_discriminator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", "semi_supervised/digits_discriminator.yaml", *QUICK, "--data.steps_per_epoch=100"])
    checkpoint = f"--ckpt_path={RUNS}/digits_discriminator/last.ckpt"
    main(["predict", "-c", "semi_supervised/digits_discriminator.yaml", *QUICK, checkpoint])
    filtered = data(8, 1, pool_file=f"{RUNS}/digits_relevant.json")
    filtered.setup("fit")
    assert 50 < len(filtered.unlabeled_set) < 600
    assert filtered.prior > 2 * PRIOR


@pytest.mark.parametrize(("labels_per_class", "least"), [(10, 0.9), (3, 0.8)])
def test_discriminator_tells_known_from_unknown_classes(labels_per_class: int, least: float) -> None:
    _, metrics = trained_discriminator(0, labels_per_class)
    assert metrics["val/auroc"] > least
    assert metrics["val/weight_share_known"] > 2 * PRIOR


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_weights_turn_the_null_class_from_the_pool_to_the_known_classes() -> None:
    """Without label dropout, so that the null class learns the pool and nothing else."""
    network, _ = trained_discriminator(0)
    plain, weighted = (NullClass(one, seed=0, label_dropout=0.0) for one in (None, network))
    composition = [float((judged(run.samples()) < 5).float().mean()) for run in (plain, weighted)]
    hits = {scale: weighted.hits(scale) for scale in (1.0, 1.5, 3.0)}
    shares = {scale: float(hit.float().mean()) for scale, hit in hits.items()}
    print(
        f"known share of the null class: {composition[0]:.3f} unweighted, {composition[1]:.3f} weighted; hits {shares}"
    )
    assert composition[0] == pytest.approx(PRIOR, abs=0.1)
    assert composition[1] > 0.6
    assert composition[1] > 2 * composition[0]
    assert shares[1.5] >= 0.8
    assert shares[1.0] < shares[1.5] < shares[3.0]
    rising = [float(weighted.hits(1.0, strength).float().mean()) for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    print(f"hits by strength {rising}")
    assert rising[0] == pytest.approx(PRIOR / 5, abs=0.03)  # the sources themselves
    assert rising[1] + 0.2 < rising[2] < rising[3]
    assert rising[4:] == pytest.approx([rising[3]] * 2, abs=0.15)
    of_known, of_unknown = (hits[3.0][which].float().mean() for which in (weighted.known, ~weighted.known))
    assert float(of_known) == pytest.approx(float(of_unknown), abs=0.1)
