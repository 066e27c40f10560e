"""Codes of 1, 2 or 4 bits, several to the byte."""

from __future__ import annotations

import torch
from torch import Tensor


def _slots(bits: int) -> int:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits must be 1, 2, 4 or 8, but is {bits!r}.")
    return 8 // bits


def packed_width(keys: int, bits: int) -> int:
    """Bytes that one row of ``keys`` codes takes."""
    return -(-keys // _slots(bits))


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Packs each row of codes.

    A row is cut into ``8 / bits`` runs, and run ``i`` takes bits ``i * bits`` and up of every byte, so that packing
    is a few shifts of contiguous runs.

    Args:
        codes: uint8 ``(..., N)``, each below ``2 ** bits``.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 ``(..., packed_width(N, bits))``.

    Raises:
        ValueError: On another number of bits.
    """
    if _slots(bits) == 1:
        return codes
    width = packed_width(codes.shape[-1], bits)
    packed = codes[..., :width].clone(memory_format=torch.contiguous_format)
    for slot in range(1, _slots(bits)):
        run = codes[..., slot * width : (slot + 1) * width]
        packed[..., : run.shape[-1]].bitwise_or_(run << (slot * bits))
    return packed


def unpack_bits(packed: Tensor, bits: int, keys: int) -> Tensor:
    """Undoes :func:`pack_bits`.

    Args:
        packed: uint8 ``(..., packed_width(keys, bits))``.
        bits: As packed.
        keys: ``N``.

    Returns:
        uint8 codes ``(..., N)``.

    Raises:
        ValueError: On another number of bits.
    """
    if _slots(bits) == 1:
        return packed
    width = packed.shape[-1]
    codes = packed.new_empty(*packed.shape[:-1], keys)
    for slot in range(_slots(bits)):
        run = codes[..., slot * width : (slot + 1) * width]
        torch.bitwise_right_shift(packed[..., : run.shape[-1]], slot * bits, out=run)
        if slot < _slots(bits) - 1:
            run.bitwise_and_(2**bits - 1)
    return codes
