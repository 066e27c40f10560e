"""LightningModules: a text classifier that weights and augmentation work on, and the augmenter's pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lit_methods.classifier import Classifier
from lit_methods.data_manipulation.augmenter import MaskedLMAugmenter
from lit_methods.data_manipulation.reduction import weighted_mean
from lit_methods.errors import check_factory, check_object

TextBatch = Mapping[str, Tensor]


class TextClassifier(Classifier):
    """Supervised classification of batches `{"input_ids", "attention_mask": (B, T), "label": (B,)}`.

    What `Classifier` is for tensors: automatic optimization, the same metrics and arguments. Its training loss is
    `weighted_mean(self, per_sample_loss(batch))`, so that `DataWeighting()` needs no criterion.

    Args:
        network: Takes `input_ids` and `attention_mask` by name and returns logits `(B, num_classes)`, such as
            `TextNetwork`.
        num_classes: Number of classes, at least 2.
        optimizer: See `Classifier`.
        scheduler: See `Classifier`.
        loss: See `Classifier`.

    Raises:
        ValueError: If `num_classes` is below 2.
        TypeError: If `loss` has no `reduction` attribute.
    """

    def forward(self, inputs: Any) -> Tensor:
        """Logits `(B, num_classes)` of a batch, with or without labels."""
        found = self.network(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return cast(Tensor, found)

    def per_sample_loss(self, batch: Any) -> Tensor:
        """Loss of each example, unreduced: `(B,)`."""
        return super().per_sample_loss((batch, batch["label"]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean loss of one batch, weighted where a callback has weights; logged as `train/loss`."""
        loss = weighted_mean(self, self.per_sample_loss(batch))
        size = len(batch["label"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities `(B, num_classes)`."""
        return cast(Tensor, self(batch)).softmax(dim=-1)

    def _evaluate(self, stage: str, batch: Any, accuracy: MulticlassAccuracy) -> None:
        super()._evaluate(stage, (batch, batch["label"]), accuracy)


class ConditionalMaskedLM(LightningModule):
    """Pre-trains a `MaskedLMAugmenter` to fill masks given the label (Wu et al. 2018).

    A part of the tokens is to be predicted; of these 80 % are masked, 10 % replaced by a random word of the
    vocabulary, 10 % kept. Validation draws the same masks in every epoch. Logs `train/loss` and `val/loss`.

    Args:
        augmenter: The augmenter.
        optimizer: Takes the parameters; None for AdamW at 4e-5, the published rate.
        mask_probability: Part of the free tokens that is predicted, at least one in each text.
        seed: Of the masks.

    Raises:
        ValueError: If `mask_probability` is not in (0, 1].
        TypeError: If a string stands for an object.
    """

    def __init__(
        self,
        augmenter: MaskedLMAugmenter,
        optimizer: OptimizerCallable | None = None,
        mask_probability: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < mask_probability <= 1:
            raise ValueError(f"mask_probability={mask_probability} must lie in (0, 1].")
        check_object("augmenter", augmenter, MaskedLMAugmenter, "MaskedLMAugmenter(num_classes=2)")
        check_factory("optimizer", optimizer)
        self.save_hyperparameters(ignore=["augmenter", "optimizer"])
        self.augmenter = augmenter
        self.mask_probability, self.seed = mask_probability, seed
        self._make_optimizer = optimizer

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Cross-entropy at the predicted places."""
        seed = (self.seed << 40) + (self.global_rank << 32) + 2 * (self.current_epoch * 1_000_003 + batch_idx)
        loss = self._loss(batch, seed)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Logs `val/loss`."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Logs `test/loss`."""
        self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Most likely words `(B, T)` with every free token of a text proposed at once."""
        ids, attention = batch["input_ids"], batch["attention_mask"]
        free = attention.bool() & ~torch.isin(ids, self.augmenter.special_token_ids)
        logits = self.augmenter(ids, attention, batch["label"], free)
        return ids.masked_scatter(free, logits.argmax(-1))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over all parameters of the augmenter."""
        if self._make_optimizer is not None:
            return self._make_optimizer(self.parameters())
        return torch.optim.AdamW(self.parameters(), lr=4e-5)

    def _evaluate(self, stage: str, batch: TextBatch, batch_idx: int) -> None:
        loss = self._loss(batch, (self.seed << 40) + 2 * batch_idx + 1)
        self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["label"]))

    def _loss(self, batch: TextBatch, seed: int) -> Tensor:
        ids, attention = batch["input_ids"], batch["attention_mask"]
        generator = torch.Generator().manual_seed(seed)
        special = self.augmenter.special_token_ids
        free = attention.bool() & ~torch.isin(ids, special)
        draw = torch.rand(ids.shape, generator=generator).to(ids.device).masked_fill(~free, 2.0)
        chosen = free & ((draw < self.mask_probability) | (draw == draw.min(1, keepdim=True).values))
        kind = torch.rand(ids.shape, generator=generator).to(ids.device)
        words = torch.randint(self.augmenter.vocab_size, ids.shape, generator=generator).to(ids.device)
        shown = torch.where(chosen & (kind < 0.8), self.augmenter.mask_token_id, ids)
        shown = torch.where(chosen & (kind >= 0.8) & (kind < 0.9), words, shown)
        logits = self.augmenter(shown, attention, batch["label"], chosen)
        return nn.functional.cross_entropy(logits.float(), ids[chosen], reduction="sum") / chosen.sum().clamp(min=1)
