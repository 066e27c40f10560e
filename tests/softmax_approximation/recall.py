"""Associative recall: pairs of keys and values, then keys whose values are asked for (method card, section 6.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAIRS, QUERIES, SYMBOLS, SIZE = 8, 8, 8, 32
COMMON = 3.0
LENGTH = 2 * PAIRS + QUERIES


def recall_batch(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, T)``, keys below ``SYMBOLS`` and values above, and the values asked for ``(B, QUERIES)``."""
    keys = torch.rand(batch, SYMBOLS, generator=generator).argsort(-1)[:, :PAIRS]
    values = torch.randint(SYMBOLS, (batch, PAIRS), generator=generator)
    asked = torch.randint(PAIRS, (batch, QUERIES), generator=generator)
    pairs = torch.stack([keys, values + SYMBOLS], -1).flatten(1)
    return torch.cat([pairs, keys.gather(1, asked)], 1), values.gather(1, asked)


class RecallModel(nn.Module):
    """Two causal layers of attention with learned positions; nothing else can look back."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(2 * SYMBOLS, SIZE), nn.Embedding(LENGTH, SIZE)
        layer = nn.TransformerEncoderLayer(SIZE, 4, 2 * SIZE, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(SIZE, SYMBOLS)
        with torch.no_grad():  # values share a component, as those of trained models do
            for layer in self.layers.layers:
                layer.self_attn.in_proj_bias[2 * SIZE :] = COMMON

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions.weight
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.head(self.layers(hidden, mask=mask, is_causal=True))[:, -QUERIES:]


def recall_loss(model: nn.Module, tokens: Tensor, values: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), values.flatten())


def recall_accuracy(model: nn.Module) -> float:
    tokens, values = recall_batch(512, torch.Generator().manual_seed(99))
    with torch.no_grad():
        return float((model.eval()(tokens).argmax(-1) == values).float().mean())
