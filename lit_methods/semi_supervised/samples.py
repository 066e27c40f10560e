"""What a diffusion makes from noise while it trains: images of each class, and what its null class holds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lit_methods.semi_supervised.draws import seeded, seeded_generator

# nn.Module first: jsonargparse would take the class path of a module for a callable that builds a Tensor.
Judge = nn.Module | Callable[[Tensor], Tensor]
_CHUNK = 16


class Drawn(NamedTuple):
    """What was drawn from noise.

    Attributes:
        rows: Name and images `(N, C, H, W)` of each class and, last, of the null class; empty if no picture is wanted.
        null_known_share: Share of known classes among images of the null class; None without a judge.
    """

    rows: list[tuple[str, Tensor]]
    null_known_share: Tensor | None


class ClassSamples:
    """Images from noise alone at validation: a row of each class and of the null class.

    The noise is the same each time, so that pictures of a run can be compared, and comes from generators of its own.

    Args:
        per_class: Images of each class in the picture; 0 draws none.
        judge: Tells which images `(B, C, H, W)` show a known class: `(B,)`, bool or probabilities. A module is put into
            evaluation mode and moved to the images' device; it is no part of the checkpoint. None judges nothing.
        judged: Images of the null class that the judge sees.
        num_inference_steps: Steps of the solver.
        every_n_epochs: Draws after every n-th epoch of training alone.
        seed: Seed of the noise.

    Guarantees:
        - The global random state stays as it is, even if the judge draws.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        per_class: int = 8,
        judge: Judge | None = None,
        judged: int = 64,
        num_inference_steps: int = 10,
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("per_class", per_class, 0),
            ("judged", judged, 1),
            ("num_inference_steps", num_inference_steps, 1),
            ("every_n_epochs", every_n_epochs, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        self.per_class, self.judge, self.judged = per_class, judge, judged
        self.num_inference_steps, self.every_n_epochs, self.seed = num_inference_steps, every_n_epochs, seed

    @torch.no_grad()
    def draw(self, pipeline: Any, like: Tensor, guidance_scale: float, picture: bool = True) -> Drawn:
        """Draws by a trained pipeline.

        Args:
            pipeline: A `ClassTransformationPipeline`.
            like: Images `(B, C, H, W)` whose shape and device the drawn ones have; their values play no part.
            guidance_scale: `s = 1 + w` of classifier-free guidance for the known classes.
            picture: Whether rows are wanted.
        """
        null, count = pipeline.null_class, self.per_class if picture else 0
        rows = [(f"class {c}", self._images(pipeline, like, c, count, guidance_scale)) for c in range(null) if count]
        if self.judge is None and not count:
            return Drawn(rows, None)
        of_null = self._images(pipeline, like, null, max(count, 0 if self.judge is None else self.judged), 0.0)
        share = None if self.judge is None else self._share(of_null[: self.judged])
        if count:
            name = "null class" if share is None else f"null class\n{float(share):.0%} known"
            rows.append((name, of_null[:count]))
        return Drawn(rows, share)

    def _images(self, pipeline: Any, like: Tensor, label: int, count: int, guidance_scale: float) -> Tensor:
        made = []
        for index in torch.split(torch.arange(count), _CHUNK):
            sources = like.new_zeros(len(index), *like.shape[1:])
            labels = torch.full((len(index),), label, device=like.device)
            generators = [seeded_generator(self.seed, label, i) for i in index.tolist()]
            made.append(pipeline(sources, labels, 1.0, guidance_scale, self.num_inference_steps, generators))
        return torch.cat(made)

    def _share(self, images: Tensor) -> Tensor:
        judge = cast(Judge, self.judge)
        if isinstance(judge, nn.Module):
            judge.to(images.device).eval()
        with seeded(images.device, self.seed):
            known = torch.cat([judge(part) for part in torch.split(images, _CHUNK)]).float()
        if known.shape != images.shape[:1] or not bool(((known >= 0) & (known <= 1)).all()):
            raise ValueError(
                f"judge gave {tuple(known.shape)} values from {float(known.min()):g} to {float(known.max()):g} for "
                f"{len(images)} images; give one bool or probability for each."
            )
        return known.mean()


class ClassifierJudge(nn.Module):
    """Whether a classifier of known and unknown classes sees a known one.

    Args:
        classifier: Maps images `(B, C, H, W)` to logits `(B, M)` of known and unknown classes.
        known_classes: Which of the M classes are known.
        checkpoint: Checkpoint of a LightningModule that holds the classifier as `network`, as `Classifier` does; None
            takes `classifier` as it is.

    Raises:
        ValueError: If `known_classes` is empty or holds anything but numbers of classes.
        FileNotFoundError: If the checkpoint does not exist.
    """

    known_classes: Tensor

    def __init__(
        self, classifier: nn.Module, known_classes: Sequence[int], checkpoint: str | Path | None = None
    ) -> None:
        super().__init__()
        if not len(known_classes) or not all(isinstance(c, int) and c >= 0 for c in known_classes):
            raise ValueError(f"known_classes={known_classes!r} must hold the numbers of the known classes.")
        self.classifier = classifier
        self.register_buffer("known_classes", torch.tensor(list(known_classes)))
        if checkpoint is not None:
            if not Path(checkpoint).is_file():
                raise FileNotFoundError(f"checkpoint={checkpoint} does not exist; train a classifier of all classes.")
            saved: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
            prefix = "network."
            classifier.load_state_dict({k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)})

    def forward(self, images: Tensor) -> Tensor:
        """Whether each image shows a known class `(B,)` bool."""
        return torch.isin(self.classifier(images).argmax(dim=1), self.known_classes)
