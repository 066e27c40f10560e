"""The effect is on: weights find corrupted labels and rare classes (card 8.3)."""

import statistics
from typing import Any

import pytest
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._weighting import Data, imbalance, noise, run
from lit_methods import DataWeighting
from lit_methods.data_manipulation import LearnedWeights, NormalizedStep

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*max_epochs", "ignore:You defined a .validation_step. but have no"
)  # max_steps ends them; no validation


def _weighting(data: Data, **options: Any) -> DataWeighting:
    return DataWeighting(DataLoader(TensorDataset(*data.val), 50), criterion="loss", **options)


def test_corrupted_labels_lose_their_weight() -> None:
    data = noise(seed=0)
    found = run(data, 0, 0.1, _weighting(data), epochs=12)
    plain = run(data, 0, 0.1, None, epochs=12)
    assert found["auc"] > 0.85
    assert found["marked"] < 0.6 < 1.1 < found["others"]
    assert found["test"] > plain["test"]


@pytest.mark.slow
def test_forty_percent_noise_over_five_seeds() -> None:
    rows = []
    for seed in range(5):
        data = noise(seed)
        rows.append((run(data, seed, 0.1, _weighting(data)), run(data, seed, 0.1, None)))
    mean = {key: statistics.mean(row[0][key] for row in rows) for key in ("test", "auc", "marked", "others")}
    assert mean["test"] >= statistics.mean(row[1]["test"] for row in rows) + 6
    assert mean["auc"] >= 0.85
    assert mean["marked"] < 0.6 < 1.1 < mean["others"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The weights of epoch")  # they collapse on purpose
def test_imbalance_over_five_seeds() -> None:
    rows = []
    for seed in range(5):
        data = imbalance(seed)
        callback = _weighting(data, strategy=LearnedWeights(NormalizedStep(0.1)))
        rows.append((run(data, seed, 0.1, callback), run(data, seed, 0.1, None)))
    assert statistics.mean(row[0]["marked"] for row in rows) > 2 * statistics.mean(row[0]["others"] for row in rows)
    assert statistics.mean(row[0]["test"] for row in rows) >= statistics.mean(row[1]["test"] for row in rows)
