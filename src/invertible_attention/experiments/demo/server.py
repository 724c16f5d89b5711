"""Serving the page on this machine only: no analytics, nothing from or to the network."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExperimentError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["HOST", "serve", "serving"]

HOST = "127.0.0.1"
"""The only address that is listened on."""

TEMPLATES = Path(__file__).parent / "templates"

UPLOADS = "invertible-attention-demo-"
"""How the name of the folder for uploads begins."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
"""What a browser may load: nothing but this page's own files (Gradio's scripts are inline)."""

SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment that Gradio reads when it is imported."""


def serve(port: int, *, open_browser: bool, say: Callable[[str], None]) -> None:
    """Serve the page until interrupted.

    Raises:
        ExperimentError: when the port is taken.
    """
    with serving(port) as address:
        say(f"Open {address} in a browser. Ctrl+C ends the demo.")
        if open_browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """Serve the page in a separate thread while the block runs, once per process; yield its address.

    Uploads go to a folder that is deleted at the end.

    Args:
        port: 0 for any that is free.

    Raises:
        ExperimentError: when the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix=UPLOADS, ignore_cleanup_errors=True) as uploads:
        # Gradio reads both when it is imported.
        os.environ.update(SETTINGS, GRADIO_TEMP_DIR=uploads)
        application = _application()
        listener = _listen(port)
        import uvicorn

        from .page import stop

        # Open pages hold a connection for as long as they are open: it is not waited for.
        settings = uvicorn.Config(
            application, log_level="critical", access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            stop(seconds=60)
            thread.join(timeout=30)
            listener.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ExperimentError(
            f"port {port} of this machine cannot be used ({error}): choose another --port, or 0 for any"
        ) from error
    return listener


def _application() -> FastAPI:
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .page import build
    from .upload import MAX_BYTES

    application = FastAPI(openapi_url=None)
    # Other sites must not reach the page under a name of their own that points to this machine.
    application.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    application.add_middleware(_Restricted)
    return gr.mount_gradio_app(
        application,
        build(),
        path="/",
        server_name=HOST,
        footer_links=[],
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        theme=_theme(),
        css_paths=TEMPLATES / "page.css",
        head=f"<script>{(TEMPLATES / 'page.js').read_text(encoding='utf-8')}</script>",
    )


def _theme() -> Any:
    """Return Gradio's look with this machine's own letters, fetched from nowhere, and enough contrast to read them."""
    from gradio.themes import Default

    look = Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return look.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )


class _Restricted:
    """Adds to every response what a browser may do with it."""

    HEADERS = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"))

    def __init__(self, application: Any):
        self.application = application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def restricted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], *self.HEADERS]}
            await send(message)

        await self.application(scope, receive, restricted)
