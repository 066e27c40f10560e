"""What the null class of DWD's diffusion generates on digits, with and without weights, with and without label dropout.

    python -m benchmarks._null_class --results benchmarks/results/null_class.jsonl --seeds 0 1 2 3 4

Known classes 0 to 4, ten labels each; a quarter of the pool is known. Each finished run is a line of the results file;
the same command goes on where it stopped, `--table` prints what is there. A run is a minute or two of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from benchmarks._harness import append, quiet, read_lines, spread, table
from lit_methods.backbones import MLP
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

PRIOR, CLASSES = 0.25, 5
SCALES = (1.0, 1.5, 3.0)
LABELED, UNLABELED = 32, 32
STEPS = 1000


def data(batch_size: int, steps: int, split_seed: int = 0, **arguments: Any) -> OpenSetDataModule:
    """The task."""
    return OpenSetDataModule(
        DigitsDataModule(value_range=(-1.0, 1.0)),
        range(CLASSES),
        val_per_class=20,
        mismatch=1 - PRIOR,
        batch_size=batch_size,
        steps_per_epoch=steps,
        split_seed=split_seed,
        **({"labels_per_class": 10} | arguments),
    )


def expected_share(label_dropout: float, known_weight: float, unknown_weight: float) -> float:
    """Share of known classes in what the null class is trained on.

    A labelled image reaches the null class with probability `label_dropout` and weight 1, an unlabelled one always and
    with its own weight; the loss is a sum over both, so that its minimiser under the null class is the score of the
    mixture `p B_l p_l + B_u [mu w_known p_l + (1 - mu) w_unknown p_o]`, normalised.

    Args:
        label_dropout: Share `p` of labelled images that train the null class.
        known_weight: Mean weight of the pool's images of known classes; 1 without weights.
        unknown_weight: Mean weight of those of unknown classes.
    """
    known = label_dropout * LABELED + UNLABELED * PRIOR * known_weight
    return known / (known + UNLABELED * (1 - PRIOR) * unknown_weight)


def trained_discriminator(seed: int, labels_per_class: int = 10) -> tuple[MLP, dict[str, float]]:
    """A discriminator and its metrics on the pool."""
    seed_everything(seed, verbose=False)
    network = MLP(64, [128], 1)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2)
    module = RelevanceDiscriminator(network, PULoss(PRIOR), optimizer=optimizer)
    trainer = _trainer()
    trainer.fit(module, datamodule=data(16, 400, seed, labels_per_class=labels_per_class, evaluate_unlabeled=True))
    return network, {name: float(value) for name, value in trainer.callback_metrics.items()}


class NullClass:
    """A diffusion trained on digits, and what it generates, judged by a classifier that has seen all ten digits.

    Args:
        network: Trained discriminator; None for equal weights of 1.
        seed: Seed of the split and of all training.
        label_dropout: Share of labelled images that train the null class.
        steps: Training steps.
    """

    def __init__(self, network: MLP | None, seed: int, label_dropout: float, steps: int = STEPS) -> None:
        seed_everything(seed, verbose=False)
        self.module = DiscriminatorWeightedDiffusion(
            _unet(),
            CLASSES,
            UniformRelevance() if network is None else FrozenRelevance(network, PRIOR),
            label_dropout=label_dropout,
            ema_decay=0.99,
            seed=seed,
            optimizer=partial(torch.optim.AdamW, lr=2e-3),
        )
        self.data = data(LABELED, steps, seed, unlabeled_ratio=UNLABELED // LABELED)
        self.trainer = _trainer()
        self.trainer.fit(self.module, datamodule=self.data)
        self.data.batch_size = 256
        self.known: Tensor = self.data.unlabeled_set.known == 1  # type: ignore[union-attr]  # set by the fit

    def weights(self) -> tuple[float, float]:
        """Mean weight of the pool's images of known and of unknown classes."""
        images, index, _ = self.data.unlabeled_set.__getitems__(range(len(self.known)))  # type: ignore[union-attr]  # set by the fit
        weight, _ = self.module.relevance(images, images, index)
        return float(weight[self.known].mean()), float(weight[~self.known].mean())

    def generated(
        self, choice: ClassChoice | None, strength: float, scale: float, clip_clean: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One image for each of the pool, and the classes that they were meant for."""
        self.module.transformation = Transformation(strength, scale, class_choice=choice, clip_clean=clip_clean)
        parts: Any = self.trainer.predict(self.module, datamodule=self.data)
        return torch.cat([p["images"] for p in parts]), torch.cat([p["label"] for p in parts])

    def samples(self, clip_clean: bool = False) -> Tensor:
        """Samples of the null class, from noise alone."""
        return self.generated(FixedClass(CLASSES), 1.0, 1.0, clip_clean)[0]

    def hits(self, scale: float, strength: float = 0.6) -> Tensor:
        """Which images of the pool became one of the class that they were meant for."""
        images, wanted = self.generated(None, strength, scale)
        return judged(images) == wanted


def judged(images: Tensor) -> Tensor:
    """Classes by a support-vector machine that has seen all digits: 99 % right on held-out ones."""
    digits: Any = load_digits()
    return torch.from_numpy(SVC().fit(digits.data / 8 - 1, digits.target).predict(images.flatten(1).numpy()))


def unlike_digits(images: Tensor) -> Tensor:
    """Which images are further from every digit than 99 % of digits are from the nearest other one."""
    digits = torch.from_numpy(load_digits().data).float() / 8 - 1
    between = torch.cdist(digits, digits).fill_diagonal_(torch.inf).amin(1)
    return torch.cdist(images.flatten(1), digits).amin(1) > between.quantile(0.99)


def measured(seed: int, weighted: bool, label_dropout: float, steps: int) -> dict[str, Any]:
    """One run."""
    network = trained_discriminator(seed)[0] if weighted else None
    run = NullClass(network, seed, label_dropout, steps)
    weights, samples = run.weights(), run.samples()
    known, unlike = (judged(samples) < CLASSES).float(), unlike_digits(samples)
    row = {
        "known share": float(known.mean()),
        "unlike digits": float(unlike.float().mean()),
        "known share of the others": float(known[~unlike].mean()),
        "expected share": expected_share(label_dropout, *weights),
        "mean weight of known": weights[0],
        "mean weight of unknown": weights[1],
    }
    clipped = run.samples(clip_clean=True)
    row["known share, clipped"] = float((judged(clipped) < CLASSES).float().mean())
    row["unlike digits, clipped"] = float(unlike_digits(clipped).float().mean())
    for name, clip_clean in (("", False), (", clipped", True)):
        images, wanted = run.generated(None, 1.0, 1.5, clip_clean)
        row[f"class samples unlike digits{name}"] = float(unlike_digits(images).float().mean())
        row[f"class samples of their class{name}"] = float((judged(images) == wanted).float().mean())
    for scale in SCALES:
        right = run.hits(scale).float()
        row[f"hits at s={scale}"] = float(right.mean())
        row[f"hits at s={scale}, known minus unknown sources"] = float(
            right[run.known].mean() - right[~run.known].mean()
        )
    return {name: round(value, 4) for name, value in row.items()} | {"samples": len(run.known)}


def run(path: Path, seeds: Sequence[int], dropouts: Sequence[float], steps: int) -> None:
    """Runs what the results file lacks."""
    for seed in seeds:
        for label_dropout in dropouts:
            for weighted in (False, True):
                setting = {"seed": seed, "weighted": weighted, "label dropout": label_dropout, "steps": steps}
                if any(setting.items() <= row.items() for row in read_lines(path)):
                    continue
                start = time.process_time()
                row = setting | measured(seed, weighted, label_dropout, steps)
                row["cpu seconds"] = round(time.process_time() - start)
                append(path, row)
                print(row, flush=True)


def report(rows: list[dict[str, Any]]) -> None:
    """Prints mean and standard deviation over the seeds of each setting."""
    columns = ["expected share", "known share", "unlike digits", "known share of the others"]
    columns += [f"hits at s={scale}" for scale in SCALES]
    settings = sorted({(row["steps"], row["label dropout"], row["weighted"]) for row in rows})
    lines = []
    for steps, label_dropout, weighted in settings:
        wanted = {"steps": steps, "label dropout": label_dropout, "weighted": weighted}
        chosen = [row for row in rows if wanted.items() <= row.items()]
        cells = [spread([row[column] for row in chosen], 3) for column in columns]
        lines.append([steps, label_dropout, "yes" if weighted else "no", *cells, len(chosen)])
    table("null class on digits", ["steps", "label dropout", "weights", *columns, "seeds"], lines)


def _trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
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
        num_class_embeds=CLASSES + 1,
    )


def main() -> None:
    """Runs the seeds or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("null_class.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--label-dropout", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of the diffusion")
    parser.add_argument("--table", action="store_true", help="print the table of the results file and end")
    options = parser.parse_args()
    if not options.table:
        quiet()
        run(options.results, options.seeds, options.label_dropout, options.steps)
    report(read_lines(options.results))


if __name__ == "__main__":
    main()
