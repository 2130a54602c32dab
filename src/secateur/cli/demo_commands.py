"""The command that shows a packed network in the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from secateur.cli.file_commands import PackedFile
from secateur.console import say

app = typer.Typer()


@app.command(rich_help_panel="Files")
def demo(
    file: PackedFile,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An ONNX file to run next to it, such as the float one."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the page there, for any web server, and stop."),
    ] = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 for any.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the default browser.")] = True,
) -> None:
    """Run a packed network in the browser: drop an image, draw one, or use the camera.

    Cost: seconds; the first time npm downloads onnxruntime-web (33 MB). The page itself works
    offline.

    Examples:
        secateur demo net.sec

        secateur demo net.sec --reference runs/stages/export-0123456789ab/reference.onnx

        secateur demo net.sec --export site/
    """
    from secateur.demo import serve, write_site

    if export is not None:
        say(f"demo: {write_site(file, export, reference)}; serve the folder with any web server")
        return
    with serve(file, reference, port) as address:
        say(f"demo: {address} (Ctrl-C stops it)")
        if browser:
            webbrowser.open(address)
        try:
            Event().wait()
        except KeyboardInterrupt:
            say("stopped")
