"""The whole of DWD on digits: four commands in a row, and the composition of the null class, the test of the method."""

import csv
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from lightning.pytorch import seed_everything
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from lit_methods.backbones import MLP
from lit_methods.cli import main
from lit_methods.datamodules import DigitsDataModule, OpenSetDataModule
from lit_methods.semi_supervised import (
    DiscriminatorWeightedDiffusion,
    FixedClass,
    FrozenRelevance,
    PULoss,
    RelevanceDiscriminator,
    Transformation,
    UniformRelevance,
)
from lit_methods.semi_supervised.class_choice import ClassChoice
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
RUNS = "runs/semi_supervised"
DIFFUSION = "semi_supervised/digits_diffusion.yaml"
README = Path(__file__).parents[2] / "lit_methods/semi_supervised/README.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_command_for_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = [*QUICK, "--data.steps_per_epoch=2"]
    with pytest.raises(FileNotFoundError, match="train a RelevanceDiscriminator first"):
        main(["fit", "-c", DIFFUSION, *few])
    block = README.read_text().split("bash -e <<'END'\n")[1].split("\nEND")[0]
    stages = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [stage[0] for stage in stages] == ["fit", "fit", "predict", "fit", "fit"]
    fast = {"fit": few, "predict": [*QUICK, "--data.batch_size=512", "--model.transformation.num_inference_steps=1"]}
    for stage in stages:
        main([*stage, *fast[stage[0]], *(["--trainer.max_epochs=1"] if stage[0] == "fit" else [])])
    with Path(f"{RUNS}/digits_synthetic/metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(len(rows)))
    counts = [sum(row["label"] == str(k) for row in rows) for k in range(5)]
    assert max(counts) - min(counts) <= 1
    with pytest.raises(ValueError, match="num_inference_steps: 1 there, 2 here"):
        main([*stages[2], *fast["predict"], "--model.transformation.num_inference_steps=2"])
    for config in ("digits_fixmatch", "digits_supervised"):
        assert Path(f"{RUNS}/{config}/last.ckpt").is_file()


@pytest.mark.slow
def test_pool_is_filtered_by_the_discriminator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", "semi_supervised/digits_discriminator.yaml", *QUICK, "--data.steps_per_epoch=100"])
    checkpoint = f"--ckpt_path={RUNS}/digits_discriminator/last.ckpt"
    main(["predict", "-c", "semi_supervised/digits_discriminator.yaml", *QUICK, checkpoint])
    data = _data(8, 1, pool_file=f"{RUNS}/digits_relevant.json")
    data.setup("fit")
    assert 50 < len(data.unlabeled_set) < 600
    assert data.prior > 2 * 0.25


def _data(batch_size: int, steps: int, **arguments: Any) -> OpenSetDataModule:
    return OpenSetDataModule(
        DigitsDataModule(value_range=(-1.0, 1.0)),
        range(5),
        labels_per_class=10,
        val_per_class=20,
        mismatch=0.75,
        batch_size=batch_size,
        steps_per_epoch=steps,
        **arguments,
    )


def _unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=6,
    )


def _fit(module: Any, data: OpenSetDataModule, folder: Path) -> Any:
    trainer = toy_trainer(Parts(module, [], data), folder, max_epochs=1)
    trainer.fit(module, datamodule=data)
    return trainer


def _judged(images: torch.Tensor) -> torch.Tensor:
    """Classes by a support-vector machine that has seen all digits: 99 % right on held-out ones."""
    digits: Any = load_digits()
    return torch.from_numpy(SVC().fit(digits.data / 8 - 1, digits.target).predict(images.flatten(1).numpy()))


def _discriminator(folder: Path, labels_per_class: int = 10) -> tuple[MLP, dict[str, float]]:
    seed_everything(0)
    network = MLP(64, [128], 1)
    module = RelevanceDiscriminator(
        network, PULoss(0.25), optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2)
    )
    data = _data(16, 400, evaluate_unlabeled=True)
    data.labels_per_class = labels_per_class
    metrics = _fit(module, data, folder).callback_metrics
    return network, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(("labels_per_class", "least"), [(10, 0.9), (3, 0.8)])
def test_discriminator_tells_known_from_unknown_classes(labels_per_class: int, least: float, tmp_path: Path) -> None:
    _, metrics = _discriminator(tmp_path, labels_per_class)
    assert metrics["val/auroc"] > least
    assert metrics["val/weight_share_known"] > 2 * 0.25


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_null_class_and_transformation(tmp_path: Path) -> None:
    network, _ = _discriminator(tmp_path)
    composition, hits = [], {}
    for relevance in (UniformRelevance(), FrozenRelevance(network, 0.25)):
        seed_everything(0)
        module = DiscriminatorWeightedDiffusion(
            _unet(), 5, relevance, ema_decay=0.99, optimizer=partial(torch.optim.AdamW, lr=2e-3)
        )
        data = _data(32, 1000, unlabeled_ratio=1)
        trainer = _fit(module, data, tmp_path)
        data.batch_size = 256

        def made(choice: ClassChoice | None, strength: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
            module.transformation = Transformation(strength, scale, class_choice=choice)  # noqa: B023  used at once
            parts = trainer.predict(module, datamodule=data)  # noqa: B023
            return _judged(torch.cat([p["images"] for p in parts])), torch.cat([p["label"] for p in parts])

        composition.append(float((made(FixedClass(5), 1.0, 1.0)[0] < 5).float().mean()))
    for scale in (1.0, 1.5, 3.0):
        found, wanted = made(None, 0.6, scale)
        right = (found == wanted).float()
        hits[scale] = float(right.mean())
        known = data.unlabeled_set.known == 1
        print(f"s = {scale}: of known {right[known].mean():.3f}, of unknown sources {right[~known].mean():.3f} hit")
    print(f"known share of the null class: {composition[0]:.3f} unweighted, {composition[1]:.3f} weighted")
    assert composition[0] == pytest.approx(0.25, abs=0.1)
    assert composition[1] > 0.6
    assert composition[1] > 2 * composition[0]
    assert hits[1.5] >= 0.8
    assert hits[1.0] < hits[1.5] < hits[3.0]
    assert abs(float(right[known].mean() - right[~known].mean())) < 0.1
