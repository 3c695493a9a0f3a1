"""All options: what can be set, its unit, its default, and the original study's value."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from trailseg.errors import OptionError


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class StepRange(NamedTuple):
    """Steps from the first to the last, counted from 1."""

    first: int
    last: int


Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16"]
Checkpoint = Literal["last", "before", "best"]

OF_RUNS = ("start_from", "stem_from", "teacher")
"""Options that name other runs, one or several."""

TOLERANCE = 0.01
"""Share of the pixels, 0..1, that a step must change for steps=auto to take another."""

MODEL = "camvid"
"""The network of the package that answers where none is named."""

FREE = {"free": True}
"""Marks an option that may be given without its name although it has a default."""


@dataclass(frozen=True, kw_only=True)
class PartsOptions:
    """The parts that a network is built from."""

    stem: str = "s8"
    """Stem: s8 downsamples by 8 with strided convolutions; x1, x2, x4 or x8 with pooling (original: x8)."""
    core: str = "resunet"
    """Core: resnet, resunet (skips), upresnet or upresunet (nearest-neighbour upsampling), dilated (coarsest level)."""
    norm: str = "group"
    """Norm: group, layer, instance, batch, step (batch, separate statistics for the first step); or layerHW (original),
    layerCHW, which tie the weights to one size."""
    channels: int = 60
    """Feature channels F."""
    depth: int = 4
    """Halvings M in the core; 0 only for core=dilated."""
    growth: float = 1.5
    """Factor of the core's channels from level to level."""
    finer: int = 1
    """Resolution of the head's logits relative to the features, each way: a divisor of the stem's scale."""
    guided: int = 1
    """Further upsampling of the logits, each way, with weights from the picture: 1 (none: original), 2 or 4; needs
    stem=s8 and finer=2."""
    standardize: Literal["data", "picture"] = "data"
    """Mean and deviation that standardise each colour channel: data (of all training pictures: original), or picture
    (of the picture itself, which removes brightness and tint)."""
    steps: int = 3
    """Steps of refinement S."""
    size: Size = Size(128, 256)
    """Height,width in pixels that pictures are resized to (original: 384,768; the default suits a laptop)."""

    def __post_init__(self) -> None:
        require_range(self, 1, LARGE, "channels")
        require_range(self, 1, STEPS_LIMIT, "steps")
        require_range(self, 0, 10, "depth")
        require_range(self, 1, 8, "finer", "guided")
        require_range(self, 0.1, 10, "growth")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(PartsOptions):
    """A network: a row of the table and the parts it is built from."""

    network: str = "iterative-v6"
    """Row of the table of networks; `trailseg networks` lists them."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A data set: where it is and how its labels are read."""

    data: str = "procedural"
    """Data set: tas500, camvid, folder (your own, with a YAML of classes) or procedural (made on the spot)."""
    root: str | None = None
    """Folder that holds the data set; not needed for procedural."""
    labels: str | None = None
    """Label set of tas500 and procedural: coarse (9 classes, the original's, and the default) or fine (23)."""
    pictures: int = 200
    """Training scenes that data=procedural makes; its val and test hold a quarter as many each."""

    def __post_init__(self) -> None:
        require_range(self, 1, LARGE, "pictures")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, NetworkOptions):
    """Train one network into a run directory, or resume one (resume=RUN)."""

    device: Device = "auto"
    """Device: auto, cpu, cuda or mps."""
    precision: Precision = "auto"
    """Precision: 32, bf16 (mixed: weights stay in 32 bits), or auto: bf16 where CUDA computes in it, else 32."""
    channels_last: bool = True
    """Whether to use the channels-last memory layout (NHWC): faster convolutions, but slower norm=layerHW on a
    CPU."""
    compile: bool = False
    """Whether to apply torch.compile to stem and cores: minutes at the start, and no faster on a CPU."""
    epochs: int = 100
    """Passes over the training pictures (original: 100 and 250)."""
    batch: int = 6
    """Pictures per optimiser step, over all processes."""
    lr: float = 1e-3
    """Learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimiser: adamw (original), or muon, which orthogonalises updates of kernels and needs far fewer epochs."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the epochs: constant (original) or cosine (to zero)."""
    warmup: int = 0
    """Epochs of linear learning-rate warm-up to `lr`."""
    weight_decay: float = 0.0
    """Decoupled weight decay; with 0 adamw is Adam (original)."""
    ema: float = 0.0
    """Decay of the moving average of the weights (lower before step 9 / (1 - ema)); the average is what is evaluated
    and used; 0 for none."""
    dice: float = 1.0
    """Weight of the Dice loss beside cross-entropy; 0 leaves it out."""
    lovasz: float = 0.0
    """Weight of the Lovasz-softmax loss of the last step; 0 leaves it out."""
    fuse_start: Literal["random", "state"] = "random"
    """Initial output of a context-state fusion layer: random (a mix: original), or state (the context ignored)."""
    balance: float | None = None
    """c in a class's weight 1 / ln(c + its share of the pixels) in cross-entropy, 1.02 to 1.5 (default: all alike)."""
    target: Literal["centre", "area"] = "centre"
    """Target of a logit: centre (the class at the centre of its cell of the picture: original), or area (the share of
    the cell that each class covers)."""
    gamma: float = 1.0
    """Weight of a step in the loss, relative to the step after it (original: 1, all alike)."""
    fewest_steps: int | None = None
    """Minimum steps: each batch draws a number between this and `steps` (default and original: always `steps`)."""
    prefix: int = 0
    """Maximum number of preceding steps without gradient or loss: each batch draws a number from 0 to this."""
    augment: str = "drive"
    """Augmentation: none, seed (flips and rotations by 15 and 30 degrees: original), drive (small shifts, scales
    and light changes), views (crops at scales 0.7 to 2), weather (views plus light and colour), robust (weather plus
    CutMix), mild (robust with weaker light changes, for standardize=picture), or classmix (mild plus ClassMix)."""
    memory: float = 4.0
    """Gigabytes of decoded pictures to hold in memory, for each of train and val; more are memory-mapped."""
    skip_bad: bool = False
    """Whether to skip pictures that are unreadable or have no valid label, instead of stopping."""
    recompute: bool = False
    """Whether the backward pass recomputes each step and the stem's norms: less memory, more time, the same weights."""
    crop: Size | None = None
    """Height,width in pixels of the training crop, at zoom 1 (default: the whole picture)."""
    seed: int = 0
    """Seed of the weights, the order of the pictures and the augmentation."""
    train_on: str = "train"
    """Splits to train on, joined by "+": train, train+val; with camvid also without-DRIVE, such as without-0001TP."""
    val_on: str = "val"
    """Splits to validate on; with camvid also only-DRIVE."""
    val_every: int = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    start_from: list[str] | None = None
    """Run directory or included network to initialise the weights from; several, joined by commas, are averaged; if its
    classes differ, head and feedback start from random weights."""
    teacher: list[str] | None = None
    """Run directory or included network to distil from; of several, joined by commas, the mean of the probabilities;
    needs target=area."""
    taught: float = 0.5
    """Weight of the teacher's prediction in the target, 0 to 1; the rest is the ground truth."""
    stem_from: list[str] | None = None
    """Run directory or included network to take the trained stem from."""
    freeze_stem: bool = False
    """Whether to freeze a stem taken from another run."""
    devices: int = 1
    """Processes to train with on each node, one device each."""
    nodes: int = 1
    """Machines to train with."""
    out: str | None = None
    """Run directory to make (default: runs/ and the network's name)."""
    resume: str | None = None
    """Run directory to resume; its own options apply, except for where and how it is computed."""

    @property
    def sources(self) -> dict[str, list[str]]:
        """The runs to begin with or to learn from, by the option that names them."""
        return {option: named for option in OF_RUNS if (named := getattr(self, option))}

    @property
    def processes(self) -> int:
        """Processes on all nodes together."""
        return self.devices * self.nodes

    def __post_init__(self) -> None:
        PartsOptions.__post_init__(self)
        DataOptions.__post_init__(self)
        require_range(self, 1, LARGE, "epochs", "batch", "val_every", "devices", "nodes")
        require_range(self, 0, LARGE, "seed", "dice", "lovasz", "warmup", "weight_decay", "memory")
        require_range(self, 0, 1, "gamma", "ema", "taught")
        if self.balance is not None:
            require_range(self, 1.001, 10, "balance")
        if self.crop is not None and not all(1 <= a <= b for a, b in zip(self.crop, self.size, strict=True)):
            raise OptionError(
                f"crop={self.crop[0]},{self.crop[1]}: take no more than size={self.size[0]},{self.size[1]}"
            )
        require_range(self, 0, STEPS_LIMIT, "prefix")
        if self.fewest_steps is not None:
            require_range(self, 1, self.steps, "fewest_steps")
        if not 0 < self.lr < 1e30:
            raise OptionError(f"lr={self.lr}: take a learning rate above 0, such as 0.001")
        if self.norm in ("batch", "step") and self.processes > 1:
            raise OptionError(f"norm={self.norm}: each process would take statistics of its own; take norm=group")
        if self.freeze_stem and self.stem_from is None and self.start_from is None:
            raise OptionError("freeze_stem=true needs a trained stem: say stem_from=RUN")
        if self.stem_from is not None and self.start_from is not None:
            raise OptionError("stem_from: start_from= brings a stem with it; leave one out")
        if len(self.stem_from or [""]) != 1:
            raise OptionError("stem_from: take the stem of one run")
        if self.teacher is not None and self.target != "area":
            raise OptionError(f"target={self.target}: what a teacher answers is a share of each class; say target=area")
        if self.resume and self.out:
            raise OptionError(f"out={self.out}: a run goes on in its own folder, {self.resume}; leave out= away")


