"""The command ``invertible-attention demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from ...cli.arguments import Implementation

__all__ = ["COMMAND", "demo"]

HELP = """Try invertible attention on your own pictures, on a page served on this machine only.

The page shows the latent, the reconstruction and its error, how the residual falls, where a pixel attends, and the \
certificate beside the measured Lipschitz constant; and the same picture under the authors' code."""


def demo(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0 takes any free one.")
    ] = 7860,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Serve the page as the options say."""
    from .server import serve

    serve(port, open_browser=browser, say=typer.echo)


COMMAND = Implementation(demo, help=HELP)
