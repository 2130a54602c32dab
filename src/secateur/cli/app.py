"""The ``secateur`` command: assembles the commands and turns failures into one line."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from secateur import __version__
from secateur.cli import (
    bench_commands,
    chain_commands,
    compress_command,
    demo_commands,
    file_commands,
    inspect_commands,
    quantize_command,
    study_commands,
)
from secateur.cli.options import started_together
from secateur.cli.signals import INTERRUPTED, exit_code, interrupt_on_signals
from secateur.console import say, stderr
from secateur.errors import InterruptedByUserError, SecateurError

app = typer.Typer(
    name="secateur",
    help="Prunes and quantizes image classifiers, and measures the loss of accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_FAMILIES = (
    compress_command,
    chain_commands,
    quantize_command,
    file_commands,
    demo_commands,
    bench_commands,
    inspect_commands,
    quantize_command,
    study_commands,
)
for _family in _FAMILIES:
    app.add_typer(_family.app)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        typer.echo(f"secateur {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command; a failure is one line on stderr and a non-zero exit code."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")  # the option may come anywhere
    interrupt_on_signals()
    if started_together() and os.environ["RANK"] != "0":
        stderr.quiet = True  # process 0 says it
    try:
        app()
    except InterruptedByUserError as error:
        _fail(str(error), exit_code(), debug)
    except BrokenPipeError:  # stdout was closed, for example by `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer says nothing of a KeyboardInterrupt
            _fail("interrupted", exit_code(), debug)
        raise
    except SecateurError as error:
        _fail(str(error), error.exit_code, debug)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1, debug)
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        _fail(f"internal error: {type(error).__name__}: {line}; --debug shows where", 70, debug)


def _fail(line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say(f"secateur: {line}")
    sys.exit(code)
