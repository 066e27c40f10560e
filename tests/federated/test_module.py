"""The invariants of card 8.1 that concern a whole run, resume, and the server's optimizer."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_methods.federated import (
    Ditto,
    FedAvg,
    FedRep,
    FedRoD,
    LocalBackend,
    LocalOnly,
    LoopBackend,
    Models,
    NetworkModel,
    SpectralCoDistillation,
    Strategy,
    VectorizedBackend,
)
from lit_methods.federated.clients import ClientStore, stream_seed
from lit_methods.federated.cohort import Cohort, Update
from lit_methods.federated.module import FederatedModule
from tests.federated.toys import (
    CLASSES,
    EPOCHS,
    FEATURES,
    LOOP,
    LR,
    Evaluation,
    Rounds,
    federation,
    fit,
    fitted,
    module,
    network,
    orders,
    trainer,
    vector,
)


def _personal(fed: FederatedModule) -> dict[int, torch.Tensor]:
    return {client: fed.state.personal[client] for client in fed.state.personal}


def _equal(a: FederatedModule, b: FederatedModule) -> None:
    torch.testing.assert_close(a.network.state_dict(), b.network.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(_personal(a), _personal(b), rtol=0, atol=0)


def test_without_terms_it_is_fedavg_and_local_training_bit_for_bit() -> None:
    ours = fitted(SpectralCoDistillation(0.0, 0.0), participation=1.0)
    assert torch.equal(vector(ours.network), vector(fitted(FedAvg(), participation=1.0).network))
    torch.testing.assert_close(_personal(ours), _personal(fitted(LocalOnly(), participation=1.0)), rtol=0, atol=0)


def test_with_the_proximal_term_alone_it_is_ditto_bit_for_bit() -> None:
    _equal(fitted(SpectralCoDistillation(0.0, 0.0, prox_weight=0.7)), fitted(Ditto(0.7)))


def test_one_client_is_centralized_sgd() -> None:
    data = federation((12,))
    fed = module(FedAvg(), participation=1.0, optimizer=lambda p: torch.optim.SGD(p, lr=LR), **LOOP)
    fit(fed, 3, data)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for t in range(3):
        for batch in orders(12, EPOCHS, stream_seed(0, 0, t, "generic")):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data[0].inputs[batch]), data[0].labels[batch]).backward()
            optimizer.step()
    torch.testing.assert_close(vector(fed.network), vector(model), rtol=1e-10, atol=1e-12)


class _Spy(SpectralCoDistillation):
    """Keeps what each round uploads."""

    def __init__(self) -> None:
        super().__init__(2.0, 3.0)
        self.updates: list[tuple[list[int], Update]] = []

    def round(self, cohort: Cohort) -> Update:
        update = super().round(cohort)
        self.updates.append((cohort.clients, update))
        return update


def test_models_of_unsampled_clients_stay_and_personal_ones_are_not_uploaded() -> None:
    spy = _Spy()
    fed = module(spy, participation=0.5, **LOOP)
    before: dict[int, torch.Tensor] = {}
    for _ in range(4):
        fit(fed, 1)
        clients, update = spy.updates[-1]
        after = _personal(fed)
        for client, model in before.items():
            assert torch.equal(model, after[client]) == (client not in clients)
        for k, client in enumerate(clients):
            assert torch.equal(update.personal.weights[k], after[client])
            assert not torch.isclose(update.uploads.weights[k], update.personal.weights[k]).all()
        before = after


def test_payload_is_fedavgs_and_private_parts_are_not_in_it() -> None:
    size = vector(network()).numel() * 8
    head = (5 + 1) * CLASSES * 8
    for strategy, expected in (
        (FedAvg(), size),
        (SpectralCoDistillation(), size),
        (FedRep(), size - head),
        (FedRoD(), size),
    ):
        running = fit(module(strategy, clients_per_round=3, **LOOP), 1)
        assert running.callback_metrics["federated/bytes_up"].item() == 3 * expected
    running = fit(module(LocalOnly(), **LOOP), 1)
    assert running.callback_metrics["federated/bytes_up"].item() == 0


@pytest.mark.parametrize("teacher", ["local", "received"])
def test_the_wait_free_order_changes_no_weight(teacher: str) -> None:
    """A run whose personal stages begin only when the server has stepped ends with the same weights."""

    class Late(SpectralCoDistillation):
        pending: tuple[Cohort, Models] | None = None

        def round(self, cohort: Cohort) -> Update:
            if self.pending is not None:
                before, generic = self.pending
                late.state.keep(before.clients, self.personal_stage(before, generic))
                rows = late.state.personal_models(cohort.clients, cohort.received.rows(slice(0, 1)))
                cohort.personal = rows
            generic = self.generic_stage(cohort)
            self.pending = cohort, generic
            return Update(generic)

    prompt = fitted(SpectralCoDistillation(2.0, 3.0, teacher=teacher))
    strategy = Late(2.0, 3.0, teacher=teacher)
    late = module(strategy, **LOOP)
    fit(late, 3)
    cohort, generic = strategy.pending
    late.state.keep(cohort.clients, strategy.personal_stage(cohort, generic))
    _equal(late, prompt)


def test_teachers_stay_constant_during_a_stage() -> None:
    fed, data = module(SpectralCoDistillation(2.0, 3.0), **LOOP), federation()
    seen: list[torch.Tensor] = []

    class Watching(LoopBackend):
        def train(self, network, layout, stage, start, clients, seeds):  # noqa: ANN001, ANN202  as in the base class
            before = [penalty.target.teacher.clone() for penalty in stage.penalties]
            result = super().train(network, layout, stage, start, clients, seeds)
            for penalty, teacher in zip(stage.penalties, before, strict=True):
                assert torch.equal(penalty.target.teacher, teacher)
                assert not penalty.target.teacher.requires_grad
                seen.append(teacher)
            return result

    fed.backend = Watching()
    fit(fed, 2, data)
    assert len(seen) == 4


@pytest.mark.parametrize("strategy", [SpectralCoDistillation, FedAvg, FedRep], ids=lambda s: s.__name__)
@pytest.mark.parametrize("backend", [LoopBackend, VectorizedBackend])
def test_killed_and_resumed_equals_uninterrupted(
    strategy: type[Strategy], backend: type[LocalBackend], tmp_path: Path
) -> None:
    def fresh() -> FederatedModule:
        return module(strategy(), backend=backend(), transport=NetworkModel(jitter=0.3), server_optimizer=_momentum)

    whole, half, rest = fresh(), fresh(), fresh()
    log = fit(whole, 4).callback_metrics
    fit(half, 2, callbacks=[ModelCheckpoint(tmp_path, "half")], enable_checkpointing=True)
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    running = trainer(4)
    running.fit(rest, Rounds(federation()), Evaluation(federation()), ckpt_path=tmp_path / "half.ckpt")
    _equal(rest, whole)
    assert running.callback_metrics == log
    assert rest.state.clock.state_dict() == whole.state.clock.state_dict()
    assert running.global_step == 4


def _momentum(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.7, momentum=0.9)


def test_server_momentum_is_fedavgm() -> None:
    fed, plain, data = module(FedAvg(), server_optimizer=_momentum, **LOOP), module(FedAvg(), **LOOP), federation()
    received, velocity = vector(network()), torch.zeros(())
    for _ in range(3):
        nn.utils.vector_to_parameters(received.clone(), plain.network.parameters())
        fit(plain, 1, data)
        velocity = 0.9 * velocity + (received - vector(plain.network))
        received = received - 0.7 * velocity
    fit(fed, 3, data)
    torch.testing.assert_close(vector(fed.network), received, rtol=1e-10, atol=1e-12)


def test_personal_models_spill_to_disk_and_change_nothing(tmp_path: Path) -> None:
    on_disk = fitted(SpectralCoDistillation(), spill_folder=tmp_path / "clients")
    _equal(on_disk, fitted(SpectralCoDistillation()))
    assert len(list((tmp_path / "clients").glob("*.npy"))) == len(on_disk.state.personal)


def test_many_clients_are_evaluated_from_disk_and_none_is_left_out(tmp_path: Path) -> None:
    data, figures = federation([3 + i % 5 for i in range(70)]), []
    for folder in (None, tmp_path):
        fed = module(SpectralCoDistillation(), spill_folder=folder, participation=0.6, **LOOP)
        running = fit(fed, 2, data)
        personal = {name: float(v) for name, v in running.callback_metrics.items() if name.startswith("val/personal")}
        figures.append(personal)
    assert figures[0] == figures[1]
    test, accuracies = Evaluation(data).batches, []
    with torch.no_grad():
        for i in range(70):
            network = fed.personal_network(i) if i in fed.state.personal else fed.network
            hits = torch.cat([network(batch.inputs).argmax(dim=1) == batch.labels for batch in test])
            labels = torch.cat([batch.labels for batch in test])
            per_class = [hits[labels == c].double().mean() for c in range(CLASSES)]
            accuracies.append(float(sum(per_class[c] * (data[i].labels == c).double().mean() for c in range(CLASSES))))
    assert figures[0]["val/personal_acc"] == pytest.approx(sum(accuracies) / 70, abs=1e-6)
    assert figures[0]["val/personal_acc_worst_tenth"] == pytest.approx(sum(sorted(accuracies)[:7]) / 7, abs=1e-6)
    assert not list((tmp_path / "evaluated").glob("*.npy"))


def test_store_copies_and_goes_through_a_state_dict(tmp_path: Path) -> None:
    vectors = {3: torch.randn(5), 1: torch.randn(5)}
    for folder in (None, tmp_path):
        store = ClientStore(folder)
        assert store.state_dict() == {}
        for client, vector_of in vectors.items():
            mine = vector_of.clone()
            store[client] = mine
            mine.zero_()
        other = ClientStore()
        other.load_state_dict(store.state_dict())
        for kept in (store, other):
            assert list(kept) == [1, 3]
            assert 2 not in kept
            rows = kept.rows([3, 2], default=torch.ones(5))
            assert torch.equal(rows, torch.stack([vectors[3], torch.ones(5)]))


def test_batchnorm_statistics_are_averaged_or_stay_local() -> None:
    def kind() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES))

    data = federation((10, 20))
    options = {"participation": 1.0, "local_epochs": 1, "batch_size": 20}
    fed = module(FedAvg(), kind, **options)
    fit(fed, 1, data)
    means = [0.1 * data[i].inputs.mean(dim=0) for i in (0, 1)]
    torch.testing.assert_close(fed.network[0].running_mean, means[0] / 3 + means[1] * 2 / 3, rtol=1e-6, atol=1e-7)
    local = module(Ditto(), kind, buffer_policy="local", **options)
    running = fit(local, 1, data)
    assert torch.equal(local.network[0].running_mean, torch.zeros(FEATURES, dtype=torch.float64))
    torch.testing.assert_close(local.state.buffers[1][:FEATURES].double(), means[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(local.personal_network(1)[0].running_mean, means[1], rtol=1e-6, atol=1e-7)
    assert "val/generic_acc" not in running.callback_metrics
    assert "val/personal_acc" in running.callback_metrics


def test_accuracies_are_those_of_the_models() -> None:
    fed, data = module(SpectralCoDistillation(), **LOOP), federation()
    running = fit(fed, 2, data)
    test = federation((30,)).clients[0]
    counts = fed.state.class_counts
    expected = []
    for i in range(4):
        model = fed.personal_network(i) if i in fed.state.personal else fed.network.eval()
        correct = model(test.inputs).argmax(dim=1) == test.labels
        per_class = [float(correct[test.labels == c].float().mean()) for c in range(CLASSES)]
        expected.append(sum(float(counts[i, c]) * per_class[c] for c in range(CLASSES)) / float(counts[i].sum()))
    assert running.callback_metrics["val/personal_acc"].item() == pytest.approx(sum(expected) / 4)
    correct = fed.network.eval()(test.inputs).argmax(dim=1) == test.labels
    assert running.callback_metrics["val/generic_acc"].item() == pytest.approx(float(correct.float().mean()))
    assert 0 <= running.callback_metrics["val/personal_acc_worst_tenth"] <= running.callback_metrics["val/personal_acc"]


def test_an_evaluation_that_broke_off_leaves_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    fed, data = module(SpectralCoDistillation(), **LOOP), federation()
    expected = {name: value for name, value in fit(fed, 1, data).callback_metrics.items() if name.startswith("val/")}
    with monkeypatch.context() as patched:
        patched.setattr(fed, "on_validation_batch_end", lambda *_: 1 / 0, raising=False)
        with pytest.raises(ZeroDivisionError):
            trainer(1).validate(fed, Evaluation(data), verbose=False)
    (found,) = trainer(1).validate(fed, Evaluation(data), verbose=False)
    assert found == expected


def test_divergence_shrinks_with_its_weight() -> None:
    kl = [
        fit(module(SpectralCoDistillation(0.0, weight), **LOOP), 5).callback_metrics["spec/personal_kl"].item()
        for weight in (1e-9, 100.0)
    ]
    assert kl[1] < 0.3 * kl[0]


class _TwoTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(inputs)))


@pytest.mark.parametrize("backend", [LoopBackend, VectorizedBackend])
def test_tied_and_frozen_parameters_stay_so(backend: type) -> None:
    fed = module(FedAvg(), _TwoTied, backend=backend())
    fed.network.last.requires_grad_(False)
    fed = module(FedAvg(), lambda: fed.network, backend=backend())
    before = fed.network.last.weight.clone()
    fit(fed, 2)
    assert fed.network.second.weight is fed.network.first.weight
    assert torch.equal(fed.network.last.weight, before)
