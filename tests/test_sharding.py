"""What needs whole parameters refuses strategies that shard them, before anything is trained."""

from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from tests.battery.trainers import toy_trainer
from tests.matrix import ENTRIES, entry


class RayFSDPStrategy(FSDPStrategy):
    """A launcher's own subclass, as Ray has it."""


class RayDDPStrategy(DDPStrategy):
    """The same of what keeps parameters whole."""


SHARDING = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, RayFSDPStrategy)
ALL = ("fit", "validate", "test", "predict")
REFUSED = {
    "BandedSquareRootNoise": ("fit",),
    "DataWeighting": ("fit",),
    "DiscriminatorWeightedDiffusion": ALL,
    "FederatedModule": ALL,
    "LearnedAugmentation": ("fit",),
    "SemiSupervisedClassifier": ALL,
    "SoftmaxApproximation": ("fit",),
    "SpectralDistillation": ("fit",),
    "SyntheticImageWriter": ("predict",),
    "UserLevelNoise": ("fit",),
}
PLAIN = {
    "AttentionClassifier": "forward, loss and optimizer alone",
    "AttentionTranslator": "forward, loss and optimizer alone",
    "Classifier": "forward, loss and optimizer alone",
    "ConditionalMaskedLM": "forward, loss and optimizer alone",
    "KnowledgeRerank": "it reads scores that the module has computed",
    "MACK": "its parameters are read in its steps alone",
    "RelevanceDiscriminator": "forward, loss and optimizer alone",
    "TextClassifier": "forward, loss and optimizer alone",
}


def _set_up(name: str, stage: str, strategy: type[Strategy], folder: Path) -> None:
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
@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name, stages in REFUSED.items() for stage in stages])
def test_sharded_parameters_are_refused(name: str, stage: str, strategy: type[Strategy], tmp_path: Path) -> None:
    sentence = rf"strategy={strategy.__name__} may shard parameters, but {name} .*\. Run on one device or with"
    with pytest.raises(MisconfigurationException, match=sentence):
        _set_up(name, stage, strategy, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_whole_parameters_are_not_refused(name: str, tmp_path: Path) -> None:
    _set_up(name, REFUSED[name][0], RayDDPStrategy, tmp_path)
