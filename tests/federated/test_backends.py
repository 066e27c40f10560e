"""Local training of the loop and of the stack: what they promise beyond the weights that test_strategies checks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_methods.backbones import SmallCNN
from lit_methods.federated import AutomaticBackend, LocalBackend, LoopBackend, Models, VectorizedBackend
from lit_methods.federated.functional import SpectralPlan
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import LocalResult, LocalStage, batch_order, batch_table, per_sample
from lit_methods.federated.penalties import Penalty, ProximalPenalty, SpectralPenalty
from tests.federated.toys import BATCH, CLASSES, ToyClient, federation, local_sgd, network, orders

SIZES = (7, 12, 3, 20)


def _stage(**options: Any) -> LocalStage:
    arguments = {"epochs": 2, "batch_size": BATCH, "optimizer": local_sgd}
    return LocalStage(**(arguments | {"per_sample_loss": per_sample(nn.CrossEntropyLoss())} | options))


def _start(net: nn.Module, clients: int) -> Models:
    layout = ModelLayout.of(net)
    noise = torch.randn(clients, layout.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    buffers = layout.read_buffers(net).repeat(clients, 1)
    return Models(layout.read(net) + 0.1 * noise, buffers)


def _train(
    backend: LocalBackend, net: nn.Module, stage: LocalStage, rows: list[int], shape: tuple[int, ...] = (4,)
) -> LocalResult:
    data = federation(SIZES, shape)
    start = _start(net, len(SIZES)).rows(torch.tensor(rows))
    layout = ModelLayout.of(net)
    return backend.train(net, layout, stage, start, [data[i] for i in rows], [100 + i for i in rows])


def _same(a: LocalResult, b: LocalResult, **tolerance: Any) -> None:
    tolerance = tolerance or {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(a.models.weights, b.models.weights, **tolerance)
    torch.testing.assert_close(a.loss, b.loss, **tolerance)
    torch.testing.assert_close(a.gradient_norm, b.gradient_norm, **tolerance)
    assert a.steps == b.steps


def _adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def _penalties(net: nn.Module) -> list[Penalty]:
    layout = ModelLayout.of(net)
    teachers = _start(net, len(SIZES)).weights + 0.2
    segments = layout.segments([len(shape) > 1 for shape in layout.shapes])
    size = sum(s.stop - s.start for s in segments)
    return [
        ProximalPenalty(teachers, 0.3),
        SpectralPenalty(teachers, 2.0, SpectralPlan.make(((size,),), ratio=0.4), segments, False, every_k_steps=3),
    ]


STAGES: dict[str, Callable[[nn.Module], LocalStage]] = {
    "plain": lambda net: _stage(),
    "Adam": lambda net: _stage(optimizer=_adam),
    "penalties": lambda net: _stage(penalties=_penalties(net)),
    "a part": lambda net: _stage(trained=torch.arange(ModelLayout.of(net).size) % 3 == 0, optimizer=_adam),
    "offsets": lambda net: _stage(logit_offsets=torch.arange(4.0 * CLASSES, dtype=torch.float64).view(4, CLASSES)),
    "label smoothing": lambda net: _stage(per_sample_loss=per_sample(nn.CrossEntropyLoss(label_smoothing=0.1))),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_stack_equals_the_loop(stage: str, chunk_size: int | None) -> None:
    net, rows = network(), [0, 1, 2, 3]
    loop = _train(LoopBackend(), net, STAGES[stage](net), rows)
    _same(_train(VectorizedBackend(chunk_size), net, STAGES[stage](net), rows), loop)
    assert not torch.equal(loop.models.weights, _start(net, 4).weights)


def test_stack_equals_the_loop_for_convolutions_in_float32() -> None:
    net = network(lambda: SmallCNN(1, CLASSES, widths=(4,), image_size=4, norm_groups=2))
    loop = _train(LoopBackend(), net, _stage(), [0, 1, 2, 3], (1, 4, 4))
    _same(_train(VectorizedBackend(), net, _stage(), [0, 1, 2, 3], (1, 4, 4)), loop)
    single = federation(SIZES, (1, 4, 4))
    data = [ToyClient(client.inputs.float(), client.labels) for client in single.clients]
    net = net.float()
    start = Models(_start(net, 4).weights.float(), torch.zeros(4, 0))
    both = [
        backend.train(net, ModelLayout.of(net), _stage(), start, data, [1, 2, 3, 4]).models.weights
        for backend in (LoopBackend(), VectorizedBackend())
    ]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", [LoopBackend, VectorizedBackend])
def test_neither_order_nor_company_matters(backend: type[LocalBackend]) -> None:
    net = network()
    together = _train(backend(), net, _stage(), [0, 1, 2, 3]).models.weights
    turned = _train(backend(), net, _stage(), [3, 1, 0, 2]).models.weights
    torch.testing.assert_close(together[[3, 1, 0, 2]], turned, rtol=1e-12, atol=1e-14)
    for i in range(4):
        alone = _train(backend(), net, _stage(), [i]).models.weights[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-12, atol=1e-14)


def test_the_network_stays_as_it_is() -> None:
    for backend in (LoopBackend(), VectorizedBackend()):
        net = network()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        _train(backend, net, _stage(), [0, 1])
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
        assert all(p.grad is None for p in net.parameters())


def test_both_predict_what_the_models_predict() -> None:
    net = network(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, CLASSES)))
    layout, models = ModelLayout.of(net), _start(net, 3)
    models = Models(models.weights, models.buffers + torch.rand(3, 1))
    inputs = torch.randn(6, 4, dtype=torch.float64)
    expected = []
    for weights, buffers in zip(*models, strict=True):
        one = network(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, CLASSES)))
        torch.nn.utils.vector_to_parameters(weights, one.parameters())
        layout.write_buffers(one, buffers)
        expected.append(one.eval()(inputs))
    for backend in (LoopBackend(), VectorizedBackend()):
        found = backend.predict(net, layout, models, inputs, {})
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_dropout_depends_on_the_client_alone() -> None:
    net = network(lambda: nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, CLASSES)))
    state = torch.get_rng_state()
    first = _train(LoopBackend(), net, _stage(), [0, 1, 2]).models.weights
    torch.rand(7)
    second = _train(LoopBackend(), net, _stage(), [2, 0]).models.weights
    torch.testing.assert_close(second, first[[2, 0]], rtol=0, atol=0)
    torch.set_rng_state(state)
    _train(LoopBackend(), net, _stage(), [0])
    assert torch.equal(torch.get_rng_state(), state)


def test_running_statistics_are_each_clients_own() -> None:
    net = network(lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, CLASSES)))
    layout = ModelLayout.of(net)
    result = _train(LoopBackend(), net, _stage(epochs=1, batch_size=20), [1, 3])
    data = federation(SIZES)
    for row, i in enumerate((1, 3)):
        statistics = layout.buffer_views(result.models.buffers[row])
        mean = data[i].inputs.mean(dim=0) * 0.1
        torch.testing.assert_close(statistics["0.running_mean"], mean, rtol=1e-6, atol=1e-7)
        assert float(statistics["0.num_batches_tracked"]) == 1.0


class _Transformer(nn.Module):
    """Attends over the features as over tokens, by a layer that holds a module called `dropout`."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 4), nn.Linear(4, CLASSES)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(inputs.unsqueeze(-1))).mean(1))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has fused attention for one model alone
