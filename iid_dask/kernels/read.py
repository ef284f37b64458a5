"""Many ranges of one file in one call."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from iid_dask.kernels.jit import jit


@intrinsic
def _address(typing_context: Any, data: Any, at: Any) -> Any:
    """Where an element of a uint8 array lies in memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.gep(array.data, [arguments[1]])

    return types.CPointer(types.uint8)(data, types.int64), generate


_pread = types.ExternalFunction("pread", types.intp(types.int32, types.CPointer(types.uint8), types.uintp, types.int64))


@jit
def read_ranges(descriptor, offsets, lengths, out):
    """Read ranges of a file, one after another, into a uint8 array by the system's ``pread``.

    One call for a window's thousand small reads: from Python each would give up the interpreter's lock and wait to
    have it back.

    Returns
    -------
    int
        Ranges read whole before the first that was not; len(offsets) if all were.
    """
    at = 0
    for i in range(len(offsets)):
        if _pread(descriptor, _address(out, at), lengths[i], offsets[i]) != lengths[i]:
            return i
        at += lengths[i]
    return len(offsets)
