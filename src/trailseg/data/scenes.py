"""Procedural off-road scenes: pictures and TAS500 labels made on the spot, endless and reproducible from a seed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from trailseg.errors import FileError
from trailseg.labels import IGNORE, TAS500_FINE
from trailseg.writing import png, write_whole

OFFSETS: Mapping[str, int] = {"train": 0, "val": 1_000_000, "test": 2_000_000}
"""The index of each split's first scene: far enough apart that no two splits share a scene."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Points = Sequence[float]  # x0, y0, x1, y1, ...; two points stand for the box or the oval between them
Foot = tuple[float, float]  # where a thing stands: x and y as fractions of the picture

_EYE = 1.8  # metres from the ground to the camera: the horizon is this high above the foot of anything


class _Material(NamedTuple):
    """What a class is made of. The ranges of colour overlap between classes: shape and texture tell them apart."""

    first: tuple[int, int, int]  # the two ends of the range of colour: fresh to dry, or dark to light
    last: tuple[int, int, int]
    hues: float  # how freely the three channels differ in where they lie in that range
    roundness: float = 0.3  # how much darker the underside and the side away from the sun are
    texture: tuple[float, float, float, float] = (0, 0, 0.03, 0.03)  # speckle, clumps, blades, leaves
    rigid: bool = True  # whether the outline is straight rather than frayed


_MATERIALS = {
    "asphalt": _Material((84, 84, 88), (140, 134, 126), 0, 0, (0.07, 0.05, 0, 0), False),
    "gravel": _Material((112, 104, 92), (168, 158, 142), 0, 0, (0.34, 0.07, 0, 0), False),
    "soil": _Material((84, 64, 46), (158, 128, 94), 0, 0, (0.13, 0.28, 0, 0), False),
    "sand": _Material((142, 122, 92), (204, 184, 148), 0, 0, (0.04, 0.16, 0, 0), False),
    "bush": _Material((48, 78, 32), (134, 134, 70), 0, 0.5, (0, 0, 0, 0.36), False),
    "forest": _Material((34, 58, 30), (104, 104, 56), 0, 0.4, (0, 0, 0.14, 0.28), False),
    "low grass": _Material((70, 100, 40), (168, 156, 98), 0, 0, (0.16, 0.2, 0, 0.06), False),
    "high grass": _Material((68, 96, 38), (182, 162, 102), 0, 0.22, (0, 0, 0.42, 0.05), False),
    "misc. vegetation": _Material((58, 92, 32), (150, 118, 74), 0, 0.3, (0, 0, 0.15, 0.15), False),
    "tree crown": _Material((48, 80, 30), (142, 136, 66), 0, 0.5, (0, 0, 0, 0.42), False),
    "tree trunk": _Material((54, 44, 36), (134, 120, 102), 0.1, 0.5, (0, 0, 0.24, 0.12)),
    "building": _Material((120, 84, 66), (222, 212, 196), 0.3, 0.1),
    "fence": _Material((84, 68, 52), (162, 150, 132), 0.2),
    "wall": _Material((104, 94, 82), (182, 170, 152), 0.2, 0.1, (0, 0, 0.05, 0.16)),
    "car": _Material((30, 30, 34), (215, 212, 215), 1),
    "bus": _Material((60, 50, 40), (225, 215, 200), 1),
    "sky": _Material((255, 255, 255), (255, 255, 255), 0, rigid=False),
    "misc. object": _Material((56, 50, 40), (196, 160, 120), 0.3),
    "pole": _Material((70, 62, 54), (160, 156, 150), 0.1),
    "traffic sign": _Material((190, 30, 24), (240, 225, 225), 1),
    "person": _Material((30, 32, 40), (225, 150, 120), 0.7),
    "animal": _Material((48, 36, 28), (212, 186, 156), 0.1, 0.4, (0, 0, 0.1, 0.1)),
    "ego vehicle": _Material((22, 24, 28), (190, 192, 196), 0.3),
    "undefined": _Material((90, 86, 56), (150, 138, 104), 0, 0, (0.1, 0.1, 0.1, 0.1), False),
}
_IDS = {name: i for i, name in enumerate(TAS500_FINE.classes)} | {"undefined": IGNORE}

