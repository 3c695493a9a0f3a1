"""The table of networks: a row is values, never a class; `recurrence.py` is the one loop they all run through."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """What distinguishes one network from another."""

    cores: Literal[1, 2, "S"]
    """Distinct cores; step t uses core min(t, cores - 1). "S" is one per step, which fixes the number of steps."""
    context: Literal["none", "shared", "own"]
    """How the stem's features re-enter after each step: not at all, by one fuse, or by a fuse per step."""
    residual: bool
    """Whether the core's input is added to its output."""
    gated: bool = False
    """Whether a gate scales the core's output, per position and channel, before that."""
    feedback: Literal["logits", "probabilities"] = "logits"
    """What a step hears of the prediction before it."""
    max_steps: int | None = None
    """The most steps that make sense, where that is less than the run's own."""


# The twelve networks of the original study, under its names.
NAMED = {
    "iterative-v1": Row(2, "shared", residual=False),
    "iterative-v2": Row(1, "shared", residual=False),
    "iterative-v3": Row(2, "shared", residual=True),
    "iterative-v4": Row(1, "shared", residual=True),
    "iterative-v5": Row(2, "none", residual=True),
    "iterative-v6": Row(1, "none", residual=True),
    "hourglass": Row("S", "none", residual=False),
    "hourglass-iter": Row("S", "shared", residual=False),
    "hourglass-iter-ex": Row("S", "own", residual=False),
    "res-hourglass": Row("S", "none", residual=True),
    "res-hourglass-iter": Row("S", "shared", residual=True),
    "res-hourglass-iter-ex": Row("S", "own", residual=True),
}

# The baseline without refinement: iterative-v6 stopped after its first step.
BASELINE = {"single": Row(1, "none", residual=True, max_steps=1)}

# The accurate networks, and their two controls: a core for each step (as many MACs), and one step (as many parameters).
GATED = {
    "gated": Row(1, "shared", residual=True, gated=True, feedback="probabilities"),
    "gated-stack": Row("S", "shared", residual=True, gated=True, feedback="probabilities"),
    "gated-single": Row(1, "shared", residual=True, gated=True, feedback="probabilities", max_steps=1),
}

# The six combinations of the three axes that the study left out, named by their values.
UNNAMED = {
    "1-none": Row(1, "none", residual=False),
    "2-none": Row(2, "none", residual=False),
    "1-own": Row(1, "own", residual=False),
    "2-own": Row(2, "own", residual=False),
    "1-own-residual": Row(1, "own", residual=True),
    "2-own-residual": Row(2, "own", residual=True),
}

ROWS: dict[str, Row] = NAMED | BASELINE | GATED | UNNAMED
