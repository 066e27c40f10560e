"""Toy runs of the image text room."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lit_methods
from lit_methods.datamodules import EmojiDataModule, RetrievalDataModule
from lit_methods.datamodules.region_encoders import CropEncoder
from lit_methods.datamodules.regions import ArrayRegions
from lit_methods.datamodules.retrieval_sets import CaptionDataset, RegionDataset, RetrievalSet, as_is
from lit_methods.image_text import KnowledgeBase, SharedLinear
from tests.entries.toys import (
    BATCH,
    EXAMPLES,
    FEATURES,
    NONE_OF_OURS,
    Bad,
    Entry,
    Parts,
    ToyData,
    toy_tensors,
)


class ToyRetrieval(RetrievalDataModule):
    """As many images of three regions as captions of two words, in their order also in training."""

    def __init__(
        self, caption: str = "w{} w{}", features: int = FEATURES, bad: float = 0.0, batch_size: int = BATCH
    ) -> None:
        super().__init__(batch_size)
        self.caption, self.features, self.bad = caption, features, bad

    def read(self, split: str) -> RetrievalSet:
        regions = torch.rand(EXAMPLES, 3, self.features, generator=torch.Generator().manual_seed(4))
        regions[0, 0, 0] += self.bad
        captions = [self.caption.format(i % 5, i // 5 % 5) for i in range(EXAMPLES)]
        return RetrievalSet(ArrayRegions(regions.numpy()), captions, torch.arange(EXAMPLES))

    def train_dataloader(self) -> CombinedLoader:
        found = self.sets["train"]
        parts = {"images": RegionDataset(found.regions), "captions": CaptionDataset(found.captions)}
        return CombinedLoader(
            {k: DataLoader(v, batch_size=self.batch_size, collate_fn=as_is) for k, v in parts.items()}
        )


def toy_knowledge() -> KnowledgeBase:
    """Five words."""
    return KnowledgeBase(
        [f"w{i}" for i in range(5)], torch.rand(5, FEATURES, generator=torch.Generator().manual_seed(5))
    )


def _mack(folder: Path, processes: int = 1) -> Parts:
    adam = partial(torch.optim.Adam, lr=1e-2)
    module = lit_methods.MACK(toy_knowledge(), transform=SharedLinear(FEATURES), optimizer=adam)
    return Parts(module, [], ToyRetrieval(batch_size=BATCH // processes))


class ToyMatcher(LightningModule):
    """A linear map between pairs of vectors, which gives the scores of all pairs of a set."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layer = nn.Linear(FEATURES, FEATURES)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen.append((self.layer(batch[0]).float(), batch[1]))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.seen = []

    on_test_epoch_start = on_validation_epoch_start

    def scores(self) -> Tensor:
        images, captions = (self._gathered(torch.cat(part)) for part in zip(*self.seen, strict=True))
        return images @ captions.T

    def _gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order in which Lightning's sampler deals them out."""
        found = self.all_gather(rows)
        return found if found.ndim == rows.ndim else found.transpose(0, 1).flatten(0, 1)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _pairs(count: int = EXAMPLES, batch_size: int = BATCH) -> ToyData:
    inputs, _ = toy_tensors()
    return ToyData(inputs[:count], inputs[:count].flip(1), batch_size=batch_size)


def _knowledge_rerank(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.KnowledgeRerank(knowledge=toy_knowledge(), data=ToyRetrieval(), alpha=(0.1, 0.2))
    return Parts(ToyMatcher(), [callback], _pairs(batch_size=BATCH // processes))


def _image_text(folder: Path) -> LightningDataModule:
    for split in ("train", "dev", "test"):
        np.save(folder / f"{split}_ims.npy", np.random.default_rng(0).random((8, 3, 4)).astype(np.float32))
        (folder / f"{split}_caps.txt").write_text("w0 w1\n" * 16)
    return lit_methods.ImageTextDataModule(folder, captions_per_image=2, batch_size=BATCH)


def _emoji(folder: Path) -> LightningDataModule:
    lines = [f'<annotation cp="{c}" type="tts">letter {c}</annotation>' for c in "abcdefghijklmnop"]
    (folder / "en.xml").write_text(f"<ldml>{''.join(lines)}</ldml>", encoding="utf-8")
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return EmojiDataModule(
        picture_font=fonts / "DejaVuSans.ttf",
        knowledge_font=fonts / "DejaVuSerif.ttf",
        annotations=folder / "en.xml",
        encoder=CropEncoder(nn.Flatten(), 4),
        side=16,
        num_val=4,
        num_test=4,
        batch_size=BATCH,
        cache_dir=folder,
    )


ENTRIES = (
    Entry(
        "MACK",
        _mack,
        configs=(
            "image_text/digit_scenes.yaml",
            "image_text/emoji.yaml",
            "image_text/flickr30k_precomp.yaml",
            "image_text/coco_precomp_1k_5fold.yaml",
            "image_text/coco_precomp_5k.yaml",
        ),
        reload=lambda: {"transform": SharedLinear(FEATURES)},
        bad=(
            Bad("narrow regions", lambda: ToyRetrieval(features=3), (ValueError, "regions have 3 features and the kn")),
            Bad("unknown words", lambda: ToyRetrieval("foo"), (ValueError, "None of the 8 captions of batch 0 has")),
            Bad("NaN feature", lambda: ToyRetrieval(bad=torch.nan), (ValueError, "Regions of batch 0 hold NaN")),
        ),
        skips={
            "resumes_mid_epoch": NONE_OF_OURS,
            "ddp_equal": "the cycle loss compares the words and regions of one batch, which two processes halve",
        },
    ),
    Entry(
        "KnowledgeRerank",
        _knowledge_rerank,
        configs=("image_text/rerank_clip_flickr30k.yaml",),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
)


DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    "DigitScenesDataModule": lambda folder: lit_methods.DigitScenesDataModule(
        num_train=8, num_val=4, num_test=4, num_knowledge=200, batch_size=BATCH
    ),
    "EmojiDataModule": _emoji,
    "ImageTextDataModule": _image_text,
}

OWN_BATCHES = dict.fromkeys(DATAMODULES, "images and captions, which its own LightningModule takes")