@dataclass(frozen=True, kw_only=True)
class NetworksOptions(NetworkOptions):
    """List the table of networks, and what each costs at these options."""

    network: str = "all"
    """Row of the table to list, or all."""
    classes: int = 9
    """Classes K (9 is TAS500's coarse label set)."""
    json: bool = False
    """Whether to print JSON: a list of objects."""

    def __post_init__(self) -> None:
        PartsOptions.__post_init__(self)
        require_range(self, 1, 254, "classes")


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """Write procedural off-road scenes to disk, in TAS500's layout."""

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
        require_range(self, 0, LARGE, "train", "val", "test", "seed")
        if min(self.size) < 16:
            raise OptionError(f"size={self.size.height},{self.size.width}: take at least 16 pixels each way")


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DataOptions):
    """List every problem of a data set, with its file and how to fix it."""


@dataclass(frozen=True, kw_only=True)
class StatsOptions(DataOptions):
    """Count pixels and pictures per class, as a table and a plot."""

    split: str = "train"
    """Split to count: train, val or test (tas500 also val-all)."""
    size: Size = Size(128, 256)
    """Height,width in pixels of procedural scenes; pictures on disk are counted at their own size."""
    out: str | None = None
    """PNG to write the plot to (default: stats-DATA-SPLIT.png, or the next free number)."""


