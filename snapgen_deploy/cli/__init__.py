"""The command line. Commands import what they need when they run, so that `--help` needs no backend."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from snapgen_deploy import __version__
from snapgen_deploy.cli.console import Output, drop_output, report_error, report_interrupt
from snapgen_deploy.cli.silence import silence_libraries
from snapgen_deploy.errors import EXIT_CODES, BadInput
from snapgen_deploy.system.child import exclude_working_directory
from snapgen_deploy.system.native import no_panic_escapes

VERBOSE = frozenset(("-v", "--verbose"))


class _Group(typer.core.TyperGroup):
    """Turns errors into one line and the documented exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            _refuse_removed_folder()
            with no_panic_escapes():
                result = super().invoke(ctx)
            sys.stdout.flush()  # otherwise it would fail when the process ends, without our message
            return result
        except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
            drop_output()
            raise typer.Exit(128 + signal.SIGPIPE) from None
        except KeyboardInterrupt as stopped:
            raise typer.Exit(report_interrupt(stopped, as_json=ctx.meta["json"])) from None
        except Exception as error:
            code = report_error(error, traceback=ctx.meta["verbose"], as_json=ctx.meta["json"])
            if code is None:
                raise
            raise typer.Exit(code) from None

    def main(self, *args: Any, **settings: Any) -> Any:
        """Help and version are printed before there is a context."""
        try:
            return super().main(*args, **settings)
        except BadInput as error:
            raise SystemExit(report_error(error, traceback=False)) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["verbose"] = not VERBOSE.isdisjoint(args)
        ctx.meta["json"] = "--json" in args
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="snapgen-deploy",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a trained elastic diffusion transformer to a verified, app-ready model bundle.\n\n"
    f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"snapgen-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def _register() -> None:
    from snapgen_deploy.cli import (
        bench,
        bundle,
        compare,
        devices,
        doctor,
        estimate,
        export,
        generate,
        init,
        inspect,
        report,
        run_coreml,
        serve,
        setup,
        verify,
    )

    for function in (
        export.export,
        devices.devices,
        init.init,
        inspect.inspect,
        verify.verify,
        bench.bench,
        compare.compare,
        estimate.estimate,
        report.report,
        doctor.doctor,
        generate.generate,
        run_coreml.run_coreml,
        setup.setup,
    ):
        app.command(function.__name__.replace("_", "-"), help=_paragraphs(function.__doc__ or ""))(function)
    about_bundles = typer.Typer(no_args_is_help=True, help="Bundles as an app ships them.")
    app.command("serve", help=_paragraphs(serve.serve_bundle.__doc__ or ""))(serve.serve_bundle)
    for name, about in (("diff", bundle.diff), ("bom", bundle.bom), ("app", bundle.make_app), ("watch", bundle.watch)):
        about_bundles.command(name, help=_paragraphs(about.__doc__ or ""))(about)
    app.add_typer(about_bundles, name="bundle")


def _paragraphs(doc: str) -> str:
    """A docstring whose paragraphs are one line each: `--help` wraps them to the terminal."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n"))


_register()


def main() -> None:
    """Entry point of the `snapgen-deploy` command."""
    with contextlib.suppress(ValueError):  # raised outside of the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):  # a cancelled job cleans up like an interrupted one
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under `nohup`
                signal.signal(number, _exit_on_signal)
    _fix_streams(verbose=not VERBOSE.isdisjoint(sys.argv))
    exclude_working_directory()
    sys.path[:] = [place for place in sys.path if place]  # "" of `python -c` is the working directory
    app()


def _refuse_removed_folder() -> None:
    """Raise BadInput if the working directory is gone: libraries would fail with messages that do not say so."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise BadInput("the working directory was removed; change to one that exists") from None


def _fix_streams(*, verbose: bool) -> None:
    """Replace closed streams by /dev/null, and let streams with a limited encoding print `?` for other characters."""
    sys.stdout, sys.stderr = (s or open(os.devnull, "w", encoding="utf-8") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    if not verbose:
        silence_libraries()
    if type(sys.stdout) is io.TextIOWrapper:  # nothing that has replaced it, as a test's
        sys.stdout = Output.of(sys.stdout)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    columns = os.environ.get("COLUMNS", "80")
    if not columns.isdecimal() or int(columns) == 0:
        del os.environ["COLUMNS"]  # some wrappers set 0, which would give tables no width


def _exit_on_signal(number: int, _: object) -> None:
    raise SystemExit(128 + number)
