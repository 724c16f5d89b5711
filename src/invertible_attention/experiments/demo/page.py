"""The page itself, in Gradio: choices on one side, results on the other."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..data.photographs import bundled_photograph
from ..errors import ExperimentError
from ..published import RESPONSES
from .computation import Outcome, compute
from .drawing import draw_attention, magnification
from .options import CONSTRAINTS, NORMALIZATIONS, SIZES, STEPS, Options
from .rendering import render_attention, render_error, render_results
from .upload import FORMATS, MAX_BYTES, MAX_PIXELS, read_picture

__all__ = ["build", "stop"]

OWN = "Your own"
"""The choice of the picture that is uploaded; the page's script makes it when a file is given."""

PICTURES = {
    "Astronaut": "skimage/data/astronaut.png",
    "Cat": "skimage/data/chelsea.png",
    "Coffee": "skimage/data/coffee.png",
    "Rocket": "skimage/data/rocket.jpg",
    "Palace": "sklearn/datasets/images/china.jpg",
    "Flower": "sklearn/datasets/images/flower.jpg",
}
"""Photographs that need no upload."""

KEPT_SECONDS = 3600
"""How long what was computed is kept for clicks on its picture."""

INTRODUCTION = """# Attention that can be inverted
A picture goes through an attention block and back. Choose how the block is made and press **Run**: the same picture \
also goes through the authors’ code, which promises nothing.

Everything is computed on this machine; no picture leaves it."""

LIMITS = (
    f"{', '.join(FORMATS)}; at most {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} million pixels. "
    "The square in its middle is used."
)

EMPTY = (
    '<p class="ia-note">The latent, the reconstruction and its error, what is certified and what was measured, and how '
    "the inverse is found appear here.</p>"
)

ATTENTION = """## Where a pixel attends
Click a pixel of the picture, or give its row and column."""

FAILED = "something went wrong that should not have; the terminal of the demo says what"


STOPPING = threading.Event()
COMPUTING = threading.Lock()


def stop(seconds: float) -> None:
    """End a computation that is going on, and wait until it has ended, at most so long.

    Threads that are within PyTorch when the interpreter ends would bring the process down with an error.
    """
    STOPPING.set()
    if COMPUTING.acquire(timeout=seconds):
        COMPUTING.release()


def build() -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(
        title="Invertible attention", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
    ) as page:
        state = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload, picture, choices = _choices()
                run = gr.Button("Run", variant="primary", elem_id="run")
            with gr.Column(scale=3, min_width=320):
                results = gr.HTML(EMPTY, elem_id="results", label="Results", padding=False)
                with gr.Column(visible=False, elem_id="attention-part") as part:
                    image, row, column, shown = _attention()
        run.click(
            _run,
            inputs=[upload, picture, *choices],
            outputs=[state, results, part, image, row, column, shown],
            concurrency_limit=1,
            show_progress="full",
            show_progress_on=[results],
            api_visibility="private",
        )
        image.select(_clicked, inputs=[state], outputs=[row, column, image, shown], api_visibility="private")
        for slider in (row, column):
            # Of many values on the way, the last one counts.
            slider.input(
                _attend,
                inputs=[state, row, column],
                outputs=[image, shown],
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )
    return page


def _choices() -> tuple[Any, Any, list[Any]]:
    """Lay out what can be chosen; return the upload, the photograph, and the rest in the order of Options."""
    upload = gr.File(
        label="Your own picture",
        height=150,
        elem_id="upload",
    )
    gr.Markdown(LIMITS, elem_classes="ia-note")
    picture = gr.Radio(
        [OWN, *PICTURES],
        value="Astronaut",
        label="Picture",
        info="Which one goes through.",
        elem_id="picture-choice",
    )
    upload.upload(lambda: OWN, outputs=[picture], api_visibility="private")
    response = gr.Radio(
        [(title, name) for name, title in RESPONSES.items()],
        value=Options.response,
        label="Response",
        info="How pairs of 2×2 blocks are scored.",
        elem_id="response",
    )
    constraint = gr.Radio(
        [(title, name) for name, title in CONSTRAINTS.items()],
        value=Options.constraint,
        label="Constraint",
        info="What keeps the block invertible.",
        elem_id="constraint",
    )
    normalization = gr.Radio(
        [(title, name) for name, title in NORMALIZATIONS.items()],
        value=Options.normalization,
        label="Normalization",
        info="The authors’ code has its own.",
        elem_id="normalization",
    )
    with gr.Accordion("More", open=False):
        size = gr.Radio(
            list(SIZES),
            value=Options.size,
            label="Size",
            info="Side of the square the picture is brought to.",
        )
        steps = gr.Slider(
            0, STEPS, value=Options.steps, step=1, label="Training steps", info="More take longer."
        )
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="Of weights, noise and target.")
    return upload, picture, [response, normalization, constraint, size, steps, seed]


