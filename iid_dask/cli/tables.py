"""`iid ls`, `iid at`, `iid find`, `iid overlaps`, `iid measure`: questions, answered as tables."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from iid_dask.cli.group import on_cluster, say, shown, source
from iid_dask.cli.output import FORMATS, format_of, parts_of, write
from iid_dask.names import from_text

CONDITION = re.compile(r"\s*(\w+(?:\.\w+)*)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*\Z", re.DOTALL)

as_format = click.option("--format", "kind", type=click.Choice(FORMATS), help="Default: as OUT is named, else a table.")
to_file = click.option("-o", "--out", help="Write here instead of printing.")


def _condition(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[Any] | None:
    """Read "area >= 100"."""
    found = []
    for text in value:
        match = CONDITION.match(text)
        if not match:
            raise click.BadParameter(
                f'{text!r}: expected COLUMN OP VALUE with OP = != < <= > >=, such as "area >= 100"'
            )
        column, op, operand = match.groups()
        found.append((column, op, _operand(column, operand)))
    return found or None


def _operand(column: str, text: str) -> Any:
    if column in ("domain", "address"):
        return from_text(text)
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--where", multiple=True, callback=_condition, help='Such as "area >= 100" or "domain = cell"; repeatable.'
)
@click.option("--bbox", nargs=4, type=int, metavar="ROW0 COL0 ROW1 COL1", help="Only entries whose box meets it.")
@click.option("--group", "groups", multiple=True, help="Only members of this group; repeatable.")
@click.option("--columns", help="Such as key,address,area; default: all but the masks.")
@as_format
@to_file
def ls(
    files: tuple[str, ...],
    where: list[Any] | None,
    bbox: tuple[int, int, int, int] | None,
    groups: tuple[str, ...],
    columns: str | None,
    kind: str | None,
    out: str | None,
) -> None:
    """List the entries of FILES (paths, globs, URLs), one row an entry."""
    from iid_dask.entries import read_entries

    kind = format_of(kind, out)
    frame = read_entries(
        source(files[0]) if len(files) == 1 else [source(file) for file in files],
        columns=[name.strip() for name in columns.split(",")] if columns else None,
        filters=where,
        bbox=bbox,
        groups=list(groups) or None,
    )
    _finish(parts_of(frame), kind, out, "entries")


def _finish(parts: Iterable[Any], kind: str, out: str | None, what: str) -> None:
    rows = write(parts, kind, out)
    if out is not None:
        click.echo(f"{out}: {rows:,} {what}")
    elif not rows and kind == "table":
        click.echo(f"iid: note: no {what}", err=True)


@click.command()
@click.argument("file")
@click.argument("row", type=int)
@click.argument("col", type=int)
@as_format
@to_file
def at(file: str, row: int, col: int, kind: str | None, out: str | None) -> None:
    """List the entries of FILE that cover the pixel at ROW and COL."""
    import iid_dask

    kind = format_of(kind, out)
    with iid_dask.open(file) as reader:
        table = reader.entries(reader.at(row, col))
    _finish([table.drop(columns="file")], kind, out, "entries")


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="ADDRESS... FILES...")
@click.option("--domain", "domains", multiple=True, help="Only names in this domain; repeatable.")
@click.option("--group", "groups", multiple=True, help="Only members of this group; repeatable.")
@as_format
@to_file
def find(
    words: tuple[str, ...], domains: tuple[str, ...], groups: tuple[str, ...], kind: str | None, out: str | None
) -> None:
    r"""Find entries by ADDRESS in FILES.

    FILES begin with the first argument that is a file, a URL, a glob or ends in .iid. Bytes that are not UTF-8 are
    written \xNN, a backslash is doubled.
    """
    from iid_dask.entries import look_for

    kind = format_of(kind, out)
    first = next((i for i, word in enumerate(words) if _is_file(word)), len(words))
    addresses, files = words[:first], words[first:]
    if not addresses or not files:
        raise click.UsageError(f"expected addresses, then files; found addresses {addresses} and files {files}")
    frame = look_for(
        source(files[0]) if len(files) == 1 else [source(file) for file in files],
        [from_text(address) for address in addresses],
        domains=[from_text(domain) for domain in domains] or None,
        groups=list(groups) or None,
    )
    _finish(parts_of(frame), kind, out, "entries")


def _is_file(word: str) -> bool:
    return "://" in word or word.lower().endswith(".iid") or os.path.exists(os.path.expanduser(word))


@click.command()
@click.argument("file")
@click.option("--min-pixels", type=click.IntRange(1), default=1, show_default=True, help="Shared by a pair, at least.")
@as_format
@to_file
@on_cluster
def overlaps(
    file: str, min_pixels: int, kind: str | None, out: str | None, cluster: AbstractContextManager[None]
) -> None:
    """List all pairs of entries of FILE that share pixels, with their number, IoU and containment."""
    from iid_dask import overlaps as lazy

    kind = format_of(kind, out)
    with cluster:
        _finish(parts_of(lazy(source(file), min_pixels=min_pixels)), kind, out, "overlapping pairs")


@click.command()
@click.argument("file")
@click.argument("image")
@click.option("-o", "--out", required=True, help="Table to write: .parquet, .csv or .json.")
@click.option("--property", "properties", multiple=True, help="Such as mean or perimeter; repeatable.")
@click.option("--variable", help="Of IMAGE, where it is a Zarr group of several arrays.")
@click.option("--tile", type=click.IntRange(1), default=4096, show_default=True, help="Rows and columns read at once.")
@click.option("--dry-run", is_flag=True, help="Say what it will take, and measure nothing.")
@on_cluster
@click.option("--progress/--no-progress", default=None, help="Show a bar; default: on a terminal.")
def measure(
    file: str,
    image: str,
    out: str,
    properties: tuple[str, ...],
    variable: str | None,
    tile: int,
    dry_run: bool,
    cluster: AbstractContextManager[None],
    progress: bool | None,
) -> None:
    """Measure IMAGE, a Zarr array or .npy file of FILE's size, under every mask of FILE."""
    from dask.diagnostics import ProgressBar

    from iid_dask import measure as lazy
    from iid_dask import plan
    from iid_dask.measurements.job import INTENSITY

    kind = format_of(None, out)
    with cluster, ProgressBar(out=sys.stderr) if shown(progress) else nullcontext():
        asked = source(file), _open_image(image, variable), properties or INTENSITY
        if dry_run:
            say(plan(lazy, *asked, tile=tile))
            return
        frame = lazy(*asked, tile=tile)
        _finish(parts_of(frame), kind, out, "rows")


def _open_image(path: str, variable: str | None) -> Any:
    if path.lower().endswith(".npy"):
        import numpy as np

        return np.load(os.path.expanduser(path), mmap_mode="r")
    import zarr

    try:
        node = zarr.open(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path}: expected a Zarr array or group, or a .npy file: {error}") from error
    if isinstance(node, zarr.Array):
        return node
    names = sorted(name for name, _ in node.arrays())
    if variable is None and len(names) == 1:
        (variable,) = names
    if variable not in names:
        raise ValueError(f"{path}: a group of the arrays {names}: choose one of them by --variable")
    return node[variable]
