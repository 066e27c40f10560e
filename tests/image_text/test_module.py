import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lit_methods.datamodules import DigitScenesDataModule
from lit_methods.image_text import (
    MACK,
    Centring,
    Gallery,
    KnowledgeBase,
    KnowledgeMatcher,
    RetrievalRanks,
    SeparateAffine,
    SharedLinear,
    StreamingRetrieval,
    Whitening,
    build_knowledge,
)
from lit_methods.image_text.figures import Query, retrieval_figure
from lit_methods.image_text.metrics import recall_sum
from lit_methods.image_text.ranks import best_truth, count_rivals
from tests.battery.trainers import Recorder, toy_trainer
from tests.entries.image_text import ToyRetrieval, toy_knowledge
from tests.entries.toys import Parts
from tests.gloo import GlooPool
from tests.image_text.references import naive_scores


def _data() -> DigitScenesDataModule:
    return DigitScenesDataModule(num_train=24, num_val=10, num_test=20, num_knowledge=600, batch_size=8)


def _expected(data: DigitScenesDataModule, matcher: KnowledgeMatcher, folds: int = 1) -> dict[str, Tensor]:
    """Recalls from whole score matrices, ranked fold by fold."""
    test = data.sets["test"]
    regions = test.regions.read(range(len(test.regions))).regions
    t2i, i2t = matcher(regions, test.captions)
    images = torch.arange(len(test.regions))
    found = {}
    for way, scores, query, candidate in (("t2i", t2i.T, test.image, images), ("i2t", i2t, images, test.image)):
        parts = []
        for fold in range(folds):
            q, c = (x * folds // len(images) == fold for x in (query, candidate))
            part, metric = scores[q][:, c], RetrievalRanks()
            truth = best_truth(part, query[q], candidate[c])
            metric.update(count_rivals(part, truth, query[q], candidate[c]), torch.arange(int(q.sum())))
            parts.append(metric.compute())
        found |= {f"{way}_{k}": torch.stack([part[k] for part in parts]).mean() for k in parts[0]}
    return {**found, "rsum": recall_sum({k[4:]: v for k, v in found.items() if k.startswith("t2i")}, {
        k[4:]: v for k, v in found.items() if k.startswith("i2t")})}  # fmt: skip


@pytest.mark.parametrize("pooling", ["matched", "t2i", "i2t", "sum"])
@pytest.mark.parametrize("folds", [1, 4])
def test_streaming_equals_ranking_whole_matrices(pooling: Any, folds: int) -> None:
    data = _data()
    data.setup("test")
    matcher = KnowledgeMatcher(build_knowledge(data.knowledge_dataloader()), pooling=pooling, memory_mib=3.05)
    test = data.sets["test"]
    with torch.no_grad():
        retrieval = StreamingRetrieval(matcher, list(test.captions), test.image, folds)
        for positions in ([3, 7, 0], list(range(8, 20)), [1, 2, 4, 5, 6, 3, 7]):
            batch = test.regions.read(positions)
            retrieval.add(batch.regions, batch.mask, torch.tensor(positions))
        found, expected = retrieval.compute(), _expected(data, matcher, folds)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)


def _share(rank: int, world_size: int) -> dict[str, Tensor]:
    data = _data()
    data.setup("test")
    test, matcher = data.sets["test"], KnowledgeMatcher(build_knowledge(data.knowledge_dataloader()))
    retrieval = StreamingRetrieval(matcher, list(test.captions), test.image)
    own = [*range(rank, 20, world_size), rank]  # as a sampler that repeats an image
    own += [0] if rank else []
    batch = test.regions.read(own)
    retrieval.add(batch.regions, batch.mask, torch.tensor(own))
    return retrieval.compute()


@pytest.mark.ddp
def test_two_processes_rank_as_one(gloo: GlooPool) -> None:
    data = _data()
    data.setup("test")
    expected = _expected(data, KnowledgeMatcher(build_knowledge(data.knowledge_dataloader())))
    for found in gloo.run(_share):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=name)


def test_test_logs_the_recalls_with_no_training(tmp_path: Path) -> None:
    data, module = _data(), MACK()
    trainer = toy_trainer(Parts(module, [], data), tmp_path)
    (found, *_) = trainer.test(module, datamodule=data, verbose=False)
    expected = _expected(data, module.matcher)
    for name, value in expected.items():
        assert found[f"test/{name}"] == pytest.approx(float(value), rel=1e-5)
    assert found["test/captions_without_words"] == 0
    assert found["test/rsum"] > 100


