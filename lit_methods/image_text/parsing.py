"""Captions to units: each noun of the dictionary, with its adjective where it has one (MACK, Section 2(b))."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from lit_methods.image_text.knowledge import KnowledgeBase

_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[,;.]")
_CLOSED_WORDS = """
a an the this that these those each every some any no another other his her its their our my your he she it they we i
you who whom whose which what there here is are was were be been being am has have had do does did will would can could
may might must shall should of in on at by to from with without into onto over under above below behind beside between
among near next through across along around against during before after while as than then for about out up down off not
very both all many several few more most or but nor so if because when where how too also just only together away back
"""
_CLOSED = frozenset(_CLOSED_WORDS.split())
_NUMBERS = frozenset("one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905  a word list


class Unit(NamedTuple):
    """One mention: a noun, and the adjective that goes with it."""

    noun: str
    adjective: str | None = None


class Tagged(NamedTuple):
    """A word with its Penn Treebank tag."""

    word: str
    tag: str


class CaptionParser(Protocol):
    """Anything that turns a caption into units; words without a prototype must be left out."""

    def __call__(self, caption: str, knowledge: KnowledgeBase) -> list[Unit]:
        """Units of a caption in the order of their nouns, a repeated noun as often as it is mentioned."""
        ...


class KnowledgeParser:
    """Needs no other package: the knowledge base itself says which words are heads and which are modifiers.

    A word that is mostly the last of its region's name is a noun, one that mostly stands before the last an adjective.
    Articles, numbers (unless they end names), pronouns, prepositions and auxiliaries are neither. Unknown words are
    taken for nouns: they are left out, and so is their adjective.

    Args:
        singular: Whether an unknown word that ends in -s, -es or -ies is looked up without it.
        not_nouns: Further words that are never nouns, such as verbs that also name regions.
    """

    def __init__(self, singular: bool = True, not_nouns: Sequence[str] = ()) -> None:
        self.singular, self.not_nouns = singular, frozenset(not_nouns)

    def __call__(self, caption: str, knowledge: KnowledgeBase) -> list[Unit]:
        """Units of a caption."""
        tagged = []
        for token in _TOKEN.findall(caption.lower()):
            word = self._known(token, knowledge)
            tagged.append(Tagged(word, self._tag(word, knowledge)))
        return attach(tagged, knowledge)

    def _tag(self, word: str, knowledge: KnowledgeBase) -> str:
        if word in ("and", ",", ";"):
            return "CC"
        number = word in _NUMBERS and not knowledge.is_head(word)
        if word == "." or word in _CLOSED or word in self.not_nouns or number:
            return "IN"
        return "JJ" if knowledge.is_modifier(word) else "NN"

    def _known(self, token: str, knowledge: KnowledgeBase) -> str:
        if self.singular and token not in knowledge:
            for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
                word = token.removesuffix(ending) + instead
                if token.endswith(ending) and word in knowledge:
                    return word
        return token


class TaggerParser:
    """Any part-of-speech tagger as a parser; adjectives are attached by position.

    Args:
        tagger: Function from a lower-cased caption to `(word, Penn Treebank tag)` pairs, such as
            `lambda text: [(t.text, t.tag_) for t in nlp(text)]` for a loaded spaCy pipeline `nlp`, or
            `lambda text: TextBlob(text, pos_tagger=PatternTagger()).tags` for TextBlob.
    """

    def __init__(self, tagger: Callable[[str], Sequence[tuple[str, str]]]) -> None:
        self.tagger = tagger

    def __call__(self, caption: str, knowledge: KnowledgeBase) -> list[Unit]:
        """Units of a caption."""
        return attach([Tagged(word, tag) for word, tag in self.tagger(caption.lower())], knowledge)


class PretaggedParser:
    """Captions that were tagged, and if need be parsed, beforehand.

    Args:
        tags: `(word, tag)` pairs of each caption.
        dependencies: `(head, relation, dependent)` words of each caption; None attaches adjectives by position.
        compat: "authors" attaches, to every mention of a noun, the first known `amod` adjective of any mention, as the
            published code does; "position" never reads `dependencies`.

    Raises:
        ValueError: If `compat` is unknown, or "authors" without dependencies.
    """

    def __init__(
        self,
        tags: Mapping[str, Sequence[tuple[str, str]]],
        dependencies: Mapping[str, Sequence[tuple[str, str, str]]] | None = None,
        compat: str = "position",
    ) -> None:
        if compat not in ("position", "authors"):
            raise ValueError(f"compat={compat!r} must be 'position' or 'authors'.")
        if compat == "authors" and dependencies is None:
            raise ValueError("compat='authors' attaches adjectives by dependencies=; pass them.")
        self.tags, self.dependencies, self.compat = tags, dependencies, compat

    def __call__(self, caption: str, knowledge: KnowledgeBase) -> list[Unit]:
        """Units of a caption.

        Raises:
            ValueError: If the caption was not tagged.
        """
        if caption not in self.tags:
            raise ValueError(f"tags has no entry for the caption {caption!r}; tag all captions first.")
        tagged = [Tagged(*pair) for pair in self.tags[caption]]
        if self.compat == "position" or self.dependencies is None:
            return attach(tagged, knowledge)
        triples = self.dependencies[caption]
        adjectives = {item.word for item in tagged if item.tag.startswith("JJ")}
        units = []
        for word in (item.word for item in tagged if "NN" in item.tag and item.word in knowledge):
            found = (
                dependent
                for head, relation, dependent in triples
                if head == word and "amod" in relation and dependent in adjectives and dependent in knowledge
            )
            units.append(Unit(word, next(found, None)))
        return units


def attach(tagged: Sequence[Tagged], knowledge: KnowledgeBase) -> list[Unit]:
    """Known nouns of a tagged caption, each with the left-most known adjective of those right before it.

    Adjectives may be joined by commas and conjunctions ("black and white dog"). In a compound ("red traffic light")
    each noun is a unit and the last one takes the adjective.

    Args:
        tagged: Words with Penn Treebank tags.
        knowledge: The dictionary.
    """
    units = []
    for position, (word, tag) in enumerate(tagged):
        if "NN" not in tag or word not in knowledge:
            continue
        last = position + 1 == len(tagged) or "NN" not in tagged[position + 1].tag
        units.append(Unit(word, _adjective(tagged, position, knowledge) if last else None))
    return units


def _adjective(tagged: Sequence[Tagged], position: int, knowledge: KnowledgeBase) -> str | None:
    left = position - 1
    while left >= 0 and "NN" in tagged[left].tag:
        left -= 1
    found = None
    while left >= 0:
        word, tag = tagged[left]
        if tag.startswith("JJ"):
            found = word if word in knowledge else found
        elif not (tag in ("CC", ",") and tagged[left + 1].tag.startswith("JJ") and _ends_adjective(tagged, left)):
            break
        left -= 1
    return found


def _ends_adjective(tagged: Sequence[Tagged], position: int) -> bool:
    while position > 0 and tagged[position].tag in ("CC", ","):
        position -= 1
    return tagged[position].tag.startswith("JJ")
