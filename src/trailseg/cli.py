"""The command line: one function per command, each importing what it needs, so that `--help` is fast."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from trailseg import config
from trailseg.errors import FileError, OptionError, lacks_memory, missing, require
from trailseg.interruption import leaving
from trailseg.parsing import from_mapping, help_text, read_words, signature
from trailseg.version import __version__

Given = dict[str, Any]
"""The options that a person gave, not yet converted."""


def networks(given: Given) -> int:
    """`trailseg networks`."""
    options = from_mapping(config.NetworksOptions, given)
    from trailseg.networks.cost import cost
    from trailseg.networks.table import ROWS

    parts = ("cores", "context", "residual", "gated", "feedback")
    names = ROWS if options.network == "all" else [require("network", options.network, [*ROWS, "all"])]
    table = []
    for name in names:
        price = cost(replace(options, network=name), classes=options.classes)
        row = ROWS[name]
        table.append({"name": name} | {part: getattr(row, part) for part in parts} | asdict(price))
    if options.json:
        print(json.dumps(table, indent=1))
        return 0
    height, width = options.size
    print(f"{options.stem}, {options.channels} channels, {options.steps} steps, {height} x {width} pixels\n")
    heads = ["network", *parts, "parameters (M)", "stem (GMAC)", "a step (GMAC)"]
    units = {"parameters": 1e6, "macs_stem": 1e9, "macs_step": 1e9}
    _print_table(heads, [[f"{v / units[k]:.2f}" if k in units else v for k, v in row.items()] for row in table])
    return 0


def data_make(given: Given) -> int:
    """`trailseg data make`."""
    options = from_mapping(config.MakeOptions, given)
    from trailseg.data import scenes

    root = Path(options.dir)
    scenes.write(root, train=options.train, val=options.val, test=options.test, size=options.size, seed=options.seed)
    _say(f"wrote {root / 'tas500v1.1'}; read it with data=tas500 root={root}")
    return 0


def data_check(given: Given) -> int:
    """`trailseg data check`."""
    options = from_mapping(config.CheckOptions, given)
    from trailseg.data.readers import open_data

    size = config.Size(128, 256)  # of procedural scenes, which have no faults
    source = open_data(options, size=size)
    faults = 0
    for fault in source.faults():
        _say(fault)
        faults += 1
    _say(f"{faults} fault{'s' * (faults != 1)} in {options.root or options.data}")
    return 1 if faults else 0


def data_stats(given: Given) -> int:
    """`trailseg data stats`."""
    options = from_mapping(config.StatsOptions, given)
    from trailseg.data.readers import open_data
    from trailseg.data.statistics import count, plot

    out = _free_png(options.out, f"stats-{options.data}-{options.split}")
    source = open_data(options, size=options.size)
    counts = count(source.split(options.split), source.labels)
    print(f"{options.data}, {options.split}\n")
    rows = [[c.name, c.pixels, f"{100 * c.share:.3f}", c.pictures] for c in counts]
    _print_table(["class", "pixels", "share (%)", "pictures"], rows)
    _say(f"wrote {plot(counts, f'{options.data}, {options.split}', out)}", gap=True)
    return 0


def train(given: Given) -> int:
    """`trailseg train`."""
    options = from_mapping(config.TrainOptions, given)
    from trailseg import experiment
    from trailseg.runs import Run

    name, folder = options.network, Path(options.out or f"runs/{options.network}")
    if options.resume:
        run = Run.open(options.resume)
        options = from_mapping(config.TrainOptions, asdict(run.options) | given)
        name, folder = run.config["name"], run.folder

    def say(told: str) -> None:
        begun = (folder / "config.yaml").exists()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # else that which launched this process tells
            _fail("train", f"{told}; go on with `trailseg train resume={folder}`" if begun else told, 0)

    with leaving(say):
        experiment.train(options, folder, name=name, console=_console(), resume=bool(options.resume))
    return 0


def evaluate(given: Given) -> int:
    """`trailseg evaluate`."""
    options = from_mapping(config.EvaluateOptions, given)
    from trailseg.runs import Run

    if options.anytime:
        return _anytime(options)
    from trailseg.evaluation import evaluate_run

    measured = evaluate_run(Run.open(options.run), options)
    first = options.steps.first if options.steps else 1
    for scale in (measured, measured["at_stem_scale"]):
        scale["steps"] = scale["steps"][first - 1 :]
    if options.json:
        print(json.dumps({key: value for key, value in measured.items() if key != "confusion"}, indent=1))
        return 0
    _say(f"{options.run}, {options.split}: {measured['images']} pictures{_left_out(measured)}, full size, in %")
    print()
    steps = list(zip(measured["steps"], measured["at_stem_scale"]["steps"], strict=True))
    heads = ["step", "pixel accuracy", "mIoU", "mIoU at stem", *measured["steps"][0]["iou"]]
    shares = [[full["pixel_accuracy"], full["miou"], stem["miou"], *full["iou"].values()] for full, stem in steps]
    rows = [[i, *("-" if s is None else f"{100 * s:.2f}" for s in row)] for i, row in enumerate(shares, first)]
    _print_table(heads, rows)
    return 0


def _anytime(options: config.EvaluateOptions) -> int:
    """`trailseg evaluate anytime=true`."""
    from trailseg.anytime import measure, write
    from trailseg.runs import Run

    run = Run.open(options.run)
    measured = measure(run, options)
    written = write(run.folder, measured)
    if options.json:
        print(json.dumps(measured, indent=1))
        return 0
    _say(f"{options.run}, {measured['split']}: {measured['images']} pictures{_left_out(measured)}, full size")
    print(f"milliseconds on {measured['device']}, one picture, precision {measured['precision']}\n")
    heads = ["steps", "pixel accuracy %", "mIoU %", "GMAC", "ms"]
    _print_table(heads, [[step["step"], *_accuracy_and_cost(step)] for step in measured["steps"]])
    print("\nsteps=auto, which stops once a step changes less than the tolerance:\n")
    heads = ["at most", "tolerance", "mean steps", "core MACs saved %", *heads[1:]]
    auto = [
        [s["most_steps"], s["tolerance"], f"{s['mean_steps']:.2f}", f"{100 * s['saved_core_macs']:.1f}"]
        for s in measured["auto"]
    ]
    _print_table(heads, [[*row, *_accuracy_and_cost(s)] for row, s in zip(auto, measured["auto"], strict=True)])
    _say(f"wrote {' and '.join(map(str, written))}", gap=True)
    return 0


def _left_out(measured: dict[str, Any]) -> str:
    """Such as ' (2 left out)', of a run with skip_bad; empty where it measured all."""
    return f" ({measured['left_out']} left out)" if measured.get("left_out") else ""


def _accuracy_and_cost(measured: dict[str, Any]) -> list[str]:
    shares = ("-" if measured[key] is None else f"{100 * measured[key]:.2f}" for key in ("pixel_accuracy", "miou"))
    return [*shares, f"{measured['macs'] / 1e9:.3f}", f"{measured['ms']:.1f}"]


def predict(given: Given) -> int:
    """`trailseg predict`."""
    options = from_mapping(config.PredictOptions, given)
    from trailseg.prediction import QUESTION, Kept
    from trailseg.prediction import predict as predict_all

    code, out = 0, Path(options.out) if options.out else _free("answers")
    try:
        for told in predict_all(options, out):
            if isinstance(told, FileError):
                code = _fail("predict", told, 1)
            elif isinstance(told, Kept):
                _say(f"{told.pictures} answered already, and left as {'it was' if told.pictures == 1 else 'they were'}")
            else:
                _say(f"{told.path}  after {told.steps:.3g} steps" if options.steps == "auto" else told.path)
    except KeyboardInterrupt:
        begun = (out / QUESTION).exists()
        raise KeyboardInterrupt(f"go on with the same command and out={out}" if begun else "") from None
    return code


def export(given: Given) -> int:
    """`trailseg export`."""
    options = from_mapping(config.ExportOptions, given)
    from trailseg.export import export as write

    written = write(options)
    print("against PyTorch: share of the pixels whose class differs, and largest difference of a probability\n")
    rows = [[f"{h} x {w}", steps, f"{100 * ids:.4f} %", f"{p:.1e}"] for (h, w), steps, ids, p in written.checks]
    _print_table(["picture", "steps", "classes", "probability"], rows)
    for file in written.files:
        _say(f"wrote {file}, {file.stat().st_size / 1e6:.2f} MB", gap=True)
    return 0


def pack(given: Given) -> int:
    """`trailseg pack`."""
    options = from_mapping(config.PackOptions, given)
    from trailseg.packing import pack as write

    folder = write(options)
    print((folder / "card.md").read_text(encoding="utf-8"))
    _say(f"wrote {folder}, {sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.2f} MB")
    return 0


def benchmark(given: Given) -> int:
    """`trailseg benchmark`."""
    options = from_mapping(config.BenchmarkOptions, given)
    out = _free_png(options.out, "benchmark")
    from trailseg.benchmark import benchmark as measure
    from trailseg.benchmark import plot

    figures = measure(options)
    plotted = [plot(figures, out)] if any(one.miou for one in figures) else []
    if options.json:
        print(json.dumps([asdict(one) for one in figures], indent=1))
        return 0
    print(f"{figures[0].device}, batch {options.batch}, precision {figures[0].precision}, {options.repeats} rounds")
    print("ms: median ± half the distance between the quartiles; MB in use: at the peak, beyond the weights\n")
    heads = ["network", "size", "parameters (M)", "weights (MB)", "stem (GMAC)", "a step (GMAC)", "first answer (ms)"]
    heads += ["a further step (ms)", "a training step (ms)", "answer (MB in use)", "training (MB in use)"]
    rows = []
    for one in figures:
        first = f"{one.first_ms:.1f} ± {one.first_spread_ms:.1f}"
        step = "-" if one.step_ms is None else f"{one.step_ms:.1f} ± {one.step_spread_ms:.1f}"
        training = "-" if one.training_ms is None else f"{one.training_ms:.1f} ± {one.training_spread_ms:.1f}"
        sizes = [f"{one.parameters / 1e6:.2f}", f"{one.weights / 1e6:.1f}"]
        macs = [f"{one.macs_stem / 1e9:.2f}", f"{one.macs_step / 1e9:.2f}"]
        used = ["-" if n is None else f"{n / 1e6:.1f}" for n in (one.answer_memory, one.training_memory)]
        rows.append([one.name, "x".join(map(str, one.size)), *sizes, *macs, first, step, training, *used])
    _print_table(heads, rows)
    for path in plotted:
        _say(f"wrote {path}", gap=True)
    return 0


def app(given: Given) -> int:
    """`trailseg app`."""
    options = from_mapping(config.AppOptions, given)
    from trailseg.app import serve
    from trailseg.predictor import Predictor

    predictor = Predictor(options.model, device=options.device, checkpoint=options.checkpoint)
    with suppress(KeyboardInterrupt), serve(predictor, port=options.port) as address:
        print(f"the page is at {address}; Ctrl+C ends it", flush=True)
        while True:
            time.sleep(1)  # no longer: a signal that comes just before a sleep begins is heard when that ends
    return 0


def study(given: Given) -> int:
    """`trailseg study`."""
    if "resume" in given:
        raise OptionError("resume: a study goes on by itself; give the same command again")
    from trailseg.study import run_study

    file = Path(str(given.pop("file")))
    out = Path(str(given.pop("out", None) or f"runs/{file.stem}"))
    with leaving(lambda told: _fail("study", f"{told}; give the same command again to go on", 0)):
        failures = run_study(file, out, given, _console())
    for failure in failures:
        _fail("study", failure, 1)
    print((out / "table.md").read_text(encoding="utf-8"))
    _say(f"wrote {out / 'table.md'}, {out / 'table.csv'}, {out / 'plots'} and {out / 'report.html'}")
    return 1 if failures else 0


def report(given: Given) -> int:
    """`trailseg report`."""
    options = from_mapping(config.ReportOptions, given)
    from trailseg.report import write_report

    written = write_report(Path(options.folder))
    print(written.markdown.read_text(encoding="utf-8"))
    _say(f"wrote {written.markdown}, {written.csv} and {written.page}")
    return 0


COMMANDS: dict[str, tuple[Callable[[Given], int], type]] = {
    "networks": (networks, config.NetworksOptions),
    "data make": (data_make, config.MakeOptions),
    "data check": (data_check, config.CheckOptions),
    "data stats": (data_stats, config.StatsOptions),
    "train": (train, config.TrainOptions),
    "evaluate": (evaluate, config.EvaluateOptions),
    "predict": (predict, config.PredictOptions),
    "benchmark": (benchmark, config.BenchmarkOptions),
    "export": (export, config.ExportOptions),
    "pack": (pack, config.PackOptions),
    "app": (app, config.AppOptions),
    "study": (study, config.StudyOptions),
    "report": (report, config.ReportOptions),
}

# The packages of the extra "train", without which a command may find itself.
TRAIN_EXTRA = ("torch", "lightning_fabric", "safetensors", "matplotlib", "jinja2", "rich")

_LINES = "\n".join(f"  {signature(name, kind):<31}{kind.__doc__}" for name, (_, kind) in COMMANDS.items())
USAGE = f"""trailseg: segmentation networks that refine their own answer

