"""What backward keeps, in bytes, and how far its gradients are from the exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Kept:
    """Tensors that the graph keeps as one entry; lives as long as the graph keeps them.

    Args:
        *tensors: Without history, so that an entry never keeps its own node alive.
    """

    __slots__ = ("__weakref__", "tensors", "versions")

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors
        self.versions = tuple(tensor._version for tensor in tensors)

    def unpack(self) -> Tensor:
        """Gives the only tensor back, unless it was written to: with hooks autograd itself no longer looks."""
        if self.tensors[0]._version != self.versions[0]:
            raise RuntimeError(
                f"A tensor of shape {tuple(self.tensors[0].shape)} that backward needs was changed in place after the"
                f" forward pass: it is at version {self.tensors[0]._version}, version {self.versions[0]} was saved."
            )
        return self.tensors[0]


_METERS: list[SavedBytes] = []


def count(kept: Kept) -> None:
    """Tells every meter at work of an entry: whoever packs saved tensors itself calls this."""
    for meter in _METERS:
        meter.entries.add(kept)


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors with storages of their own that a sparse one is made of."""
    if tensor.layout == torch.strided:
        return (tensor,)
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def _storages(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, int], int]:
    storages = ((part.device, part.untyped_storage()) for tensor in tensors for part in _strided(tensor))
    return {(device, storage.data_ptr()): storage.nbytes() for device, storage in storages if storage.nbytes()}


class SavedBytes(saved_tensors_hooks):
    """Counts what autograd saves inside a ``with`` block and still keeps when asked; deterministic, on any device.

    Meters may be nested, and count what :class:`~.saved_tensors.SavedTensors` packs inside them. What non-reentrant
    checkpointing will compute again is not kept and not counted.

    Guarantees:
        - A storage counts once, however many views or nodes keep it; one that is freed does not count.
        - Gradients are unchanged, and a saved tensor that was written to is still refused.
    """

    def __init__(self) -> None:
        self.entries: WeakSet[Kept] = WeakSet()
        super().__init__(_pack, Kept.unpack)

    def __enter__(self) -> SavedBytes:  # type: ignore[override]  # torch's returns nothing
        super().__enter__()
        _METERS.append(self)
        return self

    def __exit__(self, *args: object) -> None:
        _METERS.remove(self)
        super().__exit__(*args)

    def nbytes(self, exclude: Iterable[Tensor] = ()) -> int:
        """Bytes that are kept now.

        Args:
            exclude: Tensors whose storages do not count, such as parameters and inputs.
        """
        kept = _storages(tensor for entry in list(self.entries) for tensor in entry.tensors)
        return sum(kept[key] for key in kept.keys() - _storages(exclude).keys())


def _pack(tensor: Tensor) -> Kept:
    kept = Kept(tensor.detach())
    count(kept)
    return kept


def others_pack() -> bool:
    """Whether somebody else's hooks, activation checkpointing's above all, take what is saved now."""
    top = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return top is not None and not getattr(top[0], "__module__", "").startswith(__package__)


class paused:
    """Keeps what happens inside a ``with`` block from the meters around it."""

    def __enter__(self) -> None:
        self._meters = _METERS[:]
        _METERS.clear()

    def __exit__(self, *args: object) -> None:
        _METERS[:] = self._meters


def saved_bytes(function: Callable[[], Any], *, exclude: Iterable[Tensor | nn.Module] = ()) -> int:
    """Bytes that autograd keeps for backward after a call, while its result is alive.

    Args:
        function: Called once with gradients enabled; returns whatever holds the graph, the loss for example.
        exclude: Tensors, and modules with their parameters and buffers, whose storages do not count.

    Returns:
        The bytes, each storage once.
    """
    tensors: list[Tensor] = []
    for part in exclude:
        tensors += [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else [part]
    with torch.enable_grad(), SavedBytes() as meter:
        result = function()
    nbytes = meter.nbytes(tensors)
    del result
    return nbytes


class ErrorMeter:
    """Compares approximate gradients with exact ones, over any number of attention calls.

    Guarantees:
        - Figures are those of all gradients taken together as one long vector.
        - Where both are equal the error is 0 and the cosine 1; nothing measured gives NaN.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all."""
        self._sums = [0.0, 0.0, 0.0, 0.0]
        self._overlaps: list[float] = []

    def add(self, exact: Sequence[Tensor], approximate: Sequence[Tensor]) -> None:
        """Adds the gradients of one call.

        Args:
            exact: Gradients, of any shapes.
            approximate: Their stand-ins, in the same order.
        """
        for true, guess in zip(exact, approximate, strict=True):
            true, guess = true.detach().double(), guess.detach().double()
            sums = (guess - true).square().sum(), true.square().sum(), guess.square().sum(), (true * guess).sum()
            self._sums = [total + float(part) for total, part in zip(self._sums, sums, strict=True)]

    def add_weights(self, exact: Tensor, approximate: Tensor) -> None:
        """Adds rows of weights and what the codec makes of them, ``(..., N)`` each."""
        self._overlaps.append(float(torch.minimum(exact, approximate).sum(-1).mean()))

    @property
    def relative_error(self) -> float:
        """Norm of the difference over the norm of the exact gradient."""
        return _ratio(math.sqrt(self._sums[0]), math.sqrt(self._sums[1]))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between exact and approximate gradient."""
        return _ratio(self._sums[3], math.sqrt(self._sums[1]) * math.sqrt(self._sums[2]))

    @property
    def kept_mass(self) -> float:
        """Mass of a row that the codec's weights have in the right place, ``sum_j min(y_j, y'_j)``, on average."""
        return sum(self._overlaps) / len(self._overlaps) if self._overlaps else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
