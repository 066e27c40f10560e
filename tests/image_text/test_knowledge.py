import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_methods.image_text.builder import KnowledgeBuilder, build_knowledge, name_words
from lit_methods.image_text.knowledge import KnowledgeBase
from tests.gloo import GlooPool

NAMES = ["dog", "hot dog", "white shirt", "shirt", "man", "dog", "hot-dog", "t-shirt", "white", "black dog", "man", ""]


def _regions(n: int = 200, seed: int = 0) -> tuple[Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 6, generator=generator) * 20, [NAMES[i % len(NAMES)] for i in range(n)]


def _loop(features: Tensor, names: list[str]) -> dict[str, tuple[list[float], int, int, int]]:
    """Mean, count, head count and modifier count of each word, region by region in float64."""
    sums: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for feature, name in zip(features.double().tolist(), names, strict=True):
        words = re.findall(r"[A-Za-z]+", name)
        for place, word in enumerate(words):
            total, count = sums.setdefault(word, [0.0] * 6), counts.setdefault(word, [0, 0, 0])
            for d in range(6):
                total[d] += feature[d]
            count[0] += 1
            count[1 if place == len(words) - 1 else 2] += 1
    return {w: ([x / counts[w][0] for x in sums[w]], *counts[w]) for w in sums}


def _rows(base: KnowledgeBase) -> dict[str, tuple[Tensor, int, int, int]]:
    tables = (base.counts, base.head_counts, base.modifier_counts)
    return {w: (base.prototypes[k], *(int(t[k]) for t in tables)) for k, w in enumerate(base.words)}


def _assert_same(found: KnowledgeBase, expected: KnowledgeBase) -> None:
    ours, theirs = _rows(found), _rows(expected)
    assert ours.keys() == theirs.keys()
    for word, (prototype, *counts) in ours.items():
        assert counts == list(theirs[word][1:])
        torch.testing.assert_close(prototype, theirs[word][0], rtol=1e-6, atol=1e-6)


def test_prototypes_are_means_of_all_regions_with_the_word() -> None:
    features, names = _regions()
    base = build_knowledge([(features, names)])
    expected = _loop(features, names)
    assert set(base.words) == expected.keys()
    for word, (mean, *counts) in expected.items():
        prototype, *found = _rows(base)[word]
        assert found == counts
        torch.testing.assert_close(prototype, torch.tensor(mean), rtol=1e-6, atol=1e-6)
    assert base.is_head("dog")
    assert base.is_modifier("hot")
    assert not base.is_modifier("zebra")


def test_neither_order_nor_batches_nor_blocks_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, names = _regions()
    expected = build_knowledge([(features, names)])
    order = torch.randperm(200).tolist()
    _assert_same(build_knowledge([(features[order], [names[i] for i in order])]), expected)
    _assert_same(build_knowledge((features[i : i + 7], names[i : i + 7]) for i in range(0, 200, 7)), expected)
    monkeypatch.setattr(KnowledgeBuilder, "tile", 13)
    _assert_same(build_knowledge([(features, names)]), expected)
    monkeypatch.setattr(KnowledgeBuilder, "block", 3)
    _assert_same(build_knowledge([(features, names)]), expected)


def test_merging_equals_building_from_all() -> None:
    (one, names), (two, _) = _regions(), _regions(40, seed=1)
    others = ["zebra", *names[1:40]]
    whole = build_knowledge([(one, names), (two, others)])
    _assert_same(build_knowledge([(one, names)]).merge(build_knowledge([(two, others)])), whole)
    builders = []
    for features, words in ((one, names), (two, others)):
        builders.append(KnowledgeBuilder(6))
        builders[-1].add(features, words)
    builders[0].merge(builders[1])
    _assert_same(builders[0].build(), whole)


def test_broken_off_build_goes_on() -> None:
    features, names = _regions()
    first = KnowledgeBuilder(6)
    first.add(features[:90], names[:90])
    second = KnowledgeBuilder(6)
    second.load_state_dict(first.state_dict())
    second.add(features[90:], names[90:])
    _assert_same(second.build(), build_knowledge([(features, names)]))


def _share(rank: int, world_size: int) -> KnowledgeBase:
    features, names = _regions()
    builder = KnowledgeBuilder(6)
    builder.add(features[rank::world_size], names[rank::world_size])
    builder.all_reduce()
    return builder.build()


@pytest.mark.ddp
def test_two_processes_build_the_same(gloo: GlooPool) -> None:
    features, names = _regions()
    for found in gloo.run(_share):
        _assert_same(found, build_knowledge([(features, names)]))


def test_block_with_a_bad_region_leaves_the_builder_as_it_was() -> None:
    features, names = _regions()
    builder = KnowledgeBuilder(6)
    builder.add(features, names)
    before = builder.state_dict()
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="named 'black dog' are NaN or infinite"):
            builder.add(features.index_fill(0, torch.tensor(9), value), names)
    for name, value in builder.state_dict().items():
        assert value == before[name] if name == "words" else torch.equal(value, before[name])
    builder.add(torch.full((1, 6), 2e38), ["man"])  # their sum overflows, they do not
    assert builder.build().counts[builder.build().lookup("man")] == 33 + 1


