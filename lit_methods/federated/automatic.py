"""The faster of the two backends, found by a short measured trial."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_methods.federated.clients import ClientDataset
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import LocalBackend, LocalResult, LocalStage, Models
from lit_methods.federated.loop import LoopBackend
from lit_methods.federated.vectorized import VectorizedBackend, obstacle

_BACKENDS: dict[str, Callable[[], LocalBackend]] = {"loop": LoopBackend, "vectorized": VectorizedBackend}


class AutomaticBackend(LocalBackend):
    """Trains one epoch both ways before the first stage, and stays with the faster backend.

    Where a network or data allow only the loop, nothing is tried. The two agree up to rounding but not bit for bit,
    and which is faster can differ between runs: name one of them where runs must repeat exactly. The choice is in the
    checkpoint, so that a resumed run repeats the interrupted one.

    Attributes:
        choice: The backend in use; None before the first stage.
        trial_seconds: What the trial measured, by name; empty where there was none.
    """

    def __init__(self) -> None:
        self.choice: str | None = None
        self.trial_seconds: dict[str, float] = {}

    def train(
        self,
        network: nn.Module,
        layout: ModelLayout,
        stage: LocalStage,
        start: Models,
        data: Sequence[ClientDataset],
        seeds: Sequence[int],
    ) -> LocalResult:
        """See `LocalBackend.train`."""
        if obstacle(network, data) is not None:
            return LoopBackend().train(network, layout, stage, start, data, seeds)
        if self.choice is None:
            self._try(network, layout, stage, start, data, seeds)
        return _BACKENDS[self.choice or "loop"]().train(network, layout, stage, start, data, seeds)

    def _try(
        self,
        network: nn.Module,
        layout: ModelLayout,
        stage: LocalStage,
        start: Models,
        data: Sequence[ClientDataset],
        seeds: Sequence[int],
    ) -> None:
        short = dataclasses.replace(stage, epochs=1)
        warm_up = min(range(len(data)), key=lambda k: len(data[k]))
        one = slice(warm_up, warm_up + 1)
        for name, kind in _BACKENDS.items():
            alone = dataclasses.replace(short, penalties=(), logit_offsets=None)
            kind().train(network, layout, alone, start.rows(one), data[one], seeds[one])
            begin = time.perf_counter()
            kind().train(network, layout, short, start, data, seeds)
            self.trial_seconds[name] = time.perf_counter() - begin
        self.choice = min(self.trial_seconds, key=lambda name: self.trial_seconds[name])

    def predict(
        self, network: nn.Module, layout: ModelLayout, models: Models, inputs: Tensor, forward: Mapping[str, Any]
    ) -> Tensor:
        """See `LocalBackend.predict`."""
        backend = VectorizedBackend() if self.choice == "vectorized" else LoopBackend()
        return backend.predict(network, layout, models, inputs, forward)

    def state_dict(self) -> dict[str, Any]:
        """The choice."""
        return {} if self.choice is None else {"choice": self.choice}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the choice of the saved run."""
        self.choice = state.get("choice")
