"""The transformation of an image into another class, as a diffusers pipeline."""

from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from lit_methods.semi_supervised.functional import dpm_solver_2m, guided_noise, log_snr_timesteps, start_timestep
from lit_methods.semi_supervised.latents import check_image_shape, decode, encode


class ClassTransformationPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Noise an image to a strength, then denoise it under a class (SDEdit with a class change; DWD's transformation).

    The probability flow is integrated by DPM-Solver++(2M) on timesteps equally spaced in log-SNR, with
    classifier-free guidance whose conditional and null parts are one batch. `save_pretrained` and `from_pretrained`
    are diffusers'.

    Args:
        unet: Class-conditional noise predictor, such as `UNet2DModel(num_class_embeds=K + 1)`; class K is the null
            class. Use its moving average.
        scheduler: diffusers' `DDPMScheduler` of the training, which tells the schedule.
        vae: `AutoencoderKL` if the diffusion runs on latents, else None.
        low: Lower end of the pixels, to which the result is clipped.
        high: Upper end of the pixels.
        clip_clean: Whether every step's estimate of the clean image is clipped to `[low, high]` too, not only the
            result. It keeps small networks from speckle where they start from noise alone. Pixels only.

    Guarantees:
        - Strength 0 returns the images unchanged; strength 1 starts from noise alone.
        - With one generator per image, the result does not depend on how images are batched.

    Raises:
        ValueError: If `clip_clean` meets a `vae`: latents have no range.
    """

    _optional_components = ["vae"]  # noqa: RUF012  diffusers adds this to a list

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        vae: Any = None,
        low: float = -1.0,
        high: float = 1.0,
        clip_clean: bool = False,
    ) -> None:
        super().__init__()
        if clip_clean and vae is not None:
            raise ValueError("clip_clean=True clips pixels, but the diffusion runs on latents; leave it False.")
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(low=low, high=high, clip_clean=clip_clean)

    @property
    def null_class(self) -> int:
        """Number K of the null class."""
        return int(self.unet.config.num_class_embeds) - 1

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        class_labels: Tensor,
        strength: float = 0.6,
        guidance_scale: float = 1.5,
        num_inference_steps: int = 10,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """Transforms images `(B, C, H, W)` into the classes `(B,)`.

        Args:
            images: Source images within `[low, high]`.
            class_labels: Target classes in `[0, K]`; K is the null class.
            strength: Noise level `t0` to start from, in [0, 1]; the paper has 0.6.
            guidance_scale: `s = 1 + w`; 1 is the conditional prediction, 0 the null one.
            num_inference_steps: Most steps of the solver; fewer where the grid has no more timesteps.
            generator: One for all, or one per image.

        Returns:
            Images `(B, C, H, W)`, float32.

        Raises:
            ValueError: If an argument is out of its range or the images do not fit the model.
        """
        self._check(images, class_labels)
        start = start_timestep(strength, int(self.scheduler.config.num_train_timesteps))
        if start < 0:
            return images.clone()
        timesteps = log_snr_timesteps(self.scheduler.alphas_cumprod, start, num_inference_steps)
        sources = encode(self.vae, images)
        noise = _noise(sources, generator)
        alpha_bar = 0.0 if strength == 1 else float(self.scheduler.alphas_cumprod[start])
        latents = (alpha_bar**0.5 * sources + (1 - alpha_bar) ** 0.5 * noise).float()
        clean_range = (self.config.low, self.config.high) if self.config.clip_clean else None
        with self.progress_bar(total=len(timesteps)) as bar:

            def predict(x: Tensor, timestep: int) -> Tensor:
                bar.update()
                return self._predict(x, timestep, class_labels, guidance_scale)

            latents = dpm_solver_2m(predict, latents, self.scheduler.alphas_cumprod, timesteps, clean_range)
        return decode(self.vae, latents).float().clamp(self.config.low, self.config.high)

    def _predict(self, latents: Tensor, timestep: int, labels: Tensor, guidance_scale: float) -> Tensor:
        null = torch.full_like(labels, self.null_class)
        if guidance_scale in (0, 1):
            chosen = labels if guidance_scale == 1 else null
            return cast(Tensor, self.unet(latents, timestep, class_labels=chosen).sample).float()
        both = self.unet(latents.repeat(2, 1, 1, 1), timestep, class_labels=torch.cat([labels, null])).sample
        conditional, unconditional = both.float().chunk(2)
        return guided_noise(conditional, unconditional, guidance_scale)

    def _check(self, images: Tensor, labels: Tensor) -> None:
        check_image_shape(self.unet, self.vae, images.shape)
        if labels.shape != images.shape[:1]:
            raise ValueError(f"class_labels is {tuple(labels.shape)}; pass one class per image, ({len(images)},).")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= self.null_class:
            raise ValueError(
                f"class_labels has {int(labels.min())} to {int(labels.max())}, but the model knows 0 to "
                f"{self.null_class - 1} and the null class {self.null_class}."
            )


def _noise(like: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Standard noise, drawn image by image from a list, on the generators' device."""
    if not isinstance(generator, list):
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, device=device).to(like.device)
    if len(generator) != len(like):
        raise ValueError(f"generator has {len(generator)} entries for {len(like)} images; pass one for each.")
    draws = [torch.randn(like.shape[1:], generator=g, device=g.device) for g in generator]
    return torch.stack(draws).to(like.device)
