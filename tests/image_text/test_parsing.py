import pytest
import torch

from lit_methods.image_text.knowledge import KnowledgeBase
from lit_methods.image_text.parsing import KnowledgeParser, PretaggedParser, TaggerParser

HEADS = ["dog", "shirt", "light", "traffic", "man", "puppy", "bus", "seven", "three"]
MODIFIERS = ["red", "blue", "black", "white", "big"]


@pytest.fixture
def knowledge() -> KnowledgeBase:
    words = HEADS + MODIFIERS
    head = torch.tensor([5] * len(HEADS) + [1] * len(MODIFIERS))
    return KnowledgeBase(words, torch.ones(len(words), 2), torch.full((len(words),), 6), head, 6 - head)


CAPTIONS = {
    "A man in a red shirt and a man in a blue shirt.": [("man",), ("shirt", "red"), ("man",), ("shirt", "blue")],
    "A black and white dog": [("dog", "black")],
    "a big, red dog and blue bus": [("dog", "big"), ("bus", "blue")],
    "red dog and man": [("dog", "red"), ("man",)],
    "A red traffic light": [("traffic",), ("light", "red")],
    "two puppies and three buses": [("puppy",), ("three",), ("bus",)],
    "a red seven next to a blue three": [("seven", "red"), ("three", "blue")],
    "a red zebra beside the dog": [("dog",)],
    "The man is red": [("man",)],
    "gymnasts leaping": [],
    "": [],
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_knowledge_itself_is_the_lexicon(caption: str, knowledge: KnowledgeBase) -> None:
    found = [(unit.noun, unit.adjective) for unit in KnowledgeParser()(caption, knowledge)]
    assert found == [(*unit, None)[:2] for unit in CAPTIONS[caption]]


def test_options_of_the_knowledge_parser(knowledge: KnowledgeBase) -> None:
    assert KnowledgeParser(singular=False)("two puppies", knowledge) == []
    assert KnowledgeParser(not_nouns=["light"])("a red light dog", knowledge) == [("dog", None)]


TAGS = {"a": "DT", "pierced": "VBN", "red": "JJ", "shirt": "NN", "and": "CC", "blue": "JJ"}
TAGGED = [(word, TAGS[word]) for word in ("a", "pierced", "red", "shirt", "and", "blue", "shirt")]
TRIPLES = [("shirt", "amod", word) for word in ("pierced", "red", "blue")]


def test_authors_give_each_mention_the_first_adjective(knowledge: KnowledgeBase) -> None:
    text = "a pierced red shirt and blue shirt"
    ours = PretaggedParser({text: TAGGED}, {text: TRIPLES})
    theirs = PretaggedParser({text: TAGGED}, {text: TRIPLES}, compat="authors")
    assert ours(text, knowledge) == [("shirt", "red"), ("shirt", "blue")]
    assert theirs(text, knowledge) == [("shirt", "red"), ("shirt", "red")]


def test_any_tagger_is_a_parser(knowledge: KnowledgeBase) -> None:
    seen = []

    def tagger(text: str) -> list[tuple[str, str]]:
        seen.append(text)
        return TAGGED

    assert TaggerParser(tagger)("Whatever", knowledge) == [("shirt", "red"), ("shirt", "blue")]
    assert seen == ["whatever"]


def test_bad_input_is_named(knowledge: KnowledgeBase) -> None:
    with pytest.raises(ValueError, match="no entry for the caption 'new'"):
        PretaggedParser({})("new", knowledge)
    with pytest.raises(ValueError, match="compat='theirs'"):
        PretaggedParser({}, compat="theirs")
    with pytest.raises(ValueError, match="by dependencies="):
        PretaggedParser({}, compat="authors")