# Things: how often they occur, how near to the trail's edge (metres) and how far below the horizon they may stand, and
# their parts, in metres right of and above the foot: colour (0, 1: two of the thing's own, 2: dark), oval, outline.
_Thing = tuple[str, float, float, float, tuple[tuple[int, bool, Points], ...]]
_THINGS: tuple[_Thing, ...] = (
    ("car", 0.25, -1.5, 0.2, (
        (0, False, (-2.1, 0.3, -2.1, 0.95, -1.3, 1.0, -0.8, 1.5, 0.8, 1.5, 1.4, 0.98, 2.1, 0.85, 2.1, 0.3)),
        (2, False, (-1.1, 1, -0.7, 1.4, 0.7, 1.4, 1.1, 1)), *((2, True, (x, 0, x + 0.7, 0.66)) for x in (-1.6, 0.9)))),
    ("bus", 0.1, -2, 0.12, ((0, False, (-4.5, 0.4, 4.5, 3)), *((2, True, (x, 0, x + 0.95, 0.95)) for x in (-3.2, 2.2)),
        *((2, False, (x, 1.5, x + 1.2, 2.5)) for x in (-4.2, -2.8, -1.4, 0.0, 1.4, 2.8)))),
    ("building", 0.2, 3, 0.1, ((0, False, (-5, 0, 5, 3.6)), (1, False, (-5.5, 3.5, -3.8, 5.8, 3.8, 5.8, 5.5, 3.5)),
        *((2, False, (x, 1.2, x + 1.1, 2.5)) for x in (-4.0, -1.5, 3.0)), (1, False, (0.8, 0, 1.9, 2.2)))),
    ("person", 0.35, -1.5, 0.3, (
        (1, False, (-0.24, 0, -0.07, 0.9, 0.1, 0.9, -0.08, 0)), (1, False, (0.1, 0, 0, 0.9, 0.2, 0.9, 0.26, 0)),
        (0, False, (-0.36, 0.75, -0.22, 1.48, 0.22, 1.48, 0.36, 0.75)), (1, True, (-0.13, 1.45, 0.13, 1.78)))),
    ("animal", 0.2, -0.5, 0.25, (
        *((1, False, (x, 0, x + 0.1, 0.7)) for x in (-0.6, -0.38, 0.3, 0.5)), (0, True, (-0.75, 0.55, 0.7, 1.15)),
        (0, False, (0.35, 0.95, 0.75, 1.5, 0.95, 1.45, 0.7, 0.8)), (0, True, (0.7, 1.28, 1.15, 1.56)))),
    ("pole", 0.35, 0.6, 0.2, ((0, False, (-0.09, 0, 0.09, 6)), (0, False, (-0.8, 5.3, 0.8, 5.45)))),
    ("traffic sign", 0.15, 0.4, 0.25, ((0, True, (-0.42, 1.9, 0.42, 2.74)),)),
    ("traffic sign", 0.1, 0.4, 0.25, ((1, False, (-0.5, 1.5, 0.5, 2.3)),)),
    ("misc. object", 0.15, 0.2, 0.3, ((0, False, (-0.35, 0, 0.35, 1)), (1, True, (-0.35, 0.85, 0.35, 1.1)))),
    ("misc. object", 0.15, 0.6, 0.25, tuple(  # a stack of logs
        (k % 2, True, (0.6 * k - 1.2 + 0.3 * up, 0.5 * up, 0.6 * k - 0.6 + 0.3 * up, 0.5 * up + 0.6))
        for up in range(3) for k in range(4 - up))),
)  # fmt: skip


