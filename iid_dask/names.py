"""Names are bytes; arrays show them as text that can be turned back."""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"\\(\\|x([0-9a-f]{2}))")


def to_text(name: bytes) -> str:
    r"""Show a name as text: UTF-8, any other byte as ``\xNN``, backslashes doubled.

    Examples
    --------
    >>> to_text(b"cell 7"), to_text(b"\xff\x00\\")
    ('cell 7', '\\xff\x00\\\\')
    """
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def from_text(text: str) -> bytes:
    r"""Turn `to_text`'s answer back into the name.

    Examples
    --------
    >>> from_text(to_text(b"\xff\x00\\")) == b"\xff\x00\\"
    True
    """
    return _ESCAPE.sub(
        lambda found: b"\\" if found[1] == b"\\" else bytes([int(found[2], 16)]), text.encode("utf-8")
    )
