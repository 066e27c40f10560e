"""MACK as a LightningModule: scored as it is, in closed form, or after cycle training on unpaired data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lit_methods.errors import check_above, check_factory
from lit_methods.image_text.evaluation import StreamingRetrieval
from lit_methods.image_text.functional import Pooling, cycle_logits
from lit_methods.image_text.gallery import Gallery
from lit_methods.image_text.knowledge import KnowledgeBase
from lit_methods.image_text.matcher import KnowledgeMatcher
from lit_methods.image_text.parsing import CaptionParser
from lit_methods.image_text.preparation import prepare
from lit_methods.image_text.shows import show_queries
from lit_methods.image_text.transforms import FeatureMap


class Images(TypedDict):
    """A batch of images: `regions (B, R, D)`, `mask (B, R)`, `boxes (B, R, 4)`, `index (B,)`."""

    regions: Tensor
    mask: Tensor
    boxes: Tensor
    index: Tensor


class Captions(TypedDict):
    """A batch of captions: B texts, `index (B,)` and, outside training, `image (B,)`."""

    captions: list[str]
    index: Tensor
    image: Tensor


class Unpaired(TypedDict):
    """A training batch."""

    images: Images
    captions: Captions


class MACK(LightningModule):
    """Image-text matching without paired data (Huang et al., NeurIPS 2022; TPAMI 47(7), 2025).

    `test` needs no training. `fit` refines the map of regions and words by the cycle loss on images and captions that
    nothing pairs; the prototypes stay as they are. Evaluation takes two loaders, captions and then images, and logs
    `val/t2i_R@1` to `val/rsum` (or `test/...`), recalls in percent; prediction takes images and then captions, and
    returns the best images for each with the region that answered each word.

    Args:
        knowledge: The dictionary, or the folder it was saved in; None builds it in `setup` from the datamodule's
            `knowledge_dataloader`.
        parser: Turns captions into units; None for `KnowledgeParser()`.
        transform: Maps regions and words: `SharedLinear` or `SeparateAffine` to be trained, `Centring` or `Whitening`
            in closed form from the datamodule's `region_dataloader`; None compares raw features.
        pooling: "matched" pools each direction by its own principle; "t2i", "i2t" or "sum" for both.
        modifier_weight: Weight of an adjective in its sum with a noun.
        temperature: Temperature of the cycle loss.
        folds: Parts of a set that are evaluated alone and averaged.
        top_k: Images that prediction returns for each caption.
        shown_queries: Predicted queries that are drawn for the logger.
        memory_mib: Budget of one chunk of images in MiB.
        optimizer: Takes the map's parameters; None for Adam at rate 1e-4.
        scheduler: Takes the optimizer, stepped after each epoch; None keeps the rate constant.

    Guarantees:
        - Nothing pairs an image with a caption in training.
        - Without training, `SharedLinear` scores as no map at all.
        - A checkpoint holds the knowledge: it loads without the data it was built from.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If a string stands for an object.
    """

    def __init__(
        self,
        knowledge: KnowledgeBase | str | Path | None = None,
        parser: CaptionParser | None = None,
        transform: FeatureMap | None = None,
        pooling: Pooling = "matched",
        modifier_weight: float = 1.0,
        temperature: float = 0.1,
        folds: int = 1,
        top_k: int = 5,
        shown_queries: int = 4,
        memory_mib: float = 512.0,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        check_above("temperature", temperature)
        check_factory("optimizer", optimizer)
        for name, value, least in (("folds", folds, 1), ("top_k", top_k, 1), ("shown_queries", shown_queries, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        self.save_hyperparameters(ignore=["knowledge", "parser", "transform", "optimizer", "scheduler"])
        if knowledge is None:
            knowledge = KnowledgeBase()
        elif isinstance(knowledge, (str, Path)):
            knowledge = KnowledgeBase.load(knowledge)
        self.matcher = KnowledgeMatcher(
            knowledge=knowledge,
            parser=parser,
            transform=transform,
            pooling=pooling,
            modifier_weight=modifier_weight,
            memory_mib=memory_mib,
        )
        self.temperature, self.folds, self.top_k, self.shown_queries = temperature, folds, top_k, shown_queries
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._captions: list[Captions] = []
        self._retrieval: StreamingRetrieval | None = None
        self._gallery: Gallery | None = None

    def setup(self, stage: str) -> None:
        """Builds the knowledge and fits a closed-form map where they are still missing.

        Raises:
            MisconfigurationException: If the datamodule cannot give what is missing.
        """
        prepare(self.matcher, getattr(self.trainer, "datamodule", None))
        self.matcher.to(self.device)

    def forward(self, regions: Tensor, captions: Sequence[str], mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores to find images for texts, and texts for images, both `(I, T)`; see `KnowledgeMatcher`."""
        t2i, i2t = self.matcher(regions, captions, mask)
        return t2i, i2t

    def training_step(self, batch: Unpaired, batch_idx: int) -> Tensor:
        """Cycle loss of one batch: each distinct unit rebuilt from regions, and each region from units.

        Raises:
            ValueError: If no caption of the batch has a known word, or features are not finite or of another size.
        """
        images, captions = batch["images"], batch["captions"]["captions"]
        units = self.matcher.parse(captions)
        if not len(units.head):
            raise ValueError(
                f"None of the {len(captions)} captions of batch {batch_idx} has a word of the knowledge;"
                " build it from their words."
            )
        words = normalize(self.matcher.unit_vectors(units), dim=1)
        features = images["regions"][images["mask"]]
        if not features.isfinite().all():
            raise ValueError(f"Regions of batch {batch_idx} hold NaN or infinite features; extract them again.")
        regions = normalize(self.matcher.map_regions(features), dim=1)
        losses = {}
        for name, logits in zip(("word", "region"), cycle_logits(words, regions, self.temperature), strict=True):
            target = torch.arange(len(logits), device=logits.device)
            losses[f"train/{name}_loss"] = cross_entropy(logits, target)
            losses[f"train/{name}_acc"] = (logits.argmax(dim=1) == target).float().mean()
        loss = losses["train/word_loss"] + losses["train/region_loss"]
        size = len(images["index"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        self.log_dict(losses, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Takes captions, then ranks them for each image."""
        self._take(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Takes captions, then ranks them for each image."""
        self._take(batch)

    def on_validation_epoch_start(self) -> None:
        """Forgets what an earlier run, perhaps a broken one, has left."""
        self._captions, self._retrieval, self._gallery = [], None, None

    def on_validation_epoch_end(self) -> None:
        """Ranks images for each caption and logs all recalls."""
        self._log_retrieval("val")

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Ranks images for each caption and logs all recalls."""
        self._log_retrieval("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Takes images, then finds the best ones for each caption.

        Returns:
            Of images their `index`; of captions `index`, `image (B, k)`, `score (B, k)` and, by caption, `units`, and
            the `region` and `cosine` that answered each `(w, k)`.

        Raises:
            MisconfigurationException: With several processes, each of which would search its own images only.
        """
        if self.trainer.world_size > 1:
            raise MisconfigurationException("predict searches one gallery: run it with devices=1.")
        if self._gallery is None:
            self._gallery = Gallery(self.matcher)
        if "regions" in batch:
            self._gallery.add(batch["regions"], batch["mask"], batch["index"])
            return {"index": batch["index"]}
        found = self._gallery.search(batch["captions"], self.top_k)
        if batch_idx == 0 and self.shown_queries:
            show_queries(self.trainer, batch, found, self.shown_queries)
        units, region, cosine = (list(values) for values in zip(*found.evidence, strict=True))
        evidence = {"units": units, "region": region, "cosine": cosine}
        return {"index": batch["index"], "image": found.image, "score": found.score, **evidence}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the map's parameters and, if given, its scheduler.

        Raises:
            MisconfigurationException: If the map has nothing to train.
        """
        trained = [p for p in self.matcher.transform.parameters() if p.requires_grad]
        if not trained:
            raise MisconfigurationException(
                f"transform={type(self.matcher.transform).__name__} has nothing to train: run test, or pass "
                "transform=SharedLinear(feature_size) to refine it."
            )
        make = self._make_optimizer
        optimizer: torch.optim.Optimizer = torch.optim.Adam(trained, lr=1e-4) if make is None else make(trained)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/rsum"}}

    def _take(self, batch: Any) -> None:
        if "captions" in batch:
            self._captions.append(batch)
            return
        if self._retrieval is None:
            if not self._captions:
                raise MisconfigurationException("Evaluation takes two loaders: captions first, then images.")
            captions = [caption for part in self._captions for caption in part["captions"]]
            image = torch.cat([part["image"] for part in self._captions])
            self._retrieval = StreamingRetrieval(self.matcher, captions, image, self.folds)
        self._retrieval.add(batch["regions"], batch["mask"], batch["index"])

    def _log_retrieval(self, stage: str) -> None:
        if self._retrieval is None:
            raise MisconfigurationException("Evaluation takes two loaders: captions first, then images.")
        found = {f"{stage}/{name}": value.float() for name, value in self._retrieval.compute().items()}
        found[f"{stage}/captions_without_words"] = torch.tensor(float(self._retrieval.num_silent))
        rsum = found.pop(f"{stage}/rsum")
        self.log_dict(found, rank_zero_only=False)
        self.log(f"{stage}/rsum", rsum, prog_bar=True)
        self._captions, self._retrieval = [], None
