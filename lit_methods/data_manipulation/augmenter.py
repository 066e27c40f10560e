"""The augmenter: a masked language model that knows the label and proposes words for masked places (Section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_methods.errors import check_above, check_at_least


class Proposal(NamedTuple):
    """The random part of one variant of each text, so that it can be drawn once and evaluated again.

    Attributes:
        masked: Places that are proposed anew, bool `(B, T)`; M of them are true.
        noise: Gumbel noise of each, `(M, V)`.
    """

    masked: Tensor
    noise: Tensor


class MaskedLMAugmenter(nn.Module):
    """Proposes words for random places of a text, given its label: `g_phi(x | x*, y)` of the paper.

    The label enters by the token-type table, as in conditional BERT (Wu et al. 2018): each real token has the label as
    its segment. The table is replaced by a fresh one unless it has one row per class. A model without segments gets a
    learned label embedding as a first token instead.

    Args:
        num_classes: Number C of labels.
        masked_lm: A Hugging Face masked language model, or the name or folder of one for
            `AutoModelForMaskedLM.from_pretrained`; None for a small BERT with random weights.
        vocab_size: Size V of the vocabulary of the small BERT.
        mask_token_id: Id of the mask token.
        special_token_ids: Ids of tokens that stay as they are, such as padding, start and end.
        mask_ratio: Part of a text's tokens, special ones included, that is proposed anew.
        min_masked: Least number of proposed tokens, where the text has that many.
        temperature: Of the Gumbel softmax.
        hidden_size: Width of the small BERT.
        num_layers: Layers of the small BERT.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If `masked_lm` gives no logits over a vocabulary.
    """

    special_token_ids: Tensor
    label_embedding: nn.Embedding | None

    def __init__(
        self,
        num_classes: int,
        masked_lm: nn.Module | str | Path | None = None,
        vocab_size: int = 10_000,
        mask_token_id: int = 4,
        special_token_ids: Sequence[int] = (0, 1, 2, 3, 4),
        mask_ratio: float = 1 / 7,
        min_masked: int = 2,
        temperature: float = 1.0,
        hidden_size: int = 64,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        check_at_least("num_classes", num_classes, 2)
        check_at_least("min_masked", min_masked, 1)
        if not 0 < mask_ratio <= 1:
            raise ValueError(f"mask_ratio={mask_ratio} must lie in (0, 1].")
        check_above("temperature", temperature)
        model: Any = _language_model(masked_lm, vocab_size, hidden_size, num_layers)
        self.masked_lm: Any = model
        self.num_classes, self.mask_token_id = num_classes, mask_token_id
        self.mask_ratio, self.min_masked, self.temperature = mask_ratio, min_masked, temperature
        self.register_buffer("special_token_ids", torch.tensor(list(special_token_ids)), persistent=False)
        self.segments = self._inject_segments()
        self.label_embedding = None
        if not self.segments:
            width = int(model.get_input_embeddings().embedding_dim)
            self.label_embedding = nn.Embedding(num_classes, width)
            nn.init.normal_(self.label_embedding.weight, std=0.02)

    def _inject_segments(self) -> bool:
        """Makes the token-type table the label table; False where there is none."""
        for module in self.masked_lm.modules():
            table = getattr(module, "token_type_embeddings", None)
            if isinstance(table, nn.Embedding):
                if table.num_embeddings != self.num_classes:
                    module.token_type_embeddings = nn.Embedding(self.num_classes, table.embedding_dim)
                    nn.init.normal_(module.token_type_embeddings.weight, std=0.02)
                    if hasattr(self.masked_lm, "config"):
                        self.masked_lm.config.type_vocab_size = self.num_classes
                return True
        return False

    @property
    def vocab_size(self) -> int:
        """Size V of the vocabulary."""
        size: int = self.masked_lm.get_input_embeddings().num_embeddings
        return size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        """Logits over the vocabulary at some places.

        Args:
            input_ids: Tokens `(B, T)`.
            attention_mask: 1 for real tokens, `(B, T)`.
            labels: Classes `(B,)`.
            places: Where logits are wanted, bool `(B, T)`; M of them are true.

        Returns:
            `(M, V)`, row by row.
        """
        if self.label_embedding is None:
            inputs = {"input_ids": input_ids, "token_type_ids": labels[:, None] * attention_mask}
        else:
            words = self.masked_lm.get_input_embeddings()(input_ids)
            inputs = {"inputs_embeds": torch.cat([self.label_embedding(labels)[:, None], words], dim=1)}
            attention_mask = nn.functional.pad(attention_mask, (1, 0), value=1)
            places = nn.functional.pad(places, (1, 0), value=False)
        head, base = getattr(self.masked_lm, "cls", None), getattr(self.masked_lm, "base_model", self.masked_lm)
        if head is not None and base is not self.masked_lm:
            hidden = base(**inputs, attention_mask=attention_mask).last_hidden_state
            logits: Tensor = head(hidden[places])  # the vocabulary at M places instead of B·T
            return logits
        found: Tensor = self.masked_lm(**inputs, attention_mask=attention_mask).logits[places]
        return found

    def draw(self, input_ids: Tensor, attention_mask: Tensor, generator: torch.Generator) -> Proposal:
        """Draws the places of one variant of each text, and the Gumbel noise there.

        Args:
            input_ids: Tokens `(B, T)`.
            attention_mask: 1 for real tokens, `(B, T)`.
            generator: On the CPU; the global random state is left alone.

        Returns:
            The proposal, on the device of the tokens.
        """
        free = attention_mask.bool() & ~torch.isin(input_ids, self.special_token_ids)
        wanted = (attention_mask.sum(1) * self.mask_ratio + 1e-6).long().clamp(min=self.min_masked)
        order = torch.rand(input_ids.shape, generator=generator).to(input_ids.device).masked_fill(~free, 2.0)
        rank = order.argsort(dim=1).argsort(dim=1)
        masked = free & (rank < wanted[:, None])
        uniform = torch.rand(int(masked.sum()), self.vocab_size, generator=generator).clamp_(1e-20, 1 - 1e-7)
        return Proposal(masked, (-(-uniform.log()).log()).to(input_ids.device))

    def propose(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, proposal: Proposal, hard: bool = False
    ) -> Tensor:
        """Relaxed words at the masked places (Gumbel softmax), differentiable by the augmenter's parameters.

        Args:
            input_ids: Tokens `(B, T)`.
            attention_mask: 1 for real tokens, `(B, T)`.
            labels: Classes `(B,)`.
            proposal: Of :meth:`draw`, for these texts.
            hard: One-hot words, with the gradient of the relaxed ones.

        Returns:
            Probabilities `(M, V)`.
        """
        hidden = input_ids.masked_fill(proposal.masked, self.mask_token_id)
        logits = self(hidden, attention_mask, labels, proposal.masked)
        soft: Tensor = ((logits.float() + proposal.noise) / self.temperature).softmax(-1)
        if not hard:
            return soft
        sharp = nn.functional.one_hot(soft.argmax(-1), self.vocab_size).to(soft)
        straight: Tensor = sharp + soft - soft.detach()
        return straight


def _language_model(given: nn.Module | str | Path | None, vocab_size: int, width: int, layers: int) -> nn.Module:
    from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

    found: Any = given
    if given is None:
        found = BertForMaskedLM(
            BertConfig(
                vocab_size=vocab_size,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=max(1, width // 32),
                intermediate_size=4 * width,
            )
        )
    elif isinstance(given, str | Path):
        found = AutoModelForMaskedLM.from_pretrained(str(given))
    if not isinstance(found, nn.Module) or not hasattr(found, "get_input_embeddings"):
        raise TypeError(
            f"masked_lm={type(given).__name__} is no masked language model of Hugging Face. Pass one, or the name or"
            " folder of one."
        )
    return found
