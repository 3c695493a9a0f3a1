"""The one vocabulary of options: what can be set, its unit, its default, and the original study's value."""

from dataclasses import dataclass
from typing import NamedTuple

from trailseg.errors import OptionError, require


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """A network: a row of the table and the parts it is built from."""

    network: str = "iterative-v6"
    """Row of the table of networks; `trailseg networks` lists them."""
    stem: str = "x8"
    """Distillation stem: x1, x2, x4 or x8, by how much it makes the picture smaller each way."""
    core: str = "resunet"
    """Core: resnet, resunet (skips), upresnet or upresunet (nearest-neighbour upsampling)."""
    norm: str = "group"
    """Norm: group, layer, instance, batch; or layerHW (original), layerCHW, which bind the weights to one size."""
    channels: int = 60
    """Feature channels F."""
    depth: int = 4
    """Halvings M inside the core."""
    growth: float = 1.5
    """Factor by which the core's channels grow a level."""
    steps: int = 3
    """Steps of refinement S."""
    size: Size = Size(128, 256)
    """Height,width in pixels that pictures are resized to (original: 384,768; the default suits a laptop)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "channels", "depth", "steps")
        if not self.growth > 0:
            raise OptionError(f"growth={self.growth}: take a factor above 0, such as 1.5")
        if min(self.size) < 1:
            raise OptionError(f"size={self.size.height},{self.size.width}: take a height and width of at least 1 pixel")


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
        at_least(self, 1, "pictures")


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where and how it is computed."""

    device: str = "auto"
    """Device: auto, cpu, cuda or mps."""
    precision: str = "32"
    """Precision: 32, or bf16 (mixed: weights stay in 32 bits)."""

    def __post_init__(self) -> None:
        require("device", self.device, ("auto", "cpu", "cuda", "mps"))
        require("precision", self.precision, ("32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class TrainOptions(MachineOptions, DataOptions, NetworkOptions):
    """Train one network into a run directory."""

    epochs: int = 100
    """Times that every training picture is seen (original: 100 and 250)."""
    batch: int = 6
    """Pictures per optimiser step, over all processes."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    schedule: str = "constant"
    """Learning rate over the epochs: constant (original) or cosine (to zero)."""
    dice: float = 1.0
    """Weight of the Dice loss beside cross-entropy; 0 leaves it out."""
    augment: str = "drive"
    """Augmentation: none, seed (the original's flips and rotations by 15 and 30 degrees) or drive (forward views)."""
    seed: int = 0
    """Seed of the weights, the order of the pictures and the augmentation."""
    val_every: int = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    stem_from: str | None = None
    """Run directory to take the trained stem from, as the original did."""
    freeze_stem: bool = False
    """Whether a stem that was taken from another run stays as it is."""
    devices: int = 1
    """Processes to train with on each node, one device each."""
    nodes: int = 1
    """Machines to train with."""
    out: str | None = None
    """Run directory to make (default: runs/ and the network's name)."""
    resume: str | None = None
    """Run directory to go on with after a cut; its own options hold, and only device and devices may differ."""

    def __post_init__(self) -> None:
        NetworkOptions.__post_init__(self)
        DataOptions.__post_init__(self)
        MachineOptions.__post_init__(self)
        require("schedule", self.schedule, ("constant", "cosine"))
        at_least(self, 1, "epochs", "batch", "val_every", "devices", "nodes")
        at_least(self, 0, "seed", "dice")
        if not 0 < self.lr < float("inf"):
            raise OptionError(f"lr={self.lr}: take a learning rate above 0, such as 0.001")
        if self.freeze_stem and self.stem_from is None:
            raise OptionError("freeze_stem=true needs a trained stem: say stem_from=RUN")


def at_least(options: object, least: int, *names: str) -> None:
    """OptionError unless each of those options is at least `least`."""
    for name in names:
        if not getattr(options, name) >= least:
            raise OptionError(f"{name}={getattr(options, name)}: take at least {least}")
