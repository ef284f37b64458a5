"""The command ``iid``: parse, call, print."""

from __future__ import annotations

import click

from iid_dask import __version__
from iid_dask.cli.assemble import assemble, consolidate_command, finish_command, stitch
from iid_dask.cli.clean import clean_command
from iid_dask.cli.demo import demo
from iid_dask.cli.files import check, index, info
from iid_dask.cli.group import Commands
from iid_dask.cli.rasterize import rasterize
from iid_dask.cli.tables import at, find, ls, measure, overlaps


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="iid")
def main() -> None:
    """Look into .iid segmentation files, search them, measure images, rasterise to Zarr, and assemble mosaics."""


commands = (info, ls, at, find, overlaps, measure, rasterize, assemble, finish_command, stitch, consolidate_command)
for command in (*commands, check, index, clean_command, demo):
    main.add_command(command)
