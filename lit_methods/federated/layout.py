"""A module's trainable parameters and its buffers as two flat vectors, and back."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelLayout:
    """Names and shapes of the trainable parameters of a module, concatenated in this order to a vector of D values.

    Attributes:
        names: Names of the parameters.
        shapes: Their shapes.
        buffer_names: Names of the buffers.
        buffer_shapes: Their shapes.
        buffer_types: Their types.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    buffer_names: tuple[str, ...] = ()
    buffer_shapes: tuple[tuple[int, ...], ...] = ()
    buffer_types: tuple[torch.dtype, ...] = ()

    @staticmethod
    def of(module: nn.Module) -> "ModelLayout":
        """Reads the layout of a module; frozen parameters are no part of it, a tied one counts once.

        Raises:
            ValueError: If nothing is trainable, parameters differ in type, or two of them are views of one memory.
        """
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no trainable parameter; thaw some.")
        kinds = {(p.dtype, p.device) for p in parameters.values()}
        if len(kinds) > 1 or not all(dtype.is_floating_point for dtype, _ in kinds):
            raise ValueError(
                f"{type(module).__name__} has parameters of {sorted(map(str, kinds))}; they are exchanged as one "
                "vector, so give them one floating-point type and one device."
            )
        _check_memory(parameters)
        buffers = dict(module.named_buffers())
        return ModelLayout(
            tuple(parameters),
            tuple(tuple(p.shape) for p in parameters.values()),
            tuple(buffers),
            tuple(tuple(b.shape) for b in buffers.values()),
            tuple(b.dtype for b in buffers.values()),
        )

    @property
    def sizes(self) -> list[int]:
        """Number of values of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Number D of trainable values."""
        return sum(self.sizes)

    @property
    def buffer_size(self) -> int:
        """Number of values in buffers."""
        return sum(math.prod(shape) for shape in self.buffer_shapes)

    def select(self, chosen: Sequence[bool]) -> "ModelLayout":
        """The layout of some of the parameters, without buffers."""
        kept = [(name, shape) for name, shape, keep in zip(self.names, self.shapes, chosen, strict=True) if keep]
        return ModelLayout(tuple(name for name, _ in kept), tuple(shape for _, shape in kept))

    def segments(self, chosen: Sequence[bool]) -> list[slice]:
        """Where the chosen parameters lie in the flat vector, neighbours joined."""
        found: list[slice] = []
        start = 0
        for size, keep in zip(self.sizes, chosen, strict=True):
            if keep and found and found[-1].stop == start:
                found[-1] = slice(found[-1].start, start + size)
            elif keep:
                found.append(slice(start, start + size))
            start += size
        return found

    def mask(self, chosen: Sequence[bool]) -> Tensor:
        """Whether each of the D values belongs to a chosen parameter, `(D,)`."""
        return torch.tensor(chosen).repeat_interleave(torch.tensor(self.sizes))

    def read(self, module: nn.Module, detach: bool = True) -> Tensor:
        """The parameters of a module as one vector `(D,)`, with its graph unless `detach`.

        Raises:
            ValueError: If the module lacks a parameter or has it in another shape.
        """
        found = dict(module.named_parameters())
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in found or tuple(found[name].shape) != shape:
                has = f"has {tuple(found[name].shape)}" if name in found else "lacks it"
                raise ValueError(f"Parameter {name!r} should have the shape {shape}, but the module {has}.")
        flat = torch.cat([found[name].reshape(-1) for name in self.names])
        return flat.detach() if detach else flat

    def read_buffers(self, module: nn.Module) -> Tensor:
        """The buffers of a module as one float32 vector; exact for counters below 2**24."""
        buffers = dict(module.named_buffers())
        if not self.buffer_names:
            return torch.empty(0, device=next(module.parameters()).device)
        return torch.cat([buffers[name].detach().reshape(-1).to(torch.float32) for name in self.buffer_names])

    def write_buffers(self, module: nn.Module, flat: Tensor) -> None:
        """Copies a vector of `read_buffers` into a module; whole numbers are rounded."""
        buffers = dict(module.named_buffers())
        with torch.no_grad():
            for name, part in zip(self.buffer_names, self._split_buffers(flat), strict=True):
                target = buffers[name]
                target.copy_((part if target.is_floating_point() else part.round()).view_as(target))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of vectors `(K, D)` as parameters `(K, *shape)`, or of one `(D,)` as parameters; keeps the graph."""
        lead = flat.shape[:-1]
        parts = torch.split(flat, self.sizes, dim=-1)
        return {name: part.view(*lead, *s) for name, part, s in zip(self.names, parts, self.shapes, strict=True)}

    def build(self, module: nn.Module, flat: Tensor) -> nn.Module:
        """A copy of a module with the parameters and buffers of one vector `(D + b,)`."""
        built = copy.deepcopy(module)
        values = self.views(flat[: self.size])
        with torch.no_grad():
            for name, p in built.named_parameters():
                if name in values:
                    p.copy_(values[name])
        self.write_buffers(built, flat[self.size :])
        return built

    def buffer_views(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector of `read_buffers` as buffers."""
        parts = zip(self._split_buffers(flat), self.buffer_shapes, self.buffer_types, strict=True)
        return dict(zip(self.buffer_names, (part.view(shape).to(kind) for part, shape, kind in parts), strict=True))

    def _split_buffers(self, flat: Tensor) -> Iterable[Tensor]:
        return torch.split(flat, [math.prod(shape) for shape in self.buffer_shapes]) if self.buffer_shapes else ()


def cut(flat: Tensor, segments: Sequence[slice]) -> tuple[Tensor, ...]:
    """Views `(K, size)` of vectors `(K, D)`, one for each of some ascending segments."""
    sizes, last = [], 0
    for segment in segments:
        sizes += [segment.start - last, segment.stop - segment.start]
        last = segment.stop
    return torch.split(flat, [*sizes, flat.shape[1] - last], dim=1)[1:-1:2]


def gather(flat: Tensor, segments: Sequence[slice]) -> Tensor:
    """The values `(K, d)` of vectors `(K, D)` in some segments; a view where there is one segment."""
    parts = cut(flat, segments)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _check_memory(parameters: dict[str, nn.Parameter]) -> None:
    spans = sorted(
        (p.untyped_storage().data_ptr(), p.storage_offset(), p.storage_offset() + p.numel(), name)
        for name, p in parameters.items()
        if p.numel()
    )
    for (memory, _, stop, first), (other, start, _, second) in pairwise(spans):
        if memory == other and start < stop:
            raise ValueError(
                f"Parameters {first!r} and {second!r} are views of the same memory, so that they could not be averaged "
                "one by one; tie them by assigning the same nn.Parameter twice."
            )
