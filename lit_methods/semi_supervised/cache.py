"""Values of a frozen network, kept by the example's index."""

import torch
from torch import Tensor


class ExampleCache:
    """A table on the CPU with one row per example, filled as examples come by.

    Lookups touch no device, so that a training step does not wait for one.
    """

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._filled = torch.zeros(0, dtype=torch.bool)

    def missing(self, index: Tensor) -> Tensor:
        """Which of the examples `(B,)`, on the CPU, have no row yet: `(B,)` bool."""
        if len(index) and int(index.max()) >= len(self._filled):
            return torch.tensor([i >= len(self._filled) or not self._filled[i] for i in index.tolist()])
        return ~self._filled[index]

    def put(self, index: Tensor, rows: Tensor) -> None:
        """Keeps rows `(B, ...)` of examples `(B,)`."""
        if not len(index):
            return
        rows = rows.detach().to("cpu", torch.float32)
        size = max(len(self._filled), int(index.max()) + 1)
        if self._rows is None:
            self._rows = torch.zeros(0, *rows.shape[1:])
        if size > len(self._filled):
            grown = size - len(self._filled)
            self._rows = torch.cat([self._rows, torch.zeros(grown, *rows.shape[1:])])
            self._filled = torch.cat([self._filled, torch.zeros(grown, dtype=torch.bool)])
        self._rows[index] = rows
        self._filled[index] = True

    def get(self, index: Tensor) -> Tensor:
        """Rows `(B, ...)` of examples that were put, on the CPU.

        Raises:
            KeyError: If nothing was put yet.
        """
        if self._rows is None:
            raise KeyError("The cache is empty; put rows before they are asked for.")
        return self._rows[index]

    def all(self) -> tuple[Tensor, Tensor]:
        """Indices `(N,)` of all kept examples and their rows `(N, ...)`."""
        index = self._filled.nonzero().flatten()
        return index, self.get(index) if self._rows is not None else torch.zeros(0)

    def clear(self) -> None:
        """Forgets everything."""
        self.__init__()  # type: ignore[misc]  # a fresh table

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save; empty without rows."""
        return {} if self._rows is None else {"rows": self._rows, "filled": self._filled}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes saved tensors."""
        self.clear()
        if state:
            self._rows, self._filled = state["rows"].clone(), state["filled"].clone()
