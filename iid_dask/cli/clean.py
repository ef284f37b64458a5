"""`iid clean`: what killed jobs left in a folder."""

from __future__ import annotations

import click


@click.command("clean")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def clean_command(folder: str, dry_run: bool) -> None:
    """Remove what killed jobs left in FOLDER; nothing of a job that is at work."""
    from iid_dask.leftovers import cleaned

    words = {"remove": "removed", "put in place": "put in place"}
    count = 0
    for leftover, done in cleaned(folder, dry_run=dry_run):
        fate = ("would be " if dry_run else "") + words[leftover.fate] if done else "kept"
        click.echo(f"{leftover.path}: {fate}: {leftover.why}")
        count += done
    click.echo(f"{folder}: {count} leftover{'' if count == 1 else 's'}{' found' if dry_run else ' cleaned'}")
