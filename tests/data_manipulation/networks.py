"""Small problems of each kind, in evaluation mode, with losses as functions of the parameters in force."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_methods.backbones import MLP, SmallCNN
from lit_methods.data_manipulation import Problem

cross_entropy = nn.functional.cross_entropy


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.lstm(inputs)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs).tanh()).tanh())


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.bag(inputs))


class TinyBert(nn.Module):
    """Attention by the eager implementation, which has second derivatives, or by the fused one."""

    def __init__(self, attention: str = "eager") -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=3,
            attn_implementation=attention,
        )
        self.bert = BertForSequenceClassification(config)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.bert(input_ids=inputs).logits


def _floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape)


def _tokens(vocabulary: int, length: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randint(vocabulary, (count, length))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "MLP": (lambda: MLP(4, [8, 8], 3), _floats(4)),
    "CNN with GroupNorm": (lambda: SmallCNN(1, 3, [4, 8], norm_groups=2), _floats(1, 8, 8)),
    "tiny BERT": (TinyBert, _tokens(50, 7)),
    "BatchNorm and Dropout": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        _floats(4),
    ),
    "LSTM": (Recurrent, _floats(5, 4)),
    "tied weights": (Tied, _floats(6)),
    "EmbeddingBag": (Bag, _tokens(20, 4)),
    "TransformerEncoderLayer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 3)),
        _floats(3, 8),
    ),
}


class Toy:
    """A network, a training batch of 6 and a validation batch of 4.

    Args:
        kind: Key of `NETWORKS`.
        dtype: Of the parameters.
        optimizer: Takes the parameters.
    """

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32, optimizer: Any = None) -> None:
        torch.manual_seed(3)
        make, draw = NETWORKS[kind]
        self.network = make().to(dtype).eval()
        self.optimizer = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.2)))(self.network.parameters())
        self.inputs, self.val_inputs = draw(6), draw(4)
        if self.inputs.is_floating_point():
            self.inputs, self.val_inputs = self.inputs.to(dtype), self.val_inputs.to(dtype)
        self.labels, self.val_labels = torch.randint(3, (6,)), torch.randint(3, (4,))
        self.weights = torch.rand(6, dtype=dtype) * 2

    def losses(self) -> Tensor:
        return cross_entropy(self.network(self.inputs), self.labels, reduction="none")

    def val_loss(self) -> Tensor:
        return cross_entropy(self.network(self.val_inputs), self.val_labels)

    def problem(self) -> Problem:
        return Problem(self.network, self.losses, self.val_loss, self.optimizer.param_groups)
