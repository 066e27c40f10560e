"""Six published training methods as PyTorch Lightning modules and drop-in callbacks.

Names are imported on first use, so that `import lit_methods` costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_methods.callbacks import BandedSquareRootNoise, SpectralDistillation
    from lit_methods.classifier import Classifier
    from lit_methods.datamodules import (
        DigitsDataModule,
        FashionMNISTDataModule,
        FederatedDataModule,
        HubImageDataModule,
    )
    from lit_methods.federated import FederatedModule

__version__ = version("lit-methods")

__all__ = [
    "BandedSquareRootNoise",
    "Classifier",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FederatedDataModule",
    "FederatedModule",
    "HubImageDataModule",
    "SpectralDistillation",
    "__version__",
]

_HOMES = {
    "BandedSquareRootNoise": "lit_methods.callbacks",
    "Classifier": "lit_methods.classifier",
    "DigitsDataModule": "lit_methods.datamodules",
    "FashionMNISTDataModule": "lit_methods.datamodules",
    "FederatedDataModule": "lit_methods.datamodules",
    "FederatedModule": "lit_methods.federated",
    "HubImageDataModule": "lit_methods.datamodules",
    "SpectralDistillation": "lit_methods.callbacks",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_methods' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Lists the public names for completion."""
    return sorted(__all__)