def test_options_of_the_builder() -> None:
    features, names = _regions()
    excluding = KnowledgeBuilder(6, exclude_image_ids=[3])
    excluding.add(features, names, image_ids=[i % 5 for i in range(200)])
    kept = [i for i in range(200) if i % 5 != 3]
    _assert_same(excluding.build(), build_knowledge([(features[kept], [names[i] for i in kept])]))
    directions = features / features.norm(dim=1, keepdim=True)
    _assert_same(build_knowledge([(features, names)], normalize_features=True), build_knowledge([(directions, names)]))
    upper = [name.upper() for name in names]
    assert "DOG" in build_knowledge([(features, upper)])
    _assert_same(build_knowledge([(features, upper)], lower=True), build_knowledge([(features, names)]))
    counts = _rows(build_knowledge([(features, names)]))
    assert set(build_knowledge([(features, names)], min_count=30).words) == {w for w in counts if counts[w][1] >= 30}
    assert name_words("hot-dog's  bun") == ["hot", "dog", "s", "bun"]


def test_saved_base_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    base = build_knowledge([_regions()])
    base.save(tmp_path / "new" / "folder")
    again = KnowledgeBase.load(tmp_path / "new" / "folder")
    assert again.words == base.words
    for name, table in base.named_buffers():
        assert torch.equal(getattr(again, name), table)


def test_state_dict_fills_an_empty_base(tmp_path: Path) -> None:
    base = build_knowledge([_regions()])
    torch.save(base.state_dict(), tmp_path / "state.pt")
    empty = KnowledgeBase()
    empty.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert empty.words == base.words
    assert empty.lookup("dog") == base.lookup("dog")
    assert [empty.is_head(w) for w in base.words] == [base.is_head(w) for w in base.words]
    assert torch.equal(empty.prototypes, base.prototypes)


def test_published_layout_is_imported(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((3, 5)).astype(np.float32)
    np.save(tmp_path / "p.npy", array)
    ids = {"man": 2, "dog": 0, "sky": 1}
    (tmp_path / "v.json").write_text(json.dumps([ids, {str(i): w for w, i in ids.items()}]))
    base = KnowledgeBase.from_published(tmp_path / "p.npy", tmp_path / "v.json")
    assert base.words == ("dog", "sky", "man")
    assert np.array_equal(base.prototypes.numpy(), array)
    np.save(tmp_path / "short.npy", array[:2])
    with pytest.raises(ValueError, match=r"numbers 3 words and prototypes=.*is \(2, 5\)"):
        KnowledgeBase.from_published(tmp_path / "short.npy", tmp_path / "v.json")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is pickled or cut short"):
        KnowledgeBase.from_published(tmp_path / "pickled.npy", tmp_path / "v.json")
    (tmp_path / "v.json").write_text('{"man": 2}')
    with pytest.raises(ValueError, match="must be a JSON pair"):
        KnowledgeBase.from_published(tmp_path / "p.npy", tmp_path / "v.json")


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prototypes.safetensors is no file"):
        KnowledgeBase.load(tmp_path)
    base = build_knowledge([_regions()])
    base.save(tmp_path)
    whole = (tmp_path / "prototypes.safetensors").read_bytes()
    (tmp_path / "prototypes.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="cut short or no safetensors"):
        KnowledgeBase.load(tmp_path)
    (tmp_path / "prototypes.safetensors").write_bytes(whole)
    (tmp_path / "words.json").write_text('["dog"')
    with pytest.raises(ValueError, match="cut short or no JSON"):
        KnowledgeBase.load(tmp_path)
    (tmp_path / "words.json").write_text('["dog"]')
    with pytest.raises(ValueError, match=r"prototypes has \d+ rows and words 1"):
        KnowledgeBase.load(tmp_path)


def test_bad_input_is_named() -> None:
    features, names = _regions()
    builder = KnowledgeBuilder(6, exclude_image_ids=[1])
    with pytest.raises(ValueError, match="pass image_ids="):
        builder.add(features, names)
    with pytest.raises(ValueError, match=r"features is \(200, 5\); pass \(N, 6\)"):
        KnowledgeBuilder(6).add(features[:, 1:], names)
    with pytest.raises(ValueError, match="features has 200 rows, names 199"):
        KnowledgeBuilder(6).add(features, names[1:])
    with pytest.raises(ValueError, match="named 'hot dog' are NaN"):
        KnowledgeBuilder(6).add(features.index_fill(0, torch.tensor(1), torch.nan), names)
    with pytest.raises(ValueError, match="No named region"):
        KnowledgeBuilder(6).build()
    with pytest.raises(ValueError, match="stream holds no batch"):
        build_knowledge([])
    with pytest.raises(ValueError, match="min_count=1000 leaves no word"):
        build_knowledge([(features, names)], min_count=1000)
    with pytest.raises(ValueError, match="feature_size=0"):
        KnowledgeBuilder(0)
    with pytest.raises(ValueError, match="'dog' comes twice"):
        KnowledgeBase(["dog", "dog"], torch.ones(2, 3))
    with pytest.raises(ValueError, match="that of 'cat' is NaN"):
        KnowledgeBase(["dog", "cat"], torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match="other has feature size 3"):
        build_knowledge([(features, names)]).merge(KnowledgeBase(["dog"], torch.ones(1, 3)))
