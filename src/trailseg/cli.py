"""The command line: one function a command, each importing what it needs, so that `--help` answers at once."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trailseg.config import DataOptions, MachineOptions, NetworkOptions, Size, TrainOptions, at_least
from trailseg.errors import FileError, OptionError, require

USAGE = """trailseg: segmentation networks that refine their own answer

usage: trailseg COMMAND [key=value ...] [-c file.yaml ...]      (--key value works too; the command line wins)

  networks                       the table of networks: cores, context, residual, parameters, MACs per step
  data make DIR                  procedural off-road scenes on disk, in TAS500's layout
  data check                     every fault of a data set, each with its file and the remedy
  data stats                     pixels and pictures per class, as a table and a plot
  train                          train one network into a run directory, or resume=RUN
  evaluate RUN                   measure a run on a split, for every step
  predict RUN PICTURE_OR_FOLDER  class ids and overlays for pictures
  study FILE                     train, resume or skip every run of a study, then report
  report FOLDER                  table, plots and report.html from the logs of a study or a run

trailseg COMMAND --help lists the command's options, each with its unit and default.
Exit codes: 0 done, 1 something is wrong with files or data, 2 a wrong option or value.
"""


@dataclass(frozen=True, kw_only=True)
class NetworksOptions(NetworkOptions):
    """List the table of networks, with the cost of each at these options."""

    network: str = "all"
    """Row to list, or all."""
    classes: int = 9
    """Classes K (9 is TAS500's coarse label set)."""
    json: bool = False
    """Whether to print JSON: a list of objects."""


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """Write procedural scenes to disk, in exactly TAS500's layout, colours and file names."""

    dir: str
    """Folder to write tas500v1.1/ into."""
    train: int = 44
    """Training scenes."""
    val: int = 60
    """Validation scenes (the TAS500 reader takes the first 50 as val and the rest as test)."""
    test: int = 10
    """Scenes without labels."""
    size: Size = Size(620, 2026)
    """Height,width in pixels (the default is TAS500's)."""
    seed: int = 0
    """Seed of the scenes."""

    def __post_init__(self) -> None:
        at_least(self, 0, "train", "val", "test", "seed")
        if min(self.size) < 16:
            raise OptionError(f"size={self.size.height},{self.size.width}: take at least 16 pixels each way")


@dataclass(frozen=True, kw_only=True)
class StatsOptions(DataOptions):
    """Count pixels and pictures per class."""

    split: str = "train"
    """Split to count."""
    size: Size = Size(128, 256)
    """Height,width in pixels of procedural scenes."""
    out: str | None = None
    """PNG to write the plot to (default: stats-DATA-SPLIT.png)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MachineOptions):
    """Measure a trained network on a whole split, at every step."""

    run: str
    """Run directory."""
    split: str = "val"
    """Split to measure on, such as val or test."""
    steps: int | None = None
    """Steps of refinement (default: as trained)."""
    checkpoint: str = "last"
    """Checkpoint: last, or best (chosen on val, so measured there it flatters)."""
    root: str | None = None
    """Folder that holds the data set (default: where it was trained from)."""
    batch: int = 8
    """Pictures at a time."""
    json: bool = False
    """Whether to print JSON: one object."""

    def __post_init__(self) -> None:
        MachineOptions.__post_init__(self)
        require("checkpoint", self.checkpoint, ("last", "best"))
        at_least(self, 1, "batch")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(MachineOptions):
    """Write NAME.png (8-bit class ids) and NAME_overlay.png for pictures, at each picture's own size."""

    run: str
    """Run directory."""
    pictures: str
    """Picture, or folder of pictures."""
    out: str
    """Folder to write to."""
    steps: int | None = None
    """Steps of refinement (default: as trained)."""
    checkpoint: str = "last"
    """Checkpoint: last or best."""

    def __post_init__(self) -> None:
        MachineOptions.__post_init__(self)
        require("checkpoint", self.checkpoint, ("last", "best"))


@dataclass(frozen=True, kw_only=True)
class StudyOptions(TrainOptions):
    """Train every run of a study; any option of `train` holds for all of them and wins over the file."""

    file: str
    """YAML file of the study."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write table.md, table.csv, plots/ and report.html again, from the logs alone."""

    folder: str
    """Folder of a study, or of one run."""


def networks(words: Sequence[str]) -> int:
    """`trailseg networks`."""
    from trailseg.parsing import from_words

    options = from_words(NetworksOptions, "networks", words)
    from trailseg.networks.cost import cost
    from trailseg.networks.table import ROWS
    from trailseg.runs import network_options

    names = list(ROWS) if options.network == "all" else [require("network", options.network, ROWS)]
    table = []
    for name in names:
        row = ROWS[name]
        price = asdict(cost(classes=options.classes, **network_options(replace(options, network=name))))
        table.append({"name": name, "cores": row.cores, "context": row.context, "residual": row.residual} | price)
    if options.json:
        print(json.dumps(table, indent=1))
        return 0
    rows = [
        [r["name"], str(r["cores"]), r["context"], "yes" if r["residual"] else "no", f"{r['parameters'] / 1e6:.2f}",
         f"{r['macs_stem'] / 1e9:.2f}", f"{r['macs_step'] / 1e9:.2f}"]
        for r in table
    ]  # fmt: skip
    heads = ["network", "cores", "context", "residual", "parameters (M)", "stem (GMAC)", "a step (GMAC)"]
    size = f"{options.size.height} x {options.size.width}"
    _print_table(heads, rows, f"{options.stem}, {options.channels} channels, {options.steps} steps, {size} pixels")
    return 0


def data_make(words: Sequence[str]) -> int:
    """`trailseg data make`."""
    from trailseg.parsing import from_words

    options = from_words(MakeOptions, "data make", words, ["dir"])
    from trailseg.data import scenes

    root = Path(options.dir)
    scenes.write(root, train=options.train, val=options.val, test=options.test, size=options.size, seed=options.seed)
    print(f"wrote {root / 'tas500v1.1'}; read it with data=tas500 root={root}")
    return 0


def data_check(words: Sequence[str]) -> int:
    """`trailseg data check`."""
    from trailseg.parsing import from_words

    options = from_words(DataOptions, "data check", words)
    from trailseg.data.readers import open_data

    source = open_data(
        options.data, root=options.root, labels=options.labels, size=Size(128, 256), pictures=options.pictures
    )
    faults = 0
    for fault in source.faults():
        print(fault)
        faults += 1
    print(f"{faults} fault{'s' * (faults != 1)} in {options.root or options.data}")
    return 1 if faults else 0


def data_stats(words: Sequence[str]) -> int:
    """`trailseg data stats`."""
    from trailseg.parsing import from_words

    options = from_words(StatsOptions, "data stats", words)
    from trailseg.data.readers import open_data
    from trailseg.data.statistics import count, plot

    source = open_data(
        options.data, root=options.root, labels=options.labels, size=options.size, pictures=options.pictures
    )
    counts = count(source.split(options.split), source.labels)
    rows = [[c.name, str(c.pixels), f"{100 * c.share:.3f}", str(c.pictures)] for c in counts]
    _print_table(["class", "pixels", "share (%)", "pictures"], rows, f"{options.data}, {options.split}")
    out = Path(options.out or f"stats-{options.data}-{options.split}.png")
    print(f"wrote {plot(counts, f'{options.data}, {options.split}', out)}")
    return 0


def train(words: Sequence[str]) -> int:
    """`trailseg train`."""
    from trailseg.parsing import from_mapping, read_words

    given = read_words(TrainOptions, words)
    from trailseg import study
    from trailseg.runs import Run

    if given.get("resume"):
        run = Run.open(given["resume"])
        options = from_mapping(TrainOptions, asdict(run.options) | given, "trailseg train")
        folder, name = run.folder, run.config["name"]
    else:
        options = from_mapping(TrainOptions, given, "trailseg train")
        folder, name = Path(options.out or f"runs/{options.network}"), options.network
    study.train(options, folder, name=name, console=_console(), resume=bool(options.resume))
    return 0


def evaluate(words: Sequence[str]) -> int:
    """`trailseg evaluate`."""
    from trailseg.parsing import from_words

    options = from_words(EvaluateOptions, "evaluate", words, ["run"])
    from trailseg.evaluation import evaluate_run
    from trailseg.runs import Run

    measured = evaluate_run(
        Run.open(options.run),
        options,
        split=options.split,
        steps=options.steps,
        checkpoint=options.checkpoint,
        root=options.root,
        batch=options.batch,
    )
    if options.json:
        print(json.dumps({key: value for key, value in measured.items() if key != "confusion"}, indent=1))
        return 0
    names = list(measured["steps"][0]["iou"])
    rows = [
        [str(step["step"]), _percent(step["pixel_accuracy"]), _percent(step["miou"]), _percent(stem["miou"])]
        + [_percent(step["iou"][name]) for name in names]
        for step, stem in zip(measured["steps"], measured["at_stem_scale"]["steps"], strict=True)
    ]
    title = f"{options.run}, {options.split}: {measured['images']} pictures, full size, in %"
    _print_table(["step", "pixel accuracy", "mIoU", "mIoU at stem", *names], rows, title)
    return 0


def predict(words: Sequence[str]) -> int:
    """`trailseg predict`."""
    from trailseg.parsing import from_words

    options = from_words(PredictOptions, "predict", words, ["run", "pictures"])
    import numpy as np

    from trailseg.prediction import find_pictures, predict_files
    from trailseg.runs import Run
    from trailseg.training import make_fabric

    run = Run.open(options.run)
    network = run.network(options.checkpoint)
    steps = network.up_to(run.options.steps) if options.steps is None else options.steps
    network.check_steps(steps)
    device = make_fabric(options).device
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(run.config["data"]["colours"])] = run.config["data"]["colours"]
    written = predict_files(
        network.to(device),
        find_pictures(Path(options.pictures)),
        Path(options.out),
        size=run.options.size,
        steps=steps,
        palette=palette,
        device=device,
    )
    for path in written:
        print(path)
    return 0


