"""The settings of the transformation as one object."""

import hashlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_methods.errors import check_at_least, check_object, check_rising
from lit_methods.semi_supervised.class_choice import ClassChoice, RandomBalanced
from lit_methods.semi_supervised.draws import seeded_generator
from lit_methods.semi_supervised.functional import start_timestep


class Transformation(nn.Module):
    """How an unlabelled image becomes one of a known class; the defaults are those of the paper's code.

    Args:
        strength: Noise level `t0` to start from, in [0, 1]; 0 copies the source, 1 forgets it.
        guidance_scale: `s = 1 + w` of classifier-free guidance.
        num_inference_steps: Steps of the solver.
        class_choice: Target class of each image; None for `RandomBalanced(seed)`.
        value_range: Lower and upper end of the pixels: the `value_range` of the data.
        seed: Seed of the noise, which depends on it and on the image's index alone.
        clip_clean: Whether every step's estimate of the clean image is clipped to `value_range`; pixels only.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If `class_choice` is no `ClassChoice`.
    """

    def __init__(
        self,
        strength: float = 0.6,
        guidance_scale: float = 1.5,
        num_inference_steps: int = 10,
        class_choice: ClassChoice | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        seed: int = 0,
        clip_clean: bool = False,
    ) -> None:
        super().__init__()
        start_timestep(strength, 1)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1.")
        check_at_least("guidance_scale", guidance_scale)
        check_rising("value_range", value_range)
        check_object("class_choice", class_choice, ClassChoice, "RandomBalanced()")
        self.strength, self.guidance_scale, self.num_inference_steps = strength, guidance_scale, num_inference_steps
        self.class_choice = RandomBalanced(seed) if class_choice is None else class_choice
        self.value_range, self.seed, self.clip_clean = (value_range[0], value_range[1]), seed, clip_clean

    def forward(
        self, pipeline: Any, images: Tensor, labels: Tensor, index: Tensor, strength: float | None = None
    ) -> Tensor:
        """Images `(B, C, H, W)` in the classes `(B,)`.

        Args:
            pipeline: A `ClassTransformationPipeline`.
            images: Sources `(B, C, H, W)`.
            labels: Target classes `(B,)`.
            index: Positions of the sources `(B,)`, from which their noise follows.
            strength: In place of the own one.
        """
        generators = [seeded_generator(self.seed, position) for position in index.tolist()]
        strength = self.strength if strength is None else strength
        made = pipeline(images, labels, strength, self.guidance_scale, self.num_inference_steps, generators)
        return cast(Tensor, made)

    def settings(self, network: nn.Module) -> dict[str, Any]:
        """All settings as plain values, with a digest of the weights of the network and of the class choice."""
        digest = hashlib.sha256()
        for tensor in (*network.state_dict().values(), *self.class_choice.state_dict().values()):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {
            "strength": self.strength,
            "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.num_inference_steps,
            "class_choice": type(self.class_choice).__name__,
            "value_range": list(self.value_range),
            "seed": self.seed,
            "clip_clean": self.clip_clean,
            "weights": digest.hexdigest()[:16],
        } | {f"class_choice.{name}": value for name, value in self.class_choice.settings().items()}
