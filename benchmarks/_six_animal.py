"""Six animals of CIFAR-10 at mismatch 75 % on a small budget: seven ways to use a pool that is mostly irrelevant.

    LIT_METHODS_DATA=<folder> python -m benchmarks._six_animal --results six_animal.jsonl --seeds 0 1 2

Each finished arm is a line of the results file; the same command goes on where it stopped. `--table` prints what is
there. The budget is that of one slow CPU core, 16x16 pixels, and the same for all arms: what it can show is whether the
machinery works on real images and which way the arms differ, not the paper's accuracies.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DModel
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._harness import append, machine, quiet, read_lines, spread, table
from lit_methods.backbones import SmallCNN
from lit_methods.callbacks import SyntheticImageWriter
from lit_methods.datamodules import HubImageDataModule, OpenSetDataModule
from lit_methods.datamodules.open_set_split import SIX_ANIMAL_CLASSES, SIX_ANIMAL_UNLABELED
from lit_methods.semi_supervised import (
    DiscriminatorWeightedDiffusion,
    FixMatch,
    FixMatchCosine,
    FrozenRelevance,
    PULoss,
    RandAugment,
    RelevanceDiscriminator,
    SemiSupervisedClassifier,
    Supervised,
    Transformation,
    UniformRelevance,
)
from lit_methods.semi_supervised.relevance import Relevance

_CLASSES, _MISMATCH = len(SIX_ANIMAL_CLASSES), 0.75
PAPER = {"FixMatch": "82.50 ± 0.16", "DWD-SL": "85.86 ± 0.28", "DWD-UT + FixMatch": "87.17 ± 0.19"}
ARMS = (
    "supervised",
    "FixMatch",
    "filter + FixMatch",
    "DWD-SL",
    "DWD-UT + FixMatch",
    "unweighted SL",
    "unweighted UT + FixMatch",
)


@dataclass(frozen=True)
class Budget:
    """What every arm gets."""

    labels_per_class: int = 100
    pool_per_class: int = 300
    discriminator_steps: int = 250
    pretraining_steps: int = 500
    finetuning_steps: int = 250
    classifier_steps: int = 300
    threshold: float = 0.8
    batch: int = 32


class PatchUNet(nn.Module):
    """A U-Net on 2x2 patches: 16x16x3 becomes 8x8x12 and back, without loss and at a quarter of the cost."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_class_embeds=_CLASSES + 1, in_channels=3, sample_size=16)
        self.unet = UNet2DModel(
            sample_size=8,
            in_channels=12,
            out_channels=12,
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
            num_class_embeds=_CLASSES + 1,
        )

    def forward(self, x: Tensor, timestep: Tensor | int, class_labels: Tensor) -> SimpleNamespace:
        """Noise `(B, 3, 16, 16)` as `sample`."""
        noise = self.unet(F.pixel_unshuffle(x, 2), timestep, class_labels=class_labels).sample
        return SimpleNamespace(sample=F.pixel_shuffle(noise, 2))


