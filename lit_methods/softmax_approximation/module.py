"""LightningModules whose attention the callback SoftmaxApproximation is shown on; they know no codec."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from lit_methods.errors import check_factory, check_object

Batch = dict[str, Tensor]


class _Optimized(LightningModule):
    """What both modules do with their optimizer."""

    _make_optimizer: OptimizerCallable | None
    _make_scheduler: LRSchedulerCallable | None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the trainable parameters and, if given, its scheduler."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if self._make_optimizer is None:
            optimizer: torch.optim.Optimizer = torch.optim.Adam(trained, lr=5e-4)
        else:
            optimizer = self._make_optimizer(trained)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


class AttentionClassifier(_Optimized):
    """Classifies texts by the mean of an encoder's hidden states over the tokens of each.

    Batches are ``{"input_ids": (B, T), "attention_mask": (B, T), "label": (B,)}``, all int64. Logs ``train/loss``,
    ``val/loss``, ``val/acc``, ``test/loss`` and ``test/acc``, each a mean over the epoch.

    Encoder, optimizer and scheduler are not hyperparameters: pass ``encoder`` to ``load_from_checkpoint``, and the
    others where they differ from the defaults.

    Args:
        encoder: Module of ``(input_ids, attention_mask)`` that gives hidden states ``(B, T, D)``, as itself or as
            ``last_hidden_state``, and knows ``D`` as ``hidden_size`` or ``config.hidden_size``: any encoder of
            transformers, or one of :mod:`.networks`.
        num_classes: Number of classes, at least 2.
        dropout: Probability that a component of the mean is dropped.
        optimizer: Takes the trainable parameters and returns the optimizer; None for Adam at rate 5e-4.
        scheduler: Takes the optimizer and returns a learning-rate scheduler, stepped after each epoch; None keeps
            the rate constant.

    Raises:
        ValueError: If ``num_classes`` is below 2.
        TypeError: If the encoder does not tell its hidden size.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        dropout: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2.")
        hidden_size = getattr(encoder, "hidden_size", None) or getattr(
            getattr(encoder, "config", None), "hidden_size", None
        )
        if not isinstance(hidden_size, int):
            raise TypeError(
                f"encoder={type(encoder).__name__} tells its hidden size neither as `hidden_size` nor as"
                " `config.hidden_size`; set encoder.hidden_size."
            )
        check_factory("optimizer", optimizer)
        self.save_hyperparameters(ignore=["encoder", "optimizer", "scheduler"])
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, num_classes)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._make_optimizer, self._make_scheduler = optimizer, scheduler

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of token ids and mask (1: token, 0: padding), ``(B, T)`` each."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        hidden = cast(Tensor, output if isinstance(output, Tensor) else output.last_hidden_state)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        return cast(Tensor, self.head(self.dropout(mean)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, logged as ``train/loss``."""
        loss = F.cross_entropy(self._logits(batch), batch["label"])
        size = len(batch["label"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs ``val/loss`` and ``val/acc``."""
        self._evaluate("val", batch, self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs ``test/loss`` and ``test/acc``."""
        self._evaluate("test", batch, self.test_accuracy)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities ``(B, num_classes)``; the batch needs no labels."""
        return self._logits(batch).softmax(dim=-1)

    def _logits(self, batch: Batch) -> Tensor:
        return cast(Tensor, self(batch["input_ids"], batch["attention_mask"]))

    def _evaluate(self, stage: str, batch: Batch, accuracy: MulticlassAccuracy) -> None:
        logits, labels = self._logits(batch), batch["label"]
        accuracy(logits, labels)
        loss = F.cross_entropy(logits, labels)
        self.log(f"{stage}/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(labels))
        self.log(f"{stage}/acc", accuracy, on_epoch=True, prog_bar=True, batch_size=len(labels))


class AttentionTranslator(_Optimized):
    """Learns to translate: predicts each target token from the source and the target tokens before it.

    Batches are ``{"input_ids": (B, S), "attention_mask": (B, S), "target_ids": (B, T)}``, all int64; targets begin
    with a start token, end with an end token and are padded after it. Logs ``train/loss``, ``val/loss``,
    ``val/perplexity``, ``test/loss`` and ``test/perplexity``: cross-entropy per token in nats, and its exponential.

    Args:
        network: Module of ``(input_ids, attention_mask, target_ids)`` that gives logits ``(B, T, C)``.
        pad_token_id: Id of padding in the target, which no loss counts.
        start_token_id: Id that a translation begins with.
        end_token_id: Id that a translation ends with.
        max_length: Most tokens of a prediction.
        optimizer: Takes the trainable parameters and returns the optimizer; None for Adam at rate 5e-4.
        scheduler: Takes the optimizer and returns a learning-rate scheduler, stepped after each epoch; None keeps
            the rate constant.

    Raises:
        ValueError: If ``max_length`` is below 2.
        TypeError: If a string stands for an object.
    """

    def __init__(
        self,
        network: nn.Module,
        pad_token_id: int = 0,
        start_token_id: int = 2,
        end_token_id: int = 3,
        max_length: int = 40,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if max_length < 2:
            raise ValueError(f"max_length={max_length} must be at least 2, for start and end.")
        check_object("network", network, nn.Module, "TransformerSeq2Seq(vocab_size, vocab_size)")
        check_factory("optimizer", optimizer)
        self.save_hyperparameters(ignore=["network", "optimizer", "scheduler"])
        self.network = network
        self.pad_token_id, self.start_token_id, self.end_token_id = pad_token_id, start_token_id, end_token_id
        self.max_length = max_length
        self.val_perplexity = Perplexity(ignore_index=pad_token_id)
        self.test_perplexity = Perplexity(ignore_index=pad_token_id)
        self._make_optimizer, self._make_scheduler = optimizer, scheduler

    def forward(self, input_ids: Tensor, attention_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Logits ``(B, T, C)`` of each next target token."""
        return cast(Tensor, self.network(input_ids, attention_mask, target_ids))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the target tokens, logged as ``train/loss``."""
        _, following, loss = self._predicted(batch)
        size = int((following != self.pad_token_id).sum())
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs ``val/loss`` and ``val/perplexity``."""
        self._evaluate("val", batch, self.val_perplexity)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs ``test/loss`` and ``test/perplexity``."""
        self._evaluate("test", batch, self.test_perplexity)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Greedy translations ``(B, max_length)``, from the start token to the end token, then padded."""
        source, mask = batch["input_ids"], batch["attention_mask"]
        found = torch.full((len(source), 1), self.start_token_id, dtype=torch.int64, device=source.device)
        ended = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        for _ in range(self.max_length - 1):
            best = self(source, mask, found)[:, -1].argmax(-1).masked_fill(ended, self.pad_token_id)
            found = torch.cat([found, best[:, None]], 1)
            ended = ended | (best == self.end_token_id)
        return found

    def _predicted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the tokens they are for, and the loss."""
        target = batch["target_ids"]
        logits = self(batch["input_ids"], batch["attention_mask"], target[:, :-1])
        following = target[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=self.pad_token_id)
        return logits, following, loss

    def _evaluate(self, stage: str, batch: Batch, perplexity: Perplexity) -> None:
        logits, following, loss = self._predicted(batch)
        perplexity(logits.float(), following)
        size = int((following != self.pad_token_id).sum())
        self.log(f"{stage}/loss", loss, on_epoch=True, sync_dist=True, batch_size=size)
        self.log(f"{stage}/perplexity", perplexity, on_epoch=True, prog_bar=True, batch_size=size)
