"""The interface of a trained network: its facts, and one method that predicts pictures.

Legend: B batch, S steps, K classes, H x W picture, h x w size at which the network computes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np

from trailseg.config import Size


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a trained network without computing anything."""

    name: str
    """Of the run, mostly the row of the table of networks."""
    network: str
    """Row of the table of networks."""
    classes: tuple[str, ...]
    """K class names, in the order of the class ids."""
    colours: tuple[tuple[int, int, int], ...]
    """K display colours, 0-255."""
    size: Size
    """Height and width in pixels of the pictures that it was trained with."""
    scale: int
    """How many times smaller than the picture its predictions are, each way."""
    trained_steps: int
    max_steps: int | None
    """The most steps that it can take; None for any number."""
    recalls: bool
    """Whether every step sees the picture again, so that it can start from another picture's state."""
    parameters: int
    macs_stem: int
    """Multiply-accumulates for a picture of `size`."""
    macs_step: int
    """Multiply-accumulates of a further step."""
    data: str
    """What it was trained on."""
    licence: str
    """Licence of the weights, which follows that of the data."""

    def to_texts(self) -> dict[str, str]:
        """The facts as an exported file keeps them: names to JSON."""
        return {f"trailseg.{name}": json.dumps(value) for name, value in asdict(self).items()}

    @staticmethod
    def from_texts(texts: Mapping[str, str]) -> "Facts":
        """What `to_texts` wrote; KeyError, ValueError or TypeError where it is not that."""
        values = {field.name: json.loads(texts[f"trailseg.{field.name}"]) for field in fields(Facts)}
        values["colours"] = tuple((int(r), int(g), int(b)) for r, g, b in values["colours"])
        return Facts(**values | {"classes": tuple(values["classes"]), "size": Size(*values["size"])})


class Answers(NamedTuple):
    """What a network says of a batch of pictures."""

    ids: np.ndarray
    """(B, H, W) uint8, the class of every pixel."""
    probability: np.ndarray
    """(B, H, W) float32, 0..1, of that class."""
    used: np.ndarray
    """(B,) int64, the steps that each picture took."""
    trail: np.ndarray | None
    """(S, B, H, W) uint8, the classes after every step, if asked for; a picture that is done repeats its answer."""
    state: Any
    """What the next frame of a video can start from; None where that is not possible."""


class Model(Protocol):
    """A trained network, from a run directory or from an exported file."""

    @property
    def facts(self) -> Facts:
        """What is known of it."""

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of its weights, or of the files that hold them."""

    def answer(
        self, images: np.ndarray, *, to: Size, steps: int, tolerance: float, trail: bool, state: Any = None
    ) -> Answers:
        """Answers images (B, h, w, 3) uint8 RGB at the size `to` (H, W), after `steps` steps or fewer.

        A picture is done once a step, from the second on, changed the class of fewer than `tolerance` (0..1) of its
        pixels, counted at the logits' scale; with 0 it takes all steps. `state` is what another answer left.
        OptionError where the steps or the state do not suit the network, FileError where the logits of a step are not
        finite.
        """
