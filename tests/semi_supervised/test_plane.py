"""DWD in the plane, where classes are blobs that cannot be mistaken: what the null class learns, and where images go.

Two blobs are known, two are not (card section 8, item 9); the pool holds a quarter of known points.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_methods.backbones import MLP
from lit_methods.semi_supervised import (
    DiscriminatorWeightedDiffusion,
    FixedClass,
    FrozenRelevance,
    PULoss,
    RelevanceDiscriminator,
    Transformation,
    UniformRelevance,
)
from lit_methods.semi_supervised.relevance import Relevance
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import OpenSetToy

pytestmark = pytest.mark.slow

CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
KNOWN, PRIOR, COUNT, BATCH = 2, 0.25, 4000, 200


class PlanePredictor(nn.Module):
    """Noise predictor of points `(B, 2, 1, 1)`: an MLP on the point, sines of the time, and a class embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_class_embeds=KNOWN + 1, in_channels=2, sample_size=1)
        self.classes = nn.Embedding(KNOWN + 1, 16)
        self.net = MLP(2 + 16 + 16, [128, 128, 128], 2)

    def forward(self, x: Tensor, timestep: Tensor | int, class_labels: Tensor) -> SimpleNamespace:
        time = torch.as_tensor(timestep).expand(len(x)).float().unsqueeze(1) / 1000
        angles = time * torch.arange(1, 9) * torch.pi / 2
        features = torch.cat([x.flatten(1), angles.sin(), angles.cos(), self.classes(class_labels)], dim=1)
        return SimpleNamespace(sample=self.net(features).view_as(x))


def _points(blobs: Tensor, generator: torch.Generator) -> Tensor:
    return (CENTRES[blobs] + 0.15 * torch.randn(len(blobs), 2, generator=generator)).view(-1, 2, 1, 1)


def _blob(points: Tensor) -> Tensor:
    return torch.cdist(points.flatten(1), CENTRES).argmin(1)


def _data() -> OpenSetToy:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(KNOWN, (COUNT,), generator=generator)
    known = (torch.rand(COUNT, generator=generator) < PRIOR).long()
    blobs = torch.randint(2, (COUNT,), generator=generator) + 2 * (1 - known)
    return OpenSetToy(_points(labels, generator), labels, _points(blobs, generator), known, BATCH)


def _fit(module: Any, folder: Path, epochs: int) -> Any:
    data = _data()
    trainer = toy_trainer(Parts(module, [], data), folder, max_epochs=epochs, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    return trainer


def _diffusion(relevance: Relevance, folder: Path, label_dropout: float = 0.0) -> tuple[Any, Any]:
    torch.manual_seed(0)
    adam = partial(torch.optim.AdamW, lr=2e-3)
    module = DiscriminatorWeightedDiffusion(
        PlanePredictor(), KNOWN, relevance, label_dropout=label_dropout, ema_decay=0.995, optimizer=adam
    )
    return module, _fit(module, folder, 100)


def _generated(module: Any, trainer: Any, strength: float, choice: Any = None) -> tuple[Tensor, Tensor]:
    module.transformation = Transformation(strength, 1.0, 20, class_choice=choice, value_range=(-3.0, 3.0))
    parts = trainer.predict(module, datamodule=_data())
    return torch.cat([p["images"] for p in parts]), torch.cat([p["label"] for p in parts])


def _known_share(module: Any, trainer: Any) -> float:
    return float((_blob(_generated(module, trainer, 1.0, FixedClass(KNOWN))[0]) < KNOWN).float().mean())


@pytest.mark.parametrize("label_dropout", [0.0, 0.5])
def test_null_class_is_the_pool_with_the_dropped_labels(label_dropout: float, tmp_path: Path) -> None:
    expected = (label_dropout + PRIOR) / (label_dropout + 1)
    assert _known_share(*_diffusion(UniformRelevance(), tmp_path, label_dropout)) == pytest.approx(expected, abs=0.05)


def test_weights_make_the_null_class_known_and_strength_moves_points_into_their_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MLP(2, [32], 1)
    _fit(RelevanceDiscriminator(network, PULoss(PRIOR), optimizer=partial(torch.optim.AdamW, lr=1e-2)), tmp_path, 10)
    module, trainer = _diffusion(FrozenRelevance(network, PRIOR), tmp_path)
    share = _known_share(module, trainer)
    sources, _, known = _data().pool.tensors
    hits, distances = [], []
    for strength in (0.0, 0.2, 0.4, 0.6, 1.0):
        made, labels = _generated(module, trainer, strength)
        right = (_blob(made) == labels).float()
        hits.append(float(right.mean()))
        distances.append(float((made - sources).flatten(1).norm(dim=1).mean()))
    print(f"known share {share:.3f}, hits {hits}, distances {distances}")
    assert share > 0.9
    assert hits == sorted(hits)
    assert hits[1] - hits[0] > 0.2, "rising"
    assert hits[4] - hits[3] < 0.05, "then flat"
    assert hits[0] == pytest.approx(PRIOR / KNOWN, abs=0.02)  # the sources themselves
    assert hits[-1] > 0.95
    assert float(right[known == 1].mean()) == pytest.approx(float(right[known == 0].mean()), abs=0.02)
    assert distances == sorted(distances)
    assert distances[0] == 0
