"""The augmenter alone: where it masks, what it proposes, and its gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_methods.data_manipulation import (
    DoubleBackward,
    FiniteDifference,
    Hypergradient,
    MaskedLMAugmenter,
    PlainGradient,
    Problem,
    TextClassifier,
    TextNetwork,
)
from lit_methods.data_manipulation.soft_words import SoftEmbedding, SoftWords, word_embedding

V, SPECIAL = 40, (0, 1, 2, 3, 4)


def _augmenter(classes: int = 3, **options: Any) -> MaskedLMAugmenter:
    torch.manual_seed(0)
    return MaskedLMAugmenter(classes, vocab_size=V, hidden_size=32, num_layers=2, **options).eval()


def _texts(lengths: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    attention = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.cat([torch.tensor([2]), torch.randint(5, V, (length - 2,)), torch.tensor([3])])
        attention[row, :length] = 1
    return ids, attention


def test_places_are_inner_and_as_many_as_the_paper_masks() -> None:
    lengths = [2, 3, 4, 10, 14, 21, 30]
    ids, attention = _texts(lengths)
    proposal = _augmenter().draw(ids, attention, torch.Generator().manual_seed(0))
    expected = [min(max(length // 7, 2), length - 2) for length in lengths]
    assert proposal.masked.sum(1).tolist() == expected
    assert not (proposal.masked & torch.isin(ids, torch.tensor(SPECIAL))).any()
    assert proposal.noise.shape == (sum(expected), V)
    assert proposal.noise.isfinite().all()


def test_draws_depend_on_their_generator_alone() -> None:
    ids, attention = _texts([9, 12])
    augmenter, state = _augmenter(), torch.get_rng_state()
    first, again, other = (augmenter.draw(ids, attention, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.masked, again.masked)
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.masked, other.masked)
    assert torch.equal(torch.get_rng_state(), state)


def test_gumbel_softmax_samples_the_models_words() -> None:
    """The most likely relaxed word is a sample of the softmax (Gumbel-max)."""
    augmenter = _augmenter()
    ids, attention = _texts([4])
    labels, generator = torch.tensor([1]), torch.Generator().manual_seed(0)
    counts = torch.zeros(V)
    places = torch.tensor([[False, True, True, False]])
    hidden = ids.masked_fill(places, 4)
    expected = augmenter(hidden, attention, labels, places).softmax(-1)[0].detach()
    for _ in range(60):
        proposals = augmenter.draw(ids.expand(40, -1), attention.expand(40, -1), generator)
        with torch.no_grad():
            soft = augmenter.propose(ids.expand(40, -1), attention.expand(40, -1), labels.expand(40), proposals)
        torch.testing.assert_close(soft.sum(-1), torch.ones(80))
        counts += torch.bincount(soft[::2].argmax(-1), minlength=V)
    deviation = (counts - 2400 * expected) / (2400 * expected * (1 - expected)).sqrt()
    assert deviation.abs().max() < 5


def test_the_label_is_in_the_proposal() -> None:
    augmenter = _augmenter()
    ids, attention = _texts([8])
    proposal = augmenter.draw(ids, attention, torch.Generator())
    found = [augmenter.propose(ids, attention, torch.tensor([label]), proposal) for label in range(3)]
    assert not torch.allclose(found[0], found[1])
    assert augmenter.masked_lm.bert.embeddings.token_type_embeddings.num_embeddings == 3


def test_a_table_of_as_many_rows_as_labels_is_kept() -> None:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    table = model.bert.embeddings.token_type_embeddings
    assert MaskedLMAugmenter(2, model).masked_lm.bert.embeddings.token_type_embeddings is table


def test_a_model_without_segments_gets_a_label_token() -> None:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=V, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    augmenter = MaskedLMAugmenter(3, DistilBertForMaskedLM(config)).eval()
    ids, attention = _texts([9, 6])
    places = torch.zeros_like(ids, dtype=torch.bool)
    places[0, 3] = places[1, 2] = True
    first = augmenter(ids, attention, torch.tensor([0, 0]), places)
    second = augmenter(ids, attention, torch.tensor([2, 0]), places)
    assert first.shape == (2, V)
    assert not torch.allclose(first[0], second[0])
    torch.testing.assert_close(first[1], second[1])


def test_logits_at_places_are_the_models_own() -> None:
    augmenter = _augmenter()
    ids, attention = _texts([9, 6])
    places = torch.rand(ids.shape) < 0.3
    labels = torch.tensor([0, 2])
    whole = augmenter.masked_lm(
        input_ids=ids, attention_mask=attention, token_type_ids=labels[:, None] * attention
    ).logits
    torch.testing.assert_close(augmenter(ids, attention, labels, places), whole[places])


def test_hard_words_are_one_hot_with_the_relaxed_gradient() -> None:
    augmenter = _augmenter()
    ids, attention = _texts([9])
    proposal, labels, target = augmenter.draw(ids, attention, torch.Generator()), torch.tensor([0]), torch.randn(V)
    gradients = []
    for hard in (False, True):
        words = augmenter.propose(ids, attention, labels, proposal, hard)
        gradients.append(torch.autograd.grad((words @ target).sum(), augmenter.masked_lm.cls.predictions.bias)[0])
    assert sorted(words.detach().flatten().round(decimals=5).unique().tolist()) == [0.0, 1.0]
    torch.testing.assert_close(*gradients)


def test_one_hot_words_are_the_tokens_themselves() -> None:
    module = TextClassifier(TextNetwork(3, vocab_size=V, hidden_size=32, num_layers=1), 3).eval()
    ids, attention = _texts([9, 6])
    batch = {"input_ids": ids, "attention_mask": attention, "label": torch.tensor([0, 1])}
    plain = module(batch)
    places = torch.rand(ids.shape) < 0.5
    soft = SoftEmbedding(word_embedding(module, V))
    soft.known.append(SoftWords(ids, places, nn.functional.one_hot(ids[places], V).float()))
    torch.testing.assert_close(module(batch), plain)
    soft.known.append(SoftWords(ids, places, torch.full((int(places.sum()), V), 1 / V)))
    assert not torch.allclose(module(batch), plain)
    torch.testing.assert_close(module({**batch, "input_ids": ids.clone()}), plain)
    soft.remove()
    torch.testing.assert_close(module(batch), plain)


def test_every_parameter_learns_and_differences_equal_the_unrolled_gradient() -> None:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, num_labels=3, attn_implementation="eager")
    augmenter = MaskedLMAugmenter(3, BertForMaskedLM(config)).eval().double()
    network = BertForSequenceClassification(config).eval().double()
    ids, attention = _texts([9, 12, 7])
    labels = torch.tensor([0, 1, 2])
    proposal = augmenter.draw(ids, attention, torch.Generator())
    proposal = proposal._replace(noise=proposal.noise.double())
    table = network.get_input_embeddings()

    def loss() -> Tensor:
        words = augmenter.propose(ids, attention, labels, proposal).double()
        mixed = table(ids).masked_scatter(proposal.masked[..., None], words @ table.weight)
        logits = network(inputs_embeds=mixed, attention_mask=attention).logits
        return nn.functional.cross_entropy(logits, labels)

    def val_loss() -> Tensor:
        return nn.functional.cross_entropy(network(input_ids=ids.flip(1)).logits, labels)

    problem = Problem(network, val_loss, val_loss, torch.optim.SGD(network.parameters(), lr=0.1).param_groups)
    variables = list(augmenter.parameters())
    exact, _ = Hypergradient(DoubleBackward(), PlainGradient()).variable_gradient(problem, loss, variables)
    # the relaxed words are float32 inside, whose rounding a displacement of 1e-5 would drown in
    found, _ = Hypergradient(FiniteDifference(1e-3), PlainGradient()).variable_gradient(problem, loss, variables)
    size = torch.cat([g.flatten() for g in exact]).norm()
    assert torch.cat([(a - b).flatten() for a, b in zip(found, exact, strict=True)]).norm() < 1e-2 * size
    idle = {name for (name, _), g in zip(augmenter.named_parameters(), exact, strict=True) if not g.any()}
    assert idle <= {"masked_lm.bert.embeddings.word_embeddings.weight"}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: _augmenter(1), ValueError, "num_classes=1 must be at least 2"),
        (lambda: _augmenter(mask_ratio=0.0), ValueError, r"mask_ratio=0.0 must lie in \(0, 1\]"),
        (lambda: MaskedLMAugmenter(2, nn.Linear(2, 2)), TypeError, "masked_lm=Linear is no masked language model"),
        (
            lambda: word_embedding(nn.Sequential(nn.Embedding(5, 2)), V),
            ValueError,
            "has no single word embedding of the augmenter's 40 words; its embeddings have {'0': 5}",
        ),
    ],
)
def test_bad_arguments_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
