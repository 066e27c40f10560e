"""The spectral distillation term for any module, outside of federated learning too."""

from typing import Literal, get_args

from torch import Tensor, nn

from lit_methods.federated.functional import (
    SpectralLayout,
    SpectralPlan,
    flat_spectral_divergence,
    spectral_distribution,
)
from lit_methods.federated.layout import ModelLayout

WeightSelection = Literal["kernels", "weights", "all"]


def select_weights(layout: ModelLayout, selection: WeightSelection) -> list[bool]:
    """Which parameters of a model enter its spectrum.

    Args:
        layout: The model's parameters.
        selection: `"kernels"` has those of two or more axes, as of convolutions and linear layers; `"weights"` all
            that are called `weight`, so that scales of normalisations join, as in the authors' code; `"all"` has all.

    Returns:
        One truth value for each parameter.

    Raises:
        ValueError: If `selection` is none of these or nothing is selected.
    """
    if selection not in get_args(WeightSelection):
        raise ValueError(f"selection={selection!r} must be one of {get_args(WeightSelection)}.")
    if selection == "all":
        chosen = [True] * len(layout.names)
    elif selection == "weights":
        chosen = [name.rsplit(".", maxsplit=1)[-1] == "weight" for name in layout.names]
    else:
        chosen = [len(shape) >= 2 for shape in layout.shapes]
    if not any(chosen):
        raise ValueError(
            f"selection={selection!r} selects none of the trainable parameters {list(layout.names)}; take 'all'."
        )
    return chosen


class SpectralDistillationLoss(nn.Module):
    """`D(spectrum of the student | spectrum of the teacher)`, or the reverse, with gradients to the student.

    The teacher's spectrum is computed once. It is a buffer of the teacher's size, not part of the state dict.

    Args:
        teacher: Module of the student's architecture, whose weights are the target as they are now.
        ratio: Part of the frequencies that is compared, the lowest, in (0, 1].
        layout: One DFT of all weights, or one for each tensor, see `functional.spectrum`.
        selection: Which parameters enter, see `select_weights`.
        student_first: `D(student | teacher)` if true, else `D(teacher | student)`.
        smooth: Whether 1-D transforms are padded to fast lengths.

    Guarantees:
        - The value is never negative beyond rounding, 0 for the teacher itself, and unchanged if the student's weights
          are scaled.
        - The teacher receives no gradient, and changes of it after construction have no effect.

    Raises:
        ValueError: If an argument is out of its range.
    """

    distribution: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        ratio: float = 1.0,
        layout: SpectralLayout = "global_1d",
        selection: WeightSelection = "kernels",
        student_first: bool = True,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        model = ModelLayout.of(teacher)
        self._model = model.select(select_weights(model, selection))
        self.plan = SpectralPlan.make(self._model.shapes, layout, ratio, "half", smooth)
        self.student_first = student_first
        distribution = spectral_distribution(self._model.read(teacher), self.plan)
        self.register_buffer("distribution", distribution, persistent=False)

    def forward(self, student: nn.Module) -> Tensor:
        """Divergence of a module of the teacher's architecture, a scalar with a graph to its weights.

        Raises:
            ValueError: If the student's parameters are not named and shaped as the teacher's.
        """
        flat = self._model.read(student, detach=False)
        return flat_spectral_divergence(flat.unsqueeze(0), self.distribution, self.plan, self.student_first).squeeze(0)
