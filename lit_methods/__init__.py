"""Six published training methods as PyTorch Lightning modules and drop-in callbacks.

Names are imported on first use, so that `import lit_methods` costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_methods.callbacks import (
        BandedSquareRootNoise,
        DataWeighting,
        KnowledgeRerank,
        LearnedAugmentation,
        SoftmaxApproximation,
        SpectralDistillation,
        SyntheticImageWriter,
        UserLevelNoise,
    )
    from lit_methods.classifier import Classifier
    from lit_methods.data_manipulation import ConditionalMaskedLM, TextClassifier
    from lit_methods.datamodules import (
        Degradation,
        DigitScenesDataModule,
        DigitsDataModule,
        DocstringDataModule,
        FashionMNISTDataModule,
        FederatedDataModule,
        HubImageDataModule,
        HubTextDataModule,
        ImageFolderDataModule,
        ImageTextDataModule,
        IndexedDataset,
        OpenSetDataModule,
        TranslationDataModule,
    )
    from lit_methods.federated import FederatedModule
    from lit_methods.image_text import MACK
    from lit_methods.semi_supervised import (
        DiscriminatorWeightedDiffusion,
        RelevanceDiscriminator,
        SemiSupervisedClassifier,
    )
    from lit_methods.softmax_approximation.module import AttentionClassifier, AttentionTranslator

__version__ = version("lit-methods")

__all__ = [
    "MACK",
    "AttentionClassifier",
    "AttentionTranslator",
    "BandedSquareRootNoise",
    "Classifier",
    "ConditionalMaskedLM",
    "DataWeighting",
    "Degradation",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "DiscriminatorWeightedDiffusion",
    "DocstringDataModule",
    "FashionMNISTDataModule",
    "FederatedDataModule",
    "FederatedModule",
    "HubImageDataModule",
    "HubTextDataModule",
    "ImageFolderDataModule",
    "ImageTextDataModule",
    "IndexedDataset",
    "KnowledgeRerank",
    "LearnedAugmentation",
    "OpenSetDataModule",
    "RelevanceDiscriminator",
    "SemiSupervisedClassifier",
    "SoftmaxApproximation",
    "SpectralDistillation",
    "SyntheticImageWriter",
    "TextClassifier",
    "TranslationDataModule",
    "UserLevelNoise",
    "__version__",
]

_HOMES = {
    "AttentionClassifier": "lit_methods.softmax_approximation.module",
    "AttentionTranslator": "lit_methods.softmax_approximation.module",
    "BandedSquareRootNoise": "lit_methods.callbacks",
    "Classifier": "lit_methods.classifier",
    "ConditionalMaskedLM": "lit_methods.data_manipulation",
    "DataWeighting": "lit_methods.callbacks",
    "Degradation": "lit_methods.datamodules",
    "DigitScenesDataModule": "lit_methods.datamodules",
    "DigitsDataModule": "lit_methods.datamodules",
    "DiscriminatorWeightedDiffusion": "lit_methods.semi_supervised",
    "DocstringDataModule": "lit_methods.datamodules",
    "FashionMNISTDataModule": "lit_methods.datamodules",
    "FederatedDataModule": "lit_methods.datamodules",
    "FederatedModule": "lit_methods.federated",
    "HubImageDataModule": "lit_methods.datamodules",
    "HubTextDataModule": "lit_methods.datamodules",
    "ImageFolderDataModule": "lit_methods.datamodules",
    "ImageTextDataModule": "lit_methods.datamodules",
    "IndexedDataset": "lit_methods.datamodules",
    "KnowledgeRerank": "lit_methods.callbacks",
    "LearnedAugmentation": "lit_methods.callbacks",
    "MACK": "lit_methods.image_text",
    "OpenSetDataModule": "lit_methods.datamodules",
    "RelevanceDiscriminator": "lit_methods.semi_supervised",
    "SemiSupervisedClassifier": "lit_methods.semi_supervised",
    "SoftmaxApproximation": "lit_methods.callbacks",
    "SpectralDistillation": "lit_methods.callbacks",
    "SyntheticImageWriter": "lit_methods.callbacks",
    "TextClassifier": "lit_methods.data_manipulation",
    "TranslationDataModule": "lit_methods.datamodules",
    "UserLevelNoise": "lit_methods.callbacks",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_methods' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Lists the public names for completion."""
    return sorted(__all__)
