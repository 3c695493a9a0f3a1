"""The web page of `trailseg app`: drop a picture, and move a slider through the steps."""

import os
import re
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trailseg.config import TOLERANCE
from trailseg.data.pictures import read_image
from trailseg.data.scenes import scene
from trailseg.errors import FileError, OptionError, optional
from trailseg.labels import make_palette
from trailseg.predictor import Predictor

if TYPE_CHECKING:
    import gradio

MOST_STEPS = 16  # of the slider: what each changed is written above it
MOST_BYTES = 64 << 20  # of an upload
MOST_SESSIONS = 64  # whose last answer is kept, or waits to be fetched: each takes a few megabytes
MOST_UNREAD = 16  # messages, of which an answer takes three or four, before a browser must fetch some
LONGEST = 1280  # pixels: what is longer is made smaller first, for classes of 12 million pixels take minutes
SAMPLES = (1_000_007, 1_000_001, 1_000_008)  # scenes that no network was trained on (`scenes.OFFSETS`)
RAMP = ((28, 16, 68), (120, 28, 109), (203, 65, 73), (249, 149, 40), (252, 250, 190))  # unsure to sure

# The browser holds every step, so that the slider asks the server for nothing.
_FOLLOW = """
const show = (answer, step) => {
  answer.querySelector("input").value = step;
  for (const part of answer.querySelectorAll("[data-step]")) part.hidden = part.dataset.step != step;
  for (const mark of answer.querySelectorAll("[data-go]")) mark.classList.toggle("now", mark.dataset.go == step);
};
element.addEventListener("input", event => show(event.target.closest(".answer"), event.target.value));
element.addEventListener("click", event => {
  const answer = event.target.closest(".answer"), mark = event.target.closest("[data-go], [data-show]");
  if (mark?.dataset.go) show(answer, mark.dataset.go);
  if (mark?.dataset.show) {
    answer.dataset.view = mark.dataset.show;
    for (const view of answer.querySelectorAll("[data-show]")) view.ariaPressed = view === mark;
  }
});
"""
_PICK = """
element.addEventListener("click", event => {
  const sample = event.target.closest("button");
  if (sample) trigger("click", {place: Number(sample.dataset.place)});
});
"""


@dataclass(frozen=True)
class Step:
    """The answer after one step, as the page shows it."""

    classes: bytes
    """PNG of the colours of the classes; the page lays it half transparent over the picture."""
    sureness: bytes
    """PNG of the probability of those classes, in the colours of RAMP."""
    shares: list[tuple[str, tuple[int, int, int], float]]
    """Class, colour and share of the picture, 0..1, of the classes that occur, the largest first."""
    confidence: float
    """Mean probability, 0..1."""
    changed: float
    """Share of the pixels, 0..1, whose class the step before had otherwise; 0 for the first."""
    seconds: float
    """From the picture to this answer."""


def answer_steps(predictor: Predictor, image: np.ndarray) -> list[Step]:
    """The answers to an image (H, W, 3) uint8 RGB after 1, 2, ... steps, up to twice those trained."""
    facts = predictor.facts
    palette, steps = make_palette(facts.colours), list[Step]()
    knots = np.linspace(0, 255, len(RAMP))
    ramp = np.stack([np.interp(np.arange(256), knots, channel) for channel in np.transpose(RAMP)], 1)
    before = None
    for count in range(1, min(2 * facts.trained_steps, facts.max_steps or MOST_STEPS, MOST_STEPS) + 1):
        answer = predictor(image, steps=count, trail=False)
        occurring = np.bincount(answer.ids.ravel(), minlength=len(facts.classes)) / answer.ids.size
        shares = zip(facts.classes, facts.colours, occurring.tolist(), strict=True)
        step = Step(
            classes=_paletted(answer.ids, palette),
            sureness=_paletted((answer.probability * 31.99).astype(np.uint8) * 8, ramp.astype(np.uint8)),
            shares=sorted((share for share in shares if share[2]), key=lambda share: -share[2]),
            confidence=float(answer.probability.mean(dtype=np.float64)),
            changed=0.0 if before is None else float((answer.ids != before).mean()),
            seconds=answer.seconds,
        )
        steps.append(step)
        before = answer.ids
    return steps


