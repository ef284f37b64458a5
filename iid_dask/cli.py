"""The command ``iid``: parse, call, print. Errors are one sentence and a way out, never a traceback."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from iid_dask import __version__
from iid_dask.errors import IIDError, IIDWarning

DEFECT, USAGE = 1, 2
"""Exit codes: a defect in the data, or a call that cannot be carried out."""


class Commands(click.Group):
    """A group whose commands end with a sentence and an exit code whatever goes wrong."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", IIDWarning)
            warnings.showwarning = _say_warning
            try:
                return super().invoke(context)
            except IIDError as error:
                _fail(str(error), DEFECT)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except KeyError as error:
                _fail(str(error.args[0]) if error.args else repr(error), USAGE)
            except OSError as error:
                _fail(_os_words(error), USAGE)
            except (ValueError, TypeError, ImportError) as error:
                _fail(str(error), USAGE)


def _os_words(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"iid: note: {message}", err=True)


def _fail(words: str, code: int) -> None:
    click.echo(f"iid: {words}", err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="iid")
def main() -> None:
    """Look into .iid segmentation files, check them, and rasterise them to Zarr."""


# --- info -------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("file")
@click.option("--pixels", is_flag=True, help="Also the covered share and the largest depth: decodes every mask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def info(file: str, pixels: bool, as_json: bool) -> None:
    """Say what is in FILE."""
    import iid_dask

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
        if pixels:
            facts |= _pixel_facts(reader)
    if as_json:
        click.echo(json.dumps(facts))
        return
    groups = ", ".join(f"{name} ({count})" for name, count in facts["groups"].items())
    rows = {
        "file": facts["file"],
        "size": f"{height} x {width} pixels, {facts['bytes']:,} bytes",
        "entries": f"{facts['entries']:,}" + (f" and {facts['removed']:,} removed" if facts["removed"] else ""),
        "groups": groups or "none",
        "index": "yes" if facts["index"] else "no (`iid index FILE` adds one: large files open faster)",
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


# --- check, index -----------------------------------------------------------------------------------------------


@main.command()
@click.argument("file")
@click.option("--progress/--no-progress", default=None, help="Show a bar; default: on a terminal.")
def check(file: str, progress: bool | None) -> None:
    """Validate FILE, an .iid file or a Zarr store of `iid rasterize`, wholly; name every defect."""
    # A store is a folder, or a URL that is not an .iid file's.
    if os.path.isdir(os.path.expanduser(file.removeprefix("file://"))) or ("://" in file and ".zarr" in file):
        from iid_dask import check_zarr

        defects: list[Any] = list(check_zarr(file, progress=_shown(progress)))
    else:
        from iid_dask.format.check import file_defects
        from iid_dask.format.source import as_source

        defects = list(file_defects(as_source(file)))
    for defect in defects:
        click.echo(str(defect))
    if defects:
        click.echo(f"iid: {file}: {len(defects)} defect{'s' if len(defects) > 1 else ''} found", err=True)
        sys.exit(DEFECT)
    click.echo(f"{file}: sound")


@main.command()
@click.argument("file")
@click.option("-o", "--out", help="Write here; default: FILE is replaced, atomically.")
def index(file: str, out: str | None) -> None:
    """Add an index to FILE, so that opening it needs no pass over its segments."""
    from iid_dask import add_index

    nbytes = add_index(file, out)
    click.echo(f"{out or file}: index of {nbytes:,} bytes added")


# --- rasterize --------------------------------------------------------------------------------------------------


def _part(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
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


@main.command()
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
@click.option("--part", callback=_part, help="Write only part I/N of the tiles, for array jobs.")
@click.option("--overwrite", is_flag=True, help="Replace what is at OUT.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: threads of this one.")
@click.option("--scheduler", metavar="ADDRESS", help="A running dask scheduler.")
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
    workers: int | None,
    scheduler: str | None,
    progress: bool | None,
    **options: Any,
) -> None:
    """Rasterise FILE to a Zarr store OUT; an interrupted run continues when it is given again."""
    import xarray as xr

    from iid_dask import to_zarr

    chosen = {name: value for name, value in options.items() if value not in ((), None)}
    chosen |= {name: True for name in ("layers", "color") if name in variables}
    with _client(workers, scheduler), xr.open_dataset(file, engine="iid", **chosen) as ds:
        group = to_zarr(
            _window(ds, bbox),
            out,
            variables=variables,
            chunks=chunks,
            shards=shards,
            codec=codec,
            part=part,
            overwrite=overwrite,
            progress=_shown(progress),
        )
        state = "complete" if group.attrs["iid_dask"]["complete"] else "parts are missing"
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


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[None]:
    """Run the tasks of the block on worker processes or a cluster, if one is named."""
    if workers is None and scheduler is None:
        yield
        return
    if workers is not None and scheduler is not None:
        raise click.UsageError("give --workers or --scheduler, not both")
    from distributed import Client, LocalCluster

    if scheduler is not None:
        with Client(scheduler, timeout="30s"):
            yield
        return
    # Loopback, and no dashboard: nothing here needs to be reached from outside.
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster),
    ):
        yield


# --- demo -------------------------------------------------------------------------------------------------------

DEMO = """\
import xarray as xr, iid_dask
ds = xr.open_dataset(iid_dask.sample("us"), engine="iid", chunks={}, color=True)
print(ds)                                              # lazy label, mask and depth arrays
iid_dask.to_zarr(ds, "us.zarr")                        # tiles in parallel, resumable
iid_dask.write_png("us.png", ds.color.values)          # a picture"""


@main.command()
@click.option("-o", "--out", default="iid-demo", show_default=True, help="Folder to write into.")
def demo(out: str) -> None:
    """Rasterise the counties of the United States to a Zarr store and a picture."""
    import xarray as xr

    import iid_dask

    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    store, picture = folder / "us.zarr", folder / "us.png"
    with xr.open_dataset(iid_dask.sample("us"), engine="iid", chunks={}, color=True) as ds:
        iid_dask.to_zarr(ds, store, overwrite=True, progress=_shown(None))
        iid_dask.write_png(picture, ds.color.values)
        entries, (height, width) = ds.sizes["entry"], ds.label.shape
    click.echo(f"{entries:,} overlapping masks rasterised to {height} x {width} pixels")
    click.echo(f"Zarr store  {store.resolve()}")
    click.echo(f"picture     {picture.resolve()}")
    click.echo(f"\nThe same in Python:\n\n{DEMO}")