def test_a_transformer_without_dropout_is_stacked() -> None:
    net = network(lambda: _Transformer(dropout=0.0))
    _same(_train(VectorizedBackend(), net, _stage(), [0, 1, 3]), _train(LoopBackend(), net, _stage(), [0, 1, 3]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
            r"layer '1' \(BatchNorm1d\) mixes",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 3)), r"layer '1' \(Dropout\) is random"),
        (lambda: _Transformer(dropout=0.1), r"layer 'layer.self_attn' \(MultiheadAttention\) is random"),
    ],
)
def test_stack_refuses_what_it_cannot_do_and_the_automatic_choice_loops(
    kind: Callable[[], nn.Module], message: str
) -> None:
    net = network(kind)
    with pytest.raises(ValueError, match=message):
        _train(VectorizedBackend(), net, _stage(), [0, 1])
    automatic = AutomaticBackend()
    _same(_train(automatic, net, _stage(), [1, 3]), _train(LoopBackend(), net, _stage(), [1, 3]), rtol=0, atol=0)
    assert automatic.choice is None


class _OwnWay(nn.Module):
    """A network that can't be stacked, and no layer of it says so."""

    def __init__(self, random: bool) -> None:
        super().__init__()
        self.random, self.layer = random, nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.random:
            inputs = nn.functional.dropout(inputs, 0.3, self.training)
        elif inputs.sum() > 0:
            inputs = -inputs
        return self.layer(inputs)


