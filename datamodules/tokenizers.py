"""Tokenizers of text datamodules: any of Hugging Face, or words counted on the training set."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_word_tokenizer(
    texts: Iterable[str], max_vocab_size: int = 10_000, min_frequency: int = 2
) -> "PreTrainedTokenizerBase":
    """A word-level tokenizer whose vocabulary is counted on some texts.

    Words are runs of letters and digits in lower case; each run of punctuation is a word too. A text becomes
    `[CLS] words [SEP]`, so that none is empty. Ids 0 to 4 are `[PAD] [UNK] [CLS] [SEP] [MASK]`, and words follow by
    falling frequency, equal ones in alphabetical order.

    Args:
        texts: The texts to count on; the training set alone, lest the vocabulary tell of the others.
        max_vocab_size: Most entries, special tokens included.
        min_frequency: Rarer words become `[UNK]`.

    Returns:
        A Hugging Face tokenizer that saves, loads and pads as others do.

    Raises:
        ValueError: If `max_vocab_size` leaves no room for a word, or `min_frequency` is below 1.
    """
    if max_vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"max_vocab_size={max_vocab_size} must exceed the {len(SPECIAL_TOKENS)} special tokens.")
    if min_frequency < 1:
        raise ValueError(f"min_frequency={min_frequency} must be at least 1.")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS["unk_token"]))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS.values()),
    )
    words.train_from_iterator(texts, trainer)
    ends = [SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]]
    words.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}",
        pair=f"{ends[0]} $A {ends[1]} $B:1 {ends[1]}:1",
        special_tokens=[(token, words.token_to_id(token)) for token in ends],
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL_TOKENS)  # type: ignore[no-untyped-call]  # transformers does not type it


def load_tokenizer(tokenizer: "PreTrainedTokenizerBase | str | Path") -> "PreTrainedTokenizerBase":
    """A tokenizer that can pad, from itself or from what `AutoTokenizer.from_pretrained` reads.

    Args:
        tokenizer: A Hugging Face tokenizer, the name of one on the hub, or the folder of a saved one.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it has no padding token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    found = AutoTokenizer.from_pretrained(str(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer
    if not isinstance(found, PreTrainedTokenizerBase):
        raise TypeError(
            f"tokenizer={type(found).__name__} is no Hugging Face tokenizer; wrap a tokenizers.Tokenizer as "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=..., pad_token=...), or pass a name or folder."
        )
    if found.pad_token_id is None:
        raise ValueError(
            f"tokenizer={found.name_or_path or type(found).__name__!r} has no padding token; "
            "set tokenizer.pad_token = tokenizer.eos_token first."
        )
    return found
