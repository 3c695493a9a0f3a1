"""The page of `trailseg app`, as Python makes it and as a real browser shows it.

The browser is Debian's: `apt-get install chromium chromium-driver`. Without it, or without the extras `app` and `dev`,
these tests are skipped, and fail where CI_REQUIRES_BROWSER is set, as `.ci/run` does.
"""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from trailseg import app
from trailseg.cli import run
from trailseg.errors import OptionError
from trailseg.labels import make_palette
from trailseg.predictor import Predictor, overlay

HEIGHT, WIDTH = 240, 480


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """A network whose steps differ, because it has hardly been trained."""
    folder = tmp_path_factory.mktemp("app") / "run"
    options = "data=procedural pictures=4 size=32,64 stem=x4 channels=8 depth=2 steps=3 epochs=1 network=iterative-v1"
    assert run(["train", *options.split(), "device=cpu", f"out={folder}"]) == 0
    return Predictor(folder, device="cpu")


@pytest.fixture(scope="module")
def image():
    """A smooth picture: what a browser's scaling does to it cannot be seen."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
    return np.stack([60 + 70 * x, 200 - 120 * y, 90 + 40 * np.sin(5 * x)], 2).astype(np.uint8)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_every_step_is_the_overlay_of_the_trail(predictor, image):
    palette = make_palette(predictor.facts.colours)
    steps = app.answer_steps(predictor, image)
    whole = predictor(image, steps=len(steps))
    assert len(steps) == 6
    assert all((a != b).any() for a, b in zip(whole.trail, whole.trail[1:], strict=False)), "steps that differ"
    before = None
    for count, step in enumerate(steps, 1):
        answer = predictor(image, steps=count)
        ids = answer.ids
        assert (ids != whole.trail[count - 1]).mean() < 1e-4
        # The browser lays the classes half transparent over the picture.
        mixed = ((image.astype(int) + pixels(step.classes)) // 2).astype(np.uint8)
        assert np.array_equal(mixed, overlay(image, ids, palette))
        names = predictor.facts.classes
        shares = {name: share for name, _, share in step.shares}
        assert shares == {names[i]: (ids == i).sum() / ids.size for i in np.unique(ids)}
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert step.changed == (0 if before is None else (ids != before).mean())
        assert step.confidence == pytest.approx(answer.probability.mean(), abs=1e-6)
        before = ids
    brightness = pixels(steps[-1].sureness).sum(2, dtype=int).ravel()
    surer = brightness[np.argsort(answer.probability, axis=None)]
    assert surer[0] < surer[-1]
    assert (np.diff(surer) >= 0).all()


class Counting:
    """A network that says how many steps it was asked for."""

    def __init__(self, facts):
        self.facts, self.asked = facts, []

    def __call__(self, image, *, steps, trail):
        self.asked.append(steps)
        ids = np.full(image.shape[:2], len(self.asked) % 2, np.uint8)
        return SimpleNamespace(ids=ids, probability=np.ones(ids.shape, np.float32), steps=1, seconds=0.1)


@pytest.mark.parametrize(("trained", "most", "count"), [(3, None, 6), (3, 4, 4), (1, 1, 1), (12, None, 16)])
def test_the_slider_ends_where_the_network_does(predictor, image, trained, most, count):
    counting = Counting(replace(predictor.facts, trained_steps=trained, max_steps=most))
    assert len(app.answer_steps(counting, image)) == count
    assert counting.asked == list(range(1, count + 1))


def test_a_long_picture_is_made_smaller_and_says_so(predictor):
    html = app.answer_html(Counting(predictor.facts), np.zeros((300, 3200, 3), np.uint8), "<b>&.png")
    assert "3200 × 300, answered at 1280 × 120" in html
    assert "&lt;b&gt;&amp;.png" in html
    assert "<b>&.png" not in html
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/\w+;base64,([^\"]+)", html)]
    assert [pixels(picture).shape for picture in pictures] == 13 * [(120, 1280, 3)]


def test_shares_in_percent():
    shares = (0, 0.0004, 0.001, 0.25, 1)
    assert [app._percent(share) for share in shares] == ["0.0 %", "< 0.1 %", "0.1 %", "25.0 %", "100.0 %"]


def test_the_module_needs_neither_torch_nor_an_extra():
    command = "import sys; sys.modules |= dict.fromkeys(['torch', 'gradio', 'jinja2']); import trailseg.app"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_without_gradio_a_sentence_says_what_to_install(monkeypatch, predictor):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(OptionError, match=r"pip install '\.\[app\]' in its repository"), app.serve(predictor):
        pass


def need(there, what):
    """Skips where something is missing for the browser's tests, and fails where it must not be."""
    if not there:
        (pytest.fail if os.environ.get("CI_REQUIRES_BROWSER") else pytest.skip)(f"{what}: see the top of {__file__}")


