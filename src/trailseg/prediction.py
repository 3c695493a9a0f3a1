"""Class ids and overlays for pictures, from a trained network."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trailseg.config import PredictOptions, Size
from trailseg.data.files import PICTURE_SUFFIXES, read_image
from trailseg.data.memory import Memory
from trailseg.errors import FileError
from trailseg.labels import make_palette
from trailseg.networks.recurrence import Recurrence
from trailseg.runs import Run
from trailseg.training import make_fabric
from trailseg.writing import png, write_whole


@torch.inference_mode()
def predict(network: Recurrence, image: np.ndarray, *, size: Size, steps: int, device: torch.device) -> np.ndarray:
    """Class ids (S, H, W) uint8 of every step for an image (H, W, 3) uint8 RGB, computed at `size`."""
    small = Image.fromarray(image).resize((size.width, size.height), Image.Resampling.BILINEAR)
    batch = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].to(device).float() / 255
    trail = network(batch, steps)[0].float()
    sized = (network.upsample(logits[None], size, image.shape[:2]) for logits in trail)
    return torch.cat([logits.argmax(1) for logits in sized]).to(torch.uint8).cpu().numpy()


def overlay(image: np.ndarray, ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 half covered by the colours of its class ids (H, W)."""
    return ((image.astype(np.uint16) + palette[ids]) // 2).astype(np.uint8)


def find_pictures(path: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder in the order of their names; FileError where there are none."""
    if not path.exists():
        raise FileError(path, "there is no such file or folder", "name a picture or a folder of pictures")
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()]
    if not found:
        raise FileError(path, "holds no picture", f"name a folder with {', '.join(PICTURE_SUFFIXES)} files")
    return found


def predict_run(run: Run, options: PredictOptions) -> Iterator[Path | FileError]:
    """Writes NAME.png (8-bit class ids at the picture's size) and NAME_overlay.png for the picture or folder.

    Yields each NAME.png, or for a picture that cannot be read what is wrong with it. FileError, before anything is
    written, where a file would be overwritten or two pictures share a name.
    """
    out, found = Path(options.out), find_pictures(Path(options.pictures))
    targets: dict[Path, Path] = {}
    for picture in found:
        for target in (out / f"{picture.stem}.png", out / f"{picture.stem}_overlay.png"):
            if target in targets:
                raise FileError(picture, f"would be written to {target}, as would {targets[target]}", "rename one")
            if target.exists():
                raise FileError(target, "is there already", "say another out=, or remove it")
            targets[target] = picture
    network = run.network(options.checkpoint)
    steps = options.steps or network.up_to(run.options.steps)
    network.check_steps(steps)
    fabric = make_fabric(options.device, options.precision or run.options.precision)
    network.to(fabric.device)
    palette = make_palette(run.config["data"]["colours"])
    for picture in found:
        try:
            image = read_image(picture)
        except FileError as error:
            yield error
            continue
        with fabric.autocast():
            ids = predict(network, image, size=run.options.size, steps=steps, device=fabric.device)[-1]
        write_whole(out / f"{picture.stem}_overlay.png", png(overlay(image, ids, palette)))
        yield write_whole(out / f"{picture.stem}.png", png(ids))


def example_sheet(
    network: Recurrence,
    memory: Memory,
    *,
    size: Size,
    steps: int,
    palette: np.ndarray,
    device: torch.device,
    count: int = 4,
) -> bytes:
    """A PNG with a row for each of `count` pictures spread over the split: picture, truth, then every step."""
    network.eval()
    rows = []
    for position in np.linspace(0, len(memory.names) - 1, min(count, len(memory.names))).astype(int):
        image = memory.images[position].permute(1, 2, 0).cpu().numpy()
        ids = predict(network, image, size=size, steps=steps, device=device)
        rows.append(np.concatenate([image, palette[memory.labels[position].cpu().numpy()], *palette[ids]], 1))
    return png(np.concatenate(rows))
