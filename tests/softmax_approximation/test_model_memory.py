"""What the softmax attention of whole models keeps for backward, measured; run with -s to see the figures."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_methods.softmax_approximation.meters import saved_bytes
from tests.softmax_approximation.models import VOCABULARY, approximated, make

LENGTH, FACTOR = 256, 6.2
DROPOUT = {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}


def _bert() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = make("bert", hidden_size=64, **DROPOUT)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (2, LENGTH), generator=generator)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, -40:] = 0
    return model, lambda: model(input_ids=ids, attention_mask=mask).logits


def _encoder() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(2, LENGTH, 64)
    padding = torch.zeros(2, LENGTH, dtype=torch.bool)
    padding[1, -40:] = True
    return model, lambda: model(x, src_key_padding_mask=padding)


def _own() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 192), torch.randn(2, LENGTH, 64)

    def call() -> Tensor:
        query, key, value = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in model(x).chunk(3, -1))
        return nn.functional.dropout(torch.softmax(query @ key.mT / 4, -1), 0.1) @ value

    return model, call


@pytest.mark.parametrize(
    ("make_model", "codec"),
    [(_bert, "log4"), (_bert, "recompute"), (_encoder, "log4"), (_encoder, "recompute"), (_own, "log4")],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_softmax_attention_keeps_a_sixth(
    make_model: Callable[[], tuple[nn.Module, Callable[[], Tensor]]], codec: str
) -> None:
    model, call = make_model()
    whole = saved_bytes(call, exclude=[model])

    def step() -> Tensor:
        with approximated(model, codec):
            return call()

    now = saved_bytes(step, exclude=[model])
    with approximated(model, codec, record=True) as attachment:
        output = call()
        kept = attachment.kept()
    coverage = attachment.approximation.coverage
    del output
    print(
        f"\n{make_model.__name__[1:]} {codec}: softmax attention {coverage.before} -> {coverage.after} bytes"
        f" ({coverage.before / coverage.after:.1f} times), whole model {whole} -> {now} ({whole / now:.2f} times)"
    )
    assert coverage.before >= FACTOR * coverage.after
    # the report is what happened: counted call by call it agrees with the whole graph
    assert kept == now
    assert whole - now == pytest.approx(coverage.before - coverage.after, rel=0.05)
