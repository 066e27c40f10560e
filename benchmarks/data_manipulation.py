"""Learned data manipulation: the price of a step, what the weights find, and what accuracy they bring.

`python -m benchmarks.data_manipulation [--quick] [--json FILE] [--only PART]`
"""

from __future__ import annotations

import importlib.util
import statistics
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._harness import medians, run, table
from benchmarks._real_weighting import real_data
from benchmarks._weighting import Data, compare, imbalance, noise
from lit_methods import Classifier, DataWeighting
from lit_methods.backbones import MLP, SmallCNN
from lit_methods.data_manipulation import (
    AtTheta,
    DecayingStep,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    Hypergradient,
    InverseFrequency,
    LastLayer,
    LearnedWeights,
    Linear,
    MetaWeightNet,
    NormalizedStep,
    PerSampleGradients,
    PlainGradient,
    RenReweighting,
    UniformWeights,
    WeightingStrategy,
)
from lit_methods.data_manipulation.reduction import ATTRIBUTE, PerSampleLosses, Reduction
from lit_methods.data_manipulation.run import Reading, WeightingRun

SIDES: dict[str, tuple[Callable[[], WeightingStrategy], Callable[[], Hypergradient], int]] = {
    "default": (LearnedWeights, Hypergradient, 1),
    "every 4 steps": (LearnedWeights, Hypergradient, 4),
    "last layer": (LearnedWeights, LastLayer, 1),
    "at theta, difference": (LearnedWeights, lambda: Hypergradient(lookahead=AtTheta()), 1),
    "theta' first, difference": (LearnedWeights, lambda: Hypergradient(lookahead=PlainGradient()), 1),
    "theta' first, forward mode": (LearnedWeights, lambda: Hypergradient(ForwardMode(), PlainGradient()), 1),
    "theta' first, double backward": (LearnedWeights, lambda: Hypergradient(DoubleBackward(), PlainGradient()), 1),
    "theta' first, one by one": (LearnedWeights, lambda: Hypergradient(PerSampleGradients(), PlainGradient()), 1),
    "Ren, double backward": (RenReweighting, lambda: Hypergradient(DoubleBackward(), AtTheta()), 1),
    "Ren, difference": (RenReweighting, lambda: Hypergradient(FiniteDifference(), AtTheta()), 1),
    "Meta-Weight-Net": (MetaWeightNet, lambda: Hypergradient(lookahead=PlainGradient()), 1),
}


class Encoder(nn.Module):
    """Two transformer layers over vectors `(B, T, D)`, their mean, and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, 10)`."""
        found: Tensor = self.head(self.layers(inputs).mean(1))
        return found


def networks(quick: bool) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Networks and the shape of a training batch; validation batches have 16 examples."""
    return {
        "MLP": (partial(MLP, 784, [512, 512], 10), (64, 784)),
        "CNN": (partial(SmallCNN, 3, 10, [32, 64], 32), (32 if quick else 64, 3, 32, 32)),
        "transformer": (partial(Encoder, 128), (32, 24, 128)),
    }


class Stepper:
    """Training steps of one side, as a Trainer would call them."""

    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, ...], side: str | None) -> None:
        torch.manual_seed(0)
        self.module = Classifier(make(), 10)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01, momentum=0.9)
        self.batch = (torch.randn(shape), torch.randint(10, shape[:1]), torch.arange(shape[0]))
        self.steps, self.every, self.run = 0, 1, None
        if side is not None:
            strategy, hypergradient, self.every = SIDES[side]
            val = DataLoader(TensorDataset(torch.randn(16, *shape[1:]), torch.randint(10, (16,))), 16)
            reading = Reading(None, None, 1, True, 0)
            self.run = WeightingRun(
                self.module,
                PerSampleLosses(self.module),
                strategy(),
                hypergradient(),
                self.optimizer,
                shape[0],
                None,
                val,
                reading,
                lambda batch: batch,
            )

    def step(self) -> None:
        """One step."""
        reduction = Reduction(None)
        if self.run is not None:
            learns = self.steps % self.every == 0
            reduction = self.run.before_step(self.batch, learns, self.steps)
        self.module.__dict__[ATTRIBUTE] = reduction
        self.optimizer.zero_grad()
        reduction(self.module.per_sample_loss(self.batch)).backward()
        self.optimizer.step()
        self.steps += 1
        if self.run is not None:
            self.run.after_step(self.steps)

    def turn(self) -> None:
        """As many steps as one turn of a side that learns in every few."""
        for _ in range(self.every):
            self.step()


@contextmanager
def peak_saved_bytes(found: dict[str, int]) -> Iterator[None]:
    """Context that measures the most bytes that autograd held at once, parameters included."""
    live: dict[int, int] = {}
    total = peak = 0

    def forget(key: int, size: int) -> None:
        nonlocal total
        live[key] -= 1
        if not live[key]:
            del live[key]
            total -= size

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Held:
        nonlocal total, peak
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in live:
            live[key] = 0
            total += size
        live[key] += 1
        peak = max(peak, total)
        held = Held(tensor)
        weakref.finalize(held, forget, key, size)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        yield
    found["bytes"] = peak


def step_cost(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seconds and autograd's memory of a training step over a plain one, per way of finding the gradient."""
    rows: list[dict[str, Any]] = [{"side": side} for side in SIDES]
    for name, (make, shape) in networks(quick).items():
        wanted = [side for side in SIDES if _runs(side, name) and not (quick and "first" in side)]
        sides = {side: Stepper(make, shape, side) for side in wanted}
        plain = Stepper(make, shape, None)
        calls = {"plain": plain.turn, **{side: stepper.turn for side, stepper in sides.items()}}
        seconds = medians(calls, 7 if quick else 25, warm_up=2)
        plain_bytes: dict[str, int] = {}
        with peak_saved_bytes(plain_bytes):
            plain.step()
        for row in rows:
            if row["side"] in sides:
                own_bytes: dict[str, int] = {}
                stepper = sides[row["side"]]
                stepper.steps -= stepper.steps % stepper.every
                with peak_saved_bytes(own_bytes):
                    stepper.step()
                row[name] = seconds[row["side"]] / stepper.every / seconds["plain"]
                row[f"{name} memory"] = own_bytes["bytes"] / plain_bytes["bytes"]
    kinds = list(networks(quick))
    rows = [row for row in rows if len(row) > 1]
    columns = [key for kind in kinds for key in (kind, f"{kind} memory")]
    table(
        "(a) one training step, time and saved tensors; plain step = 1, 16 validation examples",
        ["side", *columns],
        [[row["side"], *(row.get(key, "–") for key in columns)] for row in rows],
    )
    keys = {"default": "default", "every 4 steps": "every4", "last layer": "last_layer"}
    means = {row["side"]: statistics.mean(row[kind] for kind in kinds if kind in row) for row in rows}
    return {f"step_{short}_vs_plain": means[side] for side, short in keys.items()}, rows


