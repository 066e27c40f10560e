"""Text datamodules: padded batches, a vocabulary of the training set alone, and the docstring data."""

import ast
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_methods.datamodules import (
    DatasetNotFoundError,
    Degradation,
    DocstringDataModule,
    PaddingCollator,
    TextDataModule,
    TextDataset,
    train_word_tokenizer,
)
from lit_methods.datamodules import docstrings as source
from lit_methods.datamodules.splits import Split

WORDS = ("Ant bee, cat!", "bee cat", "cat", "ant ant cat dog")


class _Toy(TextDataModule):
    class_names = ("left", "right")

    def read(self, split: Split) -> tuple[list[str], Tensor] | None:
        if split == "validation":
            return None
        words = ["same", split] if split == "test" else ["same", "train"]
        texts = [" ".join([*words * (i % 3), f"word{i}", f"word{i}"]) for i in range(40)]
        return texts, torch.arange(40) % 2


def _ready(stage: str | None = None, **arguments: Any) -> _Toy:
    data = _Toy(**arguments)
    data.setup(stage)
    return data


@pytest.mark.parametrize(("side", "length"), [("right", None), ("left", None), ("right", 9), ("left", 9)])
def test_padding_equals_a_loop(side: str, length: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 50, (size,), generator=generator) for size in (3, 7, 1)]
    examples = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "label": torch.tensor(i), "index": i + 5}
        for i, row in enumerate(rows)
    ]
    batch = PaddingCollator(99, side, length)(examples)
    size = length or 7
    for i, row in enumerate(rows):
        fill = [99] * (size - len(row))
        assert batch["input_ids"][i].tolist() == (row.tolist() + fill if side == "right" else fill + row.tolist())
        assert batch["attention_mask"][i].tolist() == [int(token != 99) for token in batch["input_ids"][i]]
    assert batch["label"].tolist() == [0, 1, 2]
    assert batch["index"].tolist() == [5, 6, 7]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_batch_longer_than_its_length_is_refused() -> None:
    row = torch.ones(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="length=3 is below the 4 tokens of an example"):
        PaddingCollator(0, length=3)([{"input_ids": row, "attention_mask": row}])


@pytest.mark.parametrize(("size", "minimum"), [(100, 1), (100, 2), (7, 1)])
def test_vocabulary_is_the_count_of_words(size: int, minimum: int) -> None:
    counts = Counter(word for text in WORDS for word in re.findall(r"\w+|[^\w\s]+", text.lower()))
    ranked = sorted((word for word in counts if counts[word] >= minimum), key=lambda word: (-counts[word], word))
    expected = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ranked][:size]
    tokenizer = train_word_tokenizer(WORDS, size, minimum)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == expected
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)


def test_text_becomes_its_words_between_the_ends() -> None:
    tokenizer = train_word_tokenizer(WORDS)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("BEE  ant, yak")["input_ids"])
    assert tokens == ["[CLS]", "bee", "ant", "[UNK]", "[UNK]", "[SEP]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((5, 2), "max_vocab_size=5 must exceed the 5 special tokens"), ((9, 0), "min_frequency=0 must be at least 1")],
)
def test_a_vocabulary_without_words_is_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_word_tokenizer(WORDS, *arguments)


def test_vocabulary_knows_nothing_but_the_training_part() -> None:
    data = _ready("test")
    assert data.train_set is not None
    assert data.val_set is not None
    held_out = {text.split()[-1] for text in data.val_set.texts}
    vocabulary = set(data.tokenizer.get_vocab())
    assert not vocabulary & (held_out | {"test"})
    assert {text.split()[-1] for text in data.train_set.texts} < vocabulary
    few = _ready(degradation=Degradation(train_per_class=3))
    assert few.vocab_size == 5 + len({"same", "train"} | {f"word{i}" for i in range(6)})


def test_batches_have_the_promised_keys_shapes_and_types() -> None:
    data = _ready(batch_size=16, val_fraction=0.4)
    for loader in (
        data.train_dataloader(),
        data.val_dataloader(),
        data.test_dataloader(),
        data.predict_dataloader(),
    ):
        batch = next(iter(loader))
        assert list(batch) == ["input_ids", "attention_mask", "label"]
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (16, 8)
        assert batch["label"].shape == (16,)
        assert {value.dtype for value in batch.values()} == {torch.int64}
        assert torch.equal(batch["attention_mask"], (batch["input_ids"] != data.pad_token_id).long())
        assert int(batch["input_ids"].max()) < data.vocab_size
    assert data.num_classes == 2


def test_texts_are_cut_and_batches_filled_up_to_the_length() -> None:
    cut = _ready(max_length=5)
    assert next(iter(cut.test_dataloader()))["input_ids"].shape[1] == 5
    filled = _ready(max_length=20, pad_to_max_length=True)
    assert next(iter(filled.test_dataloader()))["input_ids"].shape[1] == 20
    assert next(iter(_ready(max_length=None).test_dataloader()))["input_ids"].shape[1] == 8


def test_given_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    tokenizer = train_word_tokenizer(["same word1"], min_frequency=1)
    tokenizer.save_pretrained(tmp_path)
    tokenizer.padding_side = "left"
    left, right = [0] * 4 + [1] * 4, [1] * 4 + [0] * 4
    for given, mask in ((tokenizer, left), (tmp_path, right), (str(tmp_path), right)):
        data = _Toy(tokenizer=given)
        data.prepare_data()
        assert data.vocab_size == 7
        data.setup("test")
        assert data.train_set is None
        assert next(iter(data.test_dataloader()))["attention_mask"][0].tolist() == mask