@pytest.fixture(scope="module")
def address(predictor):
    """The page's address; nobody but this machine is ever asked for anything."""
    need(find_spec("gradio"), "Gradio is missing")
    asked = set()
    find = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: asked.add(host) or find(host, *rest, **named))
        with app.serve(predictor) as address:
            yield address
    assert asked <= {"127.0.0.1", "localhost"}


def test_a_taken_port_is_one_line(predictor, address):
    port = urlsplit(address).port
    with pytest.raises(OptionError, match=f"^port={port}: is taken; name another"), app.serve(predictor, port=port):
        pass


@pytest.mark.parametrize("path", [__file__, str(Path("README.md").resolve()), "README.md", "/etc/hostname"])
def test_the_server_gives_no_file_away(address, path):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{address}gradio_api/file={path}")
    assert refusal.value.code in (403, 404)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Debian's Chromium, which keeps a log of its console and of every request."""
    need(find_spec("selenium"), "Selenium is missing")
    from selenium import webdriver

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    need(chromium and chromedriver, "Chromium or its driver is missing")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "window-size=1280,900", f"user-data-dir={profile}"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


class Page:
    """The open page, as a person uses it."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.until(lambda: self.name() == "Sample 1")

    def until(self, holds):
        """Waits until something holds."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if holds():
                    return
            except (WebDriverException, IndexError):  # not there yet, or just being replaced
                pass
            time.sleep(0.05)
        pytest.fail(f"nothing came of it in 20 s; the page says: {self.texts('body')}")

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector):
        """What is seen of the elements."""
        return [element.text for element in self.all(selector) if element.is_displayed()]

    def name(self):
        return self.all(".answer .name")[0].get_attribute("title")

    def upload(self, path):
        self.until(lambda: self.all("#drop input[type=file]"))
        self.all("#drop input[type=file]")[0].send_keys(str(path))

    def press(self, key):
        """A key on the slider; what it changes must be there at once."""
        from selenium.webdriver.common.keys import Keys

        self.all(".answer input[type=range]")[0].send_keys(getattr(Keys, key))

    def view(self, name):
        self.all(f"[data-show={name}]")[0].click()

    def seen(self):
        """What the browser shows of the picture, (HEIGHT, WIDTH, 3)."""
        shown = Image.open(io.BytesIO(self.all(".stage")[0].screenshot_as_png)).convert("RGB")
        return np.asarray(shown.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)).astype(int)

    def requests(self):
        """The addresses of all requests since the last time."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = {"Network.requestWillBeSent", "Network.webSocketCreated"}
        params = [message["params"] for message in messages if message["method"] in sent]
        urls = [each["request"]["url"] if "request" in each else each["url"] for each in params]
        return [url for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")]


@pytest.fixture
def page(driver, address):
    """The page, newly opened; whatever is done with it, nothing leaves the machine and the console holds no error."""
    page = Page(driver, address)
    requests = page.requests()
    assert requests
    yield page
    for request in requests + page.requests():
        assert urlsplit(request).hostname == "127.0.0.1", request
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_uploaded_picture_and_the_slider(page, predictor, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "mine.png")
    page.upload(tmp_path / "mine.png")
    page.until(lambda: page.name() == "mine.png")
    assert page.texts(".answer h2") == ["Step 3 of 6"]
    page.requests()
    whole = predictor(image, steps=6)
    palette = make_palette(predictor.facts.colours)
    wanted = [overlay(image, ids, palette).astype(int) for ids in whole.trail]
    page.press("HOME")
    for step in range(6):
        assert page.texts(".answer h2") == [f"Step {step + 1} of 6"]
        distances = [np.abs(page.seen() - each).mean() for each in wanted]
        assert np.argmin(distances) == step
        assert distances[step] < 3
        names = page.texts(".legend span")
        assert set(names) == {predictor.facts.classes[i] for i in np.unique(whole.trail[step])}
        assert sum(float(share.strip("< %")) for share in page.texts(".legend data")) == pytest.approx(100, abs=0.5)
        page.press("ARROW_RIGHT")
    assert not page.requests(), "the slider asks the server for nothing"
    page.view("classes")
    assert np.abs(page.seen() - palette[whole.trail[5]]).mean() < 3
    page.view("picture")
    assert np.abs(page.seen() - image).mean() < 3
    page.view("confidence")
    assert page.texts(".ramp") == ["unsure\nsure"]
    sure = np.abs(page.seen() - pixels(app.answer_steps(predictor, image)[5].sureness)).mean()
    assert sure < 3


def test_auto_is_marked_where_the_predictor_stops(page, predictor):
    picture = app.scene(seed=1, index=app.SAMPLES[0], size=(480, 960))[0]
    marked = [tick.split()[0] for tick in page.texts(".ticks li") if "auto" in tick]
    assert marked == [str(predictor(picture, steps="auto").steps)]
    assert [tick.split()[0] for tick in page.texts(".ticks li") if "trained" in tick] == ["3"]


def huge(path):
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("renamed.png", lambda path: path.write_text("not a picture at all"), "is not a picture"),
        ("notes.txt", lambda path: path.write_text("not a picture at all"), "is not a picture"),
        ("empty.png", lambda path: path.write_bytes(b""), "not a picture"),
        ("huge.png", huge, "20000 x 20000 pixels"),
    ],
)
def test_a_bad_file_gets_a_sentence_and_the_page_goes_on(page, image, tmp_path, name, write, sentence):
    write(tmp_path / name)
    page.upload(tmp_path / name)
    page.until(lambda: page.texts(".note"))
    (said,) = page.texts(".note")
    assert said.startswith(f"{name} ")
    assert sentence in said
    assert "\n" not in said
    assert page.name() == "Sample 1"
    Image.fromarray(image).save(tmp_path / "good.png")
    page.upload(tmp_path / "good.png")
    page.until(lambda: page.name() == "good.png")
    assert page.texts(".note") == []


def test_a_busy_page_says_so(page, image, tmp_path, monkeypatch):
    Image.fromarray(image).save(tmp_path / "mine.png")
    monkeypatch.setattr("trailseg.gate.MOST_UPLOADS", 0)
    page.upload(tmp_path / "mine.png")
    page.until(lambda: "The page is busy; try again in a few seconds." in page.texts("body")[0])
    assert any("503" in logged["message"] for logged in page.driver.get_log("browser"))
    monkeypatch.undo()
    page.driver.refresh()
    page.upload(tmp_path / "mine.png")
    page.until(lambda: page.name() == "mine.png")


def test_two_pages_at_once_keep_their_own_pictures(page, address):
    page.all(".samples button")[1].click()
    page.until(lambda: page.name() == "Sample 2")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    other = Page(page.driver, address)
    other.all(".samples button")[2].click()
    other.until(lambda: other.name() == "Sample 3")
    page.driver.close()
    page.driver.switch_to.window(first)
    assert page.name() == "Sample 2"


def test_the_command_opens_the_page_until_it_is_interrupted(predictor):
    need(find_spec("gradio"), "Gradio is missing")
    words = [sys.executable, "-m", "trailseg", "app", str(predictor._path), "device=cpu"]
    # A shell's background jobs ignore SIGINT, and so would what they start.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes, preexec_fn=heed) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line + process.stderr.read()
            with urllib.request.urlopen(address[0], timeout=30) as page:
                assert page.status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()  # or the test waits for ever where it is not interrupted


def test_a_file_that_cannot_stop_by_itself_has_no_mark_for_it(predictor, image):
    def fixed(picture, *, steps, **options):
        if steps == "auto":
            raise OptionError("steps=auto: was exported with all its steps")
        return predictor(picture, steps=steps, **options)

    with_mark = app.answer_html(predictor, image, "a")
    fixed.facts = predictor.facts
    without = app.answer_html(fixed, image, "a")
    assert with_mark.count("<b>auto</b>") == without.count("<b>auto</b>") + 1
