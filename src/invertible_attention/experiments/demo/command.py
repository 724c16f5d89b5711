"""The command ``invertible-attention demo``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

__all__ = ["demo"]


def demo(
    *,
    port: Annotated[
        int, Parameter(help="Port of 127.0.0.1; 0 takes any free one.", validator=Number(gte=0, lte=65535))
    ] = 7860,
    browser: Annotated[bool, Parameter(help="Open the page in a browser, or not.")] = True,
) -> None:
    """Try invertible attention on your own pictures, on a page served on this machine only.

    The page shows the latent, the reconstruction and its error, how the residual falls, where a pixel attends, and
    the certificate next to the measured Lipschitz constant; and the same picture under the authors' code.
    """
    from .server import serve

    serve(port, open_browser=browser, say=print)
