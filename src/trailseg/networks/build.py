"""From a row of the table and its parts to a network."""

import torch
from torch import nn

from trailseg.config import NetworkOptions
from trailseg.errors import OptionError, require
from trailseg.networks.cores import CORES, make_core
from trailseg.networks.norms import NORMS, SIZE_BOUND
from trailseg.networks.recurrence import Recurrence
from trailseg.networks.stems import STEMS
from trailseg.networks.table import ROWS

MOST_CORES = 32  # far beyond what was ever trained, and a file that asks for more would take its time


def build(options: NetworkOptions, *, classes: int) -> Recurrence:
    """The network of these options for K = `classes`, with weights drawn from torch's global generator.

    `options.steps` is the number of cores where the row has one per step, of fuses and scalars likewise; elsewhere it
    binds nothing. `options.size` binds only the weights of size-bound norms. OptionError on a name that is not in its
    table, and on parts that do not fit each other.
    """
    row = ROWS[require("network", options.network, ROWS)]
    stride, make_stem = STEMS[require("stem", options.stem, STEMS)]
    switches = CORES[require("core", options.core, CORES)]
    make_norm = NORMS[require("norm", options.norm, NORMS)]
    channels, depth, steps = options.channels, options.depth, options.steps
    finer, guided = options.finer, options.guided
    if not depth and not switches["dilations"]:
        raise OptionError(f"depth=0: core={options.core} needs a halving; take a greater depth, or core=dilated")
    if stride % finer:
        raise OptionError(
            f"finer={finer}: stem={options.stem} makes the picture {stride} times smaller; take a divisor of that"
        )
    if guided > 1 and (options.stem != "s8" or finer != 2 or 4 % guided):
        raise OptionError(f"guided={guided}: takes stem=s8 and finer=2, and makes their logits 2 or 4 times finer")
    multiple = stride * 2**depth
    height, width = options.size
    padded = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    if options.norm in ("batch", "step", "instance") and padded == (multiple, multiple):
        raise OptionError(
            f"norm={options.norm}: the deepest features of a {height} x {width} picture are a single point, of which "
            "no variance can be taken; take a larger size, a smaller stem or depth, or norm=group"
        )
    features = (padded[0] // stride, padded[1] // stride)
    cores = steps if row.cores == "S" else row.cores
    if cores > MOST_CORES:
        raise OptionError(f"steps={steps}: {options.network} has a core for each; take at most {MOST_CORES}")
    max_steps = row.max_steps or (steps if row.cores == "S" else None)
    return Recurrence(
        stem=make_stem(
            scale=stride,
            channels=channels,
            norm=NORMS["batch" if options.norm == "step" else options.norm],
            size=padded,
            guided=guided,
        ),
        cores=[
            make_core(channels=channels, depth=depth, growth=options.growth, norm=make_norm, size=features, **switches)
            for _ in range(cores)
        ],
        head=_head(channels, classes, finer),
        feedback=None
        if max_steps == 1
        else _feedback(classes, channels, finer, softmax=row.feedback == "probabilities"),
        fuses=[
            nn.Conv2d(2 * channels, channels, 1)
            for _ in range({"none": 0, "shared": 1, "own": steps - 1}[row.context] if max_steps != 1 else 0)
        ],
        gate=nn.Conv2d(2 * channels, channels, 1) if row.gated else None,
        by_picture=options.standardize == "picture",
        residual=row.residual,
        scalars=0 if max_steps == 1 else steps - 1 if row.cores == "S" else 1,
        max_steps=max_steps,
        stride=stride,
        scale=stride // (finer * guided),
        guided=guided,
        multiple=multiple,
        bound_to=padded if options.norm in SIZE_BOUND else None,
    )


@torch.no_grad()
def pass_states_on(network: Recurrence) -> None:
    """Makes every fuse give the hidden state as it is: what of the context enters is then for training to find out."""
    for fuse in network.fuses:
        assert isinstance(fuse, nn.Conv2d)
        assert fuse.bias is not None
        nn.init.zeros_(fuse.bias)
        nn.init.zeros_(fuse.weight)
        nn.init.dirac_(fuse.weight[:, fuse.out_channels :])


def _head(channels: int, classes: int, finer: int) -> nn.Module:
    """Features (B, F, h, w) to logits (B, K, finer h, finer w): a 1x1 convolution, whose channels are unfolded.

    The sub-pixel convolution of Shi et al., "Real-time single image and video super-resolution", 2016, section 3.2.
    """
    convolution = nn.Conv2d(channels, classes * finer**2, 1)
    return convolution if finer == 1 else nn.Sequential(convolution, nn.PixelShuffle(finer))


def _feedback(classes: int, channels: int, finer: int, *, softmax: bool) -> nn.Module:
    """Logits (B, K, finer h, finer w) to features (B, F, h, w)."""
    convolution = nn.Conv2d(classes, channels, finer, finer)
    return nn.Sequential(nn.Softmax(1), convolution) if softmax else convolution
