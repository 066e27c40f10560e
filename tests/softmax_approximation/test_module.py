import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_methods import AttentionClassifier, AttentionTranslator
from lit_methods.softmax_approximation.networks import (
    HuggingFaceEncoder,
    TokenEmbedding,
    TransformerEncoder,
    TransformerSeq2Seq,
)
from tests.battery.trainers import toy_trainer
from tests.entries.softmax_approximation import ToyTexts, toy_encoder, toy_seq2seq
from tests.entries.toys import EXAMPLES, Parts
from tests.matrix import entry
from tests.softmax_approximation.models import make, tokens

BERT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def test_embedding_is_scaled_and_has_the_papers_positions() -> None:
    embedding = TokenEmbedding(10, 6, 5, dropout=0.0)
    found = embedding(torch.tensor([[3, 4, 5]])).detach()
    for position in range(3):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            for offset, value in enumerate((math.sin(angle), math.cos(angle))):
                component = 2 * pair + offset
                expected = math.sqrt(6) * embedding.tokens.weight[3 + position, component].item() + value
                assert float(found[0, position, component]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "encoder",
    [
        TransformerEncoder(50, 16, 2, 2, 32, dropout=0.0),
        HuggingFaceEncoder("bert", BERT),
        make("bert").bert,
    ],
    ids=["torch", "configured", "model of transformers"],
)
def test_padding_changes_no_prediction(encoder: nn.Module) -> None:
    module, batch = AttentionClassifier(encoder, 3).eval(), tokens()
    logits = module(batch["input_ids"], batch["attention_mask"])
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = module(batch["input_ids"][row : row + 1, :length], torch.ones(1, length, dtype=torch.long))
        torch.testing.assert_close(logits[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    other = batch["input_ids"].where(batch["attention_mask"] == 1, 7)
    torch.testing.assert_close(module(other, batch["attention_mask"]), logits, rtol=1e-4, atol=1e-5)


def test_pretrained_encoder_comes_from_a_folder(tmp_path: Path) -> None:
    model = make("bert").bert
    model.save_pretrained(tmp_path)
    encoder, batch = HuggingFaceEncoder(pretrained=str(tmp_path)).eval(), tokens()
    torch.testing.assert_close(encoder(**batch), model.eval()(**batch).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_translator_learns_to_copy(tmp_path: Path) -> None:
    """Targets that repeat the source are found by greedy search once the model has learnt them."""
    source = torch.randint(4, 10, (EXAMPLES, 2), generator=torch.Generator().manual_seed(1))
    target = torch.cat([torch.full((EXAMPLES, 1), 2), source, torch.full((EXAMPLES, 1), 3)], 1)
    data = ToyTexts(input_ids=source, attention_mask=torch.ones_like(source), target_ids=target)
    torch.manual_seed(1)
    network = TransformerSeq2Seq(10, 10, 32, 1, 4, 64, dropout=0.0, max_length=8)
    module = AttentionTranslator(network, max_length=8, optimizer=lambda params: torch.optim.Adam(params, lr=1e-2))
    trainer = toy_trainer(Parts(module, [], data), tmp_path, max_epochs=15)
    trainer.fit(module, datamodule=data)
    loss, perplexity = (float(trainer.callback_metrics[f"val/{name}"]) for name in ("loss", "perplexity"))
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-3)
    found = torch.cat(trainer.predict(module, datamodule=data))
    assert found.shape == (EXAMPLES, 8)
    assert (found[:, :4] == target).float().mean() > 0.9
    assert (found[:, 4:] == 0).float().mean() > 0.9


def test_translator_sees_no_later_token_and_counts_no_padding() -> None:
    module = AttentionTranslator(toy_seq2seq(), max_length=8).eval()
    batch = tokens(6)
    source, mask = batch["input_ids"] % 10, batch["attention_mask"]
    target = torch.tensor([[2, 5, 6, 7, 3], [2, 5, 3, 0, 0], [2, 8, 3, 0, 0]])
    logits = module(source, mask, target)
    torch.testing.assert_close(module(source, mask, target[:, :2]), logits[:, :2], rtol=1e-4, atol=1e-5)
    other = target.clone()
    other[:, 3:] = 9
    torch.testing.assert_close(module(source, mask, other)[:, :3], logits[:, :3], rtol=1e-4, atol=1e-5)
    _, _, loss = module._predicted({"input_ids": source, "attention_mask": mask, "target_ids": target})
    each = [
        F.cross_entropy(logits[row, position], target[row, position + 1])
        for row in range(3)
        for position in range(4)
        if target[row, position + 1] != 0
    ]
    assert len(each) == 8
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("make_module", "error", "sentence"),
    [
        (lambda: AttentionClassifier(toy_encoder(), 1), ValueError, "num_classes=1 must be at least 2"),
        (lambda: AttentionClassifier(nn.Identity(), 2), TypeError, "encoder=Identity tells its hidden size neither"),
        (lambda: AttentionTranslator(toy_seq2seq(), max_length=1), ValueError, "max_length=1 must be at least 2"),
        (lambda: TokenEmbedding(10, 5, 8), ValueError, "hidden_size=5 must be even"),
        (lambda: TokenEmbedding(0, 4, 8), ValueError, "vocab_size=0"),
        (lambda: HuggingFaceEncoder(), ValueError, "model_type=None and pretrained=None: give one"),
        (lambda: HuggingFaceEncoder("bert", pretrained="x"), ValueError, "model_type='bert' and pretrained='x'"),
        (lambda: HuggingFaceEncoder(pretrained="no/model"), FileNotFoundError, "fetch it once by `hf download no/mod"),
    ],
)
def test_bad_arguments(make_module: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make_module()


def test_text_that_is_too_long_is_refused() -> None:
    embedding = TokenEmbedding(10, 4, 3)
    with pytest.raises(ValueError, match="input_ids has 4 tokens, but max_length is 3"):
        embedding(torch.zeros(1, 4, dtype=torch.long))


def test_predictions_are_probabilities_without_labels(tmp_path: Path) -> None:
    parts = entry("AttentionClassifier").make(tmp_path, 1)
    batch = tokens(6)
    found: Tensor = parts.module.predict_step({key: value % 10 for key, value in batch.items()}, 0)
    torch.testing.assert_close(found.sum(-1), torch.ones(3))
