"""What each semi-supervised strategy gains over labels alone on digits, with a pool that is mostly irrelevant.

    python -m benchmarks._digits_ssl --results benchmarks/results/digits_ssl.jsonl --seeds 0 1 2 3 4

Known classes 0 to 4 with a few labels each, a pool of which a quarter is known; every strategy has the same network,
optimizer, steps and labelled batches, and its own defaults but for two that suit 400 steps: OpenMatch uses the pool
from the third epoch of eight on, and MixMatch weighs it by 10, the best of 1, 10, 30 and 100 on seed 100, which is not
among those reported. Each finished run is a line of the results file; the same command goes on where it stopped,
`--table` prints what is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from benchmarks._harness import append, quiet, read_lines, spread, table
from lit_methods.backbones import SmallCNN
from lit_methods.datamodules import DigitsDataModule, OpenSetDataModule
from lit_methods.semi_supervised import (
    FixAStep,
    FixMatch,
    FixMatchCosine,
    IOMatch,
    MixMatch,
    OpenMatch,
    RandAugment,
    SemiSupervisedClassifier,
    Strategy,
    Supervised,
    WeakAugmentation,
)

EPOCHS, STEPS_PER_EPOCH, LABELED, RATIO = 8, 50, 16, 4
BASELINE = "supervised"

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    BASELINE: Supervised,
    "FixMatch": FixMatch,
    "MixMatch": lambda: MixMatch(unlabeled_weight=10.0),
    "OpenMatch": lambda: OpenMatch(start_epoch=2),
    "IOMatch": IOMatch,
    "Fix-A-Step": lambda: FixAStep(FixMatch()),
}


def accuracy(name: str, seed: int, labels_per_class: int) -> float:
    """Test accuracy in percent on the known classes, by the moving average after the last step."""
    seed_everything(seed, verbose=False)
    weak = WeakAugmentation(1 / 8, horizontal_flip=False)
    module = SemiSupervisedClassifier(
        SmallCNN(1, 64, (32, 64), 8, norm_groups=8),
        64,
        5,
        STRATEGIES[name](),
        weak=weak,
        strong=RandAugment(magnitude=0.5, cutout=0.25, weak=weak),
        ema_decay=0.98,
        seed=seed,
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-2),
        scheduler=partial(FixMatchCosine, total_steps=EPOCHS * STEPS_PER_EPOCH),
    )
    data = OpenSetDataModule(
        DigitsDataModule(value_range=(-1.0, 1.0)),
        range(5),
        labels_per_class,
        mismatch=0.75,
        batch_size=LABELED,
        unlabeled_ratio=RATIO,
        steps_per_epoch=STEPS_PER_EPOCH,
        split_seed=seed,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    data.batch_size = 500
    return 100 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])


def run(path: Path, seeds: Sequence[int], labels_per_class: int) -> None:
    """Runs what the results file lacks."""
    for seed in seeds:
        for name in STRATEGIES:
            setting = {"strategy": name, "seed": seed, "labels per class": labels_per_class}
            if any(setting.items() <= row.items() for row in read_lines(path)):
                continue
            start = time.process_time()
            row = setting | {"accuracy": round(accuracy(name, seed, labels_per_class), 2)}
            row["cpu seconds"] = round(time.process_time() - start, 1)
            append(path, row)
            print(row, flush=True)


def report(rows: list[dict[str, Any]]) -> None:
    """Prints accuracies, and margins over labels alone, paired by seed."""
    for labels_per_class in sorted({row["labels per class"] for row in rows}):
        found = {(r["strategy"], r["seed"]): r["accuracy"] for r in rows if r["labels per class"] == labels_per_class}
        lines = []
        for name in STRATEGIES:
            seeds = sorted(seed for strategy, seed in found if strategy == name and (BASELINE, seed) in found)
            margins = [found[name, seed] - found[BASELINE, seed] for seed in seeds]
            if seeds:
                values = [found[name, seed] for seed in seeds]
                least = "" if name == BASELINE else f"{min(margins):+.1f}"
                margin = "" if name == BASELINE else spread(margins, sign="+")
                lines.append([name, spread(values), margin, least, len(seeds)])
        title = f"digits, {labels_per_class} labels per class, mismatch 75 %, test accuracy"
        table(title, ["strategy", "accuracy", "margin over supervised", "least margin", "seeds"], lines)


def main() -> None:
    """Runs the strategies or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("digits_ssl.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--labels-per-class", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the table of the results file and end")
    options = parser.parse_args()
    if not options.table:
        quiet()
        run(options.results, options.seeds, options.labels_per_class)
    report(read_lines(options.results))


if __name__ == "__main__":
    main()
