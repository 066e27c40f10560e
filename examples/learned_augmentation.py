"""Variants of sentences that learn to keep the label: `LearnedAugmentation` in a project of its own.

Run it: `python examples/learned_augmentation.py`.
"""

from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_methods.callbacks import LearnedAugmentation
from lit_methods.data_manipulation import MaskedLMAugmenter

WORDS, MASK, LENGTH = 20, 60, 12  # 20 words of praise, 20 of blame, 20 of neither, and the mask


class ReviewClassifier(LightningModule):
    """A bag of embedded words; its batches are those of any Hugging Face tokenizer, with a label."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(MASK + 1, 16), nn.Linear(16, 2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy."""
        return self.per_sample_loss(batch).mean()

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of each sentence, which the augmenter's step asks for."""
        return nn.functional.cross_entropy(
            self.head(self.words(batch["input_ids"]).mean(1)), batch["label"], reduction="none"
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.3)


class WordTable(nn.Module):
    """The smallest masked language model: words by the label alone. In earnest, name a pretrained BERT instead."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(MASK + 1, 2)
        self.token_type_embeddings = nn.Embedding(2, MASK + 1)
        nn.init.zeros_(self.token_type_embeddings.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of words."""
        return self.word_embeddings

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Logits over the vocabulary."""
        return SimpleNamespace(logits=self.token_type_embeddings(token_type_ids))


def reviews(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences of 12 words, of which four praise or blame, most of them as the label says."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for i in range(count):
        label = i % 2
        agrees = torch.rand(4, generator=generator) < 0.8
        opinion = torch.where(agrees, label, 1 - label) * WORDS + torch.randint(WORDS, (4,), generator=generator)
        ids = torch.cat([opinion, 2 * WORDS + torch.randint(WORDS, (LENGTH - 4,), generator=generator)])
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": label})
    return rows


def misleading(augmenter: MaskedLMAugmenter) -> float:
    """Probability that the augmenter proposes a word of the other class."""
    table = augmenter.masked_lm.token_type_embeddings.weight.detach().softmax(-1)
    return float(table[0, WORDS : 2 * WORDS].sum() + table[1, :WORDS].sum()) / 2


def main() -> None:
    """Trains on 40 sentences and variants of them."""
    seed_everything(0, verbose=False)
    augmenter = MaskedLMAugmenter(2, WordTable(), mask_token_id=MASK, special_token_ids=[MASK], min_masked=3)
    augmentation = LearnedAugmentation(
        augmenter,
        val_dataloader=DataLoader(reviews(20, seed=1), batch_size=20),
        augmenter_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    )
    print(f"words of the other class before: {misleading(augmenter):.2f}")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=20, accelerator="cpu", enable_model_summary=False, callbacks=[augmentation], **quiet)
    trainer.fit(ReviewClassifier(), DataLoader(reviews(40, seed=0), batch_size=4, shuffle=True))
    print(f"words of the other class after: {misleading(augmenter):.2f}")


if __name__ == "__main__":
    main()