@pytest.mark.parametrize("random", [True, False])
def test_the_automatic_choice_loops_where_stacking_fails(random: bool) -> None:
    net, automatic = network(lambda: _OwnWay(random)), AutomaticBackend()
    with pytest.raises(RuntimeError, match="vmap"):
        _train(VectorizedBackend(), net, _stage(), [0, 1])
    for _ in range(2):
        _same(_train(automatic, net, _stage(), [1, 3]), _train(LoopBackend(), net, _stage(), [1, 3]), rtol=0, atol=0)
    assert automatic.choice == "loop"


def test_stack_refuses_random_data() -> None:
    net, client = network(), federation().clients[0]
    client.random = True
    with pytest.raises(ValueError, match="the data are augmented at random"):
        VectorizedBackend().train(net, ModelLayout.of(net), _stage(), _start(net, 1), [client], [0])


def test_automatic_choice_is_measured_once_and_restored() -> None:
    backend, net = AutomaticBackend(), network()
    result = _train(backend, net, _stage(), [0, 1, 2, 3])
    assert set(backend.trial_seconds) == {"loop", "vectorized"}
    clearly = backend.trial_seconds["vectorized"] < 0.9 * backend.trial_seconds["loop"]
    assert backend.choice == ("vectorized" if clearly else "loop")
    _same(result, _train(LoopBackend(), net, _stage(), [0, 1, 2, 3]))
    other = AutomaticBackend()
    other.load_state_dict({"choice": "loop"})
    _same(_train(other, net, _stage(), [0, 1]), _train(LoopBackend(), net, _stage(), [0, 1]), rtol=0, atol=0)
    assert other.trial_seconds == {}
    assert other.state_dict() == {"choice": "loop"}


@pytest.mark.parametrize("size", [1, 4, 5, 6, 23])
def test_each_epoch_sees_each_example_once(size: int) -> None:
    stage = _stage(epochs=3)
    order = batch_order(size, stage, 9)
    expected = orders(size, 3, 9)
    assert [batch.tolist() for batch in order] == [batch.tolist() for batch in expected]
    table = batch_table(size, min(BATCH, size), stage, 9)
    assert [row[row >= 0].tolist() for row in table] == [batch.tolist() for batch in expected]


def test_bf16_autocast_does_not_keep_old_weights() -> None:
    net = network().float()
    data = [ToyClient(client.inputs.float(), client.labels) for client in federation().clients]
    start = Models(_start(net, 4).weights.float(), torch.zeros(4, 0))
    arguments = (net, ModelLayout.of(net), _stage(epochs=4), start, data, [1, 2, 3, 4])
    exact = LoopBackend().train(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        for backend in (LoopBackend(), VectorizedBackend()):
            rough = backend.train(*arguments)
            assert rough.models.weights.dtype == torch.float32
            torch.testing.assert_close(rough.loss, exact.loss, rtol=0.02, atol=0.02)
            assert not torch.equal(rough.loss, exact.loss)


def test_chunk_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="chunk_size=0 must be at least 1"):
        VectorizedBackend(0)
