"""`iid rasterize`: masks to a Zarr store."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import click

from iid_dask.cli.group import on_cluster, say, shown


def read_part(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read "3/20"."""
    if value is None:
        return None
    first, slash, second = value.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise click.BadParameter(f"{value!r}: expected I/N with I from 1 to N, for example 3/20")
    return int(first), int(second)


def _keys(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[int] | None:
    """Read "3,7,100-200"."""
    if not value:
        return None
    keys: list[int] = []
    for item in ",".join(value).split(","):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise click.BadParameter(f"{item!r}: expected keys such as 3,7,100-200")
        keys.extend(range(int(first), int(last if dash else first) + 1))
    return keys


def _shards(context: click.Context, parameter: click.Parameter, value: str) -> Any:
    if value in ("auto", "none"):
        return None if value == "none" else value
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r}: expected auto, none or pixels")


@click.command()
@click.argument("file")
@click.argument("out")
@click.option("--variable", "variables", multiple=True, default=("label",), show_default=True, help="Repeatable.")
@click.option("--overlap", type=click.Choice(["last", "first", "smallest", "largest", "raise"]), default="last")
@click.option("--labels", type=click.Choice(["key", "address"]), default="key", show_default=True)
@click.option("--stride", type=click.IntRange(1), default=1, help="One pixel for N x N.")
@click.option("--reduce", type=click.Choice(["nearest", "any"]), default="nearest", show_default=True)
@click.option("--group", "groups", multiple=True, help="Only entries of this group; repeatable.")
@click.option("--keys", multiple=True, callback=_keys, help="Only these entries: 3,7,100-200; repeatable.")
@click.option("--address", "addresses", multiple=True, help="Only entries of this address; repeatable.")
@click.option("--domain", "domains", multiple=True, help="Only entries of this domain; repeatable.")
@click.option(
    "--bbox", nargs=4, type=int, metavar="ROW0 COL0 ROW1 COL1", help="Only this window, in pixels after --stride."
)
@click.option("--chunks", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--shards", default="auto", callback=_shards, show_default=True)
@click.option("--codec", default="zstd-1", show_default=True)
@click.option("--part", callback=read_part, help="Write only part I/N of the tiles, for array jobs.")
@click.option("--overwrite", is_flag=True, help="Replace what is at OUT.")
@click.option("--trust", is_flag=True, help="Continue without reading finished tiles again.")
@click.option("--dry-run", is_flag=True, help="Say what it will take, and write nothing.")
@on_cluster
@click.option("--progress/--no-progress", default=None, help="Show a bar; default: on a terminal.")
def rasterize(
    file: str,
    out: str,
    variables: tuple[str, ...],
    bbox: tuple[int, int, int, int] | None,
    chunks: int,
    shards: Any,
    codec: str,
    part: tuple[int, int] | None,
    overwrite: bool,
    trust: bool,
    dry_run: bool,
    cluster: AbstractContextManager[None],
    progress: bool | None,
    **options: Any,
) -> None:
    """Rasterise FILE to a Zarr store OUT; an interrupted run continues when it is given again."""
    import xarray as xr

    from iid_dask import plan, to_zarr

    chosen = {name: value for name, value in options.items() if value not in ((), None)}
    chosen |= {name: True for name in ("layers", "color") if name in variables}
    with cluster, xr.open_dataset(file, engine="iid", **chosen) as ds:
        export: dict[str, Any] = {
            "variables": variables,
            "chunks": chunks,
            "shards": shards,
            "codec": codec,
            "part": part,
            "overwrite": overwrite,
            "resume": "trust" if trust else True,
            "progress": shown(progress),
        }
        if dry_run:
            say(plan(to_zarr, _window(ds, bbox), out, **export))
            return
        group = to_zarr(_window(ds, bbox), out, **export)
        state = "complete" if group.attrs["iid_dask"]["complete"] else "this part is written, others are missing"
        sizes = ", ".join(f"{name} {' x '.join(map(str, group[name].shape))}" for name in variables)
    click.echo(f"{out}: {sizes}; {state}")


def _window(ds: Any, bbox: tuple[int, int, int, int] | None) -> Any:
    if bbox is None:
        return ds
    from iid_dask.bbox import BBox

    box, (height, width) = BBox(*bbox), (ds.sizes["y"], ds.sizes["x"])
    if box.min_row < 0 or box.min_col < 0 or box.max_row > height or box.max_col > width:
        raise ValueError(f"--bbox {' '.join(map(str, bbox))} leaves the image of {height} x {width} pixels")
    rows, cols = box.slices
    return ds.isel(y=rows, x=cols)
