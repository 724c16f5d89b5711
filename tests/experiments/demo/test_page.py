"""The demo's callbacks for a visitor's input, without a browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from invertible_attention._install import install_line
from invertible_attention.cli import main
from invertible_attention.experiments.data import open_image, to_tensor
from invertible_attention.experiments.data.preparation import cover
from invertible_attention.experiments.demo.attention_map import attention_row
from invertible_attention.experiments.demo.computation import Outcome
from invertible_attention.experiments.demo.drawing import magnification
from invertible_attention.experiments.demo.options import Options

gradio = pytest.importorskip("gradio", reason="the page needs the extra demo")


@pytest.fixture(scope="module")
def page() -> Any:
    from invertible_attention.experiments.demo import page

    return page


def give(page: Any, upload: Path | None = None, **changed: Any) -> tuple[Any, ...]:
    choices: dict[str, Any] = {
        "picture": "Cat" if upload is None else page.OWN,
        "response": "concatenation",
        "normalization": "column",
        "constraint": "certified",
        "size": 32,
        "steps": 1,
        "seed": 0,
    }
    return page._run(
        None if upload is None else str(upload), **(choices | changed), progress=lambda *_, **__: None
    )


def test_picture_is_computed_and_shown(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    Image.new("RGB", (50, 40), "teal").save(path)
    outcome, html, part, marked, row, column, attention = give(page, path)
    assert isinstance(outcome, Outcome)
    assert outcome.pixels.float().mean((0, 2, 3)).tolist() == [0, 128, 128]
    assert "Certified: the picture came back" in html
    assert part.visible
    assert marked.size == (320, 320)
    assert (row.maximum, row.value, column.maximum, column.value) == (31, 16, 31, 16)
    assert "<img" in attention


def test_every_photograph_is_offered(page: Any) -> None:
    for name in page.PICTURES:
        assert min(page._picture(None, name).size) > 200


@pytest.mark.parametrize("suffix", ["tif", "tiff"])
def test_tiff_is_read_as_on_the_command_line(page: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)).save(path)
    assert give(page, path)[0].pixels.equal(to_tensor(cover(open_image(path), (32, 32)))[None])


def test_refused_picture_stops_the_computation(page: Any) -> None:
    outcome, html, *_ = give(page, picture=page.OWN)
    assert outcome is None
    assert "No picture was taken" in html


def test_default_pixel_shows_its_attention(page: Any) -> None:
    options = Options()
    outcome = page.compute(page._picture(None, "Astronaut"), replace(options, steps=20))
    shares = attention_row(outcome.chosen.network, outcome.x, options.size // 2, options.size // 2)
    assert float(shares.max() - shares.min()) > 0.1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"picture": "/etc/passwd"}, "Choose one of the photographs"),
        ({"response": "other"}, "Response must be one of"),
        ({"seed": -3}, "Seed must be a whole number"),
        ({"steps": 10**9}, "Steps must be a whole number from 0 to 200"),
    ],
)
def test_errors_are_shown_on_the_page(page: Any, changed: dict[str, Any], said: str) -> None:
    outcome, html, part, *_ = give(page, **changed)
    assert outcome is None
    assert 'role="alert"' in html
    assert said in html
    assert not part.visible


def test_upload_error_does_not_show_the_path(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "secret-folder-name.png"
    path.write_bytes(b"nothing")
    html = give(page, path)[1]
    assert "This is not a picture" in html
    assert "secret-folder-name" not in html
    assert str(tmp_path) not in html


def test_unexpected_errors_go_to_the_terminal_only(
    page: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("/a/place/of/this/machine")

    monkeypatch.setattr(page, "compute", fail)
    html = give(page)[1]
    assert "terminal of the demo" in html
    assert "/a/place" not in html
    assert "/a/place" in capsys.readouterr().err


def test_closing_the_demo_stops_the_computation(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "STOPPING", threading.Event())
    page.stop(seconds=0)
    assert "The demo is being ended" in give(page)[1]
    assert not page.COMPUTING.locked()


def test_click_maps_to_its_pixel(page: Any, outcome: Outcome) -> None:
    factor = magnification(32)
    event = SimpleNamespace(index=[factor * 20 + 3, factor * 8])
    row, column, marked, html = page._clicked(outcome, event)
    assert (row, column) == (8, 20)
    assert marked.size == (32 * factor, 32 * factor)
    assert "row 8, column 20" in html
    assert page._attend(outcome, 8, 20)[1] == html
    assert "press Run again" in page._clicked(None, event)[3]
    assert "press Run again" in page._attend(None, 0, 0)[1]


def test_port_in_use_error_names_the_port(capsys: pytest.CaptureFixture[str]) -> None:
    from invertible_attention.experiments.demo.server import HOST, _listen
    from invertible_attention.experiments.errors import ExperimentError

    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ExperimentError, match=f"port {port} of this machine cannot be used .*--port"):
            _listen(port)
    assert main(["demo", "--port", "99999"]) == 2
    assert "--port" in capsys.readouterr().err


def test_missing_gradio_error_names_the_extra() -> None:
    blocked = "import sys; sys.modules['gradio'] = None; import invertible_attention.cli as c; exit(c.main(['demo']))"
    result = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert result.returncode == 1
    assert install_line("demo") in result.stderr
