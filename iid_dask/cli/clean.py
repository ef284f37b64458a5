"""`iid clean`: what killed jobs left in a folder."""

from __future__ import annotations

import click


@click.command("clean")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def clean_command(folder: str, dry_run: bool) -> None:
    """Remove what killed jobs left in FOLDER; nothing of a job that is at work."""
    from iid_dask.leftovers import clean, leftovers

    found = {str(leftover.path): leftover for leftover in leftovers(folder)}
    done = clean(folder, dry_run=dry_run)
    words = {True: {"remove": "would be removed", "put in place": "would be put in place"}}
    words[False] = {"remove": "removed", "put in place": "put in place"}
    for path, leftover in found.items():
        if path in done:
            click.echo(f"{path}: {words[dry_run][leftover.fate]}: {leftover.why}")
        else:
            click.echo(f"{path}: kept: {leftover.why}")
    click.echo(f"{folder}: {len(done)} leftover{'' if len(done) == 1 else 's'}{' found' if dry_run else ' cleaned'}")
