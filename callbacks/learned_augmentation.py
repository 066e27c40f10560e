"""Text augmentation that is fine-tuned on a validation set while the classifier trains, as a callback."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_methods.data_manipulation.augmenter import MaskedLMAugmenter
from lit_methods.data_manipulation.guards import check_optimizer, validation_loader
from lit_methods.data_manipulation.hypergradient import Hypergradient
from lit_methods.data_manipulation.lookahead import OptimizerStep, PlainGradient
from lit_methods.data_manipulation.problem import ModesKept, Problem, random_state_kept
from lit_methods.data_manipulation.processes import average, is_distributed
from lit_methods.data_manipulation.reduction import PerSampleLosses
from lit_methods.data_manipulation.soft_words import SoftEmbedding, SoftWords, word_embedding
from lit_methods.data_manipulation.validation import ValidationStream, batch_mover
from lit_methods.errors import check_factory, check_lightning, check_object, check_strategy


class LearnedAugmentation(Callback):
    """Trains on each text and a variant of it, from a masked language model that learns with the classifier.

    In each step the augmenter first moves so that the validation loss falls after one look-ahead step on its variants
    (Hu et al. 2019, equations 7 and 8); then the classifier trains on the batch and one variant of each text. Variants
    are relaxed words: at masked places the word embedding gives a mixture, by a hook, so that any module whose batches
    are dicts with `input_ids`, `attention_mask` and `label` works unchanged. List it before `DataWeighting`.

    Args:
        augmenter: The label-conditional masked language model.
        checkpoint: Lightning checkpoint of `ConditionalMaskedLM` with the augmenter's weights; None keeps them.
        val_dataloader: What the augmenter learns from; None for the Trainer's validation loader.
        learn: False freezes the augmenter: fixed conditional augmentation.
        augmenter_optimizer: Takes the augmenter's parameters; None for Adam at 4e-5.
        hypergradient: Look-ahead and backend; None for finite differences at the plain look-ahead step.
        num_variants: Variants of each text in the augmenter's step; the classifier trains on one.
        hard: Whether the classifier trains on sampled words instead of relaxed ones.
        optimizer: Position of the optimizer that trains the classifier, where there are several.
        every_n_steps: Batches per step of the augmenter.
        warmup_epochs: Epochs of plain training at the start.
        val_batches: Validation batches per step of the augmenter.
        seed: Of places and noise; the global random state is left alone.

    Guarantees:
        - A step of the augmenter leaves the classifier, its optimizer, its modes and the random state as they were.
        - The module's parameters and checkpoint keys stay its own; the augmenter is in the callback's state.
        - All processes hold the same augmenter.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If a string stands for an object.
    """

    def __init__(
        self,
        augmenter: MaskedLMAugmenter,
        checkpoint: str | Path | None = None,
        val_dataloader: Iterable[Any] | None = None,
        learn: bool = True,
        augmenter_optimizer: OptimizerCallable | None = None,
        hypergradient: Hypergradient | None = None,
        num_variants: int = 4,
        hard: bool = False,
        optimizer: int | None = None,
        every_n_steps: int = 1,
        warmup_epochs: int = 3,
        val_batches: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        least = {"num_variants": num_variants, "every_n_steps": every_n_steps, "val_batches": val_batches}
        for name, value in least.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs={warmup_epochs} must be at least 0.")
        check_object("augmenter", augmenter, MaskedLMAugmenter, "MaskedLMAugmenter(num_classes=2)")
        check_object("hypergradient", hypergradient, Hypergradient, "Hypergradient(lookahead=PlainGradient())")
        check_factory("augmenter_optimizer", augmenter_optimizer)
        self.hypergradient = hypergradient or Hypergradient(lookahead=PlainGradient())
        if self.hypergradient.lookahead.follows_training:
            raise MisconfigurationException(
                "lookahead=TrainingStep() has no step on the augmenter's variants alone. Use PlainGradient() or"
                " OptimizerStep()."
            )
        self.augmenter, self.checkpoint, self.val_dataloader, self.learn = augmenter, checkpoint, val_dataloader, learn
        self.make_optimizer, self.num_variants, self.hard = augmenter_optimizer, num_variants, hard
        self.optimizer, self.every_n_steps, self.warmup_epochs = optimizer, every_n_steps, warmup_epochs
        self.val_batches, self.seed = val_batches, seed
        self._initial = {name: value.detach().clone() for name, value in augmenter.state_dict().items()}
        self._forget()

    def _forget(self) -> None:
        self._count = 0
        self._restored: dict[str, Any] | None = None
        self._embedding: SoftEmbedding | None = None
        self._losses: PerSampleLosses | None = None
        self._stream: ValidationStream | None = None
        self._adam: torch.optim.Optimizer | None = None
        self._saved: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the augmenter back to its start, or to its checkpoint.

        Raises:
            MisconfigurationException: If the strategy shards parameters.
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If it holds no augmenter.
        """
        check_lightning(pl_module)
        if stage != "fit":
            return
        check_strategy(trainer, "LearnedAugmentation looks ahead by moving whole ones")
        self._forget()
        self.hypergradient.reset()
        self.augmenter.load_state_dict(self._initial)
        if self.checkpoint is not None:
            if not Path(self.checkpoint).is_file():
                raise FileNotFoundError(f"checkpoint={self.checkpoint} does not exist: fit a ConditionalMaskedLM.")
            loaded = torch.load(self.checkpoint, map_location="cpu", weights_only=True).get("state_dict", {})
            own = {name.removeprefix("augmenter."): v for name, v in loaded.items() if name.startswith("augmenter.")}
            if not own:
                raise ValueError(f"checkpoint={self.checkpoint} holds no augmenter; pass one of a ConditionalMaskedLM.")
            self.augmenter.load_state_dict(own)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hooks the word embedding and goes on from a checkpoint."""
        self._chosen = check_optimizer(trainer.optimizers, self.optimizer)
        if isinstance(self.hypergradient.lookahead, OptimizerStep):
            self.hypergradient.lookahead.optimizer = self._chosen
            self.hypergradient.lookahead.check()
        device = pl_module.device
        self.augmenter.to(device).eval()
        parameters = list(self.augmenter.parameters())
        make = self.make_optimizer
        self._adam = torch.optim.Adam(parameters, lr=4e-5) if make is None else make(parameters)
        embedding = word_embedding(pl_module, self.augmenter.vocab_size)
        self._embedding = SoftEmbedding(embedding, trainer.accumulate_grad_batches)
        if self.learn:
            self._losses = PerSampleLosses(pl_module)

            self._stream = ValidationStream(
                validation_loader(trainer, self.val_dataloader, "or learn=False for fixed augmentation"),
                batch_mover(trainer, device),
                device,
                self.seed,
            )
        if self._restored is not None:
            self._restore(self._restored)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Moves the augmenter, then puts a variant of each text beside it.

        Raises:
            ValueError: If the batch is no dict of texts.
        """
        if self._embedding is None or trainer.current_epoch < self.warmup_epochs:
            return
        if not isinstance(batch, dict) or not {"input_ids", "attention_mask", "label"} <= batch.keys():
            raise ValueError(
                f"A training batch, {type(batch).__name__}, is no dict with input_ids, attention_mask and label, which"
                " LearnedAugmentation makes variants of."
            )
        self._count += 1
        seed = (self.seed << 40) + (trainer.global_rank << 32) + 2 * self._count
        if self.learn and self._count % self.every_n_steps == 0:
            self._learn(pl_module, batch, torch.Generator().manual_seed(seed))
        self._augment(batch, torch.Generator().manual_seed(seed + 1))

    def _learn(self, module: LightningModule, batch: dict[str, Any], generator: torch.Generator) -> None:
        losses_of, stream, adam, embedding = self._losses, self._stream, self._adam, self._embedding
        if losses_of is None or stream is None or adam is None or embedding is None:
            return
        batch = _repeated(batch, self.num_variants)
        ids, attention, labels = batch["input_ids"], batch["attention_mask"], batch["label"]
        proposal = self.augmenter.draw(ids, attention, generator)
        val_batches = [stream.next() for _ in range(self.val_batches)]

        def loss() -> Tensor:
            words = self.augmenter.propose(ids, attention, labels, proposal)
            embedding.passing = SoftWords(ids, proposal.masked, words)
            try:
                return losses_of(batch).mean()
            finally:
                embedding.passing = None

        problem = Problem(
            module,
            train_losses=lambda: losses_of(batch),
            val_loss=lambda: torch.stack([losses_of(one).mean() for one in val_batches]).mean(),
            groups=self._chosen.param_groups,
            reduce=average if is_distributed() else None,
        )
        variables = [p for p in self.augmenter.parameters() if p.requires_grad]
        with random_state_kept(module.device), ModesKept(module):
            found, val_loss = self.hypergradient.variable_gradient(problem, loss, variables)
        average(found)
        for variable, gradient in zip(variables, found, strict=True):
            variable.grad = gradient
        adam.step()
        adam.zero_grad()
        if val_loss is not None:
            module.log("augmentation/val_loss", val_loss, on_step=False, on_epoch=True, batch_size=len(labels))

    def _augment(self, batch: dict[str, Any], generator: torch.Generator) -> None:
        ids, attention, labels = batch["input_ids"], batch["attention_mask"], batch["label"]
        proposal = self.augmenter.draw(ids, attention, generator)
        with torch.no_grad():
            words = self.augmenter.propose(ids, attention, labels, proposal, self.hard)
        batch.update(_repeated(batch, 2))
        places = torch.cat([torch.zeros_like(proposal.masked), proposal.masked])
        if self._embedding is not None:
            self._embedding.known.append(SoftWords(batch["input_ids"], places, words))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the module as it was found."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the module as it was found."""
        if stage != "fit" or self._embedding is None:
            return
        self._saved = self.state_dict()
        self._embedding.remove()
        self._embedding = self._losses = self._stream = self._adam = None
        self.augmenter.cpu()

    def state_dict(self) -> dict[str, Any]:
        """The augmenter, its optimizer, and the place in its random numbers and the validation set."""
        if self._adam is None:
            return self._saved
        return {
            "augmenter": {name: v.detach().to("cpu", copy=True) for name, v in self.augmenter.state_dict().items()},
            "optimizer": _copied(self._adam.state_dict()),
            "hypergradient": self.hypergradient.state_dict(),
            "count": self._count,
            "stream": self._stream.state_dict() if self._stream is not None else {"round": 0, "position": 0},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a checkpoint's state until training starts."""
        self._restored = state_dict or None

    def _restore(self, state: dict[str, Any]) -> None:
        self.augmenter.load_state_dict(state["augmenter"])
        if self._adam is not None:
            self._adam.load_state_dict(state["optimizer"])
        self.hypergradient.load_state_dict(state["hypergradient"])
        self._count = int(state["count"])
        if self._stream is not None:
            self._stream.load_state_dict(state["stream"])


def _repeated(batch: dict[str, Any], times: int) -> dict[str, Any]:
    """Every tensor of one entry per text, that many times over."""
    size = len(batch["input_ids"])
    return {
        name: torch.cat([value] * times) if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in batch.items()
    }


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(value) for value in state]
    return state