class _Canvas:
    """Patches of material painted from far to near: which patch is seen where, and what each is made of."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, (self.height, self.width) = rng, size
        self.horizon, self.dryness, self.sun = rng.uniform(0.3, 0.44), rng.random(), rng.uniform(-1, 1)
        self.half, self.curve, self.ahead = rng.uniform(1, 2), rng.uniform(-0.022, 0.022), rng.uniform(-0.16, 0.16)
        self.swing, self.period, self.phase = rng.uniform(0.3, 2.4), rng.uniform(4, 12), rng.uniform(0, 6)
        self.patches, self.shadows = (Image.new(mode, (self.width, self.height)) for mode in ("I", "L"))
        self.draw, self.shadow = ImageDraw.Draw(self.patches), ImageDraw.Draw(self.shadows)
        self.names: list[str] = []
        self.rows: list[tuple[float, ...]] = []
        self.paint("sky", (0, 0, self.width, self.height))

    def trail(self, base: float, aside: float = 0) -> Foot:
        """The place `aside` metres right of the trail's middle, at the height `base` of the picture."""
        drop = max(base - self.horizon, 1e-3)
        far = min(_EYE / drop, 60)
        bend = self.curve * far**2 + self.swing * np.sin(far / self.period + self.phase)
        x = 0.5 + self.ahead * (1 - drop / (1 - self.horizon)) + bend * drop / (2 * _EYE)
        return float(x + aside * drop / _EYE * self.height / self.width), base

    def at(self, foot: Foot, metres: Points) -> list[float]:
        """Pixels for metres to the right of and above a foot."""
        scale = (foot[1] - self.horizon) / _EYE * self.height
        x, y = foot[0] * self.width, foot[1] * self.height
        return [y - m * scale if i % 2 else x + m * scale for i, m in enumerate(metres)]

    def colour(self, name: str) -> Floats:
        """A colour of the material: what grows follows the season of the scene."""
        material = _MATERIALS[name]
        mix = self.rng.random() if material.rigid else self.dryness + self.rng.normal(0, 0.16)
        mixes = np.clip(mix + material.hues * self.rng.uniform(-1, 1, 3), 0, 1)
        return ((material.first + np.subtract(material.last, material.first) * mixes) / 255).astype(np.float32)

    def paint(self, name: str, edge: Points, base: float = 0, colour: Floats | None = None, oval: bool = False) -> None:
        """A patch of a material, in pixels; it stands on the height `base`, or with none lies on the ground."""
        material = _MATERIALS[name]
        x0, x1, y0, y1 = min(edge[::2]), max(edge[::2]), min(edge[1::2]), max(edge[1::2])
        shape = (x0 + x1) / 2, (y0 + y1) / 2, 2 / (x1 - x0 + 1), 2 / (y1 - y0 + 1), material.roundness
        away = _EYE / max(base - self.horizon, 1e-3) if base else 0
        tint = (self.colour(name) if colour is None else colour) * self.rng.normal(1, 0.1)
        self.rows.append((*tint.tolist(), *material.texture, *shape, away))
        self.names.append(name)
        if oval or len(edge) == 4:
            (self.draw.ellipse if oval else self.draw.rectangle)((x0, y0, x1, y1), fill=len(self.rows) - 1)
        else:
            self.draw.polygon(edge, fill=len(self.rows) - 1)

    def cast(self, foot: Foot, wide: float, tall: float) -> None:
        """The shadow of something on the ground, away from the sun."""
        end, near = -self.sun * tall, -0.16 * tall
        self.shadow.polygon(self.at(foot, (-wide, 0.05, wide, 0.05, end + wide, near, end - wide, near)), fill=255)


def _distance(c: _Canvas) -> None:
    """Hills and the edge of a forest, in rows of ragged tops, behind everything else."""
    rng, tall, waves = c.rng, c.rng.uniform(0.04, 0.3), c.rng.uniform(0, 6, 4)
    for row, (away, n) in enumerate(((500, 7), (130, 27), (80, 27))):
        base, colour = c.horizon + _EYE / away, c.colour("forest")
        foot = (base + 0.004) * c.height
        for place in rng.permutation(n) / (n - 1):
            crest = 0.62 + 0.4 * np.sin(5 * place + waves[row]) + 0.25 * np.sin(13 * place + waves[3])
            high = tall * (0.7, 0.9, 0.7)[row] * max(crest, 0.12) * rng.uniform(0.75, 1.1)
            x, wide = place * c.width, (rng.uniform(0.022, 0.05) if row else 0.2) * c.width
            rise = foot - (c.horizon - high) * c.height
            tops = zip((-0.6, -1, -0.5, 0, 0.5, 1, 0.6), (0, 0.4, 0.85, 1, 0.8, 0.45, 0), strict=True)
            c.paint("forest", [p for dx, up in tops for p in (x + dx * wide, foot - up * rise)], base, colour)