usage: trailseg COMMAND [key=value ...] [-c file.yaml ...]      (--key value works too; the command line wins)

{_LINES}

trailseg COMMAND --help lists the command's options, each with its unit and default.
Exit codes: 0 done, 1 something is wrong with files or data, 2 a wrong option or value, 130 interrupted, 143 terminated.
"""


def run(words: Sequence[str]) -> int:
    """Carries out a command line and returns its exit code; what a user can mend is one line on standard error."""
    name = " ".join(words[: 2 if words[:1] == ["data"] else 1])
    try:
        code = _carry_out(name, words)
        print(end="", flush=True)
        return code
    except OptionError as error:
        return _fail(name, error, 2)
    except FileError as error:
        return _fail(name, error, 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in TRAIN_EXTRA:
            raise
        return _fail(name, missing(f"needs {package}", "train"), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: let the last flush succeed
        return 141
    except OSError as error:
        return _fail(name, f"{error.filename or 'output'}: {error.strerror}; name another path, or mend this one", 1)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        return _fail(name, "there is not enough memory; take a smaller size, batch, channels or depth", 1)
    except KeyboardInterrupt as error:
        return _fail(name, f"interrupted{'; ' * bool(str(error))}{error}", 130)


def _carry_out(name: str, words: Sequence[str]) -> int:
    """The command `name`, its help, the help of all or the version."""
    asked = {"-h", "--help"} & set(words)
    if not words or name == "help" or (asked and name not in COMMANDS):
        print(USAGE, end="")
        return 0
    if name == "--version":
        print(f"trailseg {__version__}")
        return 0
    command, kind = COMMANDS[require("command", name, COMMANDS, joint=" ")]
    if asked:
        print(help_text(name, kind), end="")
        return 0
    return command(read_words(kind, words[len(name.split()) :]))


def main() -> None:
    """The entry point of `trailseg`."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be no valid text
    sys.exit(run(sys.argv[1:]))


