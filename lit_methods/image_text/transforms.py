"""Maps of regions and words into the space where they are compared (MACK, Section 2(c))."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lit_methods.errors import check_above
from lit_methods.image_text.knowledge import KnowledgeBase


class FeatureMap(nn.Module):
    """Maps regions and words; this one leaves both as they are.

    Words are mapped before a noun and its adjective are added up.
    """

    def regions(self, features: Tensor) -> Tensor:
        """Maps regions `(..., D)`."""
        return features

    def words(self, prototypes: Tensor) -> Tensor:
        """Maps prototypes `(K, D)`."""
        return prototypes

    @property
    def is_fitted(self) -> bool:
        """Whether the map has what it needs from the data; False asks for `fit`."""
        return True

    def fit(self, regions: Iterable[Tensor], knowledge: KnowledgeBase) -> None:
        """Takes what a closed form needs from unpaired regions, in batches `(N, D)`; nothing here."""


class SharedLinear(FeatureMap):
    """One matrix W for regions and words, without bias, which starts as the identity.

    Args:
        feature_size: Feature size D.

    Guarantees:
        - Before training it leaves every score as it is.

    Raises:
        ValueError: If `feature_size` is below 1.
    """

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        _check_size(feature_size)
        self.weight = nn.Parameter(torch.eye(feature_size))

    def regions(self, features: Tensor) -> Tensor:
        """`features W`."""
        return features @ self.weight

    def words(self, prototypes: Tensor) -> Tensor:
        """`prototypes W`."""
        return prototypes @ self.weight


class SeparateAffine(FeatureMap):
    """An affine map for regions and another for words, as in the authors' release; both start as the identity.

    Args:
        feature_size: Feature size D.

    Guarantees:
        - Before training it leaves every score as it is.

    Raises:
        ValueError: If `feature_size` is below 1.
    """

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        _check_size(feature_size)
        self.region_map = nn.Linear(feature_size, feature_size)
        self.word_map = nn.Linear(feature_size, feature_size)
        for layer in (self.region_map, self.word_map):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def regions(self, features: Tensor) -> Tensor:
        """The regions' map."""
        return self.region_map(features)  # type: ignore[no-any-return]  # modules return Any

    def words(self, prototypes: Tensor) -> Tensor:
        """The words' map."""
        return self.word_map(prototypes)  # type: ignore[no-any-return]  # modules return Any


class Centring(FeatureMap):
    """Takes the mean of the target's regions from regions, and that of the knowledge's regions from words.

    Ours, in closed form and without any caption: regions share a large common direction that crowds all cosines
    together, and it differs between the knowledge's pictures and the target's.

    Args:
        feature_size: Feature size D.

    Raises:
        ValueError: If `feature_size` is below 1.
    """

    region_mean: Tensor
    word_mean: Tensor
    fitted: Tensor

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        _check_size(feature_size)
        self.register_buffer("region_mean", torch.zeros(feature_size))
        self.register_buffer("word_mean", torch.zeros(feature_size))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def is_fitted(self) -> bool:
        """Whether the means are known."""
        return bool(self.fitted)

    def fit(self, regions: Iterable[Tensor], knowledge: KnowledgeBase) -> None:
        """Takes means (and, in `Whitening`, the covariance) in one pass, in float64.

        Raises:
            ValueError: If there is no region.
        """
        size = len(self.region_mean)
        count, total, square = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for batch in regions:
            rows = batch.double().cpu()
            count, total, square = count + len(rows), total + rows.sum(dim=0), square + rows.T @ rows
        if count == 0:
            raise ValueError(f"{type(self).__name__} needs regions of the target; the stream holds none.")
        mean = total / count
        self._take(mean, square / count - torch.outer(mean, mean))
        weights = knowledge.counts.double().cpu()
        words = (knowledge.prototypes.double().cpu() * weights.unsqueeze(1)).sum(dim=0) / weights.sum()
        self.word_mean.copy_(words)
        self.fitted.fill_(True)

    def regions(self, features: Tensor) -> Tensor:
        """Regions without the target's mean."""
        return features - self.region_mean

    def words(self, prototypes: Tensor) -> Tensor:
        """Prototypes without the knowledge's mean."""
        return prototypes - self.word_mean

    def _take(self, mean: Tensor, covariance: Tensor) -> None:
        self.region_mean.copy_(mean)


class Whitening(Centring):
    """Centring, then the inverse square root of the covariance of the target's regions (ZCA).

    Args:
        feature_size: Feature size D.
        shrinkage: Added to each eigenvalue, as a part of their mean; larger values come nearer to centring.

    Raises:
        ValueError: If `feature_size` is below 1, or `shrinkage` is not above 0.
    """

    matrix: Tensor

    def __init__(self, feature_size: int, shrinkage: float = 0.1) -> None:
        super().__init__(feature_size)
        check_above("shrinkage", shrinkage)
        self.shrinkage = shrinkage
        self.register_buffer("matrix", torch.eye(feature_size))

    def regions(self, features: Tensor) -> Tensor:
        """Whitened regions."""
        return super().regions(features) @ self.matrix

    def words(self, prototypes: Tensor) -> Tensor:
        """Words in the same coordinates."""
        return super().words(prototypes) @ self.matrix

    def _take(self, mean: Tensor, covariance: Tensor) -> None:
        super()._take(mean, covariance)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=0) + self.shrinkage * values.mean()
        self.matrix.copy_(vectors * values.rsqrt() @ vectors.T)


def _check_size(feature_size: int) -> None:
    if feature_size < 1:
        raise ValueError(f"feature_size={feature_size} must be at least 1.")