def _runs(side: str, network: str) -> bool:
    """Fused attention has no forward-mode rule and no second derivative."""
    return network != "transformer" or not any(word in side for word in ("forward mode", "double backward"))


def _weighted(strategy: Callable[[], WeightingStrategy], **options: Any) -> Callable[[Data], DataWeighting]:
    def make(data: Data) -> DataWeighting:
        val = DataLoader(TensorDataset(*data.val), len(data.val[1]))
        found = {key: value() if callable(value) else value for key, value in options.items()}
        return DataWeighting(val, strategy=strategy(), criterion="loss", min_effective_sample_size=0.0, **found)

    return make


METHODS: dict[str, Callable[[Data], DataWeighting] | None] = {
    "plain": None,
    "plain + validation data": None,
    "uniform": _weighted(UniformWeights),
    "inverse frequency": _weighted(InverseFrequency),
    "Ren et al.": _weighted(RenReweighting),
    "Meta-Weight-Net": _weighted(MetaWeightNet),
    "published code's rule": _weighted(
        lambda: LearnedWeights(DecayingStep(2.0), Linear(), 1.0),
        hypergradient=lambda: Hypergradient(lookahead=PlainGradient()),
    ),
    "learned (default)": _weighted(LearnedWeights),
    "learned, theta' first": _weighted(LearnedWeights, hypergradient=lambda: Hypergradient(lookahead=PlainGradient())),
    "learned, every 4 steps": _weighted(LearnedWeights, every_n_steps=4),
    "learned, last layer": _weighted(LearnedWeights, hypergradient=LastLayer),
    "learned, normalized step": _weighted(lambda: LearnedWeights(NormalizedStep(0.1))),
    "learned, normalized step, bounded": _weighted(lambda: LearnedWeights(NormalizedStep(0.1), max_logit=2.0)),
}
EARLY_STOP = 20  # epochs of the cross-validated network: more of them learn the noise by heart
QUICK = ("plain", "learned (default)")


def _effect(make: Callable[[int], Data], title: str, marked: str, quick: bool) -> list[dict[str, Any]]:
    methods = {name: method for name, method in METHODS.items() if not quick or name in QUICK}
    rows = compare(make, methods, (0.1,) if quick else (0.03, 0.1), seeds=1 if quick else 5, epochs=15 if quick else 40)
    table(
        title,
        ["method", "learning rate", "accuracy", "±", f"weight of {marked}", "of the others", "AUC", "seconds"],
        [[row[k] for k in ("method", "rate", "test", "spread", "marked", "others", "auc", "seconds")] for row in rows],
    )
    return rows


def label_noise(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Digits with 40 % of the labels redrawn."""
    title = "(b) digits, 40 % of 1,000 labels redrawn, 50 clean for validation; AUC ranks clean above corrupted"
    rows = _effect(noise, title, "corrupted", quick)
    if importlib.util.find_spec("cleanlab") is None:
        print("\ncleanlab is not installed: no out-of-sample score to compare with")
    else:
        rows.append(_cleanlab(1 if quick else 5))
    return {}, rows


def _cleanlab(seeds: int) -> dict[str, Any]:
    """AUC of cleanlab's label quality on cross-validated probabilities; it takes no validation set."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.model_selection import cross_val_predict
    from sklearn.neural_network import MLPClassifier

    found = []
    for seed in range(seeds):
        data = noise(seed)
        model = MLPClassifier((64, 64), max_iter=EARLY_STOP, random_state=seed)
        probabilities = cross_val_predict(model, data.inputs.numpy(), data.labels.numpy(), cv=5, method="predict_proba")
        scores = get_label_quality_scores(data.labels.numpy(), probabilities)
        found.append(float(roc_auc_score((~data.marked).numpy(), scores)))
    print(f"\ncleanlab, five folds, MLP: AUC {statistics.mean(found):.3f}")
    return {"method": "cleanlab", "auc": statistics.mean(found), "seeds": seeds}


def class_imbalance(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Eight nines against some 130 fours under pixel noise."""
    return {}, _effect(imbalance, "(c) digits, 8 nines against 136 fours, 5 + 5 for validation", "minority", quick)


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    run(__doc__ or "", step_cost, label_noise, class_imbalance, real_data)


if __name__ == "__main__":
    main()
