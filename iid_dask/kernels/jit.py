"""How kernels are compiled, and what of the processor numba does not name: bit counts and unaligned words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def jit(function: Callable[..., Any]) -> Any:
    """Compile at the first call for the types given, without the interpreter's lock; kept on disk where possible."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no folder it may write its cache to
        return njit(nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """For the innermost loops: a call costs more than the few pixels of a run."""
    return njit(nogil=True, inline="always")(function)


@intrinsic
def leading_zeros(typing_context: Any, value: Any) -> Any:
    """Zeros above the highest set bit of a uint64; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def ones(typing_context: Any, value: Any) -> Any:
    """Set bits of a uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def load_word(typing_context: Any, data: Any, at: Any) -> Any:
    """Eight bytes from any address of a uint8 array as a uint64, the first byte in the highest bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        word = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return builder.bswap(word)

    return types.uint64(data, types.int64), generate


@intrinsic
def or_word(typing_context: Any, data: Any, at: Any, word: Any) -> Any:
    """Set the bits of a uint64 in eight bytes from any address of a uint8 array on, the highest bits in the first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())
        both = builder.or_(builder.load(place, align=1), builder.bswap(arguments[2]))
        builder.store(both, place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.uint64, types.uint64), generate


@inlined
def word_at(data, bit):
    """The 64 bits from bit ``bit`` on, as a uint64."""
    byte = bit >> 3
    shift = np.uint64(bit & 7)
    word = load_word(data, byte)
    if shift:
        word = (word << shift) | (np.uint64(data[np.uint64(byte + 8)]) >> (np.uint64(8) - shift))
    return word


@inlined
def or_row(data, source, cols, out, target):
    """Set bits of ``out`` from bit ``target`` on, as the ``cols`` bits of ``data`` from bit ``source`` on are."""
    for j in range(0, cols, 64):
        n = min(64, cols - j)
        word = word_at(data, source + j)
        if n < 64:
            word &= ~(~np.uint64(0) >> np.uint64(n))
        if not word:
            continue
        byte, shift = (target + j) >> 3, (target + j) & 7
        shifted = word >> np.uint64(shift)
        for k in range(min(8, (n + shift + 7) >> 3)):
            out[np.uint64(byte + k)] |= np.uint8((shifted >> np.uint64(56 - 8 * k)) & np.uint64(0xFF))
        if n + shift > 64:
            out[np.uint64(byte + 8)] |= np.uint8((word << np.uint64(8 - shift)) & np.uint64(0xFF))
