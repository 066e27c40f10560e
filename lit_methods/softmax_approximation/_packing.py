"""Codes of 1, 2 or 4 bits, several to the byte."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Times a word of eight bytes of 0 or 1, it gathers them in the word's highest byte.
GATHER = 0x0102040810204080


def _slots(bits: int) -> int:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits must be 1, 2, 4 or 8, but is {bits!r}.")
    return 8 // bits


def packed_width(keys: int, bits: int) -> int:
    """Bytes that one row of ``keys`` codes takes."""
    return -(-keys // _slots(bits))


def _pack_words(flags: Tensor) -> Tensor:
    short = -flags.shape[-1] % 8
    flags = F.pad(flags, (0, short)) if short else flags.contiguous()
    return (flags.view(torch.int64) * GATHER).bitwise_right_shift_(56).to(torch.uint8)


@cache
def _words(device: torch.device) -> Tensor:
    """The eight flags of every byte, as words."""
    flags = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)).bitwise_and_(1)
    flags = flags.to(torch.uint8)
    words = torch.empty(256, dtype=torch.int64, device=device)
    words[_pack_words(flags).flatten().long()] = flags.view(torch.int64).flatten()
    return words


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Packs each row of codes.

    Eight flags of one bit are one multiplication of the word that they make. Of 2 or 4 bits, a row is cut into
    ``8 / bits`` runs, and run ``i`` takes bits ``i * bits`` and up of every byte: a few shifts of contiguous runs.

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
    if bits == 1:
        return _pack_words(codes)
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
    if bits == 1:
        words = _words(packed.device).index_select(0, packed.flatten().int())
        return words.view(torch.uint8).view(*packed.shape[:-1], -1)[..., :keys]
    width = packed.shape[-1]
    codes = packed.new_empty(*packed.shape[:-1], keys)
    for slot in range(_slots(bits)):
        run = codes[..., slot * width : (slot + 1) * width]
        torch.bitwise_right_shift(packed[..., : run.shape[-1]], slot * bits, out=run)
        if slot < _slots(bits) - 1:
            run.bitwise_and_(2**bits - 1)
    return codes
