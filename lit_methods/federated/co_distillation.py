"""Spectral co-distillation (Chen et al., NeurIPS 2023, arXiv 2401.17124) as a strategy."""

from typing import Literal, get_args

from lit_methods.federated.cohort import Cohort, Update
from lit_methods.federated.distillation import WeightSelection, select_weights
from lit_methods.federated.functional import RatioConvention, SpectralLayout, SpectralPlan
from lit_methods.federated.local_training import Models
from lit_methods.federated.penalties import Penalty, ProximalPenalty, SpectralPenalty
from lit_methods.federated.strategies import Strategy, check_not_negative

Teacher = Literal["local", "received"]
PersonalStart = Literal["kept", "generic"]
WeightScale = Literal["none", "teacher_norm"]


class SpectralCoDistillation(Strategy):
    """Generic and personal models that teach each other by their spectra.

    Generic stage: `f_i(w) + generic_weight * D(p_r(personal) | p_r(w))`, the low-frequency part `r` of both spectra,
    from the received model. Personal stage: `f_i(w) + personal_weight * D(p(w) | p(generic))`, full spectra, from the
    model that the client kept. Only the generic model is sent, and it is sent before the personal stage, which may
    run while it travels (wait-free). Teachers are constants, transformed once for each stage.

    A client that takes part for the first time has no personal model: its own is a copy of what it received.

    Args:
        generic_weight: `lambda_g`, factor of the divergence in the generic stage; 0 leaves the term out.
        personal_weight: `lambda_p`, factor in the personal stage; 0 leaves the term out.
        ratio: `tau`, part of the frequencies that is compared in the generic stage, in (0, 1].
        convention: Whether `ratio` counts bins of the half spectrum or indices of the full DFT.
        layout: One DFT of all weights (the paper), or one for each tensor.
        selection: Which parameters enter the spectrum.
        teacher: Teacher of the personal stage: the generic model as the client has just trained it, or as received.
        personal_start: Start of the personal stage: the model that the client kept, or the local generic model.
        personal_epochs: Local epochs of the personal stage; None takes those of the run.
        warmup_rounds: Rounds in which both terms are left out.
        prox_weight: Factor of `(1 / 2) ||w - w_received||^2` in the personal stage, which the released code has
            beside the paper's terms.
        weight_scale: `"teacher_norm"` multiplies both factors by the teacher's squared norm, so that one factor pulls
            about alike in networks of all sizes.
        every_k_steps: Apply the terms in every k-th local step only, k times as strong.
        smooth: Whether 1-D transforms are padded to fast lengths.

    Guarantees:
        - With both weights 0 the generic model is FedAvg's, and the personal models of clients that take part in the
          first round are LocalOnly's, bit for bit.
        - With both weights 0 and `prox_weight`, the run is Ditto's, bit for bit.
        - The personal stage depends on nothing that the server does after the round began.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        generic_weight: float = 0.3,
        personal_weight: float = 0.4,
        ratio: float = 0.4,
        convention: RatioConvention = "half",
        layout: SpectralLayout = "global_1d",
        selection: WeightSelection = "kernels",
        teacher: Teacher = "local",
        personal_start: PersonalStart = "kept",
        personal_epochs: int | None = None,
        warmup_rounds: int = 0,
        prox_weight: float = 0.0,
        weight_scale: WeightScale = "none",
        every_k_steps: int = 1,
        smooth: bool = False,
    ) -> None:
        check_not_negative(
            generic_weight=generic_weight,
            personal_weight=personal_weight,
            personal_epochs=personal_epochs,
            warmup_rounds=warmup_rounds,
            prox_weight=prox_weight,
        )
        if every_k_steps < 1:
            raise ValueError(f"every_k_steps={every_k_steps} must be at least 1.")
        for name, value, options in (
            ("teacher", teacher, get_args(Teacher)),
            ("personal_start", personal_start, get_args(PersonalStart)),
            ("weight_scale", weight_scale, get_args(WeightScale)),
            ("selection", selection, get_args(WeightSelection)),
        ):
            if value not in options:
                raise ValueError(f"{name}={value!r} must be one of {options}.")
        SpectralPlan.make(((2,),), layout, ratio, convention, smooth)
        self.generic_weight, self.personal_weight = generic_weight, personal_weight
        self.ratio, self.convention, self.layout, self.selection = ratio, convention, layout, selection
        self.teacher, self.personal_start, self.personal_epochs = teacher, personal_start, personal_epochs
        self.warmup_rounds, self.prox_weight, self.weight_scale = warmup_rounds, prox_weight, weight_scale
        self.every_k_steps, self.smooth = every_k_steps, smooth

    def round(self, cohort: Cohort) -> Update:
        """See `Strategy.round`: the generic stage, the upload, the personal stage."""
        generic = self.generic_stage(cohort)
        return Update(generic, self.personal_stage(cohort, generic))

    def generic_stage(self, cohort: Cohort) -> Models:
        """Trains copies of the received model, taught by the personal ones; the result is what is sent."""
        terms: list[Penalty] = []
        if self.generic_weight and cohort.round_number >= self.warmup_rounds:
            terms = [self._term(cohort, cohort.personal, self.generic_weight, self.ratio, student_first=False)]
        return cohort.train("generic", cohort.received, penalties=terms)

    def personal_stage(self, cohort: Cohort, generic: Models) -> Models:
        """Trains the personal models, taught by the generic ones: may run at any time after `generic_stage`."""
        terms: list[Penalty] = []
        if self.personal_weight and cohort.round_number >= self.warmup_rounds:
            teacher = generic if self.teacher == "local" else cohort.received
            terms.append(self._term(cohort, teacher, self.personal_weight, 1.0, student_first=True))
        if self.prox_weight:
            terms.append(ProximalPenalty(cohort.received.weights, self.prox_weight))
        start = generic if self.personal_start == "generic" else cohort.personal
        return cohort.train("personal", start, epochs=self.personal_epochs, penalties=terms)

    def _term(
        self, cohort: Cohort, teacher: Models, weight: float, ratio: float, student_first: bool
    ) -> SpectralPenalty:
        chosen = select_weights(cohort.layout, self.selection)
        shapes = cohort.layout.select(chosen).shapes
        return SpectralPenalty(
            teacher.weights,
            weight,
            SpectralPlan.make(shapes, self.layout, ratio, self.convention, self.smooth),
            cohort.layout.segments(chosen),
            student_first,
            scale_by_norm=self.weight_scale == "teacher_norm",
            every_k_steps=self.every_k_steps,
        )
