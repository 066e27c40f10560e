"""What a round does with its figures: who takes part, what is sent, and how long it would take."""

import pytest
import torch

from lit_methods.federated import (
    Ditto,
    FedAvg,
    FedRep,
    LocalOnly,
    LoopBackend,
    NetworkModel,
    SpectralCoDistillation,
    Strategy,
)
from lit_methods.federated.aggregation import WeightedMean
from lit_methods.federated.checks import cohort_size
from tests.federated.toys import BATCH, EPOCHS, federation, fit, module, network, normalized, vector

SIZES = (7, 12, 3, 20)


def test_part_of_the_clients_is_rounded_down_exactly() -> None:
    for clients in (1, 7, 10, 50, 100, 1000):
        for percent in range(1, 101):
            assert cohort_size(clients, percent / 100, None) == max(1, percent * clients // 100)


def test_clients_that_learn_nothing_leave_the_server_bit_for_bit() -> None:
    fed = module(SpectralCoDistillation(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), participation=1.0)
    fit(fed, 2)
    assert torch.equal(vector(fed.network), vector(network()))


def test_the_mean_of_updates_does_not_know_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    shares = torch.rand(6, generator=generator, dtype=torch.float64)
    expected = sum(float(share) * update for share, update in zip(shares, updates, strict=True))
    for order in (torch.arange(6), torch.randperm(6, generator=generator)):
        found = WeightedMean().combine(updates[order], shares[order], order.tolist())
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("policy", "statistics"), [("aggregate", 11), ("local", 0)])
def test_statistics_are_sent_only_where_they_are_averaged(policy: str, statistics: int) -> None:
    for strategy in (FedAvg(), SpectralCoDistillation()):
        fed = module(strategy, normalized, buffer_policy=policy, clients_per_round=2)
        log = fit(fed, 1, federation((7, 12, 4, 20))).callback_metrics
        size = 2 * (8 * vector(network(normalized)).numel() + 4 * statistics)
        assert log["federated/bytes_up"].item() == log["federated/bytes_down"].item() == size


@pytest.mark.parametrize(
    ("strategy", "generic_epochs", "personal_epochs"),
    [
        (SpectralCoDistillation(personal_epochs=5), EPOCHS, 5),
        (Ditto(personal_epochs=1), EPOCHS, 1),
        (FedAvg(fine_tune_epochs=4), EPOCHS, 0),
        (FedRep(head_epochs=3, body_epochs=1), 4, 0),
        (LocalOnly(), 0, EPOCHS),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Strategy) else None,
)
def test_the_clock_is_given_the_steps_and_transfers_of_the_round(
    strategy: Strategy, generic_epochs: int, personal_epochs: int
) -> None:
    network_model = NetworkModel(0.01, 0.05, latency_seconds=0.3, aggregation_seconds=0.7)
    fed = module(strategy, participation=1.0, transport=network_model, seconds_per_step=0.01, backend=LoopBackend())
    log = fit(fed, 1).callback_metrics
    sent = log["federated/bytes_up"].item() / 4 / 2**20
    up, down = (0.3 + sent / 0.01, 0.3 + sent / 0.05) if sent else (0.0, 0.0)
    generic, personal = (
        0.01 * epochs * max(-(-n // BATCH) for n in SIZES) for epochs in (generic_epochs, personal_epochs)
    )
    assert log["time/sequential"].item() == pytest.approx(down + generic + personal + up + 0.7)
    assert log["time/wait_free"].item() == pytest.approx(down + generic + up + 0.7)
    assert log["time/speedup"].item() == pytest.approx(
        (down + generic + personal + up + 0.7) / (down + generic + up + 0.7)
    )
