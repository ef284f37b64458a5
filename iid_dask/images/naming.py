"""A grid of files found by the pattern of their names."""

from __future__ import annotations

import errno
import glob
import os
import re
from string import Formatter

from iid_dask.images.sectors import Sectors

_SPEC = re.compile(r"(0?[1-9]\d*)?d?")


def _parts(pattern: str) -> list[tuple[str, str | None]]:
    """Split a pattern into (literal text, name of the field after it); ValueError if it cannot be one."""
    form = f"{pattern}: expected a pattern with {{row}} and {{col}}, such as tile_{{row:03d}}_{{col:03d}}.tif"
    try:
        parsed = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"{form}: {error}") from error
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in ("row", "col") or conversion or not _SPEC.fullmatch(spec or "")):
            raise ValueError(f"{form}; found {{{name}{':' + spec if spec else ''}}}")
    if {name for _, name, _, _ in parsed} - {None} != {"row", "col"}:
        raise ValueError(form)
    return [(text, name) for text, name, _, _ in parsed]


def _found(pattern: str) -> dict[tuple[int, int], str]:
    """Return the files that bear a name of the pattern, by row and column."""
    parts = _parts(pattern)
    seen: set[str] = set()
    expression = ""
    for text, name in parts:
        expression += re.escape(text)
        if name is not None:
            expression += r"\d+" if name in seen else rf"(?P<{name}>\d+)"
            seen.add(name)
    names = glob.glob("".join(glob.escape(text) + ("*" if name else "") for text, name in parts))
    files = {}
    for path in names:
        if match := re.fullmatch(expression, path):
            place = int(match["row"]), int(match["col"])
            if pattern.format(row=place[0], col=place[1]) != path:
                raise ValueError(
                    f"{pattern}: found {path}, whose numbers are not written so; a width is given as {{row:03d}}"
                )
            files[place] = path
    return files


def grid_of(pattern: str | os.PathLike[str]) -> Sectors:
    """Find a full grid of tile images by the pattern of their names.

    Parameters
    ----------
    pattern
        Local path with ``{row}`` and ``{col}``, with a format such as ``{row:03d}`` if numbers have a fixed width.
        The grid begins at the smallest numbers that there are.

    Returns
    -------
    Sectors
        For `as_image`; its files are not opened yet.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or one of the grid is missing: names it.
    ValueError
        For a pattern that is none, and for files whose numbers are written in another way.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> for row in range(2):
    ...     for col in range(3):
    ...         np.save(f"{folder}/tile_{row}_{col}.npy", np.full((4, 5), 10 * row + col))
    >>> sectors = grid_of(folder + "/tile_{row}_{col}.npy")
    >>> len(sectors.paths), sectors.across
    (6, 3)
    >>> os.remove(f"{folder}/tile_1_0.npy")
    >>> grid_of(folder + "/tile_{row}_{col}.npy")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] sector in row 1, column 0 is missing (1 of 6 are): ...
    """
    pattern = os.path.expanduser(os.fspath(pattern))
    files = _found(pattern)
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no file bears a name of this pattern", pattern)
    rows, cols = ({place[axis] for place in files} for axis in (0, 1))
    places = [(row, col) for row in range(min(rows), max(rows) + 1) for col in range(min(cols), max(cols) + 1)]
    if missing := [place for place in places if place not in files]:
        row, col = missing[0]
        raise FileNotFoundError(
            errno.ENOENT,
            f"sector in row {row}, column {col} is missing ({len(missing)} of {len(places)} are)",
            pattern.format(row=row, col=col),
        )
    return Sectors(tuple(files[place] for place in places), across=max(cols) - min(cols) + 1)
