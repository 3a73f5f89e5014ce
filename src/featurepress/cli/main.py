"""The command `featurepress`: its subcommands, and how errors and signals become exit codes.

0 done; 1 stopped, can be resumed; 2 bad request, nothing written; 3 finished with too many failures;
130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer

import featurepress
from featurepress.cli import demo, embed, info, resume
from featurepress.errors import FeaturepressError

app = typer.Typer(
    name="featurepress",
    help="Press images into feature vectors. Start with: featurepress embed photos/ --out features/",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (embed, resume, info, demo):
    module.register(app)

# Unknown options, missing arguments and the like, by the class that they share.
_USAGE_ERRORS: Any = typer.BadParameter.__bases__


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"featurepress {featurepress.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command and exit."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        code = app(standalone_mode=False) or 0
        if code == 130:  # typer turns Ctrl-C into this
            _say("Stopped by Ctrl-C.", code)
    except _USAGE_ERRORS as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        code = _say(f"{message}. See featurepress --help.", 2)
    except FeaturepressError as error:
        code = _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _say("Stopped by Ctrl-C.", 130)
    except _Terminated:
        code = _say("Stopped by SIGTERM.", 143)
    except BrokenPipeError:  # the reader of our output has gone, as in `featurepress info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _on_terminate(number: int, frame: object) -> None:
    raise _Terminated


def _say(message: str, code: int) -> int:
    typer.echo(f"featurepress: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