def _strip(c: _Canvas, name: str, left: float, right: float, rough: float = 0.12) -> None:
    """A strip of ground that follows the trail, between two distances (metres) from its middle."""
    bases = c.horizon + np.geomspace(0.014, 1.05 - c.horizon, 26)
    asides = np.array([[left], [right]]) + rough * c.rng.standard_normal((2, 26))
    feet = [c.trail(*pair) for pair in zip([*bases, *bases[::-1]], asides.ravel(), strict=True)]
    c.paint(name, [p for x, y in feet for p in (x * c.width, y * c.height)])


def _land(c: _Canvas) -> None:
    """The meadow, bare patches in it, and the trail with its shoulders, ruts and verges."""
    rng, level = c.rng, (c.horizon + 0.004) * c.height
    c.paint("low grass", (0, level, c.width, c.height))
    for _ in range(rng.integers(2, 8)):
        foot = rng.uniform(-0.1, 1.1), c.horizon + 0.02 + 0.5 * rng.random() ** 1.5
        wide, deep = rng.uniform(0.6, 5), rng.uniform(0.1, 0.4)
        name = ("low grass", "low grass", "soil", "soil", "gravel", "sand")[rng.integers(6)]
        c.paint(name, c.at(foot, (-wide, -deep, wide, deep)), oval=True)
    kind = int(np.searchsorted((0.18, 0.48, 0.82), rng.random()))
    if rng.random() < 0.5:
        shoulder, wider = ("gravel", "soil")[kind % 2], rng.uniform(0.2, 0.9, 2)
        _strip(c, shoulder, -c.half - wider[0], c.half + wider[1], 0.2)
    _strip(c, ("asphalt", "gravel", "soil", "sand")[kind], -c.half, c.half, 0.12 if kind else 0.03)
    if kind and rng.random() < 0.55:
        _strip(c, "low grass", -0.22 * c.half, 0.25 * c.half)
    if rng.random() < 0.2:  # where trail and meadow cannot be told apart, nobody labels
        _strip(c, "undefined", c.half, c.half + 0.2, 0.04)
    if rng.random() < 0.2:
        left, right, high = rng.uniform(0, 0.5) * c.width, rng.uniform(0.5, 1) * c.width, 0.008 * c.height
        c.paint("undefined", (left, level - high, right, level + high))


def _tuft(c: _Canvas, foot: Foot, name: str, width: Foot, gaps: float) -> None:
    """A row of upright blades or spikes; `gaps` is how deep it is cut between them."""
    wide, tall, across = c.rng.uniform(*width), c.rng.uniform(0.45, 1.1), np.linspace(-1, 1, 15)
    tops = tall * (1 - across**4) * c.rng.uniform(0.6, 1, 15) * np.tile((1, 1 - gaps), 8)[:15]
    spread = wide * across * (0.4 + 0.6 * tops / tops.max())  # the tips lean outwards
    c.cast(foot, wide * 0.9, tall)
    c.paint(name, c.at(foot, [*np.stack([spread, tops], 1).ravel().tolist(), 0, -0.12]), foot[1])


def _foliage(c: _Canvas, name: str, foot: Foot, middle: Foot, spread: Foot, size: float) -> None:
    """Round clumps of leaves of one colour, the lower in front of the higher."""
    colour, places = c.colour(name), c.rng.normal(middle, spread, (7, 2))
    for x, y in places[np.argsort(-places[:, 1])]:
        half = size * c.rng.uniform(0.5, 1)
        box = (x - half, max(y - half * 0.85, -0.05), x + half, max(y, 0) + half * 0.85)
        c.paint(name, c.at(foot, box), foot[1], colour, oval=True)


