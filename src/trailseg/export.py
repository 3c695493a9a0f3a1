"""Exporting a trained network to ONNX, and checking the file against PyTorch before it is kept."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trailseg.config import ExportOptions, Size
from trailseg.data.scenes import scene
from trailseg.errors import FileError, OptionError, missing
from trailseg.inference import TorchModel
from trailseg.model import Model
from trailseg.onnx_model import OnnxModel, OnnxParts, seal
from trailseg.runs import Run
from trailseg.version import __version__
from trailseg.writing import write_whole

ALLOWED = 0.001
"""Share of the pixels whose class may differ from PyTorch's."""


class Check(NamedTuple):
    """How an exported file and PyTorch differ on two pictures of one size, after some steps."""

    size: Size
    steps: int
    ids: float
    """Share of the pixels, 0..1, whose class differs."""
    probability: float
    """The largest difference of a probability, 0..1."""


class Exported(NamedTuple):
    """What was written, and what the check found."""

    files: list[Path]
    checks: list[Check]


def export(options: ExportOptions) -> Exported:
    """Writes a run's network as one file, or as stem.onnx and step.onnx in a folder, and checks it.

    FileError where a file would be overwritten, or where the classes differ from PyTorch's on more than ALLOWED of the
    pixels: then nothing is left behind. OptionError where the network cannot be exported so, or onnx is missing.
    """
    try:
        import onnxscript  # noqa: F401 - which PyTorch needs for it

        from trailseg.onnx_graph import parts, repeats, whole
    except ImportError:
        raise missing("exporting needs onnx and onnxscript", "export") from None
    out = Path(options.out)
    files = [out / "stem.onnx", out / "step.onnx"] if options.parts else [out]
    if not options.parts and out.suffix != ".onnx":
        raise OptionError(f"out={out}: name a file that ends in .onnx, or say parts=true to write into a folder")
    for file in files:
        if file.exists():
            raise FileError(file, "is there already", "say another out=, or remove it")
    model = TorchModel(Run.open(options.run), device="cpu", precision="32", checkpoint=options.checkpoint)
    facts, network = model.facts, model.network
    if options.warm_start and not facts.recalls:
        raise OptionError(
            f"warm_start=true: {facts.network} does not look at the picture again after its first step; it needs one "
            "or two cores and a copied context"
        )
    if not repeats(network):
        facts = replace(facts, max_steps=facts.trained_steps)
    facts = replace(facts, recalls=facts.recalls and (options.warm_start or options.parts))
    if options.parts:
        models = list(parts(network, size=facts.size).values())
    else:
        models = [whole(network, steps=facts.trained_steps, size=facts.size, warm_start=options.warm_start)]
    try:
        for file, made in zip(files, models, strict=True):
            made.producer_name, made.producer_version = "trailseg", __version__
            for name, text in facts.to_texts().items():
                made.metadata_props.add(key=name, value=text)
            write_whole(file, seal(made.SerializeToString()))
        checks = list(check(model, OnnxParts(out) if options.parts else OnnxModel(out)))
        worst = max(checks, key=lambda one: one.ids)
        if not worst.ids <= ALLOWED:
            height, width = worst.size
            problem = (
                f"differs from PyTorch on {100 * worst.ids:.2f} % of the pixels at {height} x {width} after "
                f"{worst.steps} steps, and was removed"
            )
            raise FileError(out, problem, "report it with the run's config.yaml: this is a fault of trailseg")
    except BaseException:
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        if options.parts:
            with suppress(OSError):
                out.rmdir()  # which fails where anything else is in it
        raise
    return Exported(files, checks)


def check(model: TorchModel, exported: Model) -> Iterator[Check]:
    """Holds an exported network against PyTorch: pictures at two sizes (one where the weights are bound to it), each
    after four numbers of steps, or as many as there are.
    """
    facts, trained = model.facts, model.facts.trained_steps
    height, width = facts.size
    bound = model.network.bound_to is not None
    counts = {1, 2, 3, 2 * trained} if exported.facts.max_steps is None else {1, (trained + 1) // 2, trained}
    for size in [facts.size, *([] if bound else [Size(height * 3 // 4 + 1, width * 5 // 4 + 1)])]:
        images = np.stack([scene(seed=0, index=index, size=size)[0] for index in range(2)])
        for steps in sorted(counts):
            asked: dict[str, Any] = {
                "to": Size(2 * size.height + 1, 2 * size.width + 1),
                "steps": steps,
                "tolerance": 0,
                "trail": False,
            }
            theirs, ours = model.answer(images, **asked), exported.answer(images, **asked)
            yield Check(
                size=size,
                steps=steps,
                ids=float((theirs.ids != ours.ids).mean()),
                probability=float(np.abs(theirs.probability - ours.probability).max()),
            )
