"""Keeps any LightningModule spectrally near a teacher, as a callback."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_methods.errors import check_at_least, check_lightning, check_object, check_strategy
from lit_methods.federated.distillation import WeightSelection, select_weights
from lit_methods.federated.functional import (
    SpectralLayout,
    SpectralPlan,
    SpectralTarget,
    spectral_distribution,
)
from lit_methods.federated.layout import ModelLayout


class SpectralDistillation(Callback):
    """Adds `weight * D(spectrum of the module | spectrum of a teacher)` to what the optimizer minimizes.

    The gradient, one FFT and one inverse, is added to the parameters' just before each optimizer step (before
    clipping): it is exact under accumulation, AMP and DDP, and counts once for each step. Spectra are those of Chen
    et al. (NeurIPS 2023, arXiv 2401.17124); the term does not depend on the scale of the weights.

    Logs `spec/kl`, the divergence, and `spec/grad_ratio`, the norm of what is added over that of the gradient it is
    added to.

    Args:
        weight: Factor of the divergence, at least 0.
        teacher: Module whose parameters have the names and shapes of the trained ones; None for the module as it is
            at the start of the fit, so that fine-tuning stays spectrally near its start.
        ratio: Part of the frequencies that is compared, the lowest, in (0, 1].
        layout: One DFT of all weights, or one for each tensor, see `lit_methods.federated.functional.spectrum`.
        selection: Which parameters enter: `"kernels"` of two or more axes, all `"weights"` by name, or `"all"`.
        student_first: `D(module | teacher)` if true, else `D(teacher | module)`.
        submodule: Name of the part of the module that is kept near the teacher; empty for the whole.
        smooth: Whether 1-D transforms are padded to fast lengths.

    Guarantees:
        - With weight 0 the training is bit for bit that without the callback.
        - A resumed run continues towards the same spectrum, which is in the checkpoint.
        - Two processes add the same gradient as one.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If `teacher` is no module.
    """

    def __init__(
        self,
        weight: float,
        teacher: nn.Module | None = None,
        ratio: float = 1.0,
        layout: SpectralLayout = "global_1d",
        selection: WeightSelection = "kernels",
        student_first: bool = True,
        submodule: str = "",
        smooth: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("weight", weight)
        check_object("teacher", teacher, nn.Module, "the pretrained network")
        SpectralPlan.make(((2,),), layout, ratio, "half", smooth)
        self.weight, self.teacher, self.submodule = weight, teacher, submodule
        self.ratio, self.layout, self.selection = ratio, layout, selection
        self.student_first, self.smooth = student_first, smooth
        self.distribution: Tensor | None = None
        self._model: ModelLayout | None = None
        self._target: SpectralTarget | None = None
        self._waiting: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the spectrum of an earlier fit; a checkpoint's is loaded after this.

        Raises:
            MisconfigurationException: If the strategy shards parameters.
        """
        check_lightning(pl_module)
        if stage == "fit":
            check_strategy(trainer, "SpectralDistillation compares the spectra of whole ones")
            self.distribution = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Works out the teacher's spectrum, unless a checkpoint has brought it.

        Raises:
            ValueError: If the teacher's parameters are not named and shaped as the module's.
        """
        student = pl_module.get_submodule(self.submodule)
        model = ModelLayout.of(student)
        self._model = model.select(select_weights(model, self.selection))
        plan = SpectralPlan.make(self._model.shapes, self.layout, self.ratio, "half", self.smooth)
        if self.distribution is None:
            source = student if self.teacher is None else self.teacher
            self.distribution = spectral_distribution(self._model.read(source), plan)
        if self.distribution.numel() != plan.multiplicity.numel():
            raise ValueError(
                f"The saved spectrum has {self.distribution.numel()} frequencies and the module's "
                f"{plan.multiplicity.numel()}: it belongs to another network, ratio or layout. Resume with the "
                "settings of the saved run."
            )
        self._target = SpectralTarget(self.distribution.to(pl_module.device), plan, self.student_first)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds the term's gradient and logs its size."""
        if self._waiting is not None:
            self._waiting.remove()
            self._waiting = None
        inner = getattr(optimizer, "original_optimizer", None)
        if isinstance(inner, Optimizer):
            # An optimizer of private training writes the gradient anew as it steps: the term comes after the noise.
            self._waiting = inner.register_step_pre_hook(lambda stepping, *_: self._step(pl_module, stepping))
        else:
            self._step(pl_module, optimizer)

    def _step(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._model is None or self._target is None:
            return
        found = dict(pl_module.get_submodule(self.submodule).named_parameters())
        parameters = [found[name] for name in self._model.names]
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in trained for p in parameters):
            return
        flat = torch.cat([p.detach().reshape(-1) for p in parameters]).unsqueeze(0)
        value, gradient = self._target.divergence_and_gradient(flat)
        before = torch.stack([p.grad.norm() for p in parameters if p.grad is not None] or [flat.new_zeros(())]).norm()
        if self.weight > 0:
            self._add(parameters, gradient.squeeze(0), trained)
            ratio = self.weight * gradient.norm() / before.clamp_min(1e-30)
            pl_module.log("spec/grad_ratio", ratio, on_step=True, on_epoch=False, rank_zero_only=True)
        pl_module.log("spec/kl", value.squeeze(0), on_step=True, on_epoch=False, rank_zero_only=True)

    def _add(self, parameters: list[nn.Parameter], gradient: Tensor, trained: set[int]) -> None:
        for p, part in zip(parameters, torch.split(gradient, [p.numel() for p in parameters]), strict=True):
            if id(p) not in trained:
                continue
            term = (self.weight * part).view_as(p).to(p.dtype)
            p.grad = term if p.grad is None else p.grad.add_(term)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees what lies on the device, and leaves the optimizer as it was found."""
        self._target = None
        if self._waiting is not None:
            self._waiting.remove()
            self._waiting = None

    def state_dict(self) -> dict[str, Any]:
        """The teacher's spectrum."""
        return {} if self.distribution is None else {"distribution": self.distribution.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the teacher's spectrum of the saved run."""
        self.distribution = state_dict.get("distribution")
