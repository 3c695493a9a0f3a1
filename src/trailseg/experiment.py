"""One experiment: from options to a finished run in a directory of its own."""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console

from trailseg import device
from trailseg.checkpoints import load_weights, strip
from trailseg.config import DataOptions, NetworkOptions, Size, TrainOptions
from trailseg.data.augment import PRESETS
from trailseg.data.cache import decoded
from trailseg.data.files import DataSet
from trailseg.data.memory import Memory
from trailseg.data.readers import Procedural, open_data, select
from trailseg.errors import FileError, OptionError, require
from trailseg.evaluation import evaluate
from trailseg.inference import classify, refine
from trailseg.interruption import before_leaving
from trailseg.labels import LabelSet, make_palette
from trailseg.locks import alone
from trailseg.networks.cost import cost
from trailseg.networks.recurrence import Recurrence
from trailseg.networks.table import ROWS
from trailseg.predictor import find_model
from trailseg.progress import EpochProgress
from trailseg.runs import Run, build_network, changed, versions
from trailseg.teachers import Teachers
from trailseg.training import Training, make_deterministic, make_fabric, sum_over_processes
from trailseg.writing import png, write_whole


def train(options: TrainOptions, folder: Path, *, name: str, console: Console, resume: bool) -> Run:
    """Trains into a free folder, or goes on with the run of the same options and data that it holds.

    OptionError and FileError before anything is written, where something does not fit; see also `training.Training`.
    """
    options = resolve(options)
    labels = check(options).labels
    fabric = _fabric(options)
    console.quiet |= not fabric.is_global_zero
    if fabric.is_global_zero and resume:
        check_same(Run.open(folder), options)
    elif fabric.is_global_zero:
        Run.require_free(folder)
    make_deterministic()
    data = DataOptions(**{field.name: getattr(options, field.name) for field in fields(DataOptions)})
    memory, val = (
        _decoded(data, options.size, splits, 1e9 * options.memory, options.skip_bad)
        for splits in (options.train_on, options.val_on)
    )
    run = Run(folder)
    network = _first_weights(options, labels, memory, begun=resume and run.checkpoint("last").exists())
    teachers = None
    if options.teacher is not None:
        teachers = Teachers(_open(options.teacher), learner=network, classes=labels.classes)
    with ExitStack() as stack:
        if fabric.is_global_zero:
            stack.enter_context(alone(folder, "is being trained"))
            machine = facts_of_machine(options, fabric.device)
            _begin(run, options, labels, memory, val, name=name, machine=machine, console=console, resume=resume)
        fabric.launch()
        stack.enter_context(before_leaving(partial(_end_processes, fabric)))
        val = val.on(fabric.device)
        progress = stack.enter_context(EpochProgress(console, name, done=run.position().epoch, epochs=options.epochs))
        stack.enter_context(before_leaving(progress.stop))
        training = Training(
            fabric=fabric,
            run=run,
            network=network,
            options=options,
            memory=memory,
            classes=len(labels.classes),
            teachers=teachers,
            validate=lambda trained: evaluate(
                trained,
                val,
                split=options.val_on,
                steps=trained.up_to(options.steps),
                classes=labels.classes,
                batch=options.batch,
                device=fabric.device,
                autocast=fabric.autocast,
                rank=fabric.global_rank,
                world=fabric.world_size,
                add_up=lambda counts: sum_over_processes(fabric, counts),
            ),
            report=progress,
        )
        with before_leaving(training.store):
            network = training.fit()
        progress.stop()
        if fabric.is_global_zero:
            steps = network.up_to(options.steps)
            sheet = example_sheet(network, val, steps=steps, palette=make_palette(labels.colours), device=fabric.device)
            write_whole(run.folder / "plots" / "pictures.png", sheet)
            console.print(f"{folder}: {run.summary()}", highlight=False, soft_wrap=True)
    return run


