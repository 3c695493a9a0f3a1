"""Accuracy against cost: what each further step gains, and what automatic stopping saves."""

import json
from pathlib import Path
from typing import Any

from trailseg.benchmark import durations, open_subject, time_rounds
from trailseg.config import BenchmarkOptions, EvaluateOptions
from trailseg.evaluation import Stop, evaluate_run
from trailseg.inference import facts_of
from trailseg.runs import Run
from trailseg.writing import figure_png, write_whole

TOLERANCES = (0.002, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025, 0.03, 0.04, 0.05, 0.1)
"""Shares of the pixels below whose change an answer ends, as they are tried."""

COLOURS = ("#e69f00", "#0072b2", "#009e73")  # of the limits of `auto`: Okabe and Ito's, told apart by all readers


def measure(run: Run, options: EvaluateOptions) -> dict[str, Any]:
    """`evaluation.evaluate` of the steps that are asked for, with the cost of each, and of stopping by itself.

    To each step and each entry of `auto` come macs (of one picture at the network's size) and ms (of one picture on
    this machine: to the first answer, and per further step); to `auto`, with no more than the trained steps, with twice
    as many and with all that are asked for, also saved_core_macs, the share of those steps that were not taken.
    """
    trained = facts_of(run).trained_steps
    most = options.steps.last if options.steps else trained
    limits = sorted({min(trained, most), min(2 * trained, most), most})
    stops = [Stop(limit, tolerance) for limit in limits if limit > 1 for tolerance in TOLERANCES]
    found = evaluate_run(run, options, stops)
    precision = options.precision or run.options.precision
    settings = BenchmarkOptions(device=options.device, precision=precision, steps=most)
    subject = open_subject(str(run.folder.resolve()), settings)  # a folder may be called like a row of the table
    time = durations(time_rounds([subject], repeats=9)[0], most - 1)

    def cost(steps: float) -> dict[str, Any]:
        return {
            "macs": round(subject.macs_stem + steps * subject.macs_step),
            "ms": round(time["first_ms"] + (steps - 1) * (time["step_ms"] or 0), 3),
        }

    first = options.steps.first if options.steps else 1
    auto = found.get("auto", [])
    saved = ({"saved_core_macs": 1 - stop["mean_steps"] / stop["most_steps"]} for stop in auto)
    return {
        "name": run.config["name"],
        "split": found["split"],
        "images": found["images"],
        **({"left_out": found["left_out"]} if "left_out" in found else {}),
        "epoch": run.position(options.checkpoint).epoch,
        "trained_steps": trained,
        "device": subject.device,
        "precision": subject.precision,
        "macs_stem": subject.macs_stem,
        "macs_step": subject.macs_step,
        **time,
        "steps": [step | cost(step["step"]) for step in found["steps"] if step["step"] >= first],
        "auto": [stop | more | cost(stop["mean_steps"]) for stop, more in zip(auto, saved, strict=True)],
    }


def write(folder: Path, measured: dict[str, Any]) -> list[Path]:
    """Writes anytime-SPLIT.json into a run directory, and plots/anytime-SPLIT.png; returns the two."""
    name = f"anytime-{measured['split']}"
    return [
        write_whole(folder / f"{name}.json", json.dumps(measured, indent=1) + "\n"),
        write_whole(folder / "plots" / f"{name}.png", plot(measured)),
    ]


def plot(measured: dict[str, Any]) -> bytes:
    """A PNG: mIoU and pixel accuracy against steps, MACs and time, for every step and for stopping by itself."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from trailseg.report.plots import STYLE

    axes_of = {"steps (mean of the pictures)": ("step", "mean_steps", 1), "GMAC a picture": ("macs", "macs", 1e-9)}
    axes_of["milliseconds a picture"] = ("ms", "ms", 1)
    limits = sorted({stop["most_steps"] for stop in measured["auto"]})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 7), layout="constrained")
        grid = figure.subplots(2, 3, sharey="row", sharex="col")
        for row, (measure_, label) in zip(
            grid, (("miou", "mIoU, %"), ("pixel_accuracy", "pixel accuracy, %")), strict=True
        ):
            row[0].set_ylabel(label)
            for axes, (cost, (of_step, of_stop, unit)) in zip(row, axes_of.items(), strict=True):
                steps = measured["steps"]
                axes.plot(
                    [unit * s[of_step] for s in steps],
                    [100 * s[measure_] for s in steps],
                    "o-",
                    color="#444",
                    label="a fixed number of steps",
                )
                for limit, colour in zip(limits, COLOURS, strict=False):
                    auto = [stop for stop in measured["auto"] if stop["most_steps"] == limit]
                    axes.plot(
                        [unit * s[of_stop] for s in auto],
                        [100 * s[measure_] for s in auto],
                        ".-",
                        color=colour,
                        label=f"steps=auto, at most {limit}",
                    )
                axes.xaxis.set_major_locator(MaxNLocator(integer=of_step == "step"))
                if measure_ != "miou":
                    axes.set_xlabel(cost)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
        return figure_png(figure, dpi=130)
