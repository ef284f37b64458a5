"""`iid info`, `iid check`, `iid index`: one file, whole."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from iid_dask.cli.group import DEFECT, shown


@click.command()
@click.argument("file")
@click.option("--pixels", is_flag=True, help="Also the covered share and the largest depth: decodes every mask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def info(file: str, pixels: bool, as_json: bool) -> None:
    """Say what is in FILE."""
    import iid_dask
    from iid_dask.mosaic.opening import names_mosaic

    with iid_dask.open(file) as reader:
        height, width = reader.shape
        facts: dict[str, Any] = {
            "file": reader.name,
            "bytes": reader.source.size,
            "height": height,
            "width": width,
            "entries": len(reader),
            "removed": int((~reader.live).sum()),
            "groups": {name: len(keys) for name, keys in reader.groups.items()},
            "metadata": reader.metadata,
            "index": reader.has_index,
        }
        if names_mosaic(file):
            sizes = reader.tables.read("tiles", ("nbytes",))["nbytes"]
            facts |= {"tiles": len(sizes), "bytes": int(sizes.sum())}
        if pixels:
            facts |= _pixel_facts(reader)
    if as_json:
        click.echo(json.dumps(facts))
        return
    without = "no (`iid index FILE` adds one: large files open faster)"
    if names_mosaic(file):
        without = f"each of {facts['tiles']} tiles has its own"
    groups = ", ".join(f"{name} ({count})" for name, count in facts["groups"].items())
    rows = {
        "file": facts["file"],
        "size": f"{height} x {width} pixels, {facts['bytes']:,} bytes",
        "entries": f"{facts['entries']:,}" + (f" and {facts['removed']:,} removed" if facts["removed"] else ""),
        "groups": groups or "none",
        "index": "yes" if facts["index"] else without,
        "metadata": json.dumps(facts["metadata"], ensure_ascii=False),
    }
    if pixels:
        rows["covered"] = f"{facts['covered']:.1%} of the pixels"
        rows["largest depth"] = f"{facts['largest_depth']} entries on one pixel"
    _print_table(rows)


def _pixel_facts(reader: Any) -> dict[str, Any]:
    from iid_dask import raster
    from iid_dask.bbox import BBox

    height, width = reader.shape
    view = raster.View(reader, (height, width))
    covered = largest = 0
    for row in range(0, height, 2048):
        for col in range(0, width, 2048):
            box = BBox(row, col, min(row + 2048, height), min(col + 2048, width))
            depth = raster.depth(view, raster.Window(box))
            covered += int((depth > 0).sum())
            largest = max(largest, int(depth.max()))
    return {"covered": covered / max(1, height * width), "largest_depth": largest}


def _print_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


@click.command()
@click.argument("file")
@click.option("--progress/--no-progress", default=None, help="Show a bar; default: on a terminal.")
def check(file: str, progress: bool | None) -> None:
    """Validate FILE, an .iid file, a mosaic, or a Zarr store of `iid rasterize`, wholly; name every defect."""
    import iid_dask
    from iid_dask.mosaic.opening import names_mosaic

    if names_mosaic(file):
        with iid_dask.open(file) as mosaic:
            _report(file, list(mosaic.check()))
        return
    # A store is a folder, or a URL that is not an .iid file's.
    if os.path.isdir(os.path.expanduser(file.removeprefix("file://"))) or ("://" in file and ".zarr" in file):
        from iid_dask import check_zarr

        defects: list[Any] = list(check_zarr(file, progress=shown(progress)))
    else:
        from iid_dask.format.check import file_defects
        from iid_dask.format.source import as_source

        defects = list(file_defects(as_source(file)))
    _report(file, defects)


def _report(file: str, defects: list[Any]) -> None:
    for defect in defects:
        click.echo(str(defect))
    if defects:
        click.echo(f"iid: {file}: {len(defects)} defect{'s' if len(defects) > 1 else ''} found", err=True)
        sys.exit(DEFECT)
    click.echo(f"{file}: sound")


@click.command()
@click.argument("file")
@click.option("-o", "--out", help="Write here; default: FILE is replaced, atomically.")
def index(file: str, out: str | None) -> None:
    """Add an index to FILE, so that opening it needs no pass over its segments."""
    from iid_dask import add_index

    nbytes = add_index(file, out)
    click.echo(f"{out or file}: index of {nbytes:,} bytes added")
