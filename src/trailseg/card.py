"""The model card of a packed run: what it was trained on, how well it does, and what it is not for.

Every figure comes from the files beside it: config.yaml, measures.json, and the sizes of the others.
"""

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trailseg.data.readers import share
from trailseg.errors import FileError
from trailseg.inference import facts_of
from trailseg.markdown import escape, table
from trailseg.model import Facts
from trailseg.runs import PLACE, Run

WEAK = 0.3
"""IoU, 0..1, below which the card warns of a class."""

ABOUT = {
    "tas500": "Its pictures show tracks and fields off the road, in one region and from one vehicle.",
    "camvid": "Its pictures show roads in and around Cambridge (UK), from one car, by day and at dusk.",
    "folder": "Its pictures are its user's own: only that user knows what they show.",
    "procedural": "Its pictures were painted by a program: it has never seen a photograph.",
}
"""What the pictures of each data set show."""

NEAR = "`val` is seven seconds of one drive, with pictures of `train` a second before and after: elsewhere expect less."
"""Of CamVid's val."""


def card(folder: Path) -> str:
    """The model card, in Markdown, of a folder that `packing.pack` filled; FileError where it is none."""
    run = Run.open(folder)
    measured = read_measures(folder)
    facts, options, config = facts_of(run), run.options, run.config
    weights = [file for file in (run.checkpoint("last"), folder / "model.onnx") if file.exists()]
    before, taught = ([f"`{name}`" for name in names or []] for names in (options.start_from, options.teacher))
    mean = "the mean of the" if len(before) > 1 else "the"
    most = "any number" if facts.max_steps is None else f"at most {facts.max_steps}"
    about = {
        "data": facts.data,
        "licence of the weights": f"{facts.licence} (that of the data)",
        "trained on": f"`{options.train_on}`: {config['data']['train']} pictures",
        "network": f"{facts.network}, {facts.parameters / 1e6:.2f} M parameters",
        "input size": f"{facts.size.height} x {facts.size.width} pixels; other sizes are resized to it and back",
        "multiply-accumulates": f"{facts.macs_stem / 1e9:.3f} G once, {facts.macs_step / 1e9:.3f} G per step",
        "steps": f"trained with {facts.trained_steps}; takes {most}",
        "training": f"{run.position().epoch} of {options.epochs} epochs, seed {options.seed}"
        + (f", from {mean} weights of {', '.join(before)} on" if before else "")
        + (f", taught by {', '.join(taught)}" if taught else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        "files": ", ".join(f"`{f.relative_to(folder).as_posix()}` {f.stat().st_size / 1e6:.2f} MB" for f in weights),
    }
    parts = [
        f"# {facts.name}, trained on {facts.data}",
        f"Assigns every pixel one of {len(facts.classes)} classes and refines the prediction step by step: "
        "`trailseg predict PICTURE model=FOLDER` with this folder, or `Predictor(FOLDER)` in Python.",
        table(["", ""], about.items(), left=[""]),
        "## Measures",
        whose(run, measured),
        *figures(facts, measured["val"]["steps"]),
        "## Use and limits",
        "\n".join(f"- {line}" for line in limits(facts, options.data, measured["val"])),
        "## Training",
        "    " + command(config["options"]),
    ]
    return "\n\n".join(parts) + "\n"


def read_measures(folder: Path) -> dict[str, Any]:
    """What measures.json holds.

    Keys: runs (those measured), own (whether that is the packed one), train_on and train (the splits and the number of
    pictures that they were trained on), before (further splits, of those that they began with or were taught by),
    epoch, miou (0..1, of the last step of each), and val, a record of the log without its confusion: their mean.
    """
    path = folder / "measures.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be read ({error})", "pack the run again") from None


def whose(run: Run, measured: Mapping[str, Any]) -> str:
    """Which weights were measured on what, and whether they had been trained on it."""
    split = measured["val"]["split"]
    names, ends = ", ".join(f"`{name}`" for name in measured["runs"]), measured["miou"]
    of = "These weights" if measured["own"] else (
        f"**Not these weights but those of {names}**, trained with the same options on "
        f"`{measured['train_on']}` ({measured['train']} pictures)"
    )  # fmt: skip
    if len(ends) > 1:
        of += f": their means, of last steps between {percent(min(ends))} and {percent(max(ends))} % mIoU"
    text = f"{of}, after epoch {measured['epoch']}, on `{split}` at full size: {measured['val']['images']} pictures"
    if share(measured["train_on"], split) or share(measured["before"], split):
        return f"{text}. **It was trained on these pictures: no estimate for new ones.**"
    text += " that were not trained on."
    seen = "+".join(filter(None, [run.options.train_on, run.before.get(run.options.data)]))
    if share(seen, split):
        text += f" These weights were trained on `{seen}`, those pictures among them."
    return text


def figures(facts: Facts, steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the steps, and one of the classes."""
    rows = [
        [
            str(one["step"]),
            f"{(facts.macs_stem + one['step'] * facts.macs_step) / 1e9:.3f}",
            percent(one["pixel_accuracy"]),
            percent(one["miou"]),
        ]
        for one in steps
    ]
    classes = [[escape(name), *(percent(one["iou"][name]) for one in steps)] for name in facts.classes]
    return [
        table(["step", "multiply-accumulates (G)", "pixel accuracy %", "mIoU %"], rows, left=["step"]),
        table(["class", *(f"IoU % after step {one['step']}" for one in steps)], classes, left=["class"]),
    ]


def limits(facts: Facts, data: str, val: Mapping[str, Any]) -> list[str]:
    """What it is for, and what nobody should expect of it."""
    last = val["steps"][-1]["iou"]
    weak = ", ".join(f"{name} ({percent(iou)} %)" for name, iou in last.items() if iou is not None and iou < WEAK)
    absent = ", ".join(name for name, iou in last.items() if iou is None)
    notes = {
        NEAR: data == "camvid" and "val" in val["split"].split("+"),
        f"It detects some classes poorly or not at all (IoU after the last step): {weak}.": weak,
        f"Absent from these pictures, so not measured: {absent}.": absent,
    }
    return [
        "For research and teaching: to segment pictures like its training pictures, and to study refinement.",
        "**Not for safety-critical use**: no vehicle or robot that could cause harm may rely on it.",
        ABOUT[data] + " Other places, cameras, weather and lighting were not evaluated.",
        *(note for note, applies in notes.items() if applies),
        "The calibration of its probabilities was not measured.",
    ]


def command(options: Mapping[str, Any]) -> str:
    """The command that trains such a network, from the options in a config.yaml."""
    words = [f"{k}={_word(value)}" for k, value in options.items() if k not in PLACE and value is not None]
    words += ["root=FOLDER"] * (options["data"] != "procedural")
    whole = " ".join(["trailseg train", *(shlex.quote(word).replace(" ", "\0") for word in words)])
    lines = textwrap.wrap(whole, 110, break_long_words=False, break_on_hyphens=False)
    return " \\\n      ".join(lines).replace("\0", " ")


def _word(value: object) -> str:
    """An option's value on a command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def percent(value: float | None) -> str:
    """A share of 0..1 in percent."""
    return "–" if value is None else f"{100 * value:.1f}"
