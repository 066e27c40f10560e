"""The way into every other softmax: hooks on what autograd saves, with the model's code as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks

from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.coverage import Row
from lit_methods.softmax_approximation.functional import pack_bits, unpack_bits
from lit_methods.softmax_approximation.meters import Kept, count

SOFTMAX = ("SoftmaxBackward0", "SafeSoftmaxBackward0")
IN_ORDER = {
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward1",
    "ExpandBackward0",
}
VIEWS = (
    *IN_ORDER,
    "PermuteBackward0",
    "TransposeBackward0",
    "TBackward0",
    "SliceBackward0",
    "SelectBackward0",
    "SqueezeBackward0",
)
CAST = "ToCopyBackward0"
PRODUCT, NATIVE_DROPOUT = "MulBackward0", "NativeDropoutBackward0"
# Backward of these is linear in the weights; others may divide by a weight that the codec takes for 0.
CONSUMERS = (
    *SOFTMAX,
    PRODUCT,
    "BmmBackward0",
    "BaddbmmBackward0",
    "MmBackward0",
    "AddmmBackward0",
    "LinearBackward0",
    "MvBackward0",
    "DotBackward0",
    "NanToNumBackward0",
)
_KEY = "lit_methods.softmax_approximation"


class SavedTensors(saved_tensors_hooks):
    """Compresses softmax outputs among what autograd saves inside a ``with`` block.

    The output is saved by softmax itself, and again, as a view, by the product with the values; both share one
    record. With dropout the product saves what is left of the weights, and dropout its mask: the mask is packed to a
    bit a weight, and the rest is computed again from both. A half-precision copy of the weights is decoded from the
    record too. Everything else is saved as it is.

    Attention maps that a loss reads are no business of a codec: a batch of heads that somebody saves as it is, without
    the views that a product of matrices makes, stays dense too. Where that cannot be told apart, in three dimensions,
    whoever is no product is refused approximate weights in backward.

    A tensor counts as a softmax output by its own node in the graph, and as derived from one by the chain of nodes
    between, the same storage and the same version; never by its address or shape alone.

    Args:
        approximation: Whose ``weights_codec`` is used.
        min_keys: Rows shorter than this are left alone.

    Guarantees:
        - Forward values are unchanged, and so are gradients with the codec ``merged``.
        - Saved tensors that were written to are refused as without hooks.
        - Inside activation checkpointing nothing is packed, for nothing is saved there.

    Raises:
        ValueError: If ``min_keys`` is below 1.
        RuntimeError: In a backward pass with ``create_graph=True``, or if another function than a product of matrices
            would see approximate weights.
    """

    name = "saved tensors"

    def __init__(self, approximation: Approximation, *, min_keys: int = 64) -> None:
        if min_keys < 1:
            raise ValueError(f"min_keys must be at least 1, but is {min_keys!r}.")
        self.approximation, self.min_keys = approximation, min_keys
        self.where: Callable[[], str] = str
        self._latest: _Weights | None = None
        self._asked: list[Kept] | None = None
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Kept:
        kept = self._packed(tensor)
        if kept is None:
            kept = Kept(tensor.detach())
        count(kept)
        return kept

    def _unpack(self, kept: Kept) -> Tensor:
        if self._asked is not None:
            self._asked.append(kept)
            return torch.empty(0)
        return kept.unpack()

    def _packed(self, tensor: Tensor) -> Kept | None:
        latest, self._latest = self._latest, None
        node = tensor.grad_fn
        if node is None:
            return None if latest is None else self._mask(tensor, latest)
        if node.name() in SOFTMAX:
            return self._weights(tensor, node)
        return self._derived(tensor, node)

    def _weights(self, tensor: Tensor, node: Node) -> Kept | None:
        known = _record(node)
        if known is not None:
            if self._read_further(tensor, [], known):
                return None
            return _View(known, tensor) if known.is_of(tensor) else None
        name = self.where()
        if reason := self._unfit(tensor, node):
            if self.approximation.coverage is not None:
                self.approximation.coverage.add(Row(name, before=tensor.nbytes, note=reason))
            return None
        record = _Weights(tensor.detach(), self.approximation.weights_codec, name)
        _notes(node)[_KEY] = ref(record)
        self._latest = record
        self._report(record, tensor, record)
        if self.approximation.errors is not None:
            _watch(self.approximation, tensor.detach(), record, node)
        return record

    def _unfit(self, tensor: Tensor, node: Node) -> str:
        """Why a softmax output is left alone; empty if it is not."""
        if tensor.ndim < 3:
            return "two-dimensional: an output layer or a router"
        if node._saved_dim not in (tensor.ndim - 1, 2**64 - 1):  # type: ignore[attr-defined]  # what autograd saved, which stubs do not know
            return "softmax over another than the last dimension"
        if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
            return "not laid out in one piece"
        return (
            f"rows of {tensor.shape[-1]} keys only, below {self.min_keys}" if tensor.shape[-1] < self.min_keys else ""
        )

    def _derived(self, tensor: Tensor, node: Node) -> Kept | None:
        """A view of a softmax output, its cast, or what dropout left of it."""
        views, above = _follow(node, VIEWS)
        if above is not None and above.name() in SOFTMAX:
            known = _record(above)
            return _View(known, tensor) if known is not None and known.is_of(tensor) else None
        if above is None or not tensor.is_contiguous() or tensor._version or not IN_ORDER.issuperset(views):
            return None
        late_cast, above = _past(above, CAST)
        factor, scale = None, 1.0
        if above is not None and above.name() in (PRODUCT, NATIVE_DROPOUT):
            factor = self._factor_of(above)
            if factor is None:
                return None
            scale = 1.0 if above.name() == PRODUCT else 1 / (1 - above._saved_p)  # type: ignore[attr-defined]  # what autograd saved, which stubs do not know
            _, above = _past(_follow(_parent(above), tuple(IN_ORDER))[1], CAST)
        known = _record(above) if above is not None and above.name() in SOFTMAX else None
        if known is None or tensor.numel() != known.size.numel() or tensor.device != known.tensors[0].device:
            return None
        if self._read_further(tensor, views, known):
            return None
        self._report(known, tensor, None)
        return _Product(known, factor, scale, known.dtype if late_cast else tensor.dtype, tensor)

    def _read_further(self, tensor: Tensor, views: list[str], weights: _Weights) -> bool:
        """Whether others than a product of matrices save whole attention maps, which then stay dense."""
        if views or tensor.ndim == 3 or weights.codec.is_exact:
            return False
        if self.approximation.coverage is not None:
            storage = tensor.untyped_storage().data_ptr()
            after = 0 if storage in weights.dense else tensor.nbytes
            weights.dense.add(storage)
            note = "attention maps are read further: kept as they are too"
            self.approximation.coverage.add(Row(weights.name, self.name, weights.codec.name, 0, after, note))
        return True

    def _factor_of(self, node: Node) -> _Mask | None:
        """The packed mask that a dropout node saved."""
        attribute = "_saved_other" if node.name() == PRODUCT else "_saved_result1"
        self._asked = []
        try:
            getattr(node, attribute)
            asked = self._asked
        finally:
            self._asked = None
        return asked[0] if asked and isinstance(asked[0], _Mask) else None

    def _mask(self, tensor: Tensor, weights: _Weights) -> Kept | None:
        """Dropout's mask, saved right after the softmax output: zeros and one other value, or booleans."""
        if tensor.shape != weights.size or tensor.requires_grad or not tensor.is_contiguous():
            return None
        if not (tensor.is_floating_point() or tensor.dtype == torch.bool):
            return None
        kept, value = tensor != 0, tensor.max()
        if not bool(((tensor == value) | ~kept).all()):
            return None
        mask = _Mask(kept, value)
        self._report(weights, tensor, mask)
        return mask

    def _report(self, weights: _Weights, dense: Tensor, packed: Kept | None) -> None:
        if self.approximation.coverage is not None:
            after = sum(tensor.nbytes for tensor in packed.tensors) if packed is not None else 0
            self.approximation.coverage.add(Row(weights.name, self.name, weights.codec.name, dense.nbytes, after))


