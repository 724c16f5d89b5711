"""The demo in a real browser: upload, results, and choosing a pixel by mouse and keyboard.

Screenshots at the widths of a desktop and of a phone are left in the test's temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from invertible_attention.experiments.demo.server import UPLOADS

from .conftest import drawn_picture

pytest.importorskip("gradio", reason="the page needs the extra demo")
pytest.importorskip("selenium", reason="the browser is driven by selenium, of the extra dev")

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(DRIVER is None, reason="needs its driver: apt-get install chromium-driver"),
]

PATIENCE = 240
"""Seconds until something is taken not to happen, on a machine that does much else."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    temporary = tmp_path_factory.mktemp("temporary")
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, "-m", "invertible_attention", "demo", "--no-browser", "--port", "0"]
    # Background jobs of a shell ignore the interrupt, and so would their children.
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=interruptible
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Open http://127.0.0.1:"), line
            yield line.split()[1]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                status = process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert status in (0, 130)
    # Uploads are deleted, and nothing else remains.
    assert [path.name for path in temporary.iterdir() if path.name.startswith(("gradio", UPLOADS))] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


def wait(browser: Any, found: Callable[[Any], Any]) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = (StaleElementReferenceException,)
    return WebDriverWait(browser, PATIENCE, ignored_exceptions=ignored).until(found)


def find(browser: Any, selector: str) -> Any:
    return wait(browser, lambda b: b.find_elements("css selector", selector))[0]


