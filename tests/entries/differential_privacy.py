"""Toy runs of the plain classifier and of private training."""

from pathlib import Path

import lit_methods
from lit_methods.differential_privacy import CyclicPoisson
from tests.entries.toys import (
    BATCH,
    CLASSES,
    EXAMPLES,
    FROM_TORCH,
    NONE_OF_OURS,
    Bad,
    Entry,
    Parts,
    ToyData,
    empty,
    nan,
    toy_network,
    toy_tensors,
)


def _classifier(folder: Path, processes: int = 1) -> Parts:
    data = ToyData(*toy_tensors(), batch_size=BATCH // processes)
    return Parts(lit_methods.Classifier(toy_network(), CLASSES), [], data)


def _banded_square_root_noise(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.BandedSquareRootNoise(epsilon=8.0, bandwidth=3, unsafe_seed=5)
    data = ToyData(*toy_tensors(), batch_size=BATCH // processes, shuffle=True)  # it fixes the order itself
    trainer = {"use_distributed_sampler": False} if processes > 1 else {}
    return Parts(lit_methods.Classifier(toy_network(), CLASSES), [callback], data, trainer)


def _cyclic_poisson_noise(folder: Path, processes: int = 1) -> Parts:
    sampling = CyclicPoisson(3, unsafe_seed=6)
    callback = lit_methods.BandedSquareRootNoise(epsilon=8.0, sampling=sampling, ledger=True, unsafe_seed=5)
    return _banded_square_root_noise(folder, processes)._replace(callbacks=[callback])


ENTRIES = (
    Entry(
        "Classifier",
        _classifier,
        reload=lambda: {"network": toy_network()},
        bad=(
            *FROM_TORCH,
            Bad("empty loader", empty, warning="across ranks is zero"),
            Bad("NaN input", nan(0), finite=False),
        ),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
    Entry(
        "BandedSquareRootNoise",
        _banded_square_root_noise,
        configs=(
            "differential_privacy/digits.yaml",
            "differential_privacy/fashion_mnist.yaml",
            "differential_privacy/cifar10_bsr.yaml",
        ),
        reload=lambda: {"network": toy_network()},
        bad=(
            *FROM_TORCH,
            Bad("empty loader", empty, (ValueError, "num_examples must be at least 1, but is 0")),
            Bad("one NaN input", nan(0), finite=True),
            Bad("every other input NaN", nan(*range(0, EXAMPLES, 2)), finite=True),
        ),
    ),
    Entry(
        "BandedSquareRootNoise",
        _cyclic_poisson_noise,
        reload=lambda: {"network": toy_network()},
        variant="cyclic Poisson",
    ),
)