def test_captions_without_words_are_counted(tmp_path: Path) -> None:
    data, module = ToyRetrieval("w1 and foo{} {}"), MACK(toy_knowledge())
    assert toy_trainer(Parts(module, [], data), tmp_path).test(module, datamodule=data, verbose=False)
    data, module = ToyRetrieval("foo{} bar{}"), MACK(toy_knowledge())
    trainer = toy_trainer(Parts(module, [], data), tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    assert trainer.callback_metrics["test/captions_without_words"] == 48
    assert trainer.callback_metrics["test/t2i_meanR"] == 24.5  # all images tie


def test_checkpoint_needs_no_data_to_load(tmp_path: Path) -> None:
    data, module = _data(), MACK(transform=SharedLinear(80))
    trainer = toy_trainer(Parts(module, [], data), tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = MACK.load_from_checkpoint(tmp_path / "x.ckpt", transform=SharedLinear(80), weights_only=True)
    assert again.matcher.knowledge.words == module.matcher.knowledge.words
    regions = torch.rand(2, 3, 80)
    for one, other in zip(again(regions, ["a red two"]), module(regions, ["a red two"]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("transform", [SharedLinear, SeparateAffine])
def test_training_steps_only_on_the_map(transform: Any, tmp_path: Path) -> None:
    data, module = _data(), MACK(transform=transform(80))
    data.setup("fit")
    plain = MACK(build_knowledge(data.knowledge_dataloader()))
    regions = data.sets["validation"].regions.read(range(5)).regions
    module.matcher.knowledge = copy.deepcopy(plain.matcher.knowledge)
    torch.testing.assert_close(module(regions, ["a red two"]), plain(regions, ["a red two"]), rtol=0, atol=1e-6)
    log = Recorder()
    trainer = toy_trainer(Parts(module, [], data), tmp_path, max_epochs=2, logger=log)
    trainer.fit(module, datamodule=data)
    assert torch.equal(module.matcher.knowledge.prototypes, plain.matcher.knowledge.prototypes)
    assert trainer.global_step > 0
    assert not torch.allclose(module(regions, ["a red two"])[0], plain(regions, ["a red two"])[0], atol=1e-4)
    rows = {name: value for _, row in log.rows for name, value in row.items()}
    assert {"train/loss", "train/word_loss", "train/region_loss", "train/word_acc", "train/region_acc"} <= rows.keys()
    assert rows["train/loss"] == pytest.approx(rows["train/word_loss"] + rows["train/region_loss"], rel=1e-5)


def test_units_of_a_batch_are_distinct() -> None:
    matcher = KnowledgeMatcher(toy_knowledge())
    units = matcher.parse(["w1 w2", "w2 w1", "w1"])
    assert len(matcher.unit_vectors(units)) == 2
    assert units.counts.tolist() == [2, 2, 1]


@pytest.mark.parametrize("transform", [Centring, Whitening])
def test_closed_forms_take_their_statistics_once(transform: Any, tmp_path: Path) -> None:
    data, module = _data(), MACK(transform=transform(80))
    toy_trainer(Parts(module, [], data), tmp_path).test(module, datamodule=data, verbose=False)
    flat = torch.cat([b["regions"][b["mask"]] for b in data.region_dataloader()]).double()
    fitted = module.matcher.transform
    torch.testing.assert_close(fitted.region_mean.double(), flat.mean(dim=0), rtol=1e-5, atol=1e-6)
    knowledge = module.matcher.knowledge
    mean = (knowledge.prototypes * knowledge.counts.unsqueeze(1)).sum(dim=0) / knowledge.counts.sum()
    torch.testing.assert_close(fitted.word_mean, mean)
    if transform is Whitening:
        covariance = torch.cov(flat.T, correction=0)
        shrunk = covariance + 0.1 * covariance.diagonal().mean() * torch.eye(80, dtype=torch.float64)
        matrix = fitted.matrix.double()
        torch.testing.assert_close(matrix @ shrunk @ matrix, torch.eye(80, dtype=torch.float64), rtol=0, atol=1e-4)
    with pytest.raises(MisconfigurationException, match=f"transform={transform.__name__} has nothing to train"):
        toy_trainer(Parts(module, [], data), tmp_path).fit(module, datamodule=data)


def test_scores_of_the_matcher_equal_the_triple_loop() -> None:
    matcher = KnowledgeMatcher(toy_knowledge().double(), transform=SharedLinear(4).double(), modifier_weight=0.5)
    torch.nn.init.normal_(matcher.transform.weight)
    regions, captions = torch.rand(4, 3, 4, dtype=torch.float64), ["w1 w2", "w0", "foo", "w4 w4 w3"]
    with torch.no_grad():
        found = matcher(regions, captions)
        words = matcher.knowledge.prototypes @ matcher.transform.weight
        expected = naive_scores(regions @ matcher.transform.weight, None, matcher.parse(captions), words, 0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_predict_finds_and_explains(tmp_path: Path) -> None:
    data, module = _data(), MACK(top_k=3)
    trainer = toy_trainer(Parts(module, [], data), tmp_path)
    _, found = trainer.predict(module, datamodule=data)
    test = data.sets["test"]
    regions = test.regions.read(range(20)).regions
    scores, _ = module(regions, test.captions)
    batch = found[0]
    assert torch.equal(batch["index"], torch.arange(100))
    torch.testing.assert_close(batch["score"], scores.T.topk(3, dim=1).values)
    torch.testing.assert_close(scores.T.gather(1, batch["image"]), batch["score"])
    for row in (0, 57, 99):
        torch.testing.assert_close(batch["cosine"][row].mean(dim=0), batch["score"][row])
        assert batch["cosine"][row].shape == batch["region"][row].shape == (len(batch["units"][row]), 3)
        words = batch["units"][row][0].split()
        assert all(word in test.captions[row] for word in words)
        vector = module.matcher.unit_vectors(module.matcher.parse([batch["units"][row][0]]))[0]
        own = regions[batch["image"][row, 1]]
        cosines = own @ vector / (own.norm(dim=1) * vector.norm())
        assert int(cosines.argmax()) == int(batch["region"][row][0, 1])


def test_predict_draws_the_first_queries(tmp_path: Path) -> None:
    data, module = _data(), MACK(shown_queries=2)
    logger = lit_methods_logger(tmp_path)
    toy_trainer(Parts(module, [], data), tmp_path, logger=logger).predict(module, datamodule=data)
    (picture,) = tmp_path.rglob("predict_retrieval.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_figure_says_what_was_asked_and_found() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [1, 1, 3, 3]], [[0.0, 0, 4, 4], [2, 2, 4, 4]]])
    pictures = [torch.rand(3, 6, 6)] * 2
    rows = [
        Query(text, ["red dog", "ball"], pictures, boxes, torch.tensor([0.9, 0.8]), torch.tensor([False, True]))
        for text in ("a red dog with a ball", "second")
    ]
    strips = retrieval_figure(rows).subfigs
    assert [strip.get_suptitle() for strip in strips] == ["“a red dog with a ball”", "“second”"]
    for strip in strips:
        first, second = strip.axes
        assert [axis.get_title() for axis in (first, second)] == ["1. miss, score 0.900", "2. hit, score 0.800"]
        assert [text.get_text() for text in first.texts] == ["red dog", "ball"]
        outer, inner = (patch.get_bbox() for patch in first.patches)
        assert outer.fully_containsx(inner.x0)  # one region answers both: neither frame hides the other
        assert first.texts[0].get_position()[1] < first.texts[1].get_position()[1]
        for patch, box in zip(second.patches, boxes[:, 1].tolist(), strict=True):
            torch.testing.assert_close(
                torch.tensor(patch.get_bbox().extents), torch.tensor(box).double(), rtol=0, atol=0.1
            )


def lit_methods_logger(folder: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder)


def test_gallery_refuses_what_it_cannot_do() -> None:
    gallery = Gallery(KnowledgeMatcher(toy_knowledge()))
    with pytest.raises(ValueError, match="holds no image"):
        gallery.search(["w1"])
    gallery.add(torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), torch.tensor([5, 9]))
    with pytest.raises(ValueError, match="top_k=0"):
        gallery.search(["w1"], 0)
    assert set(gallery.search(["w1"], 7).image[0].tolist()) == {5, 9}


def test_bad_input_is_named(tmp_path: Path) -> None:
    data = ToyRetrieval()
    for options, message in (
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"folds": 0}, "folds=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"shown_queries": -1}, "shown_queries=-1"),
        ({"pooling": "both"}, "pooling='both'"),
        ({"modifier_weight": -1.0}, "modifier_weight=-1.0"),
        ({"memory_mib": 0.0}, "memory_mib=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            MACK(toy_knowledge(), **options)
    with pytest.raises(ValueError, match="shrinkage=0"):
        Whitening(4, 0.0)
    with pytest.raises(ValueError, match="feature_size=0"):
        SharedLinear(0)
    with pytest.raises(FileNotFoundError, match="Knowledge not found"):
        MACK(str(tmp_path))
    with pytest.raises(RuntimeError, match="holds no word"):
        KnowledgeMatcher(KnowledgeBase()).parse(["w1"])
    with pytest.raises(MisconfigurationException, match="ToyRetrieval has no knowledge_dataloader; pass knowledge="):
        toy_trainer(Parts(MACK(), [], data), tmp_path).test(MACK(), datamodule=data)
    module = MACK(toy_knowledge(), folds=99)
    with pytest.raises(ValueError, match="folds=99 must lie in 1 to 48"):
        toy_trainer(Parts(module, [], data), tmp_path).test(module, datamodule=data)
    module = MACK(toy_knowledge())
    with pytest.raises(MisconfigurationException, match="captions first, then images"):
        toy_trainer(Parts(module, [], data), tmp_path).test(module, dataloaders=data.predict_dataloader())
    with pytest.raises(MisconfigurationException, match="FeatureMap has nothing to train"):
        toy_trainer(Parts(module, [], data), tmp_path).fit(module, datamodule=data)