def _attention() -> tuple[Any, Any, Any, Any]:
    gr.Markdown(ATTENTION)
    with gr.Row():
        with gr.Column(min_width=260):
            image = gr.Image(
                label="The picture, as the network sees it",
                interactive=False,
                type="pil",
                format="png",
                buttons=[],
                elem_id="picture",
                alt_text="The picture as the network sees it. Use the sliders to choose a pixel by its row and column.",
            )
            row = gr.Slider(0, 63, value=0, step=1, label="Row of the pixel")
            column = gr.Slider(0, 63, value=0, step=1, label="Column of the pixel")
        with gr.Column(min_width=260):
            shown = gr.HTML(elem_id="attention", label="Where the pixel attends", padding=False)
    return image, row, column, shown


def _run(
    upload: str | None,
    picture: str,
    response: str,
    normalization: str,
    constraint: str,
    size: int,
    steps: int,
    seed: int | None,
    progress: Any = gr.Progress(),  # noqa: B008  (Gradio finds it by its default)
) -> tuple[Any, ...]:
    """Compute, and return what the outputs show; a message in their place where it cannot be."""
    try:
        options = Options(
            response, normalization, constraint, size, int(steps), 0 if seed is None else int(seed)
        )
        with COMPUTING:
            outcome = compute(
                _picture(upload, picture), options, lambda share, what: _tell(progress, share, what)
            )
            return _shown(outcome)
    except ExperimentError as error:
        message = str(error)
    except Exception:
        # Whatever it is, its text may name files of this machine, and is for the terminal.
        traceback.print_exc(file=sys.stderr)
        message = FAILED
    return (None, render_error(message), gr.Column(visible=False), None, gr.update(), gr.update(), "")


def _tell(progress: Any, share: float, what: str) -> None:
    if STOPPING.is_set():
        raise ExperimentError("the demo is being ended")
    progress(share, desc=what)


def _shown(outcome: Outcome) -> tuple[Any, ...]:
    size = outcome.options.size
    middle = size // 2
    marked, figure = draw_attention(outcome, middle, middle)
    return (
        outcome,
        render_results(outcome),
        gr.Column(visible=True),
        marked,
        gr.Slider(maximum=size - 1, value=middle),
        gr.Slider(maximum=size - 1, value=middle),
        render_attention(figure),
    )


def _picture(upload: str | None, name: str) -> Image.Image:
    if name == OWN:
        if not upload:
            raise ExperimentError(
                f"no picture was taken: give a file of at most {MAX_BYTES // 2**20} MB, or choose a photograph"
            )
        return read_picture(Path(upload))
    if name not in PICTURES:
        raise ExperimentError("choose one of the photographs, or give a picture")
    return bundled_photograph(PICTURES[name])


def _clicked(outcome: Outcome | None, event: gr.SelectData) -> tuple[Any, ...]:
    """Show where the clicked pixel attends, and say which it was."""
    if outcome is None:
        return gr.update(), gr.update(), None, _forgotten()
    factor = magnification(outcome.options.size)
    column, row = (int(place) // factor for place in event.index)
    return (row, column, *_attend(outcome, row, column))


def _attend(outcome: Outcome | None, row: int, column: int) -> tuple[Image.Image | None, str]:
    if outcome is None:
        return None, _forgotten()
    marked, figure = draw_attention(outcome, int(row), int(column))
    return marked, render_attention(figure)


def _forgotten() -> str:
    return render_error("what was computed is not kept any more: press Run again")
