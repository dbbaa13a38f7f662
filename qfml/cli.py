"""The command line. Exit codes: 0 done, 2 something the user can mend, 1 a defect of ours, 128 + n on signal n."""

from __future__ import annotations

import errno
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import rich.console
import rich.table
import typer

import qfml
from qfml import tuning
from qfml.errors import Interrupted, UserError
from qfml.finished import is_search
from qfml.summary import cell, out, printable, say_report, show_run, show_search

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
err = rich.console.Console(stderr=True)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no messages: only the result.")]
Run = Annotated[Path, typer.Argument(help="A run folder.")]


@app.callback()
def _about() -> None:
    """qfml: from market data to trained, validated, shippable networks."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file; `task:` says what it does.")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="The run folder; made under runs/ if left out.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: a.b.c=value.")] = None,
    quiet: Quiet = False,
) -> None:
    """Do what CONFIG says, in a new run folder."""
    show_run(qfml.run(config, out=out_dir, overrides=overrides or (), progress=not quiet, say=_say(quiet)))


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="A YAML file with search spaces and a section `tune`.")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="The folder; made under runs/ if left out.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: a.b.c=value.")] = None,
    quiet: Quiet = False,
) -> None:
    """Search the spaces in CONFIG, and backtest the winner on rows that no trial has seen."""
    show_search(tuning.tune(config, out=out_dir, overrides=overrides or (), progress=not quiet, say=_say(quiet)))


@app.command()
def calibrate(
    surface: Annotated[
        Path, typer.Argument(help="Quotes, CSV or Parquet: with a column `date` of many days, with `tenor` a cube.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="heston, bates, sabr, svi, ssvi, local_vol; by the method neural what a surrogate stands for."
        ),
    ] = "heston",
    method: Annotated[str | None, typer.Option(help="exact, neural, inverse or polished; chosen if left out.")] = None,
    surrogate: Annotated[Path | None, typer.Option(help="Folder of a trained surrogate.")] = None,
    inverse: Annotated[Path | None, typer.Option(help="Folder of a trained inverse map.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="The run folder; made under runs/ if left out.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, such as surface.reading.spot=100.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Fit MODEL to the quotes in SURFACE, in a new run folder; a file with columns `expiry` and `tenor` is a cube."""
    from qfml.task.calibration_cube import has_tenors

    settings = {
        "task": "calibration",
        "surface": {"kind": "swaption_cube" if has_tenors(surface) else "file", "path": str(surface)},
        "model": {"kind": model},
        "method": method,
        "surrogate": None if surrogate is None else str(surrogate),
        "inverse": None if inverse is None else str(inverse),
        "name": f"calibration_{model}",
    }
    show_run(qfml.run(settings, out=out_dir, overrides=overrides or (), progress=not quiet, say=_say(quiet)))


@app.command()
def labels(
    config: Annotated[Path, typer.Argument(help="The YAML file of a surrogate.")],
    part: Annotated[
        str, typer.Option(help="Which part of them, such as 2/4, where machines share the folder.")
    ] = "1/1",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: a.b.c=value.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make the labels that CONFIG's surrogate learns from, or one machine's part of them."""
    from qfml.task.surrogate import make_part

    out.print(
        str(make_part(config, part, overrides or (), say=_say(quiet))), highlight=False, soft_wrap=True, markup=False
    )


@app.command()
def export(
    run: Run,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where the files go; into RUN if left out.")] = None,
    member: Annotated[
        str | None,
        typer.Option(help="`all`; of a walk-forward FOLD:SEED, or a seed of the last fold; of a hedging run a number."),
    ] = None,
) -> None:
    """Write the networks of a finished run as ONNX, after proof that they compute the same as here."""
    from qfml.export import export_run

    export_run(
        run, out_dir, member, say=lambda line: out.print(printable(line), highlight=False, soft_wrap=True, markup=False)
    )


@app.command()
def resume(run: Run, quiet: Quiet = False) -> None:
    """Continue a run or a search that was interrupted or killed."""
    if is_search(run):
        show_search(tuning.resume(run, progress=not quiet, say=_say(quiet)))
    else:
        show_run(qfml.resume(run, progress=not quiet, say=_say(quiet)))


@app.command()
def report(run: Run) -> None:
    """Rebuild the report of a finished run or search from its folder."""
    from qfml.report import write_report

    say_report(write_report(run))


@app.command()
def predict(
    run: Run,
    new: Annotated[Path, typer.Argument(help="Fresh prices (CSV), with the columns that the run read.")],
) -> None:
    """Predict from the last row of NEW, and say which position the run's rule takes."""
    if not new.is_file():
        raise UserError(f"no file {new}")
    table = rich.table.Table()
    found = qfml.predict(run, new)
    for name in found.columns:
        table.add_column(name, justify="left" if name in ("time", "group") else "right")
    for row in found.iter_rows():
        table.add_row(*map(cell, row))
    out.print(table)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: err.print(printable(line), highlight=False, markup=False))


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
    err.print(f"warning: {message}", style="yellow", highlight=False, markup=False)


# what the machine refuses: no room, no permission, a path that cannot be; any other OSError is a defect
_NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_OURS |= {errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def main() -> None:
    """Run the command line; turn errors into messages and exit codes."""
    warnings.showwarning = _warn  # a line for people, not a place in our code
    signal.signal(signal.SIGTERM, _terminated)  # where no run is at work, and while one that was told to stop ends
    try:
        app(standalone_mode=True)
    except UserError as error:
        _stop(f"error: {error}", error, 2)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        place = "" if error.filename is None else f": {error.filename}"
        _stop(f"error: {error.strerror}{place}", error, 2)
    except KeyboardInterrupt as error:  # outside training, where there is nothing to write
        _stop("stopped", error, 130)
    except Interrupted as stopped:
        _stop("stopped", stopped, 128 + stopped.signal_number)


def _terminated(number: int, _: FrameType | None) -> None:
    if not isinstance(sys.exc_info()[1], Interrupted | KeyboardInterrupt):  # else it is ending already
        sys.exit(128 + number)


def _stop(message: str, error: BaseException, code: int) -> NoReturn:
    """Say what happened and how to go on, on one line that can be copied, and end with `code`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end has come, and what it says is not to be cut off
    line = ". ".join([message, *getattr(error, "__notes__", [])])
    err.print(printable(line), style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