def _bush(c: _Canvas, foot: Foot) -> None:
    size = c.rng.uniform(0.5, 1.3)
    c.cast(foot, 1.3 * size, 1.6 * size)
    _foliage(c, "bush", foot, (0, 0.8 * size), (size, 0.25 * size), size)


def _tree(c: _Canvas, foot: Foot) -> None:
    tall, lean, thick = c.rng.uniform(5, 13), c.rng.normal(0, 0.4), c.rng.uniform(0.1, 0.28)
    c.cast(foot, tall * 0.16, tall * 0.6)
    stem = (-thick, -0.05, lean - thick / 2, 0.8 * tall, lean + thick / 2, 0.8 * tall, thick, -0.05)
    c.paint("tree trunk", c.at(foot, stem), foot[1])
    if c.rng.random() < 0.65:
        _foliage(c, "tree crown", foot, (lean, 0.72 * tall), (0.13 * tall, 0.12 * tall), 0.17 * tall)
        return
    colour = c.colour("tree crown")
    for half, low in ((0.2 * tall, 0.2 * tall), (0.165 * tall, 0.39 * tall), (0.12 * tall, 0.58 * tall)):
        skirt = (-half, low, lean, low + 0.42 * tall, half, low, 0, low + 0.06 * tall)
        c.paint("tree crown", c.at(foot, skirt), foot[1], colour)


def _thing(c: _Canvas, thing: _Thing, foot: Foot) -> None:
    """A made or living thing from its parts, facing either way and seen more or less from the side."""
    name, _, _, _, parts = thing
    colours = [c.colour(name), c.colour(name), np.full(3, 0.13, np.float32)]
    turn = c.rng.choice((-1, 1)) * c.rng.uniform(0.65, 1)
    c.cast(foot, turn * max(parts[0][2]), max(parts[0][2][1::2]))
    if name == "traffic sign":
        c.paint("pole", c.at(foot, (-0.05, 0, 0.05, 2)), foot[1])
    for colour, oval, metres in parts:
        turned = [m if i % 2 else m * turn for i, m in enumerate(metres)]
        c.paint(name, c.at(foot, turned), foot[1], colours[colour], oval)


def _panel(c: _Canvas, name: str, colour: Floats, start: Foot, end: Foot) -> None:
    """A length of wall or fence between two feet, and the post at its near end."""
    for low, high in ((0, 1.2),) if name == "wall" else ((0.3, 0.4), (0.7, 0.8), (1.1, 1.2)):
        c.paint(name, c.at(start, (0, low, 0, high)) + c.at(end, (0, high, 0, low)), end[1], colour)
    c.paint(name, c.at(end, (-0.08, 0, 0.08, 1.3)), end[1], colour)


def _standing(c: _Canvas) -> list[tuple[float, Callable[[], None]]]:
    """Everything that stands on the ground: how near it stands, and what paints it; from far to near."""
    rng, items = c.rng, list[tuple[float, Callable[[], None]]]()

    def beside(near: float, gap: float, spread: float) -> Foot:
        base = c.horizon + 0.025 + (near - 0.025) * rng.random() ** 1.6
        side = -1 if rng.random() < 0.5 else 1
        return c.trail(base, side * (c.half + gap))[0] + side * spread * rng.random() ** 1.3, base

    grass = partial(_tuft, name="high grass", width=(0.8, 3.5), gaps=0)
    fern = partial(_tuft, name="misc. vegetation", width=(0.4, 1.1), gaps=0.6)
    plants = ((grass, 34, 0.5, 2.0), (_bush, 12, 0.34, 1.4), (_tree, 16, 0.24, 1.6), (fern, 10, 0.5, 0.5))
    for plant, most, near, gap in plants:
        for _ in range(int(most * rng.random())):
            foot = beside(near, gap * rng.uniform(0.4, 1.2), 0.6)
            items.append((foot[1], partial(plant, c, foot)))
    for thing in _THINGS:
        if rng.random() < thing[1]:
            foot = beside(thing[3], thing[2], 0.3)
            items.append((foot[1], partial(_thing, c, thing, foot)))
    for name, chance in (("fence", 0.35), ("wall", 0.18)):
        if rng.random() < chance:
            aside, colour = rng.choice((-1, 1)) * (c.half + rng.uniform(1, 4)), c.colour(name)
            bases = c.horizon + np.geomspace(0.03, rng.uniform(0.2, 0.6), 9)
            ends = pairwise(c.trail(base, aside) for base in bases.tolist())
            items += [(end[1], partial(_panel, c, name, colour, start, end)) for start, end in ends]
    if rng.random() < 0.35:
        x, high = rng.uniform(0.4, 0.6) * c.width, rng.uniform(0.87, 0.96) * c.height
        bonnet = (x - 0.45 * c.width, high, x + 0.45 * c.width, 1.3 * c.height)
        items.append((2, partial(c.paint, "ego vehicle", bonnet, 1, oval=True)))
    return sorted(items, key=lambda item: item[0])


