"""Two rounds of each method against a plain loop with torch's own optimizer and autograd, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_methods.federated import (
    Ditto,
    FedAvg,
    FedProx,
    FedRep,
    FedRoD,
    LocalOnly,
    LoopBackend,
    SpectralCoDistillation,
    Strategy,
    VectorizedBackend,
)
from lit_methods.federated.clients import stream_seed
from lit_methods.federated.heads import head_of
from tests.federated.toys import (
    CLASSES,
    ToyFederation,
    drawn,
    federation,
    fit,
    module,
    network,
    normalized,
    reference_training,
    vector,
)

ROUNDS, SEED = 3, 0
BACKENDS = (LoopBackend, VectorizedBackend)


def _distance(a: nn.Module, anchor: nn.Module) -> Tensor:
    return sum((p - q.detach()).square().sum() for p, q in zip(a.parameters(), anchor.parameters(), strict=True))


def _distribution(model: nn.Module, ratio: float) -> Tensor:
    """The truncated spectrum of all kernels by the full DFT: frequency k counts where min(k, d - k) is kept."""
    flat = torch.cat([p.flatten() for p in model.parameters() if p.ndim >= 2])
    d = len(flat)
    kept = -(-ratio * (d // 2 + 1) // 1)
    k = torch.arange(d)
    s = torch.fft.fft(flat).abs()[torch.minimum(k, d - k) < kept]
    return s / s.sum()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def _average(
    models: dict[int, nn.Module],
    data: ToyFederation,
    onto: nn.Module,
    shared: Callable[[str], bool] = lambda name: True,
) -> nn.Module:
    total = sum(len(data[i]) for i in models)
    result = copy.deepcopy(onto)
    with torch.no_grad():
        for name, p in result.named_parameters():
            if shared(name):
                p.copy_(sum(len(data[i]) / total * m.get_parameter(name) for i, m in models.items()))
    return result


def _with(shared: nn.Module, private: nn.Module, is_shared: Callable[[str], bool]) -> nn.Module:
    result = copy.deepcopy(private)
    with torch.no_grad():
        for name, p in result.named_parameters():
            if is_shared(name):
                p.copy_(shared.get_parameter(name))
    return result


Round = Callable[[nn.Module, nn.Module, "Train"], tuple[nn.Module | None, nn.Module | None]]
Train = Callable[..., nn.Module]


def _fedavg(received: nn.Module, personal: nn.Module, train: Train) -> tuple[nn.Module | None, nn.Module | None]:
    return train("generic", received), None


def _fedprox(received: nn.Module, personal: nn.Module, train: Train) -> tuple[nn.Module | None, nn.Module | None]:
    return train("generic", received, term=lambda m: 0.7 / 2 * _distance(m, received)), None


def _local(received: nn.Module, personal: nn.Module, train: Train) -> tuple[nn.Module | None, nn.Module | None]:
    return None, train("personal", personal)


def _ditto(received: nn.Module, personal: nn.Module, train: Train) -> tuple[nn.Module | None, nn.Module | None]:
    return train("generic", received), train("personal", personal, term=lambda m: 0.7 / 2 * _distance(m, received))


def _spectral(received: nn.Module, personal: nn.Module, train: Train) -> tuple[nn.Module | None, nn.Module | None]:
    teacher = _distribution(personal, 0.4).detach()
    generic = train("generic", received, term=lambda m: 2.0 * _kl(teacher, _distribution(m, 0.4)))
    q = _distribution(generic, 1.0).detach()
    return generic, train("personal", personal, term=lambda m: 3.0 * _kl(_distribution(m, 1.0), q))


def _spectral_options(received: nn.Module, personal: nn.Module, train: Train) -> tuple[nn.Module, nn.Module]:
    generic = train("generic", received)
    q = _distribution(received, 1.0).detach()
    norm = sum(p.detach().square().sum() for p in received.parameters() if p.ndim >= 2)
    return generic, train(
        "personal",
        generic,
        epochs=1,
        term=lambda m: 0.1 * norm * _kl(_distribution(m, 1.0), q) + 0.3 / 2 * _distance(m, received),
    )


def _fedrep(received: nn.Module, personal: nn.Module, train: Train) -> tuple[nn.Module | None, nn.Module | None]:
    start = _with(received, personal, lambda name: not name.startswith("3."))
    head = train("head", start, trained=lambda name: name.startswith("3."))
    model = train("body", head, trained=lambda name: not name.startswith("3."))
    return model, model


CASES: dict[str, tuple[Callable[[], Strategy], Round, Callable[[str], bool]]] = {
    "FedAvg": (FedAvg, _fedavg, lambda name: True),
    "FedProx": (lambda: FedProx(0.7), _fedprox, lambda name: True),
    "LocalOnly": (LocalOnly, _local, lambda name: False),
    "Ditto": (lambda: Ditto(0.7), _ditto, lambda name: True),
    "spectral": (lambda: SpectralCoDistillation(2.0, 3.0), _spectral, lambda name: True),
    "spectral with options": (
        lambda: SpectralCoDistillation(
            0.0, 0.1, teacher="received", personal_start="generic", personal_epochs=1, prox_weight=0.3,
            weight_scale="teacher_norm",
        ),
        _spectral_options,
        lambda name: True,
    ),
    "FedRep": (FedRep, _fedrep, lambda name: not name.startswith("3.")),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_rounds_equal_a_plain_loop(case: str, backend: type) -> None:
    make, one_round, shared = CASES[case]
    fed, data = module(make(), backend=backend()), federation()
    server, kept = network(), {}
    for t in range(ROUNDS):
        uploads: dict[int, nn.Module] = {}
        for i in drawn(SEED, t, 4, 3):

            def train(name: str, start: nn.Module, client: int = i, t: int = t, **options: Any) -> nn.Module:
                return reference_training(start, data[client], stream_seed(SEED, client, t, name), **options)

            upload, personal = one_round(server, kept.get(i, server), train)
            if upload is not None:
                uploads[i] = upload
            if personal is not None:
                kept[i] = personal
        if uploads:
            server = _average(uploads, data, server, shared)
    fit(fed, ROUNDS, data)
    torch.testing.assert_close(vector(fed.network), vector(server), rtol=1e-9, atol=1e-11)
    assert set(fed.state.personal) == set(kept)
    for client, expected in kept.items():
        torch.testing.assert_close(fed.state.personal[client], vector(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fedrod_trains_a_balanced_body_and_then_a_private_head(backend: type) -> None:
    fed, data = module(FedRoD(), backend=backend(), participation=0.5), federation()
    server = network()
    models, heads = {}, {}
    for i in drawn(SEED, 0, 4, 2):
        counts = torch.tensor([max(0.5, int((data[i].labels == c).sum())) for c in range(CLASSES)]).double()
        prior = (counts / len(data[i])).log()
        models[i] = reference_training(
            server,
            data[i],
            stream_seed(SEED, i, 0, "generic"),
            loss=lambda m, x, y, prior=prior: nn.functional.cross_entropy(m(x) + prior, y),
        )
        body, base = nn.Sequential(*list(models[i])[:-1]), models[i]
        heads[i] = reference_training(
            server[-1],
            data[i],
            stream_seed(SEED, i, 0, "personal"),
            loss=lambda h, x, y, body=body, base=base: nn.functional.cross_entropy(
                base(x).detach() + h(body(x).detach()), y
            ),
        )
    fit(fed, 1, data)
    expected = _average(models, data, server)
    torch.testing.assert_close(vector(fed.network.network), vector(expected), rtol=1e-9, atol=1e-11)
    for i, head in heads.items():
        torch.testing.assert_close(vector(fed.personal_network(i).personal_head), vector(head), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(vector(fed.network.personal_head), vector(network()[-1]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [None, normalized])
def test_fine_tuning_happens_at_evaluation_in_training_mode_and_is_not_kept(
    kind: Callable[[], nn.Module] | None,
) -> None:
    fed, data = module(FedAvg(fine_tune_epochs=3), kind, backend=LoopBackend()), federation((7, 12, 4, 20))
    plain = module(FedAvg(), kind, backend=LoopBackend())
    running = fit(fed, 2, data)
    fit(plain, 2, data)
    torch.testing.assert_close(vector(fed.network), vector(plain.network), rtol=0, atol=0)
    assert len(fed.state.personal) == 0
    correct, total = torch.zeros(4, CLASSES), torch.zeros(CLASSES)
    test = federation((30,)).clients[0]
    for i in range(4):
        tuned = reference_training(fed.network, data[i], stream_seed(SEED, i, 2, "fine_tuning"), epochs=3).eval()
        for c in range(CLASSES):
            of_class = test.labels == c
            correct[i, c] = (tuned(test.inputs[of_class]).argmax(dim=1) == c).sum()
            total[c] = of_class.sum()
    accuracies = [
        sum(float((data[i].labels == c).float().mean() * correct[i, c] / total[c]) for c in range(CLASSES))
        for i in range(4)
    ]
    assert running.callback_metrics["val/personal_acc"].item() == pytest.approx(sum(accuracies) / 4, abs=1e-6)


def test_warm_up_leaves_both_terms_out() -> None:
    with_warm_up, without = (
        module(SpectralCoDistillation(2.0, 3.0, warmup_rounds=2), backend=LoopBackend()),
        module(SpectralCoDistillation(0, 0), backend=LoopBackend()),
    )
    fit(with_warm_up, 2)
    fit(without, 2)
    torch.testing.assert_close(with_warm_up.network.state_dict(), without.network.state_dict(), rtol=0, atol=0)
    fit(with_warm_up, 1)
    fit(without, 1)
    assert not torch.equal(vector(with_warm_up.network), vector(without.network))


def test_head_is_the_last_layer_with_parameters() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert head_of(layers, None) == "1.0"
    assert head_of(layers, "1") == "1"
    with pytest.raises(ValueError, match="head='2' is none of the network's parts"):
        head_of(layers, "2")
    with pytest.raises(ValueError, match="is none of the network's parts"):
        head_of(nn.Linear(2, 2), None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpectralCoDistillation(generic_weight=-1), "generic_weight=-1 must be at least 0"),
        (lambda: SpectralCoDistillation(personal_weight=float("nan")), "personal_weight=nan must be"),
        (lambda: SpectralCoDistillation(ratio=0), r"ratio=0 must lie in \(0, 1\]"),
        (lambda: SpectralCoDistillation(teacher="server"), "teacher='server' must be one of"),
        (lambda: SpectralCoDistillation(personal_start="new"), "personal_start='new' must be one of"),
        (lambda: SpectralCoDistillation(weight_scale="dim"), "weight_scale='dim' must be one of"),
        (lambda: SpectralCoDistillation(every_k_steps=0), "every_k_steps=0 must be at least 1"),
        (lambda: SpectralCoDistillation(selection="body"), "selection='body' must be one of"),
        (lambda: FedProx(-0.1), "mu=-0.1 must be at least 0"),
        (lambda: Ditto(-0.1), "weight=-0.1 must be at least 0"),
        (lambda: FedAvg(-1), "fine_tune_epochs=-1 must be at least 0"),
        (lambda: SpectralCoDistillation(personal_epochs=-1), "personal_epochs=-1 must be at least 0"),
        (lambda: Ditto(personal_epochs=-1), "personal_epochs=-1 must be at least 0"),
        (lambda: LocalOnly(-1), "personal_epochs=-1 must be at least 0"),
        (lambda: FedRep(body_epochs=-1), "body_epochs=-1 must be at least 0"),
        (lambda: FedRoD(head_epochs=-1), "head_epochs=-1 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
