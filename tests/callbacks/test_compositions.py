"""Methods together: attention in less memory beside each of the others, on a Hugging Face encoder."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods import DataWeighting, SoftmaxApproximation, SpectralDistillation
from lit_methods.federated import spectral_divergence
from lit_methods.softmax_approximation.networks import HuggingFaceEncoder
from tests.callbacks.toys import CLASSES, private, toy_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:No validation dataloader",  # toys without validation, for every callback
    "ignore:You defined a .validation_step. but have no",
    "ignore:.*delta=",  # of sixteen examples
)
TEXTS, TOKENS, WORDS = 16, 5, 20
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Reader(LightningModule):
    """A BERT of somebody else's project."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = HuggingFaceEncoder("bert", {"vocab_size": WORDS, **BERT, **STILL})
        self.head = nn.Linear(8, CLASSES)
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.encoder(batch[0], torch.ones_like(batch[0]))
        return self.loss(self.head(hidden.mean(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def _loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(WORDS, (TEXTS, TOKENS), generator=generator)
    return DataLoader(TensorDataset(words, words[:, 0] % CLASSES, torch.arange(TEXTS)), 8)


def _fit(*callbacks: Any) -> Reader:
    module = Reader()
    torch.manual_seed(2)
    toy_trainer(*callbacks, max_epochs=2).fit(module, _loader())
    return module


def _weighting() -> DataWeighting:
    return DataWeighting(DataLoader(_loader().dataset, 4), criterion="loss", warmup_epochs=0)


OTHERS = {
    "privacy": lambda: private(max_grad_norm=0.5),
    "weighting": _weighting,
    "spectral distillation": lambda: SpectralDistillation(0.5),
}


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("other", OTHERS)
def test_exact_attention_in_less_memory_changes_nothing_of_the_other(other: str, first: bool) -> None:
    alone = _fit(OTHERS[other]())
    softmax, method = SoftmaxApproximation("recompute"), OTHERS[other]()
    both = _fit(*((softmax, method) if first else (method, softmax)))
    plain = _fit()
    for found, expected in zip(both.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone.head.weight, plain.head.weight, atol=1e-4)
    assert softmax.coverage is not None
    assert [row.route for row in softmax.coverage.rows.values()] == ["hugging face"]


def test_four_bits_change_each_a_little() -> None:
    for other in OTHERS.values():
        alone, both = _fit(other()), _fit(SoftmaxApproximation("log4"), other())
        away = max(
            float((found - expected).detach().abs().max())
            for found, expected in zip(both.parameters(), alone.parameters(), strict=True)
        )
        assert 0 < away < 0.05


def test_the_spectral_term_comes_after_the_noise_of_private_training() -> None:
    teacher, weight, rate = Reader(), 5.0, 0.2
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    moved = []
    for others in ([], [SpectralDistillation(weight, teacher)], [SpectralDistillation(weight, teacher)]):
        module, noise = Reader(), private(max_grad_norm=0.5, unsafe_seed=3)
        callbacks = [noise, *others] if len(moved) < 2 else [*others, noise]
        running = toy_trainer(*callbacks, max_epochs=1, limit_train_batches=1.0)
        torch.manual_seed(2)
        running.fit(module, DataLoader(_loader().dataset, TEXTS))
        assert running.global_step == 1
        moved.append({name: p.detach() for name, p in module.named_parameters()})
    student = Reader()
    kernels = {name: p for name, p in student.named_parameters() if p.ndim >= 2}
    told = [p.detach() for _, p in teacher.named_parameters() if p.ndim >= 2]
    term = torch.autograd.grad(weight * spectral_divergence(list(kernels.values()), told), list(kernels.values()))
    expected = dict(zip(kernels, term, strict=True))
    for with_term in moved[1:]:
        for name, alone in moved[0].items():
            torch.testing.assert_close(
                with_term[name] - alone,
                -rate * expected.get(name, torch.zeros(())).expand_as(alone),
                rtol=1e-3,
                atol=1e-6,
            )
    assert max(float(part.abs().max()) for part in term) > 1e-3


@pytest.mark.parametrize("private_first", [True, False])
def test_weights_learned_on_private_examples_are_refused(private_first: bool) -> None:
    callbacks = [private(max_grad_norm=0.5), _weighting()]
    with pytest.raises(MisconfigurationException, match=r"trains privately, but the look-ahead reads each training ex"):
        _fit(*(callbacks if private_first else reversed(callbacks)))


def test_weights_and_the_spectral_term_are_both_on() -> None:
    both, weighted, spectral = (
        _fit(*(make() for make in makers))
        for makers in (
            (_weighting, OTHERS["spectral distillation"]),
            (_weighting,),
            (OTHERS["spectral distillation"],),
        )
    )
    for alone in (weighted, spectral):
        assert not torch.allclose(both.head.weight, alone.head.weight, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_positions_of_each_text_are_those_of_the_model(kind: str) -> None:
    sizes = {"vocab_size": WORDS, **BERT, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "embedding_size": 8}
    encoder = HuggingFaceEncoder(kind, sizes).eval()
    words, seen = _loader().dataset.tensors[0], []
    embeddings = encoder.model.embeddings.position_embeddings
    handle = embeddings.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    found = encoder(words, torch.ones_like(words))
    handle.remove()
    expected = encoder.model(input_ids=words, attention_mask=torch.ones_like(words)).last_hidden_state
    assert torch.equal(found, expected)
    assert seen[0].shape == words.shape
