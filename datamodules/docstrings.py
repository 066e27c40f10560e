"""Sentences of docstrings, labelled by library: real text without a download."""

import re
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .degradation import Degradation
from .errors import DatasetNotFoundError
from .splits import Split, stratified_split
from .text import TextDataModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# a triple-quoted string that opens a file or follows the colon of a header; ast takes fifteen times as long
DOCSTRING = re.compile(r'(?:\A(?:\s*#[^\n]*\n)*|:[ \t]*(?:#[^\n]*)?\n)\s*r?"""(.*?)"""', re.DOTALL)
_FOREIGN = {"test", "tests", "testing", "externals", "_vendor", "third_party"}
_PROSE = re.compile(r"[A-Z](?:[\w ,;()'/-]|(?<! ):)*\.")
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z])")
_GIVEAWAY = re.compile(r"numpy|scipy|sklearn|scikit|torch|matplotlib|pyplot", re.IGNORECASE)


class DocstringDataModule(TextDataModule):
    """Which library is this sentence from? 5,000 sentences of docstrings of five libraries, 1,000 of each.

    The libraries are dependencies of this package, so their sources are on the disk: they are read, not
    imported, in a second or two. Sentences have 6 to 40 words, none occurs twice (the first library keeps
    it), and none names one of the five. A stratified fifth is the test set and `val_fraction` is taken of the
    rest, both by `split_seed` alone: 3,600 for training, 400 for validation, 1,000 for the test by default.

    The sentences are the same on each machine with the same versions of the libraries, and differ between
    versions: compare accuracies within one installation only.

    Args:
        sentences_per_library: Sentences of each library, at least 10.
        batch_size: Examples per batch and process.
        tokenizer: A Hugging Face tokenizer, or the name or folder of one for `AutoTokenizer.from_pretrained`; None
            counts words on the training part in use.
        max_length: Tokens, special ones included, to which texts are cut; None cuts nothing.
        pad_to_max_length: Whether each batch has T = `max_length`; else T is that of its longest text.
        max_vocab_size: Most entries of the vocabulary that `tokenizer=None` counts.
        val_fraction: Part of the training set held out for validation, in [0, 1); 0 holds out nothing.
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader.
        drop_last: Whether training drops the last, smaller batch.
        degradation: Low data, class imbalance and label noise, after the split; None leaves the data set as it is.
        yield_index: Whether training batches have a key "index": positions in `train_set`, int64 `(B,)`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    class_names = ("matplotlib", "numpy", "scipy", "sklearn", "torch")
    test_fraction = 0.2

    def __init__(
        self,
        sentences_per_library: int = 1000,
        batch_size: int = 32,
        tokenizer: "PreTrainedTokenizerBase | str | Path | None" = None,
        max_length: int | None = 64,
        pad_to_max_length: bool = False,
        max_vocab_size: int = 10_000,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = False,
        degradation: Degradation | None = None,
        yield_index: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            tokenizer=tokenizer,
            max_length=max_length,
            pad_to_max_length=pad_to_max_length,
            max_vocab_size=max_vocab_size,
            val_fraction=val_fraction,
            split_seed=split_seed,
            num_workers=num_workers,
            drop_last=drop_last,
            degradation=degradation,
            yield_index=yield_index,
        )
        if sentences_per_library < 10:
            raise ValueError(f"sentences_per_library={sentences_per_library} must be at least 10.")
        self.sentences_per_library = sentences_per_library
        self._corpus: tuple[list[str], Tensor] | None = None

    def read(self, split: Split) -> tuple[list[str], Tensor] | None:
        """Reads sentences and labels `(N,)` of "train" or "test".

        Raises:
            DatasetNotFoundError: If a library is not installed.
            ValueError: If a library has too few sentences.
        """
        if split == "validation":
            return None
        if self._corpus is None:
            self._corpus = docstring_corpus(DocstringDataModule.class_names, self.sentences_per_library)
        sentences, labels = self._corpus
        train, test = stratified_split(labels, self.test_fraction, self.split_seed)
        chosen = train if split == "train" else test
        return self.select(sentences, chosen), labels[chosen]


def docstring_corpus(libraries: tuple[str, ...], count: int) -> tuple[list[str], Tensor]:
    """The first `count` new sentences of each library, files in the order of their names' checksums.

    Args:
        libraries: Import names of installed packages.
        count: Sentences of each.

    Returns:
        Sentences, and as labels `(N,)` the positions of their libraries.

    Raises:
        DatasetNotFoundError: If a library is not installed.
        ValueError: If a library has fewer sentences.
    """
    seen: dict[str, int] = {}
    for label, library in enumerate(libraries):
        wanted = count * (label + 1)
        for sentence in _sentences(library):
            seen.setdefault(sentence, label)
            if len(seen) == wanted:
                break
        if len(seen) < wanted:
            raise ValueError(
                f"sentences_per_library={count} is more than the {len(seen) - wanted + count} sentences of {library}; "
                "ask for fewer."
            )
    return list(seen), torch.tensor(list(seen.values()), dtype=torch.int64)


def _sentences(library: str) -> Iterator[str]:
    for source in _sources(library):
        for docstring in DOCSTRING.findall(source):
            yield from prose(docstring)


def _sources(library: str) -> Iterator[str]:
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise DatasetNotFoundError(
            f"Library {library!r}", ["the installed packages"], "Install lit-methods with its dependencies."
        )
    root = Path(spec.submodule_search_locations[0])
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    own = [name for name in names if not _FOREIGN & set(name.parts)]
    for name in sorted(own, key=lambda name: (zlib.crc32(name.as_posix().encode()), name.as_posix())):
        yield (root / name).read_text(encoding="utf-8", errors="replace")


def prose(docstring: str) -> Iterator[str]:
    """Sentences of 6 to 40 plain words in a docstring's paragraphs; no headings, no code, no library's name."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if "--" in paragraph:  # the heading of a section with its first entry
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if _PROSE.fullmatch(sentence) and 6 <= len(sentence.split()) <= 40 and not _GIVEAWAY.search(sentence):
                yield sentence
