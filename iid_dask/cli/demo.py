"""`iid demo`: the first look."""

from __future__ import annotations

from pathlib import Path

import click

from iid_dask.cli.group import shown

DEMO = """\
import xarray as xr, iid_dask
ds = xr.open_dataset(iid_dask.sample("us"), engine="iid", chunks={}, color=True)
print(ds)                                              # lazy label, mask and depth arrays
iid_dask.to_zarr(ds, "us.zarr")                        # tiles in parallel, resumable
iid_dask.write_png("us.png", ds.color.values)          # a picture"""


@click.command()
@click.option("-o", "--out", default="iid-demo", show_default=True, help="Folder to write into.")
def demo(out: str) -> None:
    """Rasterise the counties of the United States to a Zarr store and a picture."""
    import xarray as xr

    import iid_dask

    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    store, picture = folder / "us.zarr", folder / "us.png"
    with xr.open_dataset(iid_dask.sample("us"), engine="iid", chunks={}, color=True) as ds:
        iid_dask.to_zarr(ds, store, overwrite=True, progress=shown(None))
        iid_dask.write_png(picture, ds.color.values)
        entries, (height, width) = ds.sizes["entry"], ds.label.shape
    click.echo(f"{entries:,} overlapping masks rasterised to {height} x {width} pixels")
    click.echo(f"Zarr store  {store.resolve()}")
    click.echo(f"picture     {picture.resolve()}")
    click.echo(f"\nThe same in Python:\n\n{DEMO}")