class Experiment:
    """All arms of one seed; the split, the discriminator and the diffusions are made once.

    Args:
        source: CIFAR-10 at 16x16 pixels.
        seed: Seed of the split and of all training.
        budget: The budget.
        folder: Where generated images and the selection go.
    """

    def __init__(self, source: HubImageDataModule, seed: int, budget: Budget, folder: Path) -> None:
        self.source, self.seed, self.budget, self.folder = source, seed, budget, folder
        self.facts: dict[str, Any] = {}
        self._discriminator: nn.Module | None = None
        self._pretrained: dict[str, Tensor] | None = None

    def data(self, steps: int, ratio: int, **arguments: Any) -> OpenSetDataModule:
        """The task with batches for one stage."""
        return OpenSetDataModule(
            self.source,
            SIX_ANIMAL_CLASSES,
            self.budget.labels_per_class,
            unlabeled_classes=SIX_ANIMAL_UNLABELED[_MISMATCH],
            unlabeled_per_class=self.budget.pool_per_class,
            batch_size=self.budget.batch,
            unlabeled_ratio=ratio,
            steps_per_epoch=steps,
            split_seed=self.seed,
            **arguments,
        )

    def accuracy(self, arm: str) -> float:
        """Test accuracy in percent of one arm, by the moving average after the last step."""
        if arm == "supervised":
            return self._classify(Supervised(0.15))
        if arm == "FixMatch":
            return self._classify(FixMatch(self.budget.threshold))
        if arm == "filter + FixMatch":
            self.discriminator()
            return self._classify(FixMatch(self.budget.threshold), pool_file=self.folder / "relevant.json")
        images = self.synthetic("DWD" if arm.startswith("DWD") else "unweighted")
        if arm.endswith("SL"):
            return self._classify(Supervised(0.15), synthetic_dir=images, synthetic_as="labeled")
        return self._classify(FixMatch(self.budget.threshold), synthetic_dir=images)

    def discriminator(self) -> nn.Module:
        """The trained discriminator; its choice of the pool is written to `relevant.json`."""
        if self._discriminator is not None:
            return self._discriminator
        seed_everything(self.seed, verbose=False)
        network = SmallCNN(3, 1, (16, 32), 16, norm_groups=8)
        module = RelevanceDiscriminator(
            network,
            PULoss(1 - _MISMATCH),
            augmentation=nn.Identity(),
            optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2),
            selection_file=self.folder / "relevant.json",
        )
        data = self.data(self.budget.discriminator_steps, 3, evaluate_unlabeled=True)
        trainer = self._trainer()
        trainer.fit(module, datamodule=data)
        for name in ("val/auroc", "val/weight_share_known"):
            self.facts[name] = round(float(trainer.callback_metrics[name]), 3)
        trainer.predict(module, datamodule=data, return_predictions=False)
        kept = json.loads((self.folder / "relevant.json").read_text())["positions"]
        known = data.unlabeled_set.known[kept].float()  # type: ignore[union-attr]  # set by the fit
        self.facts |= {"filter kept": len(kept), "filter precision": round(float(known.mean()), 3)}
        self._discriminator = network
        return network

    def synthetic(self, name: str) -> Path:
        """Folder of the transformed pool of one diffusion, trained if it is not there."""
        folder = self.folder / name
        if (folder / "metadata.csv").is_file():
            return folder
        if self._pretrained is None:
            module = self._diffuse(UniformRelevance(), self.budget.pretraining_steps, None)
            self._pretrained = module.unet.state_dict()
        relevance = UniformRelevance() if name == "unweighted" else FrozenRelevance(self.discriminator(), 1 - _MISMATCH)
        module = self._diffuse(relevance, self.budget.finetuning_steps, self._pretrained)
        trainer = self._trainer(callbacks=[SyntheticImageWriter(folder)])
        data = self.data(1, 1)
        data.batch_size = 200
        trainer.predict(module, datamodule=data, return_predictions=False)
        return folder

    def _diffuse(
        self, relevance: Relevance, steps: int, start: dict[str, Tensor] | None
    ) -> DiscriminatorWeightedDiffusion:
        seed_everything(self.seed, verbose=False)
        network = PatchUNet()
        if start is not None:
            network.load_state_dict(start)
        module = DiscriminatorWeightedDiffusion(
            network,
            _CLASSES,
            relevance,
            Transformation(seed=self.seed),
            horizontal_flip=True,
            ema_decay=0.99,
            seed=self.seed + (0 if start is None else 1000),
            optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=3e-3),
        )
        self._trainer(gradient_clip_val=1.0).fit(module, datamodule=self.data(steps, 1))
        return module

    def _classify(self, strategy: Any, **arguments: Any) -> float:
        seed_everything(self.seed, verbose=False)
        steps, ratio = self.budget.classifier_steps, 1 if isinstance(strategy, Supervised) else 2
        module = SemiSupervisedClassifier(
            SmallCNN(3, 64, (32, 64, 128), 16, norm_groups=8),
            64,
            _CLASSES,
            strategy,
            weak=RandAugment(num_ops=0, cutout=0.0),
            strong=RandAugment(magnitude=0.5, cutout=0.25),
            ema_decay=0.99,
            seed=self.seed,
            optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-2),
            scheduler=partial(FixMatchCosine, total_steps=steps),
        )
        trainer = self._trainer()
        data = self.data(steps, ratio, **arguments)
        trainer.fit(module, datamodule=data)
        data.batch_size = 500
        return 100 * trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"]

    def _trainer(self, **arguments: Any) -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **arguments,
        )


def run(path: Path, seeds: list[int], budget: Budget, folder: Path) -> None:
    """Runs the arms that the results file lacks."""
    source = HubImageDataModule("uoft-cs/cifar10", image_size=(16, 16), val_fraction=0.0, value_range=(-1.0, 1.0))
    cached = {split: source.read(split) for split in ("train", "test")}
    source.read = lambda split: cached.get(split)  # type: ignore[method-assign]  # decoded once for all arms
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(source, seed, budget, place)
        for arm in ARMS:
            setting = {"seed": seed, "arm": arm, "budget": asdict(budget)}
            if any(setting.items() <= row.items() for row in read_lines(path)):
                continue
            start = time.process_time()
            row = setting | {"accuracy": round(experiment.accuracy(arm), 2)}
            row |= {"cpu seconds": round(time.process_time() - start)}
            append(path, row | experiment.facts)
            print({key: value for key, value in row.items() if key != "budget"}, experiment.facts, flush=True)


def report(rows: list[dict[str, Any]], budget: Budget) -> None:
    """Prints mean and standard deviation of each arm beside the paper's mean and standard error."""
    rows = [row for row in rows if row["budget"] == asdict(budget)]
    lines = []
    for arm in ARMS:
        values = [row["accuracy"] for row in rows if row["arm"] == arm]
        if values:
            lines.append([arm, spread(values), len(values), PAPER.get(arm, "")])
    table("six_animal at mismatch 75 %, test accuracy", ["arm", "here", "seeds", "paper"], lines)


def main() -> None:
    """Runs the arms or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("six_animal.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="keep the generated images here, so that a resume finds them")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--table", action="store_true", help="print the table of the results file and end")
    options = parser.parse_args()
    budget = Budget(30, 30, 4, 4, 4, 4, batch=8) if options.quick else Budget()
    if not options.table:
        quiet()
        print(machine())
        with TemporaryDirectory() as folder:
            run(options.results, options.seeds, budget, options.work or Path(folder))
    report(read_lines(options.results), budget)


if __name__ == "__main__":
    main()
