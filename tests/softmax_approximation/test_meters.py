import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_methods.softmax_approximation.meters import ErrorMeter, SavedBytes, paused, saved_bytes


def test_a_storage_counts_once() -> None:
    x = torch.randn(10, 10, requires_grad=True)
    assert saved_bytes(lambda: (x * x, x[0] * x[1])) == x.nbytes
    assert saved_bytes(lambda: x * x, exclude=[x]) == 0


def test_only_what_backward_needs_counts() -> None:
    x = torch.randn(8, 16, requires_grad=True)
    layer = nn.Linear(16, 32)
    assert saved_bytes(lambda: x + 1) == 0
    assert saved_bytes(lambda: layer(x).exp(), exclude=[layer, x]) == 8 * 32 * 4
    assert saved_bytes(lambda: layer(x).exp()) == 8 * 32 * 4 + x.nbytes + layer.weight.nbytes


def test_a_freed_graph_does_not_count() -> None:
    x = torch.randn(64, requires_grad=True)

    def twice() -> torch.Tensor:
        (x * 2).exp().sum().backward()
        return (x * 3).exp()

    assert saved_bytes(twice, exclude=[x]) == 64 * 4


def test_attention_is_counted_by_hand() -> None:
    query, key, value = (torch.randn(2, 3, 20, 4, requires_grad=True) for _ in range(3))
    scores = 2 * 3 * 20 * 20 * 4

    def attend() -> torch.Tensor:
        return F.dropout(torch.softmax(query @ key.mT, -1), 0.1) @ value

    weights_noise_and_product = 3 * scores
    assert saved_bytes(attend, exclude=[query, key, value]) == weights_noise_and_product


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch says that CSR is in beta
def test_sparse_tensors_count_by_their_parts(compressed: bool) -> None:
    places, values = torch.arange(10), torch.ones(10)
    if compressed:
        matrix, indices = torch.sparse_csr_tensor(torch.arange(11), places, values, (10, 10)), 8 * (11 + 10)
    else:
        matrix = torch.sparse_coo_tensor(torch.stack([places, places]), values, (10, 10), is_coalesced=True)
        indices = 8 * 2 * 10
    dense = torch.randn(10, 3, requires_grad=True)
    assert saved_bytes(lambda: torch.sparse.mm(matrix, dense)) == 4 * 10 + indices
    assert saved_bytes(lambda: torch.sparse.mm(matrix, dense), exclude=[matrix]) == 0


def test_meters_nest_and_can_be_paused() -> None:
    x = torch.randn(64, requires_grad=True)
    with SavedBytes() as outer:
        first = x.exp()
        with SavedBytes() as inner:
            second = x.tanh()
        with paused(), SavedBytes() as apart:
            third = x.sigmoid()
    assert (outer.nbytes([x]), inner.nbytes([x]), apart.nbytes([x])) == (512, 256, 256)
    del first, second, third
    assert outer.nbytes() == inner.nbytes() == apart.nbytes() == 0


def test_checkpointing_keeps_its_inputs_only() -> None:
    x = torch.randn(64, requires_grad=True)
    y = x * 1
    assert saved_bytes(lambda: checkpoint(lambda z: z.exp().exp().exp(), y, use_reentrant=False)) == y.nbytes


def test_gradients_are_unchanged() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    twin, x = copy.deepcopy(layer), torch.randn(2, 5, 16)
    torch.manual_seed(1)
    layer(x).sum().backward()
    torch.manual_seed(1)
    with SavedBytes():
        loss = twin(x).sum()
    loss.backward()
    for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_tensor_written_to_is_still_refused() -> None:
    x = torch.randn(4, requires_grad=True)
    with SavedBytes():
        hidden = x * 1
        loss = (hidden * hidden).sum()
    hidden.detach().add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_figures_are_those_of_one_long_vector() -> None:
    exact = [torch.randn(3, 4), torch.randn(5)]
    guess = [t + 0.1 * torch.randn_like(t) for t in exact]
    meter = ErrorMeter()
    for pair in zip(exact, guess, strict=True):
        meter.add([pair[0]], [pair[1]])
    long, other = (torch.cat([t.flatten() for t in ts]).double() for ts in (exact, guess))
    assert meter.relative_error == pytest.approx(float((other - long).norm() / long.norm()), rel=1e-9)
    assert meter.cosine == pytest.approx(float(F.cosine_similarity(long, other, dim=0)), rel=1e-9)


def test_equal_gradients_and_none_at_all() -> None:
    meter = ErrorMeter()
    assert math.isnan(meter.relative_error)
    assert math.isnan(meter.cosine)
    assert math.isnan(meter.kept_mass)
    gradient = torch.randn(7)
    meter.add([gradient], [gradient])
    assert meter.relative_error == 0
    assert meter.cosine == pytest.approx(1)
    meter.reset()
    assert math.isnan(meter.relative_error)


def test_kept_mass_of_a_cut_row() -> None:
    meter = ErrorMeter()
    meter.add_weights(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.5, 0.25, 0.25]]))
    assert meter.kept_mass == pytest.approx(0.95)