def answer_html(predictor: Predictor, image: np.ndarray, title: str) -> str:
    """The picture (H, W, 3) uint8 RGB, made smaller where it is longer than LONGEST, with every step of its answer."""
    import jinja2

    height, width = image.shape[:2]
    small = Image.fromarray(image)
    small.thumbnail((LONGEST, LONGEST))
    image = np.asarray(small)
    auto = None
    with suppress(OptionError):  # of a file that always computes all its steps
        auto = predictor(image, steps="auto", trail=False).steps  # the first call: it also warms up the network
    steps = answer_steps(predictor, image)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    template = environment.from_string(Path(__file__).with_suffix(".html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        picture=_uri("jpeg", _jpeg(small)),
        size=(width, height),
        answered=small.size,
        steps=[vars(s) | {"classes": _uri("png", s.classes), "sureness": _uri("png", s.sureness)} for s in steps],
        most_changed=max(*(step.changed for step in steps), 1e-9),
        shown=min(predictor.facts.trained_steps, len(steps)),
        trained=predictor.facts.trained_steps,
        auto=auto,
        tolerance=TOLERANCE,
        ramp=RAMP,
    )


def build_page(predictor: Predictor) -> "gradio.Blocks":
    """The page, which shows the answer to the first sample; OptionError where Gradio is missing."""
    gr = _gradio()
    facts = predictor.facts
    samples = [scene(seed=1, index=index, size=(480, 960))[0] for index in SAMPLES]

    def of_file(file: dict[str, Any]) -> tuple[Any, ...]:
        """The sentence, the answer, and the drop zone, empty again."""
        path = Path(file["path"])
        try:
            answer = answer_html(predictor, read_image(path), path.name)
        except FileError as error:
            name, problem = escape(error.path.name), escape(f"{error.problem}; {error.remedy}")
            return f'<p class="note" role="alert"><b>{name}</b> {problem}.</p>', gr.skip(), None
        except OptionError as error:
            return f'<p class="note" role="alert">{escape(str(error))}.</p>', gr.skip(), None
        return "", answer, None

    def of_sample(event: gr.EventData) -> tuple[str, str]:  # type: ignore[name-defined]
        """The sentence, which is none, and the answer to the sample that was clicked."""
        return "", answer_html(predictor, samples[event.place], f"Sample {event.place + 1}")

    with gr.Blocks(title=f"{facts.name} · trailseg", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.HTML(
            f'<div class="head"><h1>{escape(facts.name)}</h1><p>{facts.parameters / 1e6:.2f} M parameters, '
            f"trained on {escape(facts.data)}; {escape(facts.licence)}</p></div>"
        )
        sentence = gr.HTML(elem_classes="sentence")
        shown = gr.HTML(answer_html(predictor, samples[0], "Sample 1"), js_on_load=_FOLLOW, elem_id="answer")
        with gr.Row():
            drop = gr.File(show_label=False, height=112, elem_id="drop")
            picks = "".join(
                f'<button type="button" data-place="{place}" title="Sample {place + 1}">'
                f'<img src="{_uri("jpeg", _jpeg(Image.fromarray(image).reduce(2)))}" alt="Sample {place + 1}"></button>'
                for place, image in enumerate(samples)
            )
            pick = gr.HTML(f'<div class="samples">{picks}</div>', js_on_load=_PICK, elem_id="samples")
        quiet: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": shown, "api_visibility": "private"}
        # Gradio's preprocessing would leave an empty file behind for each.
        drop.upload(of_file, drop, [sentence, shown, drop], preprocess=False, **quiet)
        pick.click(of_sample, None, [sentence, shown], **quiet)
    page.queue(max_size=16, default_concurrency_limit=1)
    page._queue.pending_messages_per_session.max_size = MOST_SESSIONS
    return page


def as_asked(page: "gradio.Blocks", uploads: Path, question: Any) -> dict[str, Any]:
    """A question with what the page's own script asks in it, and no more; Refusal where that is not all there."""
    from trailseg.gate import Refusal

    match question:
        case {"fn_index": 0, "data": [{"path": str(path)}]} if _lies_in(uploads, path):
            asked: dict[str, Any] = {"fn_index": 0, "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        case {"fn_index": 1, "event_data": {"place": int(place)}} if 0 <= place < len(SAMPLES):
            asked = {"fn_index": 1, "data": [], "event_data": {"place": place}}
        case _:
            raise Refusal(400, "There is no such picture (any more); drop it once more.")
    session = question.get("session_hash")
    if not isinstance(session, str) or not re.fullmatch(r"\w{1,64}", session):
        raise Refusal(400, "There is no such page; load it once more.")
    waiting = page._queue.pending_messages_per_session
    if session in waiting:
        waiting.move_to_end(session)  # or the page that was opened first would be forgotten first
        if waiting[session].qsize() > MOST_UNREAD:
            raise Refusal(429, "The answers so far were not fetched; load the page once more.")
    return asked | {"session_hash": session}


def _lies_in(folder: Path, path: str) -> bool:
    """Whether a file is there, and under that folder, wherever links and dots lead."""
    with suppress(OSError, ValueError):
        found = Path(path).resolve(strict=True)
        return found.is_file() and found.is_relative_to(folder.resolve())
    return False


@contextmanager
def serve(predictor: Predictor, *, port: int | None = None) -> Iterator[str]:
    """Serves the page on 127.0.0.1 and gives its address, until the context ends.

    port: default 7860, or the next that is free. OptionError where that port is taken or Gradio is missing. Uploads lie
    in a folder of their own, which goes with the page.
    """
    gr = _gradio()
    css = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(body_background_fill="#fbfbf9", body_background_fill_dark="#15181b")  # app.css's --paper
    with tempfile.TemporaryDirectory(prefix="trailseg-app-") as uploads, _environment(GRADIO_TEMP_DIR=uploads):
        from starlette.middleware import Middleware

        from trailseg.gate import Gate

        page = build_page(predictor)
        ask = partial(as_asked, page, Path(uploads))
        gate = Middleware(Gate, uploads=Path(uploads), most=MOST_BYTES, ask=ask)
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MOST_BYTES,
                state_session_capacity=MOST_SESSIONS,
                app_kwargs={"middleware": [gate]},
                run_history=False,
                footer_links=[],
                ssr_mode=False,
                theme=theme,
                css=css,
            )
        except OSError:
            raise OptionError(f"port={port or '7860-7959'}: is taken; name another port, or leave it away") from None
        try:
            yield address
        finally:
            page.close(verbose=False)


_gradio = partial(optional, "gradio", "the page needs Gradio", "app")


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets environment variables, which is how Gradio is told its folder, until the context ends."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _paletted(ids: np.ndarray, palette: np.ndarray) -> bytes:
    """PNG of numbers (H, W) uint8 in the colours of a palette (256, 3) uint8."""
    image = Image.fromarray(ids)
    image.putpalette(palette.tobytes())
    png = BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    jpeg = BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"


def _percent(share: float) -> str:
    """A share of 0..1 in percent."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
