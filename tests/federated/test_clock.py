"""The two schedules against the formulas of the paper's protocol."""

import pytest

from lit_methods.federated.clock import NetworkModel, ProtocolClock, Work


@pytest.mark.parametrize(("g", "p", "c"), [(1.0, 2.0, 0.5), (1.0, 2.0, 2.0), (0.5, 1.0, 4.0), (1.0, 0.0, 1.0)])
def test_equal_clients_save_the_lesser_of_training_and_travel(g: float, p: float, c: float) -> None:
    clock, rounds, aggregation = ProtocolClock(), 50, c / 4
    work = [Work(i, g, p, c / 2, c / 4) for i in range(3)]
    times = [clock.advance(work, aggregation) for _ in range(rounds)]
    sequential, wait_free = ((times[-1][i] - times[0][i]) / (rounds - 1) for i in (0, 1))
    assert sequential == pytest.approx(g + p + c)
    assert wait_free == pytest.approx(g + max(p, c))
    assert sequential - wait_free == pytest.approx(min(p, c))


def test_a_client_that_is_not_sampled_next_delays_nobody() -> None:
    clock = ProtocolClock()
    clock.advance([Work(0, 1.0, 100.0, 1.0, 0.0)], 0.0)
    assert clock.advance([Work(1, 1.0, 1.0, 1.0, 0.0)], 0.0)[1] == pytest.approx(4.0)
    assert clock.advance([Work(0, 1.0, 1.0, 1.0, 0.0)], 0.0)[1] == pytest.approx(103.0)


def test_wait_free_is_never_slower_and_the_slowest_client_counts() -> None:
    import random

    draw, clock = random.Random(0), ProtocolClock()  # noqa: S311  no secret
    for _ in range(200):
        work = [Work(i, *(draw.random() for _ in range(4))) for i in draw.sample(range(10), 4)]
        before = clock.sequential
        sequential, wait_free = clock.advance(work, 0.1)
        assert wait_free <= sequential + 1e-12
        assert sequential - before == pytest.approx(0.1 + max(sum(w[1:]) for w in work))


def test_state_goes_on() -> None:
    whole, half, rest = ProtocolClock(), ProtocolClock(), ProtocolClock()
    rounds = [[Work(0, 1.0, 5.0, 0.5, 0.5)], [Work(0, 1.0, 5.0, 0.5, 0.5), Work(1, 2.0, 1.0, 0.5, 0.5)]]
    for work in rounds:
        expected = whole.advance(work, 0.0)
    half.advance(rounds[0], 0.0)
    rest.load_state_dict(half.state_dict())
    assert rest.advance(rounds[1], 0.0) == expected


def test_transfers_follow_size_and_bandwidth() -> None:
    network = NetworkModel(upload_mib_per_second=2.0, download_mib_per_second=8.0, latency_seconds=0.5)
    assert network.transfer(3, 7, 4 * 2**20) == pytest.approx((2.5, 1.0))
    jittery = NetworkModel(jitter=0.5)
    assert jittery.transfer(0, 0, 2**20) == jittery.transfer(0, 0, 2**20)
    assert len({jittery.transfer(i, t, 2**20)[0] for i in range(3) for t in range(3)}) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upload_mib_per_second": 0.0}, "upload_mib_per_second=0.0 must be positive"),
        ({"download_mib_per_second": -1.0}, "download_mib_per_second=-1.0 must be positive"),
        ({"latency_seconds": -1.0}, "latency_seconds=-1.0 must be at least 0"),
        ({"jitter": float("nan")}, "jitter=nan must be at least 0, and finite"),
    ],
)
def test_impossible_networks_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkModel(**change)
