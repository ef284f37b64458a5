"""Names are bytes; arrays show them as text that can be turned back."""

from __future__ import annotations

import re

import numpy as np

_ESCAPE = re.compile(rb"\\(\\|x([0-9a-f]{2}))")


def to_text(name: bytes) -> str:
    r"""Show a name as text: UTF-8, any other byte as ``\xNN``, backslashes doubled.

    Examples
    --------
    >>> to_text(b"cell 7"), to_text(b"\xff\x00\\")
    ('cell 7', '\\xff\x00\\\\')
    """
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def spans_to_text(data: bytes, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Show many names as text.

    Parameters
    ----------
    data : bytes
    starts, stops : int64 arrays, shape (n,)
        Where in ``data`` the names lie.

    Returns
    -------
    StringDType array, shape (n,)
    """
    codes = np.frombuffer(data, np.uint8)
    special = np.flatnonzero((codes >= 0x80) | (codes == ord("\\")))
    text = data.decode("latin-1")
    names = [text[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    for i in np.flatnonzero(np.searchsorted(special, starts) < np.searchsorted(special, stops)).tolist():
        names[i] = to_text(data[starts[i] : stops[i]])
    return np.array(names, dtype=np.dtypes.StringDType())


def from_text(text: str) -> bytes:
    r"""Turn `to_text`'s answer back into the name.

    Examples
    --------
    >>> from_text(to_text(b"\xff\x00\\")) == b"\xff\x00\\"
    True
    """
    return _ESCAPE.sub(lambda found: b"\\" if found[1] == b"\\" else bytes([int(found[2], 16)]), text.encode("utf-8"))
