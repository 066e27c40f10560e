import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_methods.callbacks import KnowledgeRerank
from lit_methods.datamodules import DigitScenesDataModule
from lit_methods.image_text import KnowledgeMatcher, build_knowledge
from lit_methods.image_text.saved_scores import SavedScores
from tests.battery.trainers import toy_trainer
from tests.entries.image_text import ToyRetrieval, toy_knowledge
from tests.entries.toys import Parts


class Noisy(LightningModule):
    """A weak matcher: the truth and noise, evaluated beside the regions."""

    strength = 2.2

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()

    def _score(self) -> Tensor:
        found = self.trainer.datamodule.sets["test" if self.trainer.testing else "validation"]
        truth = (torch.arange(len(found.regions)).unsqueeze(1) == found.image).float()
        return self.strength * truth + torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))

    scores = _score

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    test_step = validation_step


@pytest.fixture(scope="module")
def data() -> DigitScenesDataModule:
    data = DigitScenesDataModule(num_train=10, num_val=60, num_test=60, num_knowledge=2000)
    data.setup()
    return data


def _run(
    callback: KnowledgeRerank, data: Any, folder: Path, loop: str = "test", module: Any = None
) -> dict[str, float]:
    module = module or Noisy()
    trainer = toy_trainer(Parts(module, [callback], data), folder)
    getattr(trainer, loop)(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("fusion", ["raw", "softmax", "zscore"])
def test_weak_matcher_improves(fusion: Any, data: DigitScenesDataModule, tmp_path: Path) -> None:
    alpha = {"raw": 4.0, "softmax": 4.0, "zscore": 0.3}[fusion]
    found = _run(KnowledgeRerank(alpha=alpha, fusion=fusion), data, tmp_path)
    assert found["test/rerank_rsum"] > found["test/base_rsum"]
    names = {f"test/{kind}_{way}_R@{k}" for kind in ("base", "rerank") for way in ("t2i", "i2t") for k in (1, 5, 10)}
    assert names <= found.keys()
    assert sum(found[name] for name in names if "base" in name) == pytest.approx(found["test/base_rsum"], rel=1e-5)


def test_alpha_zero_changes_nothing(data: DigitScenesDataModule, tmp_path: Path) -> None:
    found = _run(KnowledgeRerank(alpha=0.0), data, tmp_path)
    for name, value in found.items():
        if "base" in name:
            assert found[name.replace("base", "rerank")] == value


def test_one_direction_alone(data: DigitScenesDataModule, tmp_path: Path) -> None:
    found = _run(KnowledgeRerank(alpha=(0.0, 0.5)), data, tmp_path)
    assert found["test/rerank_t2i_meanR"] == found["test/base_t2i_meanR"]
    assert found["test/rerank_i2t_meanR"] != found["test/base_i2t_meanR"]
    assert found["test/rerank_alpha_i2t"] == 0.5


def test_weight_is_the_best_on_validation_and_kept(data: DigitScenesDataModule, tmp_path: Path) -> None:
    grid = (0.0, 0.2, 0.6)
    callback = KnowledgeRerank(alpha=None, alphas=grid)
    with pytest.raises(MisconfigurationException, match="choosing it on the test set would leak"):
        _run(callback, data, tmp_path)
    found = _run(callback, data, tmp_path, "validate")
    assert callback.alpha is not None
    each = [_run(KnowledgeRerank(alpha=alpha), data, tmp_path, "validate") for alpha in grid]
    for place, way in enumerate(("t2i", "i2t")):
        sums = [sum(one[f"val/rerank_{way}_R@{k}"] for k in (1, 5, 10)) for one in each]
        assert callback.alpha[place] == grid[sums.index(max(sums))]
    assert found["val/rerank_rsum"] >= found["val/base_rsum"]
    again = KnowledgeRerank(alpha=None, alphas=grid)
    again.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert again.alpha == callback.alpha
    assert "test/rerank_rsum" in _run(again, data, tmp_path)
    assert KnowledgeRerank(alpha=0.15).state_dict() == {}


def test_any_way_to_give_scores(data: DigitScenesDataModule, tmp_path: Path) -> None:
    module = Noisy()
    expected = _run(KnowledgeRerank(), data, tmp_path)
    assert _run(KnowledgeRerank(scores=lambda m: m._score()), data, tmp_path) == expected
    toy_trainer(Parts(module, [], data), tmp_path).test(module, datamodule=data, verbose=False)
    module.held = module._score()
    assert _run(KnowledgeRerank(scores="held"), data, tmp_path, module=module) == expected


def test_knowledge_alone_reorders_by_its_own_scores(data: DigitScenesDataModule, tmp_path: Path) -> None:
    constant = Noisy()
    constant.zeros = torch.zeros(60, 300)
    found = _run(KnowledgeRerank(scores="zeros", top_k=300, alpha=1.0), data, tmp_path, module=constant)
    matcher = KnowledgeMatcher(build_knowledge(data.knowledge_dataloader()))
    test = data.sets["test"]
    t2i, _ = matcher(test.regions.read(range(60)).regions, test.captions)
    ranks = [1 + int((t2i[:, j] > t2i[i, j]).sum()) for j, i in enumerate(test.image.tolist())]
    assert found["test/rerank_t2i_R@1"] == pytest.approx(100 * ranks.count(1) / 300, abs=0.4)


def test_saved_scores_are_a_base(data: DigitScenesDataModule, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "s.npy", torch.randn(60, 300).numpy().astype(np.float16))
    found = _run(KnowledgeRerank(), data, tmp_path, module=SavedScores(tmp_path / "s.npy"))
    assert found["test/rerank_rsum"] > found["test/base_rsum"]
    with pytest.raises(MisconfigurationException, match="validation=None"):
        _run(KnowledgeRerank(), data, tmp_path, "validate", SavedScores(tmp_path / "s.npy"))
    for loop in ("fit", "predict"):
        module = SavedScores(tmp_path / "s.npy")
        with pytest.raises(MisconfigurationException, match="SavedScores has nothing to"):
            getattr(toy_trainer(Parts(module, [], data), tmp_path), loop)(module, datamodule=data)
    with pytest.raises(FileNotFoundError, match="is no file"):
        SavedScores(tmp_path / "none.npy").setup("test")
    np.save(tmp_path / "o.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="is pickled or cut short"):
        SavedScores(tmp_path / "o.npy").setup("test")


def test_knowledge_is_read_from_its_folder(data: DigitScenesDataModule, tmp_path: Path) -> None:
    build_knowledge(data.knowledge_dataloader()).save(tmp_path / "knowledge")
    found = _run(KnowledgeRerank(knowledge=tmp_path / "knowledge"), data, tmp_path)
    assert found == _run(KnowledgeRerank(), data, tmp_path)
    with pytest.raises(FileNotFoundError, match="Knowledge not found"):
        _run(KnowledgeRerank(knowledge=str(tmp_path)), data, tmp_path)


def test_bad_input_is_named(tmp_path: Path) -> None:
    data = ToyRetrieval()
    module = Noisy()
    module.wrong, module.turned = torch.zeros(40, 40), torch.zeros(47, 48)
    with pytest.raises(ValueError, match=r"scores gave \(40, 40\), but the data has \(48, 48\)"):
        _run(KnowledgeRerank("wrong", toy_knowledge()), data, tmp_path, module=module)
    for options, message in (
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": (0.1, float("nan"))}, "alpha=.*nan"),
        ({"alpha": (0.1, 0.2, 0.3)}, r"alpha=\(0.1, 0.2, 0.3\)"),
        ({"alphas": ()}, r"alphas=\(\)"),
        ({"alphas": (0.0, float("inf"))}, "alphas=.*inf"),
        ({"top_k": 0}, "top_k=0"),
        ({"fusion": "max"}, "fusion='max'"),
    ):
        with pytest.raises(ValueError, match=message):
            KnowledgeRerank(**options)


class OneLoader(ToyRetrieval):
    def test_dataloader(self) -> Any:
        return super().test_dataloader()[0]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"scores": "absent"}, ToyRetrieval, "scores='absent': Untouched has no such attribute"),
        ({"alpha": None}, ToyRetrieval, "choosing it on the test set would leak"),
        ({"knowledge": None}, ToyRetrieval, "ToyRetrieval has no knowledge_dataloader"),
        ({}, OneLoader, "test_dataloader of OneLoader gives DataLoader; KnowledgeRerank takes two"),
    ],
)
def test_refusals_come_before_the_first_batch(options: dict[str, Any], data: Any, message: str, tmp_path: Path) -> None:
    class Untouched(Noisy):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pytest.fail("a batch was evaluated")

    with pytest.raises(MisconfigurationException, match=message):
        _run(KnowledgeRerank(**{"knowledge": toy_knowledge(), **options}), data(), tmp_path, module=Untouched())


def test_another_set_is_scored_anew(tmp_path: Path) -> None:
    module, callback, other = Noisy(), KnowledgeRerank(knowledge=toy_knowledge(), alpha=2.0), "w{0} w3"
    first = _run(callback, ToyRetrieval(), tmp_path, module=module)
    again = _run(callback, ToyRetrieval(other), tmp_path, module=module)
    assert again != first
    anew = KnowledgeRerank(knowledge=toy_knowledge(), alpha=2.0)
    assert again == _run(anew, ToyRetrieval(other), tmp_path, module=module)


def test_transposed_scores_are_noticed(data: DigitScenesDataModule, tmp_path: Path) -> None:
    module = Noisy()
    module.turned = torch.zeros(300, 60)
    with pytest.raises(ValueError, match="It looks transposed"):
        _run(KnowledgeRerank("turned"), data, tmp_path, module=module)