class _Weights(Kept):
    """A softmax output as the codec keeps it; decoded once for its two readers."""

    __slots__ = ("_decoded", "_pointer", "_version", "codec", "dense", "dtype", "name", "size")

    def __init__(self, weights: Tensor, codec: Codec, name: str) -> None:
        wide = torch.promote_types(weights.dtype, torch.float32)
        super().__init__(*codec.encode(weights if codec.is_exact else weights.to(wide)))
        self.codec, self.name, self.dtype, self.size = codec, name, weights.dtype, weights.shape
        self._pointer, self._version = weights.untyped_storage().data_ptr(), weights._version
        self._decoded: Tensor | None = None
        self.dense: set[int] = set()

    def is_of(self, tensor: Tensor) -> bool:
        """Whether a tensor shares the storage that was encoded, unchanged."""
        return tensor.untyped_storage().data_ptr() == self._pointer and tensor._version == self._version

    def decoded(self) -> Tensor:
        """The weights for backward."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A compressed softmax output has no second derivative. Leave out create_graph=True, or keep"
                " SoftmaxApproximation off the module that needs it (`modules=`)."
            )
        consumer = torch._C._current_autograd_node()
        if not self.codec.is_exact and consumer is not None and consumer.name() not in CONSUMERS:
            raise RuntimeError(
                f"{consumer.name()} needs the softmax output of {self.name or 'an attention'} as it was, but codec"
                f" {self.codec.name!r} kept an approximation, meant for the product with the values alone. Take"
                " codec='merged', or leave the module out (`modules=`)."
            )
        if any(tensor._version != version for tensor, version in zip(self.tensors, self.versions, strict=True)):
            raise RuntimeError(
                "A softmax output that backward needs was changed in place after the forward pass. Change a copy of it."
            )
        if self._decoded is None:
            self._decoded = self.codec.decode(self.tensors, size=self.size, dtype=self.dtype)
        return self._decoded

    def unpack(self) -> Tensor:
        decoded = self.decoded()
        self._decoded = None  # softmax's own node is the last to ask
        return decoded


class _View(Kept):
    """A view of a softmax output."""

    __slots__ = ("_layout", "_weights")

    def __init__(self, weights: _Weights, tensor: Tensor) -> None:
        super().__init__()
        self._weights = weights
        self._layout = tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpack(self) -> Tensor:
        return self._weights.decoded().contiguous().as_strided(*self._layout)


class _Mask(Kept):
    """A tensor of zeros and one other value, in bits."""

    __slots__ = ("_dtype", "_size")

    def __init__(self, kept: Tensor, value: Tensor) -> None:
        super().__init__(pack_bits(kept.reshape(-1, kept.shape[-1]).view(torch.uint8), 1), value)
        self._size, self._dtype = kept.shape, value.dtype

    def unpack(self) -> Tensor:
        bits = unpack_bits(self.tensors[0], 1, self._size[-1]).view(self._size)
        return bits.to(self._dtype) if self._dtype == torch.bool else bits.to(self._dtype).mul_(self.tensors[1])


class _Product(Kept):
    """Softmax output times dropout's mask, in the shape and dtype that the next product takes."""

    __slots__ = ("_between", "_dtype", "_factor", "_scale", "_size", "_weights")

    def __init__(
        self, weights: _Weights, factor: _Mask | None, scale: float, between: torch.dtype, tensor: Tensor
    ) -> None:
        super().__init__()
        self._weights, self._factor, self._scale, self._between = weights, factor, scale, between
        self._size, self._dtype = tensor.shape, tensor.dtype

    def unpack(self) -> Tensor:
        weights = self._weights.decoded().to(self._between)
        if self._factor is not None:
            weights = weights * self._factor.unpack()
        weights = weights if self._scale == 1 else weights * self._scale
        return weights.to(self._dtype).view(self._size)


