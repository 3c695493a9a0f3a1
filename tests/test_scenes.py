"""Procedural scenes: reproducible, complete in their classes, not solved by colour, written as TAS500 is laid out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trailseg.data.scenes import OFFSETS, scene, write
from trailseg.errors import FileError
from trailseg.labels import IGNORE, TAS500_FINE, decode

SMALL = (48, 96)


def test_scene_depends_on_its_arguments_only():
    first = scene(seed=4, index=7, size=SMALL)
    np.random.seed(1)  # noqa: NPY002  (a global state that must not matter)
    others = [scene(seed=seed, index=index, size=SMALL) for seed, index in ((4, 8), (5, 7), (4, 7 + OFFSETS["val"]))]
    again = scene(seed=4, index=7, size=SMALL)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for image, ids in others:
        assert (image != first[0]).mean() > 0.5
        assert (ids != first[1]).mean() > 0.05


@pytest.mark.parametrize("size", [(37, 91), (96, 192), (50, 20), (2, 3)])
def test_scene_at_any_size(size: tuple[int, int]):
    for index in range(5):
        image, ids = scene(seed=0, index=index, size=size)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        assert (ids.shape, ids.dtype) == (size, np.uint8)
        assert set(np.unique(ids).tolist()) <= {*range(23), IGNORE}


def test_same_scene_at_another_size():
    for index in range(5):
        large, small = (scene(seed=2, index=index, size=size) for size in ((96, 192), SMALL))
        assert (large[1][::2, ::2] == small[1]).mean() > 0.75  # all but the outlines; two scenes share about 0.3
        shrunk = np.asarray(Image.fromarray(large[0]).resize(SMALL[::-1], Image.Resampling.BOX), np.float32)
        assert abs(shrunk - small[0]).mean() < 25


def test_classes_are_complete_and_plausible():
    counts = np.zeros(256)
    for index in range(200):
        counts += np.bincount(scene(seed=0, index=index, size=SMALL)[1].ravel(), minlength=256)
    share = dict(zip((*TAS500_FINE.classes, "undefined"), counts[[*range(23), IGNORE]] / counts.sum(), strict=True))
    assert min(share.values()) > 0
    assert 0.1 < share["sky"] < 0.25
    assert sum(counts[:11]) / counts.sum() > 0.65  # terrain and vegetation
    assert 0 < share["undefined"] < 0.02
    assert share["person"] + share["animal"] + share["traffic sign"] < 0.01


def test_colour_alone_is_not_enough():
    scenes = [scene(seed=1, index=i, size=SMALL) for i in range(40)]
    pixels, truth = (np.concatenate([s[k].reshape(SMALL[0] * SMALL[1], -1) for s in scenes]) for k in (0, 1))
    pixels, truth = pixels.astype(np.float32), truth[:, 0]
    seen = np.arange(len(truth)) < 30 * SMALL[0] * SMALL[1]
    classes = np.unique(truth[seen & (truth != IGNORE)])
    means = np.stack([pixels[seen & (truth == k)].mean(0) for k in classes])
    scored = ~seen & (truth != IGNORE)
    nearest = classes[((pixels[scored, None] - means) ** 2).sum(2).argmin(1)]
    accuracy = (nearest == truth[scored]).mean()
    assert 3 / 23 < accuracy < 0.5  # measured 0.3; colour says something, but far from enough


def test_write_is_laid_out_as_tas500(tmp_path: Path):
    counts = {"train": 3, "val": 2, "test": 1}
    write(tmp_path, **counts, size=SMALL, seed=9)
    root = tmp_path / "tas500v1.1"
    assert {p.name for p in root.iterdir()} == {
        "train", "val", "test", "train_labels", "val_labels", "train_labels_ids", "val_labels_ids"
    }  # fmt: skip
    every: list[str] = []
    for split, count in counts.items():
        names = sorted(p.name for p in (root / split).iterdir())
        every += names
        assert len(names) == count
        assert all(len(name) == 23 and name[:19].isdigit() and name.endswith(".png") for name in names)
        for i, name in enumerate(names):
            image, ids = scene(seed=9, index=OFFSETS[split] + i, size=SMALL)
            picture = Image.open(root / split / name)
            assert picture.mode == "RGB"
            assert (np.asarray(picture) == image).all()
            if split != "test":
                colours, grey = (Image.open(root / f"{split}_{kind}" / name) for kind in ("labels", "labels_ids"))
                assert (colours.mode, grey.mode) == ("RGB", "L")
                assert (np.asarray(grey) == ids).all()
                assert (decode(colours, TAS500_FINE, "colours") == ids).all()
    assert len(set(every)) == 6
    assert all(int(name[:19]) % 2 == 0 for name in every)  # the five excluded names are odd
    assert len([p for p in root.rglob("*") if p.is_file()]) == 6 + 2 * 5


def test_write_is_reproducible_and_a_split_keeps_its_scenes(tmp_path: Path):
    write(tmp_path / "a", train=1, val=2, test=0, size=(8, 16), seed=9)
    write(tmp_path / "b", train=2, val=2, test=1, size=(8, 16), seed=9)
    for a in (tmp_path / "a").rglob("*.png"):
        assert a.read_bytes() == (tmp_path / "b" / a.relative_to(tmp_path / "a")).read_bytes()


def test_write_refuses_a_folder_in_use(tmp_path: Path):
    target = tmp_path / "tas500v1.1"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(FileError, match="not empty"):
        write(tmp_path, train=1, val=1, test=1, size=SMALL, seed=0)
    assert [p.name for p in target.iterdir()] == ["mine.txt"]
    (target / "mine.txt").unlink()
    write(tmp_path, train=1, val=0, test=0, size=SMALL, seed=0)  # an empty folder will do
    assert len(list(target.rglob("*.png"))) == 3
