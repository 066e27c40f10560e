"""The gates of the method card on its toy benchmark; the spectral terms are not ranked against the peers."""

from statistics import mean

import pytest

from benchmarks._noisy_digits import train
from lit_methods.federated import Ditto, LocalOnly, SpectralCoDistillation

pytestmark = pytest.mark.slow


def test_generic_and_personal_models_reach_the_cards_accuracies() -> None:
    runs = [train(SpectralCoDistillation(), p=0.5, seed=seed) for seed in (0, 1, 2)]
    assert mean(figures["val/generic_acc"] for figures in runs) >= 0.69
    assert mean(figures["val/personal_acc"] for figures in runs) >= 0.77


def test_personal_models_beat_the_generic_one_where_clients_differ() -> None:
    figures = train(SpectralCoDistillation(), p=0.3, seed=0)
    assert figures["val/personal_acc"] - figures["val/generic_acc_local"] >= 0.1


def test_collaboration_beats_local_training_where_data_are_few() -> None:
    gains = [
        train(Ditto(0.1), 0.5, seed)["val/personal_acc"] - train(LocalOnly(), 0.5, seed)["val/personal_acc"]
        for seed in (0, 1, 2)
    ]
    assert mean(gains) >= 0.04


def test_the_term_pulls_spectra_together() -> None:
    free, held = (train(SpectralCoDistillation(0.0, weight), 0.5, 0)["spec/personal_kl"] for weight in (1e-9, 4.0))
    assert held < 0.2 * free