def study(words: Sequence[str]) -> int:
    """`trailseg study`."""
    from trailseg.parsing import read_words

    given = read_words(StudyOptions, words, ["file"])
    if "file" not in given:
        raise OptionError("FILE is missing; usage: trailseg study FILE out=FOLDER key=value ...")
    from trailseg.study import run_study

    file = Path(given.pop("file"))
    out = Path(given.pop("out", None) or f"runs/{file.stem}")
    failures = run_study(file, out, given, _console())
    print((out / "table.md").read_text(encoding="utf-8"))
    print(f"wrote {out / 'table.md'}, {out / 'table.csv'}, {out / 'plots'} and {out / 'report.html'}")
    return 1 if failures else 0


def report(words: Sequence[str]) -> int:
    """`trailseg report`."""
    from trailseg.parsing import from_words

    options = from_words(ReportOptions, "report", words, ["folder"])
    from trailseg.report import write_report

    written = write_report(Path(options.folder))
    print(written.markdown.read_text(encoding="utf-8"))
    print(f"wrote {written.markdown}, {written.csv} and {written.page}")
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], type]] = {
    "networks": (networks, NetworksOptions),
    "data make": (data_make, MakeOptions),
    "data check": (data_check, DataOptions),
    "data stats": (data_stats, StatsOptions),
    "train": (train, TrainOptions),
    "evaluate": (evaluate, EvaluateOptions),
    "predict": (predict, PredictOptions),
    "study": (study, StudyOptions),
    "report": (report, ReportOptions),
}


