"""Training on associative recall, which lives on attention alone: codecs learn what eager learns."""

from functools import partial

import pytest
import torch

from lit_methods.softmax_approximation import Codec, TopK, approximation, as_codec
from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.attachment import Attachment
from tests.softmax_approximation.recall import RecallModel, recall_accuracy, recall_batch, recall_loss

SEEDS, STEPS = (0, 1, 2), 600
pytestmark = pytest.mark.slow


def _learned(codec: str | Codec | None, seed: int) -> float:
    """Accuracy after at most ``STEPS`` steps; fewer once the loss says that all is learned."""
    torch.manual_seed(seed)
    model, generator = RecallModel(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    attachment = None if codec is None else Attachment(model, Approximation(as_codec(codec)))
    for _ in range(STEPS):
        loss = recall_loss(model, *recall_batch(64, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 5e-3:
            break
    if attachment is not None:
        attachment.remove()
    return recall_accuracy(model)


@pytest.fixture(scope="module")
def eager() -> list[float]:
    return [_learned(None, seed) for seed in SEEDS]


@pytest.mark.parametrize("codec", ["log8", "log4", "paper"])
def test_codecs_learn_what_eager_learns(codec: str, eager: list[float]) -> None:
    found = [_learned(codec, seed) for seed in SEEDS]
    print(f"\neager {eager}, {codec} {found}")
    assert min(eager) > 0.95
    assert sum(found) / len(SEEDS) >= sum(eager) / len(SEEDS) - 0.01


def test_a_tail_of_zeros_fails_and_the_exact_row_constant_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = TopK(0.1, tail="zero", dtype=torch.float32)
    without = partial(approximation.softmax_attention, exact_row_constant=False)
    with monkeypatch.context() as patch:
        patch.setattr(approximation, "softmax_attention", without)
        failed = _learned(cut, 0)
    mended = _learned(cut, 0)
    print(f"\ntop 10% and zeros: {failed}; with the exact row constant {mended}")
    assert failed < 0.5
    assert mended > 0.9