@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """A trained network."""

    device: Device = "auto"
    """Device: auto, cpu, cuda or mps."""
    checkpoint: Checkpoint = "last"
    """Checkpoint: last, before (the checkpoint before last) or best (chosen on val, so optimistic there)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TrainedOptions):
    """Measure a trained network on a whole split, at every step."""

    run: str
    """Run directory, as `trailseg train` made it."""
    precision: Precision | None = None
    """Precision: 32, bf16 or auto (default: as trained)."""
    steps: StepRange | None = None
    """Steps to measure: 8, or 1..8, or 4..8 (default: up to those trained)."""
    anytime: bool = False
    """Whether to write accuracy against steps, MACs and time, and of automatic stopping, as JSON and a plot."""
    split: str = "val"
    """Split to measure on: train, val or test (tas500 also val-all)."""
    root: str | None = None
    """Folder that holds the data set (default: as in training)."""
    batch: int = 8
    """Pictures at a time."""
    json: bool = False
    """Whether to print JSON: one object."""

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps.first <= self.steps.last <= STEPS_LIMIT:
            raise OptionError(f"steps={self.steps.first}..{self.steps.last}: take steps from 1 to {STEPS_LIMIT}")
        require_range(self, 1, LARGE, "batch")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(TrainedOptions):
    """Write class ids and an overlay for each picture, or an overlaid video, at their own size."""

    model: str | None = field(default=None, metadata=FREE)
    """Run directory, exported file, or name of an included network (default: camvid)."""
    pictures: str
    """Picture, folder of pictures, or video."""
    out: str | None = None
    """Folder for NAME.png (8-bit class ids) and NAME_overlay.png or .mp4; results of the same request are kept and the
    missing ones added (default: answers, or the next free number)."""
    steps: int | Literal["auto"] | None = None
    """Steps of refinement, or auto: until a step changes less than `tolerance` (default: as trained)."""
    tolerance: float = TOLERANCE
    """Share of the pixels, 0 to 1, that a step must change for steps=auto to take another."""
    most_steps: int | None = None
    """Maximum for steps=auto (default: twice the trained steps, or the network's maximum)."""
    precision: Precision = "32"
    """Precision: 32, bf16 (mixed) or auto (bf16 on CUDA); an exported file computes in 32."""
    size: Size | None = None
    """Height,width in pixels that pictures are resized to (default: as trained)."""
    batch: int = 1
    """Pictures at a time."""
    warm_start: bool = False
    """Whether each video frame starts from the state of the previous one."""

    def __post_init__(self) -> None:
        require_range(self, 1, LARGE, "batch")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(PartsOptions):
    """Measure networks' time and memory on this machine, and plot runs' accuracy against time."""

    networks: list[str] = field(default_factory=list)
    """Rows of the table, run directories and exported .onnx files (default: the twelve networks and single)."""
    classes: int = 9
    """Classes K of rows of the table (9 is TAS500's coarse label set)."""
    device: Device = "auto"
    """Device: auto, cpu, cuda or mps."""
    precision: Precision = "32"
    """Precision: 32, bf16 or auto (bf16 on CUDA); an exported file keeps its own."""
    channels_last: bool = True
    """Whether features lie in memory channels-last (NHWC; PyTorch only)."""
    compile: bool = False
    """Whether torch.compile translates stem and cores (PyTorch only)."""
    recompute: bool = False
    """Whether training recomputes each step and the stem's norms in the backward pass."""
    batch: int = 1
    """Pictures at a time."""
    repeats: int = 15
    """Rounds in which each network is timed; at least 5."""
    json: bool = False
    """Whether to print JSON: a list of objects."""
    out: str | None = None
    """PNG to plot the runs' accuracy against time to (default: benchmark.png, or the next free number)."""

    def __post_init__(self) -> None:
        PartsOptions.__post_init__(self)
        require_range(self, 1, 254, "classes")
        require_range(self, 1, LARGE, "batch")
        require_range(self, 5, LARGE, "repeats")


@dataclass(frozen=True, kw_only=True)
class AppOptions(TrainedOptions):
    """Serve a local web page: drop a picture, and move a slider through the steps."""

    model: str | None = field(default=None, metadata=FREE)
    """Run directory, exported file, or name of an included network (default: camvid)."""
    port: int | None = None
    """Port of 127.0.0.1 (default: 7860, or the next that is free)."""

    def __post_init__(self) -> None:
        if self.port is not None:
            require_range(self, 1024, 65535, "port")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained network as an ONNX file, checked against PyTorch."""

    run: str
    """Run directory, as `trailseg train` made it."""
    out: str
    """File to write, ending in .onnx; with parts=true a folder."""
    parts: bool = False
    """Whether to write stem.onnx and step.onnx instead, for runtimes without loops and for stopping by the clock."""
    warm_start: bool = False
    """Whether the file can also start from a video's previous frame (not for OpenVINO)."""
    checkpoint: Checkpoint = "last"
    """Checkpoint: last, before (the checkpoint before last) or best (chosen on val)."""

    def __post_init__(self) -> None:
        if self.parts and self.warm_start:
            raise OptionError("warm_start=true: step.onnx always starts from any state; leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Package a finished run for sharing: its weights, an ONNX file, and a model card."""

    run: str
    """Run directory, as `trailseg train` made it."""
    out: str
    """Folder to write; it works wherever a run directory does."""
    measured_by: list[str] | None = None
    """Runs, joined by commas, whose mean final figures the card reports: same options and training steps, fewer splits,
    any seed, and likewise the runs they started from (default: this run)."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(TrainOptions):
    """Train, resume or skip every run of a study, then report."""

    file: str
    """YAML file of the study; `train` options on the command line override it."""
    out: str | None = None
    """Folder of the runs and the report (default: runs/ and the file's name)."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Rebuild table, plots and report.html from the logs."""

    folder: str
    """Folder of a study, or of one run."""


LARGE = 2**31 - 1  # more than anybody needs, and still a number that every library takes
STEPS_LIMIT = 256  # far beyond the step after which an answer changes no more


def require_range(options: object, least: float, most: float, *names: str) -> None:
    """OptionError unless each of those options lies in least..most."""
    for name in names:
        value = getattr(options, name)
        if not least <= value <= most:
            limit = f"at least {least}" if value < least else f"at most {most}"
            raise OptionError(f"{name}={value}: take {limit}")
