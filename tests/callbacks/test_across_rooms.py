"""Callbacks on what another room makes: weights of generated images, knowledge beside a CLIP in less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset
from transformers import CLIPConfig, CLIPModel

from lit_methods import (
    Classifier,
    DataWeighting,
    FederatedModule,
    KnowledgeRerank,
    SoftmaxApproximation,
    SyntheticImageWriter,
)
from lit_methods.data_manipulation import LearnedWeights, NormalizedStep
from lit_methods.datamodules import ImageFolderDataModule, IndexedDataset
from lit_methods.federated import FedAvg, LoopBackend
from lit_methods.image_text import KnowledgeBase
from tests.callbacks.toys import toy_trainer
from tests.entries.federated import ToyClients
from tests.entries.softmax_approximation import toy_attention
from tests.entries.toys import CLASSES, toy_tensors

pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")  # toys without validation
NAMES, SIDE = ("dark", "bright"), 6


def _images(labels: Tensor, seed: int) -> Tensor:
    noise = 0.1 * torch.rand(len(labels), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return 0.2 + 0.6 * labels.view(-1, 1, 1, 1) + noise


class OftenWrong(LightningModule):
    """A generator that mistakes the class of every fourth image."""

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        (index,) = batch
        label = index % 2
        mistaken = index % 4 == 1
        return {"images": _images(label ^ mistaken, int(index[0])), "label": label, "index": index}


def _weights(images: Tensor, labels: Tensor, clean: TensorDataset, network: nn.Module, epochs: int) -> Tensor:
    """Learned weights `(N,)` of generated images."""
    strategy = LearnedWeights(NormalizedStep(lr=0.1))
    callback = DataWeighting(DataLoader(clean, batch_size=32, shuffle=True), strategy=strategy, criterion="loss")
    loader = DataLoader(IndexedDataset(TensorDataset(images, labels)), batch_size=32, shuffle=True)
    toy_trainer(callback, max_epochs=epochs).fit(Classifier(network, 2), loader)
    return callback.weights()


def test_images_of_the_wrong_class_lose_their_weight(tmp_path: Path) -> None:
    toy_trainer(SyntheticImageWriter(tmp_path / "train", class_names=list(NAMES))).predict(
        OftenWrong(), DataLoader(TensorDataset(torch.arange(64)), batch_size=8)
    )
    data = ImageFolderDataModule(tmp_path, val_fraction=0.0)
    data.setup("fit")
    assert data.train_set is not None
    images, labels = data.train_set[range(64)]
    wrong = (images.mean((1, 2, 3)) > 0.5) != (torch.tensor([data.class_names[int(y)] == "bright" for y in labels]))
    assert wrong.sum() == 16
    seed_everything(0, verbose=False)
    truth = torch.tensor([data.class_names.index(NAMES[i % 2]) for i in range(32)])
    clean = TensorDataset(_images((torch.arange(32) % 2), 99), truth)
    weights = _weights(images, labels, clean, nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)), 12)
    assert float(weights[wrong].max()) < float(weights[~wrong].min())


class Clip(LightningModule):
    """A small CLIP, which scores captions against images of the set that it was just evaluated on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = small | {
            "vocab_size": 12,
            "max_position_embeddings": 4,
            "bos_token_id": 10,
            "eos_token_id": 11,
            "pad_token_id": 0,
        }
        vision = small | {"image_size": 8, "patch_size": 4}
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        self.seen: dict[str, Any] = {}

    def similarity(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Scores `(I, T)`."""
        return self.clip(input_ids=ids, pixel_values=pixels).logits_per_image

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """CLIP's symmetric loss."""
        scores, target = self.similarity(*batch), torch.arange(len(batch[0]))
        return nn.functional.cross_entropy(scores, target) + nn.functional.cross_entropy(scores.T, target)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps captions and images."""
        self.seen |= batch

    test_step = validation_step

    def scores(self) -> Tensor:
        """What the callback asks for."""
        return self.similarity(self.seen["pixels"], self.seen["ids"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _scenes(count: int, seed: int) -> dict[str, Any]:
    """Pictures of two things out of eight, each thing a patch of its own colours, and captions that name them."""
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    things = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(count)])
    patches = looks[things] + 0.3 * torch.randn(count, 2, 3, 4, 4, generator=generator)
    pixels = torch.zeros(count, 3, 8, 8)
    pixels[..., :4, :4], pixels[..., 4:, 4:] = patches[:, 0], patches[:, 1]
    ids = torch.cat([torch.full((count, 1), 10), things + 1, torch.full((count, 1), 11)], dim=1)
    captions = [f"w{a} w{b}" for a, b in things.tolist()]
    regions = {"regions": patches.flatten(2), "mask": torch.ones(count, 2, dtype=torch.bool)}
    return {"pixels": pixels, "ids": ids, "captions": captions, "looks": looks.flatten(1), **regions}


class Scenes(LightningDataModule):
    """Pairs to train on; captions and then images to evaluate on."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Pictures and tokens."""
        made = _scenes(64, 1)
        return DataLoader(TensorDataset(made["pixels"], made["ids"]), batch_size=32)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """What `KnowledgeRerank` reads, and the module beside it."""
        made = _scenes(40, 2)
        texts = {"captions": made["captions"], "ids": made["ids"], "image": torch.arange(40)}
        images = {key: made[key] for key in ("pixels", "regions", "mask")}
        return [DataLoader([part], batch_size=None) for part in (texts, images)]


def _clip_run(*callbacks: Any) -> dict[str, float]:
    rerank = KnowledgeRerank(knowledge=KnowledgeBase([f"w{i}" for i in range(8)], _scenes(1, 0)["looks"]), alpha=1.0)
    trainer = toy_trainer(rerank, *callbacks, max_epochs=20, num_sanity_val_steps=0, check_val_every_n_epoch=20)
    trainer.fit(Clip(), datamodule=Scenes())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_knowledge_lifts_a_clip_that_keeps_its_attention_in_less_memory() -> None:
    softmax = SoftmaxApproximation("recompute")
    plain, both = _clip_run(), _clip_run(softmax)
    assert softmax.coverage is not None
    assert [row.route for row in softmax.coverage.rows.values()] == ["hugging face"] * 2
    assert plain["val/rerank_rsum"] > plain["val/base_rsum"] + 10
    assert both["val/base_rsum"] == pytest.approx(plain["val/base_rsum"], abs=5)
    assert both["val/rerank_rsum"] == pytest.approx(plain["val/rerank_rsum"], abs=5)


class OwnAttention(nn.Module):
    """A softmax over 64 keys that nobody but autograd knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 4), nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        tokens = self.embed(inputs.repeat(1, 16)[:, :64].unsqueeze(-1))
        return self.head(((tokens @ tokens.mT).softmax(-1) @ tokens).mean(1))


def _federated(network: Any, *callbacks: Any) -> Tensor:
    torch.manual_seed(0)
    module = FederatedModule(network(), CLASSES, FedAvg(), participation=0.5, local_epochs=1, backend=LoopBackend())
    toy_trainer(*callbacks, max_epochs=1).fit(module, datamodule=ToyClients(*toy_tensors()))
    return parameters_to_vector(module.network.parameters()).detach()


def test_simulated_clients_keep_less_of_a_softmax_of_their_own_and_are_refused_where_attention_is_a_module() -> None:
    softmax = SoftmaxApproximation("merged")
    assert torch.equal(_federated(OwnAttention, softmax), _federated(OwnAttention))
    assert softmax.coverage is not None
    assert [row.route for row in softmax.coverage.rows.values()] == ["saved tensors"]
    with pytest.raises(MisconfigurationException, match="No softmax of FederatedModule was reached"):
        _federated(toy_attention, SoftmaxApproximation("log4"))


def test_loaders_without_a_datamodule_are_refused() -> None:
    rerank = KnowledgeRerank(knowledge=KnowledgeBase(["w0"], torch.ones(1, 48)))
    trainer = toy_trainer(rerank, max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(MisconfigurationException, match=r"was given loaders. Pass data=, a Lightning"):
        trainer.fit(Clip(), Scenes().train_dataloader(), Scenes().val_dataloader())