def _begin(
    run: Run,
    options: TrainOptions,
    labels: LabelSet,
    memory: Memory,
    val: Memory,
    *,
    name: str,
    machine: dict[str, Any],
    console: Console,
    resume: bool,
) -> None:
    """Makes the run directory, or mends and checks the one that it goes on with; tells what the user should know."""

    def tell(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    if damage := run.recover():
        tell(f"{damage.path}: {damage.problem}; going on with the one before")
    data = facts_of_data(options, labels, memory, val)
    if resume:
        check_same_data(run, data)
        there = run.config["versions"] | run.config.get("machine", {})
        if elsewhere := changed(there, versions() | machine):
            tell(f"{run.folder}: goes on with {'; '.join(elsewhere)}: the last bits may differ for that")
    else:
        Run.require_free(run.folder)
        data |= {"before": before} if (before := splits_before(options)) else {}
        facts = facts_of_network(options, labels)
        Run.create(run.folder, name=name, options=options, network=facts, data=data, machine=machine)
    _tell_left_out(run.folder, (memory, val), tell)


def _end_processes(fabric: Fabric) -> None:
    """Ends the other processes that this one has launched."""
    for process in getattr(fabric.strategy.launcher, "procs", ()):
        process.terminate()


def example_sheet(
    network: Recurrence, memory: Memory, *, steps: int, palette: np.ndarray, device: torch.device, count: int = 4
) -> bytes:
    """A PNG with a row for each of `count` pictures spread over the split: picture, truth, then every step."""
    network.eval()
    rows = []
    for position in np.linspace(0, len(memory.names) - 1, min(count, len(memory.names))).astype(int):
        picture = memory.images[position]
        size = (picture.shape[1], picture.shape[2])
        trail = refine(network, picture[None].to(device).float() / 255, steps=steps).logits
        ids = torch.cat([classify(network, logits, size, size)[0] for logits in trail]).cpu().numpy()
        image, truth = picture.permute(1, 2, 0).cpu().numpy(), memory.labels[position].cpu().numpy()
        rows.append(np.concatenate([image, palette[truth], *palette[ids]], 1))
    return png(np.concatenate(rows))


def _fabric(options: TrainOptions) -> Fabric:
    """Device, precision and processes of these options."""
    strategy = "auto" if options.processes == 1 else "ddp"
    varied = options.prefix > 0 or options.fewest_steps is not None
    if strategy == "ddp" and (varied or (options.steps == 1 and ROWS[options.network].max_steps != 1)):
        strategy = "ddp_find_unused_parameters_true"  # with one step nothing hears the feedback
    return make_fabric(
        options.device, options.precision, devices=options.devices, nodes=options.nodes, strategy=strategy
    )


def _first_weights(options: TrainOptions, labels: LabelSet, memory: Memory, *, begun: bool) -> Recurrence:
    """The network as it is before the first epoch; one that has `begun` gets its weights from its checkpoint later."""
    network = build_network(options, classes=len(labels.classes))
    mean, std = memory.mean_and_std()
    network.mean.copy_(mean)
    network.std.copy_(std)
    if options.start_from is not None and not begun:
        take_weights(network, options, labels, _open(options.start_from))
    if options.stem_from is not None and not begun:
        (source,) = _open(options.stem_from)
        take_stem(network, options, source)
    return network


def _open(names: Sequence[str]) -> list[Run]:
    """The runs in these directories, or of these names in the package; FileError where one is not there."""
    return [Run.open(find_model(name)) for name in names]


def take_weights(network: Recurrence, options: TrainOptions, labels: LabelSet, sources: Sequence[Run]) -> None:
    """Copies the mean of the weights of other runs, but head and feedback of other classes, and a guide they have not.

    The mean is the uniform one of Wortsman et al., "Model soups", 2022. FileError where one's network is another.
    """
    free = ("guided", "steps", "size")  # where these bind weights, their shapes will tell
    bound = [field.name for field in fields(NetworkOptions) if field.name not in free]
    new = {name: value.clone() for name, value in network.state_dict().items()}
    mean = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in new.items()}
    for source in sources:
        _require_same(options, source, *bound)
        anew: tuple[str, ...] = ()
        if source.config["data"]["classes"] != list(labels.classes):
            anew += ("head.", "feedback.")
        if source.options.guided == 1:
            anew += ("stem.guide.",)
        kept = {name: value for name, value in new.items() if name.startswith(anew)}
        load_weights(network, source.weights() | kept, source.checkpoint("last"))
        for name, value in network.state_dict().items():
            mean[name] += value.double() / len(sources)
    network.load_state_dict(mean)


def take_stem(network: Recurrence, options: TrainOptions, source: Run) -> None:
    """Copies the stem and the pictures' mean and deviation of another run; FileError where its stem is another."""
    _require_same(options, source, "stem", "channels", "norm", "guided", "standardize")
    weights = source.weights()
    load_weights(network.stem, strip(weights, "stem."), source.checkpoint("last"))
    network.mean.copy_(weights["mean"])
    network.std.copy_(weights["std"])


def _require_same(options: TrainOptions, source: Run, *names: str) -> None:
    """FileError where the run whose weights are to be taken has other values of these options."""
    pairs = {name: (getattr(options, name), getattr(source.options, name)) for name in names}
    other = {name: both for name, both in pairs.items() if both[0] != both[1]}
    if other:
        mine, theirs = (" ".join(f"{name}={both[i]}" for name, both in other.items()) for i in (0, 1))
        raise FileError(source.folder, f"its weights are for {theirs}, not {mine}", f"say {theirs}")


