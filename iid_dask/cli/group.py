"""What all commands share: errors as one sentence and a way out, exit codes, where the work runs."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from iid_dask.errors import IIDChangedError, IIDError, IIDFormatError, IIDOverlapError, IIDWarning

if TYPE_CHECKING:
    from iid_dask.running.plan import Plan

DEFECT, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: a defect in the data, a call that cannot be carried out, and what shells take for an interruption."""


class Commands(click.Group):
    """A group whose commands end with a sentence and an exit code whatever goes wrong."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", IIDWarning)
            warnings.showwarning = _say_warning
            try:
                return super().invoke(context)
            except (IIDFormatError, IIDChangedError, IIDOverlapError) as error:
                _fail(str(error), DEFECT, error)
            except IIDError as error:
                _fail(str(error), USAGE, error)
            except KeyboardInterrupt as error:
                _fail("interrupted", INTERRUPTED, error)
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
            except Exception as error:
                if type(error).__module__.partition(".")[0] != "botocore":
                    raise
                error.add_note("see docs/cluster.md, Object stores, for credentials and endpoints of S3")
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


def say(plan: Plan) -> None:
    """Print a plan, and fail where the workers in scope would refuse it."""
    from iid_dask.errors import IIDLimitError
    from iid_dask.running.admission import refusal

    click.echo(str(plan))
    words = refusal(plan)
    if words is not None:
        raise IIDLimitError(words)


def source(path: str) -> Any:
    """Return what functions for paths of files take: a mosaic is opened here."""
    import iid_dask
    from iid_dask.mosaic.opening import names_mosaic

    return iid_dask.open(path) if names_mosaic(path) else path


def on_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where its tasks run, and, for them, ``cluster``, a context to run them in."""

    @click.option("--workers", type=click.IntRange(1), help="Processes; default: threads of this one.")
    @click.option("--scheduler", metavar="ADDRESS", help="A running dask scheduler, tcp://HOST:PORT.")
    @click.option(
        "--scheduler-file",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False),
        callback=_with_address,
        help="Where a running dask scheduler has written its address.",
    )
    @wraps(command)
    def with_cluster(
        *args: Any, workers: int | None, scheduler: str | None, scheduler_file: str | None, **options: Any
    ) -> None:
        command(*args, cluster=_client(workers, scheduler, scheduler_file), **options)

    return with_cluster


def _with_address(context: click.Context, parameter: click.Parameter, file: str | None) -> str | None:
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as text:
            json.load(text)["address"]
    except (ValueError, KeyError, TypeError):
        raise click.BadParameter(
            f"{file}: found no address of a scheduler in it, expected what `dask scheduler --scheduler-file` writes"
        ) from None
    return file


@contextmanager
def _client(workers: int | None, scheduler: str | None, scheduler_file: str | None) -> Iterator[None]:
    """Run the tasks of the block on worker processes or a cluster, if one is named."""
    options = {"--workers": workers, "--scheduler": scheduler, "--scheduler-file": scheduler_file}
    given = [name for name, value in options.items() if value is not None]
    if not given:
        yield
        return
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)}: give one of them, not both")
    from distributed import Client, LocalCluster

    if workers is None:
        try:
            client = Client(scheduler, scheduler_file=scheduler_file, timeout="30s")
        except OSError as error:
            error.add_note("is `dask scheduler` running there, and may this machine reach its port?")
            raise
        with client:
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