def _noise(rng: np.random.Generator, size: tuple[int, int], *grids: tuple[int, int]) -> Floats:
    """Smooth noise (H, W) from grids of (down, across) random numbers: the same at every size."""
    total = np.zeros(size, np.float32)
    for grid in grids:
        image = Image.fromarray(rng.standard_normal(grid, np.float32))
        total += np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    return total


def _ground(c: _Canvas) -> tuple[Floats, Floats]:
    """Speckle and clumps that lie on the ground: fixed in metres, so that they shrink towards the horizon."""
    n, per_metre = 256, 40
    speckle, clumps = c.rng.standard_normal((n, n), np.float32), _noise(c.rng, (n // 2, n // 2), (4, 4), (16, 16))
    clumps = np.pad(clumps, (0, n // 2), mode="symmetric")  # mirrored, it repeats without seams
    drop = np.maximum((np.arange(c.height, dtype=np.float32) + 0.5) / c.height - c.horizon, 0.004)[:, None]
    aside = (np.arange(c.width, dtype=np.float32) / c.width - 0.5) * (c.width / c.height * per_metre * _EYE) / drop
    cell = aside.astype(np.int32) % n + (per_metre * _EYE / drop).astype(np.int32) % n * n
    return speckle.ravel()[cell] * np.clip(drop * c.height / per_metre, 0.3, 1), clumps.ravel()[cell]


def _frayed(c: _Canvas, leaves: Floats, blades: Floats) -> NDArray[np.int32]:
    """The patch of each pixel, after noise has frayed the outlines of all that is not rigid: what stands, the most."""
    patches = np.asarray(c.patches)
    rigid, round_ = np.array([(m.rigid, m.roundness > 0) for m in map(_MATERIALS.__getitem__, c.names)]).T
    reach = np.where(round_, 0.012 * c.height, 0.006 * c.height).astype(np.float32)[patches]
    rows = np.arange(c.height, dtype=np.float32)[:, None] + reach * (leaves + blades)
    columns = np.arange(c.width, dtype=np.float32) + reach * leaves[::-1]
    y, x = np.clip(rows, 0, c.height - 1).astype(np.int32), np.clip(columns, 0, c.width - 1).astype(np.int32)
    moved = patches[y, x]
    return np.where(rigid[patches] | rigid[moved], patches, moved)


def _sky(c: _Canvas, mottle: Floats) -> tuple[Floats, Floats]:
    """The colours (H, W, 3) of the sky, and that of the haze (3,) before it."""
    cover, blue, grey = c.rng.random(), np.array((0.26, 0.46, 0.78)), np.array((0.62, 0.64, 0.68))
    haze, zenith = c.rng.normal((0.74, 0.78, 0.82), 0.03), blue + (grey - blue) * cover
    height = np.clip(np.arange(c.height) / (c.horizon * c.height), 0, 1)[:, None, None] ** 0.8
    clear = (zenith + (haze - zenith) * height).astype(np.float32)
    cloud = np.clip(mottle * 0.5 + np.float32(c.rng.uniform(-0.5, 0.4)), 0, 0.8)[..., None]
    return clear + (np.float32(0.93) - clear) * cloud, haze.astype(np.float32)


def _render(c: _Canvas) -> tuple[Bytes, Bytes]:
    """The picture and the file ids of what was painted."""
    rng, size = c.rng, (c.height, c.width)
    leaves, blades = _noise(rng, size, (40, 80), (130, 260)), _noise(rng, size, (16, 130), (40, 520))
    mottle, (speckle, clumps) = _noise(rng, size, (6, 6), (19, 19)), _ground(c)
    patches = _frayed(c, leaves, blades)
    red, green, blue, *textures, left, top, narrow, low, roundness, away = np.array(c.rows, np.float32).T[:, patches]
    light = 1 + 0.1 * mottle
    for texture, noise in zip(textures, (speckle, clumps, blades, leaves), strict=True):
        light += texture * noise
    x, y = np.arange(c.width, dtype=np.float32), np.arange(c.height, dtype=np.float32)[:, None]
    light *= 1 + roundness * (np.float32(0.6 * c.sun) * (x - left) * narrow + (top - y) * low * np.float32(0.6))
    # What stands catches less of the shadows on the ground than what lies there.
    soft = np.asarray(c.shadows.filter(ImageFilter.GaussianBlur(c.height * 0.004)))
    light *= 1 - np.float32(rng.uniform(0.1, 0.6) / 255) * soft * (1 - 2 * roundness)
    warmth, exposure = rng.normal(0, 0.08), rng.uniform(0.7, 1.2)
    hues = exposure * (1 + np.array((warmth, 0, -warmth)) + rng.normal(0, 0.025, 3))
    sky, haze = _sky(c, mottle)
    rgb = np.stack([red, green, blue], -1) * light[..., None] * hues.astype(np.float32)
    away = np.where(away > 0, away, _EYE / np.maximum((y + 0.5) / c.height - c.horizon, np.float32(0.004)))
    rgb += (haze - rgb) * (1 - np.exp(-away / np.float32(np.exp(rng.uniform(4, 6.5)))))[..., None]
    rgb = np.clip(np.where((patches == 0)[..., None], sky, rgb) * 255, 0, 255).astype(np.uint8)
    # The lens blurs the edges that the labels have sharp; the sensor adds its noise.
    lens = Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(0.4 + c.height * 0.0005))
    noise = np.float32(rng.uniform(2, 6)) * rng.standard_normal(size, np.float32)
    ids = np.array([_IDS[name] for name in c.names], np.uint8)[patches]
    return np.clip(np.asarray(lens) + noise[..., None], 0, 255).astype(np.uint8), ids


def scene(*, seed: int, index: int, size: tuple[int, int]) -> tuple[Bytes, Bytes]:
    """A picture (H, W, 3) uint8 RGB and its TAS500 file ids (H, W) uint8: 0-22, or 255 where undefined.

    A pure function of its arguments; at another size the same seed and index give the same scene.
    """
    canvas = _Canvas(np.random.default_rng([seed, index]), size)
    _distance(canvas)
    _land(canvas)
    for _, paint in _standing(canvas):
        paint()
    return _render(canvas)


def write(root: Path, *, train: int, val: int, test: int, size: tuple[int, int], seed: int) -> None:
    """Writes scenes of `size` (height, width) under root/tas500v1.1/, in exactly the layout of TAS500 v1.1."""
    target = root / "tas500v1.1"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileError(target, "is already there and not empty", "name another folder or empty this one")
    colours = np.zeros((256, 3), np.uint8)
    colours[list(TAS500_FINE.file_colours.values())] = list(TAS500_FINE.file_colours)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for kind in ("", "_labels", "_labels_ids")[: 1 if split == "test" else 3]:
            (target / (split + kind)).mkdir(parents=True)
        for index in range(OFFSETS[split], OFFSETS[split] + count):
            # A moment of recording in nanoseconds, always even: the five names that TAS500 users leave out are odd.
            moment = 2 * np.random.default_rng([seed, index, 1]).integers(500_000_000)
            name = f"{(1_537_000_000 + 10 * index) * 10**9 + moment}.png"
            image, ids = scene(seed=seed, index=index, size=size)
            for kind, pixels in (("", image), ("_labels", colours[ids]), ("_labels_ids", ids)):
                if (folder := target / (split + kind)).exists():
                    write_whole(folder / name, png(pixels))