def run(words: Sequence[str]) -> int:
    """Carries out a command line and returns its exit code; what a user can mend is one line on standard error."""
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(USAGE, end="")
            return 0
        if words[0] == "--version":
            from trailseg import __version__

            print(f"trailseg {__version__}")
            return 0
        length = 2 if words[0] == "data" else 1
        name = " ".join(words[:length])
        if name not in COMMANDS:
            raise OptionError(str(_unknown(name)))
        command, options = COMMANDS[name]
        if {"-h", "--help"} & set(words[length:]):
            from trailseg.parsing import help_text

            print(help_text(options, name), end="")
            return 0
        return command(words[length:])
    except OptionError as error:
        print(f"trailseg: {error}", file=sys.stderr)
        return 2
    except FileError as error:
        print(f"trailseg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trailseg: interrupted; a run goes on with `trailseg train resume=RUN`", file=sys.stderr)
        return 130


def main() -> None:
    """The entry point of `trailseg`."""
    sys.exit(run(sys.argv[1:]))


def _unknown(name: str) -> OptionError:
    try:
        require("command", name, COMMANDS)
    except OptionError as error:
        return OptionError(str(error).replace("command=", "command ", 1))
    raise AssertionError(name)


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """A table on the terminal, never cut to its width."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    wanted = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, wanted)
    console.print(title, highlight=False)
    console.print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
