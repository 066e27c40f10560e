"""Every callback on every module: both do their work, or one refuses with a sentence; README's table is this one."""

import re
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule

from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.matrix import entry

MODULES = (
    "Classifier",
    "AttentionClassifier",
    "AttentionTranslator",
    "TextClassifier",
    "ConditionalMaskedLM",
    "FederatedModule",
    "RelevanceDiscriminator",
    "DiscriminatorWeightedDiffusion",
    "SemiSupervisedClassifier",
    "MACK",
)
CALLBACKS = (
    "BandedSquareRootNoise",
    "DataWeighting",
    "LearnedAugmentation",
    "SoftmaxApproximation",
    "SpectralDistillation",
    "UserLevelNoise",
    "KnowledgeRerank",
)
WORKS = {
    ("Classifier", "BandedSquareRootNoise"),
    ("TextClassifier", "LearnedAugmentation"),
    ("FederatedModule", "UserLevelNoise"),
    *((module, "SoftmaxApproximation") for module in MODULES[1:5]),
    *((module, "SpectralDistillation") for module in MODULES),
}
NO_LOADER = r"Private training needs a training DataLoader whose order it can fix, but found a (CombinedLoader|Rounds)"
REFUSALS = {
    "BandedSquareRootNoise": NO_LOADER,
    "DataWeighting": r"criterion='loss' names no submodule .* or offer per_sample_loss\(batch\)",
    "LearnedAugmentation": r"has no single word embedding of the augmenter's 40 words",
    "SoftmaxApproximation": r"No softmax of \w+ was reached, so that nothing is saved",
    "UserLevelNoise": r"has no `aggregation` that does so. For the privacy of single examples use Banded",
    "KnowledgeRerank": r"has no such attribute or method; name one that gives its scores",
    (
        "AttentionClassifier",
        "BandedSquareRootNoise",
    ): r"has no per-sample gradients. Use opacus.layers.DPMultihead",
    (
        "AttentionTranslator",
        "BandedSquareRootNoise",
    ): r"has no per-sample gradients. Use opacus.layers.DPMultihead",
    ("TextClassifier", "BandedSquareRootNoise"): r"has 1 per-sample gradients for a batch of \d+ examples",
    ("ConditionalMaskedLM", "BandedSquareRootNoise"): r"holds a parameter under two names",
    ("Classifier", "DataWeighting"): r"has no index of its examples .* Wrap the training set in IndexedDataset",
    ("TextClassifier", "DataWeighting"): r"has no index of its examples .* Wrap the training set in IndexedDataset",
    ("FederatedModule", "DataWeighting"): r"Rounds has none. Pass num_samples=",
    ("ConditionalMaskedLM", "LearnedAugmentation"): r"has no method per_sample_loss\(batch\)",
}


class Steps(Callback):
    """Counts optimizer steps."""

    count = 0

    def on_train_batch_end(self, trainer: object, pl_module: LightningModule, *_: object) -> None:
        self.count += 1


def _parts(module: str, callback: str, folder: Path) -> Parts:
    found = [each for each in entry(callback).make(folder, 1).callbacks if type(each).__name__ == callback]
    parts = entry(module).make(folder, 1)
    return Parts(parts.module, [*parts.callbacks, *found], parts.data)


@pytest.mark.filterwarnings("ignore")  # pairs that nobody means to run warn of much
@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("module", MODULES)
def test_each_pair_works_or_is_refused(module: str, callback: str, tmp_path: Path) -> None:
    parts, steps = _parts(module, callback, tmp_path), Steps()
    parts.callbacks.append(steps)
    trainer = toy_trainer(parts, tmp_path, max_epochs=1)
    if (module, callback) in WORKS:
        trainer.fit(parts.module, datamodule=parts.data)
        assert steps.count > 0
        return
    with pytest.raises(Exception, match=REFUSALS.get((module, callback), REFUSALS[callback])) as refusal:
        trainer.fit(parts.module, datamodule=parts.data)
    assert type(refusal.value).__name__ in ("MisconfigurationException", "ValueError")


def test_no_refusal_is_left_over() -> None:
    pairs = {key for key in REFUSALS if isinstance(key, tuple)}
    assert not pairs & WORKS
    assert all(module in MODULES and callback in CALLBACKS for module, callback in pairs | WORKS)
    assert all(re.compile(pattern) for pattern in REFUSALS.values())
