"""What needs whole parameters refuses strategies that shard them, before anything is trained."""

from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from tests.battery.trainers import toy_trainer
from tests.matrix import ENTRIES, entry


class RayFSDPStrategy(FSDPStrategy):
    """A launcher's own subclass, such as Ray's, is refused too."""


SHARDING = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, RayFSDPStrategy)
REFUSED = (
    "BandedSquareRootNoise",
    "DataWeighting",
    "LearnedAugmentation",
    "SoftmaxApproximation",
    "SpectralDistillation",
    "UserLevelNoise",
    "FederatedModule",
    "DiscriminatorWeightedDiffusion",
    "SemiSupervisedClassifier",
)
PLAIN = {
    "KnowledgeRerank": "it reads scores that the module has computed",
    "SyntheticImageWriter": "it writes what the module predicts",
    "Classifier": "forward, loss and optimizer alone",
    "TextClassifier": "forward, loss and optimizer alone",
    "ConditionalMaskedLM": "forward, loss and optimizer alone",
    "AttentionClassifier": "forward, loss and optimizer alone",
    "AttentionTranslator": "forward, loss and optimizer alone",
    "RelevanceDiscriminator": "forward, loss and optimizer alone",
    "MACK": "its parameters are read in its steps alone",
}


def _set_up(name: str, strategy: type[Strategy], folder: Path, stage: str = "fit") -> None:
    """Calls the `setup` of the public class of that name in a Trainer whose strategy is of that class."""
    parts = entry(name).make(folder, 1)
    trainer: Trainer = toy_trainer(parts, folder)
    trainer.strategy.__class__ = strategy
    trainer.strategy.__dict__["_num_nodes"] = 1
    parts.module.trainer = trainer
    found = next(part for part in (parts.module, *parts.callbacks) if type(part).__name__ == name)
    if isinstance(found, LightningModule):
        found.setup(stage)
    else:
        found.setup(trainer, parts.module, stage)


def test_each_public_module_and_callback_is_here() -> None:
    assert {*REFUSED, *PLAIN} == {each.name for each in ENTRIES}


@pytest.mark.parametrize("strategy", SHARDING)
@pytest.mark.parametrize("name", REFUSED)
def test_sharded_parameters_are_refused(name: str, strategy: type[Strategy], tmp_path: Path) -> None:
    sentence = (
        rf"strategy={strategy.__name__} may shard parameters, but .*{name}.* Train on one device or with strategy"
    )
    with pytest.raises(MisconfigurationException, match=sentence):
        _set_up(name, strategy, tmp_path)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("name", ["FederatedModule", "DiscriminatorWeightedDiffusion", "SemiSupervisedClassifier"])
def test_evaluation_that_reads_whole_models_is_refused_too(name: str, stage: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="strategy=DeepSpeedStrategy may shard parameters"):
        _set_up(name, DeepSpeedStrategy, tmp_path, stage)


@pytest.mark.parametrize("name", REFUSED)
def test_whole_parameters_are_not_refused(name: str, tmp_path: Path) -> None:
    _set_up(name, type("RayDDPStrategy", (DDPStrategy,), {}), tmp_path)