def _fail(name: str, error: object, code: int) -> int:
    """Prints what went wrong, as one line on standard error, and returns `code`."""
    _say(f"{f'trailseg {name}' if name in COMMANDS else 'trailseg'}: {error}", file=sys.stderr)
    return code


def _say(line: object, *, gap: bool = False, file: TextIO | None = None) -> None:
    """Prints one line, after an empty one if `gap`; of what a file's name can hold, all that is no glyph is escaped."""
    glyphs = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(line))
    print("\n" * gap + "".join(glyphs), file=file)


def _free_png(out: str | None, name: str) -> Path:
    """`out`, or else NAME.png with the first free number; FileError where `out` is there already."""
    path = Path(out) if out else _free(name, ".png")
    if path.exists():
        raise FileError(path, "is there already", "say another out=, or remove it")
    return path


def _free(name: str, suffix: str = "") -> Path:
    """NAME, or else NAME-2, NAME-3, ...: the first that is free."""
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(path for path in (Path(f"{name}{number}{suffix}") for number in numbers) if not path.exists())


def _console() -> Any:
    from rich.console import Console

    return Console(markup=False, emoji=False)


def _print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table of which the first column stands left and the others right."""
    plain = {True: "yes", False: "no"}
    lines = [heads, *([plain[cell] if isinstance(cell, bool) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *cells]))
