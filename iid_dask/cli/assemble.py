"""`iid assemble`, `iid finish`, `iid stitch`, `iid consolidate`: label images to mosaics and files."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import click

from iid_dask.cli.group import on_cluster, say, shown
from iid_dask.cli.rasterize import read_part


def _tile(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read "4096" or "2048x4096"."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise click.BadParameter(f"{value!r}: expected pixels, 4096 or 2048x4096 (rows x columns)")
    return int(sides[0]), int(sides[-1])


def _stitch(context: click.Context, parameter: click.Parameter, value: str) -> str | None:
    return None if value == "none" else value


def _rule(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    from iid_dask.mosaic.rules import parse_rule

    return parse_rule(value)


rule = click.option(
    "--rule", callback=_rule, metavar="NAME:OPTION=VALUE,…", help='Thresholds, for example "touch:min_share=0.6".'
)
progress = click.option("--progress/--no-progress", default=None, help="Show bars; default: on a terminal.")


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--out", required=True, metavar="OUT", help="A file, out.iid, or the folder of a mosaic.")
@click.option("--across", type=click.IntRange(1), help="INPUTs are tile images, row by row, so many a row.")
@click.option(
    "--stitch",
    type=click.Choice(["label", "name", "touch", "iou", "none"]),
    default="label",
    show_default=True,
    callback=_stitch,
    help="What joins pieces in several tiles.",
)
@rule
@click.option("--connected", is_flag=True, help="Segments are the connected components of equal values.")
@click.option("--domain", default="", help="Of all entries.")
@click.option("--tile", callback=_tile, metavar="PIXELS", help="Unit of work, 4096 or ROWSxCOLS.")
@click.option("--halo", type=click.IntRange(0), default=0, help="Pixels that tiles reach beyond their own.")
@click.option("--window", nargs=4, type=int, metavar="ROW0 COL0 ROW1 COL1", help="Of an .iid file: keep this part.")
@click.option("--scratch", metavar="FOLDER", help="For tiles meanwhile; default: beside OUT.")
@click.option("--part", callback=read_part, help="Write only part I/N of a mosaic's tiles; then: iid finish.")
@click.option("--trust", is_flag=True, help="Continue without reading again what finished tiles were made from.")
@click.option("--dry-run", is_flag=True, help="Say what it will take, and write nothing.")
@on_cluster
@progress
def assemble(
    inputs: tuple[str, ...],
    out: str,
    domain: str,
    rule: Any,
    window: tuple[int, int, int, int] | None,
    scratch: str | None,
    part: tuple[int, int] | None,
    trust: bool,
    dry_run: bool,
    cluster: AbstractContextManager[None],
    progress: bool | None,
    **options: Any,
) -> None:
    """Assemble label images (Zarr, TIFF, PNG, .npy) or .iid files to one file, or to a mosaic.

    INPUT may be a pattern with {row} and {col}: "tile_{row}_{col}.tif". An interrupted run continues when it is
    given again. A file that is at OUT.iid is replaced when the new one is whole; any other OUT is a mosaic's folder.
    """
    from iid_dask import plan, to_iid, to_mosaic

    labels = _labels(inputs)
    options |= {"window": window}
    is_file = out.lower().endswith(".iid")
    if is_file and part is not None:
        raise click.UsageError(
            "--part writes tiles of a mosaic: give a folder as --out, then iid finish, iid consolidate"
        )
    common = {"domain": domain.encode(), "rule": rule, "resume": "trust" if trust else True, **options}
    with cluster:
        if dry_run:
            where = {} if is_file else {"part": part}
            say(plan(to_iid if is_file else to_mosaic, labels, out, **where, **common))
            return
        if is_file:
            to_iid(labels, out, scratch=scratch, progress=shown(progress), **common)
            said(out)
            return
        mosaic = to_mosaic(labels, out, part=part, progress=shown(progress), **common)
    if mosaic is None:
        click.echo(f"{out}: part {part[0]} of {part[1]} is written" if part else out)
        return
    mosaic.close()
    said(out)


def _labels(inputs: tuple[str, ...]) -> Any:
    if len(inputs) > 1:
        return list(inputs)
    (one,) = inputs
    if "{row" in one or "{col" in one:
        from iid_dask import grid_of

        return grid_of(one)
    return one


def said(path: str) -> None:
    """Say what a file or mosaic holds."""
    import iid_dask

    with iid_dask.open(path) as reader:
        click.echo(f"{path}: {len(reader)} entries, {reader.shape[0]} x {reader.shape[1]} pixels")


@click.command(name="finish")
@click.argument("folder")
@click.option("--domain", default="", help="Of all entries.")
@rule
@on_cluster
@progress
def finish_command(
    folder: str, domain: str, rule: Any, cluster: AbstractContextManager[None], progress: bool | None
) -> None:
    """Complete the mosaic in FOLDER, whose tiles were written in parts."""
    from iid_dask.mosaic.finish import finish

    with cluster:
        finish(folder, domain=domain.encode(), rule=rule, progress=shown(progress)).close()
    said(folder)


@click.command()
@click.argument("folder")
@rule
@click.option("--dry-run", is_flag=True, help="Say what would be joined, and change nothing.")
def stitch(folder: str, rule: Any, dry_run: bool) -> None:
    """Decide again which pieces of the mosaic in FOLDER are one segment."""
    from iid_dask.mosaic.seams import decide, seams_table

    if dry_run:
        seams = decide(seams_table(folder), rule)
        click.echo(f"{folder}: {int(seams['decision'].sum())} of {len(seams)} pairs at seams would be joined")
        return
    decide(folder, rule).close()
    said(folder)


@click.command(name="consolidate")
@click.argument("folder")
@click.option("-o", "--out", required=True, metavar="OUT.iid")
@click.option("--dry-run", is_flag=True, help="Say what it will take, and write nothing.")
@on_cluster
@progress
def consolidate_command(
    folder: str, out: str, dry_run: bool, cluster: AbstractContextManager[None], progress: bool | None
) -> None:
    """Write the mosaic in FOLDER as one file."""
    from iid_dask import plan
    from iid_dask.mosaic.reader import open_mosaic

    with cluster, open_mosaic(folder) as mosaic:
        if dry_run:
            say(plan(mosaic.to_iid, out))
            return
        mosaic.to_iid(out, progress=shown(progress))
    said(out)
