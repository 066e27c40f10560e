"""Where the weights of unlabelled images come from: a frozen discriminator, or one that is trained beside."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_methods.errors import check_at_least, check_factory, check_object
from lit_methods.semi_supervised.cache import ExampleCache
from lit_methods.semi_supervised.pu import PULoss, RelevanceWeight


class Relevance(nn.Module):
    """Gives unlabelled images their weights in the diffusion loss.

    Attributes:
        trains: Whether its network is trained beside the diffusion, by the loss that `forward` returns.
    """

    trains = False

    @abstractmethod
    def forward(self, labeled: Tensor, unlabeled: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights of unlabelled images, without gradient, and the network's own loss if it trains.

        Args:
            labeled: Labelled images `(B_l, C, H, W)`.
            unlabeled: Unlabelled images `(B_u, C, H, W)`.
            index: Their positions in the pool `(B_u,)`, on the CPU.
        """

    def start(self) -> None:
        """Called before a fit that does not resume."""

    def cached(self) -> dict[str, Tensor]:
        """Tensors to save beside the weights."""
        return {}

    def load_cached(self, state: dict[str, Tensor]) -> None:
        """Takes saved tensors."""


class FrozenRelevance(Relevance):
    """A trained, frozen discriminator that is asked once per image (`index` tells them apart).

    Args:
        network: Maps images to logits `(B,)` or `(B, 1)`.
        prior: Share mu of relevant images among the unlabelled ones: that of the discriminator's loss.
        checkpoint: Checkpoint of a `RelevanceDiscriminator`, read when a fit starts; None takes `network` as it is.
        alpha: Weight of the unlabelled part; 3 is the paper's best.
        balanced: The reading of the logit: that of the discriminator's loss.
        self_normalize: Divides the weights by the running mean of the density ratio.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        prior: float,
        checkpoint: str | Path | None = None,
        alpha: float = 3.0,
        balanced: bool = True,
        self_normalize: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.weight = RelevanceWeight(prior, alpha, balanced, self_normalize)
        self.checkpoint = checkpoint
        self._logits = ExampleCache()

    def train(self, mode: bool = True) -> "FrozenRelevance":
        """Sets the mode; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def start(self) -> None:
        """Reads the checkpoint and forgets the logits of other data.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If it is of a discriminator for another prior or reading.
        """
        self._logits.clear()
        if self.checkpoint is not None:
            self._load(self.checkpoint)

    def forward(self, labeled: Tensor, unlabeled: Tensor, index: Tensor) -> tuple[Tensor, None]:
        """Weights `(B_u,)`; the network sees an image only the first time."""
        missing = self._logits.missing(index)
        if bool(missing.any()):
            with torch.no_grad():
                logits = cast(Tensor, self.network(unlabeled[missing.to(unlabeled.device)])).flatten()
            self._logits.put(index[missing], logits)
        logits = self._logits.get(index).to(unlabeled.device, non_blocking=True)
        return self.weight(logits), None

    def cached(self) -> dict[str, Tensor]:
        """The logits."""
        return self._logits.state_dict()

    def load_cached(self, state: dict[str, Tensor]) -> None:
        """Takes saved logits."""
        self._logits.load_state_dict(state)

    def _load(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"checkpoint={path} does not exist; train a RelevanceDiscriminator first.")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        said = content.get("hyper_parameters", {})
        for name, own in (("prior", self.weight.prior), ("balanced", self.weight.balanced)):
            if name not in said or said[name] != own:
                raise ValueError(
                    f"{name}={own} does not fit checkpoint={path}, which is of a discriminator with "
                    f"{name}={said.get(name, 'unknown')}; take its value, or train another one."
                )
        prefix = "network."
        state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
        self.network.load_state_dict(state)


class JointRelevance(Relevance):
    """A discriminator that takes one step before each step of the diffusion, as in the released code.

    The weights come from the logits before that step. BatchNorm sees labelled and unlabelled images in one batch.

    Args:
        network: Maps images to logits `(B,)` or `(B, 1)`.
        loss: The PU loss; it holds the prior.
        alpha: Weight of the unlabelled part.
        self_normalize: Divides the weights by the running mean of the density ratio.
        optimizer: Takes the network's parameters; None for AdamW at rate 2e-4, weight decay 1e-4.

    Raises:
        ValueError: If `alpha` is negative or not finite.
        TypeError: If something else stands for the loss or the optimizer.
    """

    trains = True

    def __init__(
        self,
        network: nn.Module,
        loss: PULoss,
        alpha: float = 3.0,
        self_normalize: bool = False,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__()
        check_object("loss", loss, PULoss, "PULoss(prior=0.5)")
        check_factory("optimizer", optimizer)
        self.network, self.loss = network, loss
        self.weight = RelevanceWeight(loss.prior, alpha, loss.balanced, self_normalize)
        self._make_optimizer = optimizer

    def forward(self, labeled: Tensor, unlabeled: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(B_u,)` and the PU loss, from one forward pass."""
        logits = cast(Tensor, self.network(torch.cat([labeled, unlabeled]))).flatten()
        positive, pool = logits[: len(labeled)], logits[len(labeled) :]
        return self.weight(pool.detach()), cast(Tensor, self.loss(positive, pool))

    def configure_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the network."""
        if self._make_optimizer is None:
            return torch.optim.AdamW(self.network.parameters(), lr=2e-4, weight_decay=1e-4)
        return self._make_optimizer(self.network.parameters())


class UniformRelevance(Relevance):
    """The same weight for every unlabelled image: the ablation without a discriminator.

    Args:
        value: The weight, at least 0; 0 trains on labelled images alone.

    Raises:
        ValueError: If the weight is negative.
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        check_at_least("value", value)
        self.value = value

    def forward(self, labeled: Tensor, unlabeled: Tensor, index: Tensor) -> tuple[Tensor, None]:
        """Equal weights `(B_u,)`."""
        return torch.full((len(unlabeled),), self.value, device=unlabeled.device), None