def test_unfit_tokenizers_are_refused() -> None:
    tokenizer = train_word_tokenizer(WORDS)
    with pytest.raises(TypeError, match=r"tokenizer=Tokenizer is no Hugging Face tokenizer; wrap"):
        _ready(tokenizer=tokenizer.backend_tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"has no padding token; set tokenizer\.pad_token"):
        _ready(tokenizer=tokenizer)


def test_text_without_a_token_is_refused() -> None:
    tokenizer = train_word_tokenizer(WORDS)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="Text 1, ' ', has no token"):
        TextDataset(["ant", " "], torch.zeros(2), tokenizer)
    with pytest.raises(ValueError, match="texts has 1 entries and labels 2"):
        TextDataset(["ant"], torch.zeros(2), tokenizer)


def test_what_setup_finds_out_is_announced_as_such() -> None:
    for name in ("tokenizer", "vocab_size", "pad_token_id"):
        with pytest.raises(RuntimeError, match=r"_Toy has no tokenizer yet; call setup\('fit'\) first"):
            getattr(_Toy(), name)
    with pytest.raises(RuntimeError, match=r"_Toy is not set up; call setup\('fit'\) first"):
        _Toy().train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"val_fraction": 1.0}, r"val_fraction=1.0 must lie in \[0, 1\)"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"max_length": None, "pad_to_max_length": True}, "pad_to_max_length=True needs a length"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _Toy(**arguments)


def test_set_up_copy_serves_the_same_batches() -> None:
    data = _ready()
    again = pickle.loads(pickle.dumps(data))  # noqa: S301  our own bytes
    for a, b in zip(data.test_dataloader(), again.test_dataloader(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def docstrings() -> DocstringDataModule:
    data = DocstringDataModule(100)
    data.setup()
    return data


def test_docstrings_are_balanced_and_none_is_twice(docstrings: DocstringDataModule) -> None:
    parts = [docstrings.train_set, docstrings.val_set, docstrings.test_set]
    assert [part.labels.bincount().tolist() for part in parts if part is not None] == [[72] * 5, [8] * 5, [20] * 5]
    texts = [text for part in parts if part is not None for text in part.texts]
    assert len(set(texts)) == len(texts) == 500
    assert not any(name in text.lower() for text in texts for name in docstrings.class_names)
    assert all(6 <= len(text.split()) <= 40 for text in texts)


def test_docstrings_are_the_same_each_time(docstrings: DocstringDataModule) -> None:
    again = DocstringDataModule(100)
    again.setup("fit")
    assert again.train_set is not None
    assert docstrings.train_set is not None
    assert again.train_set.texts == docstrings.train_set.texts
    assert again.tokenizer.get_vocab() == docstrings.tokenizer.get_vocab()


def test_each_sentence_is_in_a_docstring_of_its_library(docstrings: DocstringDataModule) -> None:
    import sklearn

    assert docstrings.test_set is not None
    label = docstrings.class_names.index("sklearn")
    chosen = [
        text
        for text, found in zip(docstrings.test_set.texts, docstrings.test_set.labels.tolist(), strict=True)
        if found == label
    ]
    files = Path(sklearn.__file__).parent.rglob("*.py")
    library = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in files)
    assert len(chosen) == 20
    assert all(text in library for text in chosen)


MODULE = '''#!/usr/bin/env python
# A comment.
"""Module docstring."""

text = """No docstring at all."""


class Thing:
    r"""Class docstring with \\alpha."""

    def method(self, a: int = 3) -> str:
        """Method docstring,
        on two lines.
        """
        call(
            """No docstring either."""
        )
        return f"{a}"

    async def other(self):  # a comment
        """Docstring after a comment."""
        return """Nor this."""
'''


def test_the_pattern_finds_what_the_parser_finds() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for text in (MODULE, Path(torch.nn.modules.linear.__file__).read_text(), Path(ast.__file__).read_text()):
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
        expected = Counter(doc.strip() for node in nodes if (doc := ast.get_docstring(node, clean=False)))
        assert expected
        assert Counter(doc.strip() for doc in source.DOCSTRING.findall(text)) == expected


def test_prose_is_what_remains_of_a_docstring() -> None:
    docstring = """Return the smallest of the given
        values. A second sentence: it has seven words. Too short.

        Uses numpy to do what is asked for.

        Parameters
        ----------
        x : array
            The values of which the smallest is wanted.

        The name : type of an entry is no prose.

        >>> f(3)  # This example has more than six words.
        """
    assert list(source.prose(docstring)) == [
        "Return the smallest of the given values.",
        "A second sentence: it has seven words.",
    ]


def test_missing_library_and_too_many_sentences_are_explained() -> None:
    with pytest.raises(DatasetNotFoundError, match=r"Library 'no_such_library' not found.*Install lit-methods"):
        source.docstring_corpus(("no_such_library",), 10)
    with pytest.raises(ValueError, match=r"sentences_per_library=9999 is more than the \d+ sentences of tqdm"):
        source.docstring_corpus(("tqdm",), 9999)
    with pytest.raises(ValueError, match="sentences_per_library=9 must be at least 10"):
        DocstringDataModule(9)