def texts(browser: Any, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", selector)]


def resize(browser: Any, width: int, height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def screenshot(browser: Any, path: Path, width: int) -> None:
    resize(browser, width)
    time.sleep(1)
    resize(browser, width, browser.execute_script("return document.documentElement.scrollHeight") + 20)
    time.sleep(1)
    browser.save_screenshot(str(path))


def upload_and_run(browser: Any, path: Path, expected: str) -> None:
    """Upload a picture, press Run, and wait for a new result."""
    from selenium.webdriver.support.expected_conditions import staleness_of

    clear = browser.find_elements("css selector", "#upload button[aria-label='Clear']")
    if clear:
        clear[0].click()
    find(browser, "#upload input[type=file]").send_keys(str(path))
    wait(browser, lambda b: path.stem in find(b, "#upload").text)
    before = browser.find_elements("css selector", ".ia-verdict, .ia-error")
    find(browser, "#run").click()
    if before:
        wait(browser, staleness_of(before[0]))
    find(browser, expected)


@pytest.fixture(scope="module")
def finished(browser: Any, address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page after a picture was computed."""
    folder = tmp_path_factory.mktemp("page")
    resize(browser, 1280)
    browser.get(address)
    path = folder / "pattern.png"
    drawn_picture().save(path)
    find(browser, "#run")
    upload_and_run(browser, path, ".ia-verdict")
    wait(browser, lambda b: b.find_elements("css selector", "#attention img"))
    return browser


def test_results_appear(finished: Any) -> None:
    verdicts = texts(finished, ".ia-verdict")
    assert "Certified: the picture came back" in verdicts[0]
    assert "The authors’ code" in verdicts[1]
    headings = [*texts(finished, ".ia-results h2"), *texts(finished, ".ia-results h3")]
    assert headings == [
        "There and back",
        "What is promised, and what was measured",
        "How the inverse is found",
        "Certified",
        "The authors’ code",
    ]
    images = finished.find_elements("css selector", ".ia-results img")
    assert len(images) == 11
    assert all(image.get_attribute("naturalWidth") != "0" for image in images)
    rows = texts(finished, ".ia-results tbody tr")
    assert any(row.startswith("certified Lipschitz constant 0.9") for row in rows)


def test_clicked_pixel_shows_its_attention(finished: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    before = find(finished, "#attention figcaption").text
    picture = find(finished, "#picture img")
    finished.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)

    def clicked(browser: Any) -> bool:
        ActionChains(browser).move_to_element_with_offset(picture, 30, -40).click().perform()
        time.sleep(1)
        return find(browser, "#attention figcaption").text != before

    wait(finished, clicked)
    assert find(finished, "#attention figcaption").text.startswith("The block at row")


def test_a_pixel_can_be_chosen_from_the_keyboard(finished: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    slider = find(finished, "input[type=range][aria-label*='Row of the pixel']")
    before = find(finished, "#attention figcaption").text
    slider.send_keys(Keys.ARROW_UP * 6)
    wait(finished, lambda b: find(b, "#attention figcaption").text != before)
    assert find(finished, "#attention figcaption").text.startswith("The block at row")


def test_a_group_of_choices_is_one_tab_stop_with_arrow_keys(finished: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    groups = finished.find_elements("css selector", "fieldset")
    names = [
        {radio.get_attribute("name") for radio in group.find_elements("css selector", "input[type=radio]")}
        for group in groups
    ]
    names = [found for found in names if found]
    assert len(names) >= 4
    assert all(len(found) == 1 for found in names)
    assert len(set.union(*names)) == len(names)

    def chosen() -> str:
        return find(finished, "#response input:checked").get_attribute("value")

    before = chosen()
    finished.execute_script("document.querySelector('#response input:checked').focus()")
    finished.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    wait(finished, lambda b: chosen() != before)
    finished.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    wait(finished, lambda b: chosen() == before)
    stops = 0
    while finished.switch_to.active_element.get_attribute("id") != "run":
        finished.switch_to.active_element.send_keys(Keys.TAB)
        stops += 1
        assert stops <= 5, finished.switch_to.active_element.get_attribute("outerHTML")[:200]


def test_every_control_is_focusable_and_labeled(finished: Any) -> None:
    script = """
    const images = (e) => [...e.querySelectorAll('img')].map((i) => i.alt).join('');
    const labels = (e) => [...(e.labels || [])].map((l) => l.textContent.trim()).join('');
    const group = (e) => e.closest('fieldset') && e.closest('fieldset').textContent.trim();
    const own = (e) => e.ariaLabel || e.getAttribute('aria-labelledby') || e.title || e.textContent.trim();
    return [...document.querySelectorAll('button, input, select, textarea, a[href]')]
        .filter((e) => e.getClientRects().length && !(own(e) || labels(e) || images(e) || group(e)))
        .map((e) => e.outerHTML.slice(0, 200));
    """
    assert finished.execute_script(script) == []
    assert finished.execute_script("return document.documentElement.lang")
    unnamed = "return [...document.querySelectorAll('img')].filter((e) => !e.alt).map((e) => e.outerHTML.slice(0, 200))"
    assert finished.execute_script(unnamed) == []


def test_it_fits_a_phone(finished: Any, tmp_path: Path) -> None:
    for name, width in (("desktop", 1300), ("narrow", 500), ("phone", 375)):
        screenshot(finished, tmp_path / f"{name}.png", width)
        assert finished.execute_script("return document.documentElement.scrollWidth") <= width
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width == width
            assert len(image.convert("L").getcolors(256) or ()) > 50
    resize(finished, 1280)


def test_no_external_requests(finished: Any, address: str) -> None:
    asked = set()
    for entry in finished.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert any(url.startswith(address) for url in asked)
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert [entry for entry in finished.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_page_is_served_locally_only(address: str) -> None:
    with urlopen(address, timeout=PATIENCE) as response:
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    with pytest.raises(OSError, match="400"):
        urlopen(Request(address, headers={"Host": "elsewhere.example"}), timeout=PATIENCE)


def test_unusable_picture_error_is_shown(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    upload_and_run(finished, path, ".ia-error")
    (message,) = texts(finished, ".ia-error")
    assert message.startswith(("This is not a picture", "This picture is damaged"))
    assert "/" not in message