def check(options: TrainOptions) -> DataSet | Procedural:
    """The data set of these options; OptionError or FileError where a name among them, or its root, is wrong."""
    require("augment", options.augment, PRESETS)
    with torch.device("meta"):  # costs nothing, and finds a wrong network before the data are read
        network = build_network(options, classes=2)
        if options.crop is not None:
            build_network(replace(options, size=options.crop, crop=None), classes=2)
            network.pad(torch.empty(1, 3, *options.crop))
    if options.prefix and network.max_steps is not None:
        raise OptionError(f"prefix={options.prefix}: {options.network} takes no further steps; it needs 1 or 2 cores")
    source = open_data(options, size=options.size)
    for option in ("train_on", "val_on"):
        for name in getattr(options, option).split("+"):
            require(option, name, source.splits)
    return source


def resolve(options: TrainOptions) -> TrainOptions:
    """The options with that in place of auto which it means on their device."""
    return replace(options, precision=device.resolve(options.device, options.precision).precision)


@lru_cache(maxsize=2)  # the rows of a study share their data: read it once
def _decoded(data: DataOptions, size: Size, splits: str, budget: float, skip_bad: bool) -> Memory:
    """Splits of a data set."""
    pictures = select(open_data(data, size=size), splits, skip_bad=skip_bad)
    return decoded(pictures, size, budget=budget, skip_bad=skip_bad)


def _tell_left_out(folder: Path, splits: Sequence[Memory], tell: Callable[[str], None]) -> None:
    """Lists the pictures that were left out, if any, in skipped.txt: a line each, with the file, cause and remedy."""
    lines = dict.fromkeys(" ".join(str(fault).splitlines()) for memory in splits for fault in memory.left_out)
    if lines:
        text = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")  # a name may be no text
        path, count = write_whole(folder / "skipped.txt", text), sum(len(m.names) + len(m.left_out) for m in splits)
        tell(f"left out {len(lines)} of {count} pictures, listed in {path}")


def facts_of_network(options: TrainOptions, labels: LabelSet) -> dict[str, Any]:
    """The row of the table and the cost, as config.yaml holds them."""
    row = ROWS[options.network]
    price = cost(options, classes=len(labels.classes))
    return {"cores": row.cores, "context": row.context, "residual": row.residual} | asdict(price)


def facts_of_data(options: TrainOptions, labels: LabelSet, memory: Memory, val: Memory) -> dict[str, Any]:
    """What was trained and validated on, as config.yaml holds it."""
    seen = val.also_in(memory)
    left_out = len(memory.left_out) + len(val.left_out)
    return {
        "name": options.data,
        "classes": list(labels.classes),
        "colours": [list(colour) for colour in labels.colours],
        "train": len(memory.names),
        "val": len(val.names),
        "fingerprint": f"sha256:{memory.counts.fingerprint} {val.counts.fingerprint}",
        **({"val_seen_in_training": seen} if seen else {}),
        **({"left_out": left_out} if left_out else {}),
    }


def splits_before(options: TrainOptions) -> dict[str, str]:
    """What else the runs have seen that it begins with or is taught by, and those before them: of each data set the
    splits, joined by "+", but those that it is trained on itself.
    """
    found: dict[str, set[str]] = {}
    for names in options.sources.values():
        for run in _open(names):
            for data, splits in [(run.options.data, run.options.train_on), *run.before.items()]:
                found.setdefault(data, set()).update(splits.split("+"))
    found.get(options.data, set()).difference_update(options.train_on.split("+"))
    return {data: "+".join(sorted(splits)) for data, splits in sorted(found.items()) if splits}


def facts_of_machine(options: TrainOptions, device: torch.device) -> dict[str, Any]:
    """What decides the last bits of a training beside options and data, as config.yaml holds it."""
    names = {
        "cpu": lambda: f"a processor with {torch.backends.cpu.get_cpu_capability()}",
        "cuda": lambda: torch.cuda.get_device_name(device),
        "mps": lambda: platform.processor(),
    }
    return {
        "device": names[device.type](),
        "threads": torch.get_num_threads(),
        "processes": options.processes,
    }


def check_same_data(run: Run, data: Mapping[str, Any]) -> None:
    """FileError where the run was trained on other data."""
    stored = {key: run.config["data"].get(key) for key in data}
    if different := changed(stored, data):
        raise FileError(run.folder, f"was trained on other data: {'; '.join(different)}", "say its root=")


def check_same(run: Run, options: TrainOptions) -> None:
    """FileError where the run has other options."""
    if differences := run.differences(options):
        problem = f"holds a run with other options ({'; '.join(differences)})"
        raise FileError(run.folder, problem, "leave these as they are there, or say another out=")