def _parent(node: Node) -> Node | None:
    return node.next_functions[0][0] if node.next_functions else None


def _follow(node: Node | None, names: tuple[str, ...]) -> tuple[list[str], Node | None]:
    """Walks up through nodes of these names; gives those passed, and the first other one."""
    passed = []
    while node is not None and node.name() in names:
        passed.append(node.name())
        node = _parent(node)
    return passed, node


def _past(node: Node | None, name: str) -> tuple[bool, Node | None]:
    """Steps over one node of that name and what only changes the shape above it; says whether there was one."""
    if node is None or node.name() != name:
        return False, node
    return True, _follow(_parent(node), tuple(IN_ORDER))[1]


def _record(node: Node) -> _Weights | None:
    known = _notes(node).get(_KEY)
    return None if known is None else known()


def _notes(node: Node) -> dict[Any, Any]:
    """The dictionary that lives as long as the node; torch types it as a method."""
    return cast(dict[Any, Any], node.metadata)


def _watch(approximation: Approximation, weights: Tensor, record: _Weights, node: Node) -> None:
    """Compares softmax's gradient from true and from decoded weights when backward gets there."""

    def compare(grad_outputs: tuple[Tensor, ...]) -> None:
        errors, grad = approximation.errors, grad_outputs[0]
        if errors is None or grad is None:
            return
        guess = record.codec.decode(record.tensors, size=record.size, dtype=weights.dtype)
        exact, other = (y * (grad - (y * grad).sum(-1, keepdim=True)) for y in (weights, guess))
        errors.add([exact], [other])
        errors.add_weights(weights, guess)

    node.register_prehook(compare)
