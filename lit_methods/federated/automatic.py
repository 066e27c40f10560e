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

_TRIALS = 3
_TRIAL_SECONDS = 1.0
_CLEARLY_FASTER = 0.9
_BACKENDS: dict[str, Callable[[], LocalBackend]] = {"loop": LoopBackend, "vectorized": VectorizedBackend}


class AutomaticBackend(LocalBackend):
    """Trains the first stage both ways, up to three times while it is short, and stays with the faster backend.

    The loop stays where stacking is not clearly faster, by a tenth of the time: a trial is noisy, and a choice is for
    the whole run. Where a network or data allow only the loop, nothing is tried, or the trial ends with the loop. The
    two agree up to rounding but not bit for bit, and which is faster can differ between runs: name one of them where
    runs must repeat exactly. The choice is in the checkpoint, so that a resumed run repeats the interrupted one.

    Attributes:
        choice: The backend in use; None before the first stage.
        trial_seconds: The shortest trial of each backend, by name; empty where there was none.
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
            return self._try(network, layout, stage, start, data, seeds)
        return _BACKENDS[self.choice or "loop"]().train(network, layout, stage, start, data, seeds)

    def _try(
        self,
        network: nn.Module,
        layout: ModelLayout,
        stage: LocalStage,
        start: Models,
        data: Sequence[ClientDataset],
        seeds: Sequence[int],
    ) -> LocalResult:
        smallest = min(range(len(data)), key=lambda k: len(data[k]))
        one = slice(smallest, smallest + 1)
        warm_up = dataclasses.replace(stage, epochs=1, penalties=(), logit_offsets=None)
        LoopBackend().train(network, layout, warm_up, start.rows(one), data[one], seeds[one])
        try:
            VectorizedBackend().train(network, layout, warm_up, start.rows(one), data[one], seeds[one])
        except RuntimeError:  # from torch.func.vmap: a forward that is random, or branches on its input
            self.choice = "loop"
            return LoopBackend().train(network, layout, stage, start, data, seeds)
        shortest, results = dict.fromkeys(_BACKENDS, float("inf")), {}
        first = time.perf_counter()
        for _ in range(_TRIALS):
            for name, kind in _BACKENDS.items():
                begin = time.perf_counter()
                results[name] = kind().train(network, layout, stage, start, data, seeds)
                shortest[name] = min(shortest[name], time.perf_counter() - begin)
            if time.perf_counter() - first > _TRIAL_SECONDS:
                break
        self.trial_seconds = shortest
        self.choice = "vectorized" if shortest["vectorized"] < _CLEARLY_FASTER * shortest["loop"] else "loop"
        return results[self.choice]

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
