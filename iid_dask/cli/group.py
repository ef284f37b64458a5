"""What all commands share: errors as one sentence and a way out, exit codes, where the work runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

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
                _fail(str(error), DEFECT, error)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except KeyError as error:
                _fail(str(error.args[0]) if error.args else repr(error), USAGE, error)
            except BrokenPipeError:  # whoever reads the output has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            except OSError as error:
                _fail(_os_words(error), USAGE, error)
            except (ValueError, TypeError, ImportError, ArithmeticError, MemoryError) as error:
                _fail(str(error), USAGE, error)


def _os_words(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"iid: note: {message}", err=True)


def _fail(words: str, code: int, error: BaseException) -> None:
    click.echo("; ".join([f"iid: {words}", *getattr(error, "__notes__", ())]), err=True)
    sys.exit(code)


def shown(progress: bool | None) -> bool:
    """Whether to show a bar: as asked, or on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def source(path: str) -> Any:
    """Return what functions for paths of files take: a mosaic is opened here."""
    import iid_dask
    from iid_dask.mosaic.opening import is_mosaic

    return iid_dask.open(path) if is_mosaic(path) else path


@contextmanager
def client(workers: int | None, scheduler: str | None) -> Iterator[None]:
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
    # Loopback, any free port: nothing here needs to be reached from outside.
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        Client(cluster),
    ):
        yield
