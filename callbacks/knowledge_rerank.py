"""Re-ranks any image-text matcher by aligned conceptual knowledge, beside its own figures."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_methods.errors import check_lightning, check_object
from lit_methods.image_text.functional import Pooling, match
from lit_methods.image_text.knowledge import KnowledgeBase
from lit_methods.image_text.matcher import KnowledgeMatcher
from lit_methods.image_text.metrics import RetrievalRanks, recall_sum
from lit_methods.image_text.parsing import CaptionParser
from lit_methods.image_text.preparation import prepare
from lit_methods.image_text.ranks import Rivals
from lit_methods.image_text.reranking import Fusion, fuse, reranked_rivals, rivals_after, top_candidates
from lit_methods.image_text.transforms import FeatureMap

_DIRECTIONS = ("t2i", "i2t")


class KnowledgeRerank(Callback):
    """Logs a matcher's recalls before and after its best candidates are sorted anew (MACK, Huang et al. 2022).

    The matcher is any LightningModule that can give a score matrix; neither it nor its metrics are changed. Logs
    `val/base_rsum`, `val/rerank_rsum`, every recall of both, and the weights used (`test/...` alike).

    Args:
        scores: Name of the module's attribute or method that gives scores `(I, T)` of the set just evaluated, or a
            function of the module. It is asked after the last batch, before the module's own `on_..._epoch_end`; an
            attribute must be there from the start, if only as None.
        knowledge: The dictionary, or its folder; None builds it from the data's `knowledge_dataloader`.
        data: Datamodule with the same images, as regions, and captions in the same order; None takes the trainer's.
        alpha: Weight of the knowledge, for both directions or `(t2i, i2t)`; None searches it on the validation set.
        alphas: Weights that the search tries.
        top_k: How many candidates are sorted anew.
        fusion: How scores are brought together: "zscore" suits any scale, "raw" cosines, "softmax" matching heads.
        parser: Turns captions into units; None for `KnowledgeParser()`.
        transform: Maps regions and words; None leaves them as they are.
        pooling: As in `KnowledgeMatcher`.
        modifier_weight: Weight of an adjective in its sum with a noun.
        memory_mib: Budget of one chunk of images in MiB.

    Guarantees:
        - The weight is never chosen on the test set: a search needs a validation run, and its result is in the
          checkpoint.
        - With `alpha=0` the recalls after are those before.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If something else stands for an object.
    """

    def __init__(
        self,
        scores: str | Callable[[LightningModule], Tensor] = "scores",
        knowledge: KnowledgeBase | str | Path | None = None,
        data: LightningDataModule | None = None,
        alpha: float | tuple[float, float] | None = 0.15,
        alphas: Sequence[float] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5),
        top_k: int = 15,
        fusion: Fusion = "zscore",
        parser: CaptionParser | None = None,
        transform: FeatureMap | None = None,
        pooling: Pooling = "matched",
        modifier_weight: float = 1.0,
        memory_mib: float = 512.0,
    ) -> None:
        super().__init__()
        weights = (alpha, alpha) if isinstance(alpha, (int, float)) else alpha
        if weights is not None and (len(weights) != 2 or not _are_weights(weights)):
            raise ValueError(f"alpha={alpha} must be finite and at least 0, one for both directions or (t2i, i2t).")
        if not alphas or not _are_weights(alphas):
            raise ValueError(f"alphas={tuple(alphas)} must hold weights that are finite and at least 0.")
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1.")
        if fusion not in ("raw", "softmax", "zscore"):
            raise ValueError(f"fusion={fusion!r} must be 'raw', 'softmax' or 'zscore'.")
        check_object("data", data, LightningDataModule, "your_datamodule")
        self.folder = knowledge if isinstance(knowledge, (str, Path)) else None
        base = KnowledgeBase() if knowledge is None or isinstance(knowledge, (str, Path)) else knowledge
        self.matcher = KnowledgeMatcher(
            knowledge=base,
            parser=parser,
            transform=transform,
            pooling=pooling,
            modifier_weight=modifier_weight,
            memory_mib=memory_mib,
        )
        self.scores, self.data, self.alphas = scores, data, tuple(alphas)
        self.top_k, self.fusion = top_k, fusion
        self.alpha: tuple[float, float] | None = None if weights is None else (float(weights[0]), float(weights[1]))
        self._searches = weights is None
        self._known: dict[str, tuple[tuple[Tensor, Tensor], Tensor]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads or builds the knowledge, and refuses what would only fail at the end of an evaluation.

        Raises:
            MisconfigurationException: If the module has no such scores, or the data no captions and regions.
        """
        check_lightning(pl_module)
        if self.folder is not None and not len(self.matcher.knowledge):
            self.matcher.knowledge = KnowledgeBase.load(self.folder)
        if stage == "predict" or (stage == "fit" and not trainer.enable_validation):
            return
        self._known = {}
        # Not hasattr, which would work out a property before there are any scores.
        if isinstance(self.scores, str) and self.scores not in dir(pl_module):
            raise MisconfigurationException(
                f"scores={self.scores!r}: {type(pl_module).__name__} has no such attribute or method; name one "
                "that gives its scores (I, T), or pass a function of the module."
            )
        data = self._data(trainer)
        evaluated = "test" if stage == "test" else "validate"
        if self.data is not None:
            self.data.prepare_data()
            self.data.setup(evaluated)
        _loaders(data, evaluated)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # a property that Lightning makes by name
            prepare(self.matcher, data)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to choose a weight on the test set.

        Raises:
            MisconfigurationException: If it was to be searched and no validation set was seen.
        """
        if self.alpha is None and not _is_dry(trainer):
            raise MisconfigurationException(
                "alpha=None is searched on the validation set, and none was run: choosing it on the test set would "
                "leak. Call trainer.validate first, or pass alpha=0.15."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Re-ranks the validation set, and searches the weights where they were not given."""
        if trainer.sanity_checking or _is_dry(trainer):
            return
        base = self._base(pl_module)
        known, image = self._knowledge_scores(trainer, "validate", base)
        if self._searches:
            found = [self._search(*self._oriented(base, known, image, way)) for way in range(2)]
            self.alpha = (found[0], found[1])
            rank_zero_info(f"KnowledgeRerank: alpha_t2i={found[0]}, alpha_i2t={found[1]} on the validation set.")
        self._log(pl_module, "val", base, known, image)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Re-ranks the test set with weights that it had no part in."""
        if _is_dry(trainer):
            return
        base = self._base(pl_module)
        known, image = self._knowledge_scores(trainer, "test", base)
        self._log(pl_module, "test", base, known, image)

    def state_dict(self) -> dict[str, Any]:
        """The weights that were searched."""
        return {"alpha": list(self.alpha)} if self._searches and self.alpha is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the weights of an earlier search."""
        if self._searches and "alpha" in state_dict:
            t2i, i2t = state_dict["alpha"]
            self.alpha = (t2i, i2t)

    def _base(self, pl_module: LightningModule) -> Tensor:
        if isinstance(self.scores, str):
            found = getattr(pl_module, self.scores)
            found = found() if callable(found) else found
        else:
            found = self.scores(pl_module)
        return torch.as_tensor(found).detach().float()

    def _data(self, trainer: Trainer) -> LightningDataModule:
        data: LightningDataModule | None = self.data
        if data is None:
            data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning attaches it
        if data is None:
            raise MisconfigurationException(
                "KnowledgeRerank reads captions and regions from a datamodule, and the Trainer was given loaders. "
                "Pass data=, a LightningDataModule with the same images and captions in the same order."
            )
        return data

    @torch.no_grad()
    def _knowledge_scores(self, trainer: Trainer, stage: str, base: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        if stage not in self._known:
            self.matcher.to(base.device)
            captions, images = _loaders(self._data(trainer), stage)
            self._known[stage] = self._score(list(captions), images, base.device)
        known, image = self._known[stage]
        if tuple(base.shape) != tuple(known[0].shape):
            turned = tuple(base.T.shape) == tuple(known[0].shape)
            hint = "It looks transposed." if turned else "Give those of the whole set, of all processes."
            raise ValueError(
                f"scores gave {tuple(base.shape)}, but the data has {tuple(known[0].shape)} images and captions. {hint}"
            )
        return (known[0].to(base.device), known[1].to(base.device)), image.to(base.device)

    def _score(self, captions: list[Any], images: Any, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
        texts = [text for batch in captions for text in batch["captions"]]
        table = self.matcher.table(self.matcher.parse(texts))
        t2i, i2t = [], []
        for batch in images:
            regions = self.matcher.map_regions(batch["regions"].to(device))
            scores = match(regions, table, batch["mask"].to(device), self.matcher.pooling, self.matcher.memory_mib)
            t2i.append(scores[0].cpu())
            i2t.append(scores[1].cpu())
        return (torch.cat(t2i), torch.cat(i2t)), torch.cat([batch["image"] for batch in captions])

    def _oriented(
        self, base: Tensor, known: tuple[Tensor, Tensor], image: Tensor, way: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = torch.arange(len(base), device=base.device)
        return (base.T, known[0].T, image, images) if way == 0 else (base, known[1], images, image)

    def _search(self, base: Tensor, other: Tensor, query: Tensor, candidate: Tensor) -> float:
        before, _ = reranked_rivals(base, other, query, candidate, self.top_k, 0.0, self.fusion)
        candidates = top_candidates(base, self.top_k)
        chosen, known = base.gather(1, candidates), other.gather(1, candidates)

        def recall(alpha: float) -> Tensor:
            fused = fuse(chosen, known, alpha, self.fusion) if alpha else chosen
            rivals = rivals_after(before, candidates, fused, query, candidate)
            return recall_sum(_recalls(rivals))

        return max(self.alphas, key=recall)

    def _log(
        self, pl_module: LightningModule, stage: str, base: Tensor, known: tuple[Tensor, Tensor], image: Tensor
    ) -> None:
        if self.alpha is None:
            raise RuntimeError(
                "alpha=None, and no weight was searched. Call trainer.validate first, or pass alpha=0.15."
            )
        found: dict[str, list[dict[str, Tensor]]] = {"base": [], "rerank": []}
        for way in range(2):
            oriented = self._oriented(base, known, image, way)
            rivals = reranked_rivals(*oriented, self.top_k, self.alpha[way], self.fusion)
            for name, counts in zip(found, rivals, strict=True):
                found[name].append(_recalls(counts))
        figures = {f"{stage}/rerank_alpha_{_DIRECTIONS[way]}": torch.tensor(self.alpha[way]) for way in range(2)}
        for name, recalls in found.items():
            for way in range(2):
                figures |= {f"{stage}/{name}_{_DIRECTIONS[way]}_{k}": v.float() for k, v in recalls[way].items()}
            figures[f"{stage}/{name}_rsum"] = recall_sum(*recalls)
        pl_module.log_dict(figures)


def _are_weights(values: Sequence[float]) -> bool:
    return all(0 <= value < math.inf for value in values)


def _loaders(data: LightningDataModule, stage: str) -> Sequence[Any]:
    loaders = data.val_dataloader() if stage == "validate" else data.test_dataloader()
    if not isinstance(loaders, Sequence) or len(loaders) != 2:
        name = "val_dataloader" if stage == "validate" else "test_dataloader"
        raise MisconfigurationException(
            f"{name} of {type(data).__name__} gives {type(loaders).__name__}; KnowledgeRerank takes two loaders, of "
            "captions and of images as regions. Pass data=, a LightningDataModule that has both."
        )
    return loaders


def _is_dry(trainer: Trainer) -> bool:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside __init__
        rank_zero_info("KnowledgeRerank: fast_dev_run scores a part of the set only, so nothing is re-ranked.")
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # a property that Lightning makes by name


def _recalls(rivals: Rivals) -> dict[str, Tensor]:
    metric = RetrievalRanks()
    metric.update(Rivals(rivals.greater.cpu(), rivals.equal.cpu()), torch.arange(len(rivals.greater)))
    metric.sync_on_compute = False
    return metric.compute()
