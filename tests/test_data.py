"""Data sets on disk read back as what was written; every fault is found and named; the memory and its order."""

import random
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trailseg.config import DataOptions
from trailseg.data import memory, pictures, scenes, statistics
from trailseg.data.files import BadPicture, DataSet, Picture
from trailseg.data.pictures import read_image
from trailseg.data.readers import TAS500_BROKEN, Procedural, open_data, select
from trailseg.errors import FileError, OptionError
from trailseg.labels import IGNORE, TAS500_COARSE, TAS500_FINE

SIZE = (8, 12)


def opened(data: str, root: Path, labels: str | None = None) -> DataSet:
    source = open_data(DataOptions(data=data, root=str(root), labels=labels, pictures=4), size=SIZE)
    assert isinstance(source, DataSet)
    return source


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def save_pair(image: Path, label: Path, seed: int = 0, classes: int = 11) -> None:
    """A random picture and a random label of the ids 0..classes-1."""
    rng = np.random.default_rng(seed)
    save(image, rng.integers(0, 256, (*SIZE, 3), np.uint8))
    save(label, rng.integers(0, classes, SIZE, np.uint8))


SEEDS = {"": 0, "train": 0, "val": 1000, "test": 2000}


def camvid(root: Path, **counts: int) -> Path:
    for split, count in counts.items():
        for i in range(count):
            save_pair(root / split / f"p{i}.png", root / f"{split}annot" / f"p{i}.png", seed=SEEDS[split] + i)
    return root


def names(pictures: object) -> list[str]:
    return [picture.name for picture in pictures]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tas500")
    scenes.write(root, train=3, val=2, test=1, size=(24, 40), seed=3)
    return root


@pytest.fixture
def tas(written: Path, tmp_path: Path) -> Path:
    """A copy of the written scenes to damage: its tas500v1.1 folder."""
    return shutil.copytree(written / "tas500v1.1", tmp_path / "tas500v1.1")


# --- TAS500


def assert_same_as_made(source: DataSet) -> None:
    for split, folder, count in (("train", "train", 3), ("val", "val", 2), ("val-all", "val", 2)):
        pictures = source.split(split)
        assert len(pictures) == count
        for i, picture in enumerate(pictures):
            image, ids = picture.read()
            expected, file_ids = scenes.scene(seed=3, index=scenes.OFFSETS[folder] + i, size=(24, 40))
            np.testing.assert_array_equal(image, expected)
            np.testing.assert_array_equal(ids, source.labels.class_ids(file_ids))
    assert list(source.faults()) == []


@pytest.mark.parametrize(("labels", "table"), [("fine", TAS500_FINE), ("coarse", TAS500_COARSE), (None, TAS500_COARSE)])
def test_tas500_reads_back_what_was_made(written: Path, labels: str | None, table: object):
    for root in (written, written / "tas500v1.1"):
        source = opened("tas500", root, labels)
        assert source.labels is table
        assert_same_as_made(source)


def test_tas500_with_one_of_its_label_folders_or_three_channels(tas: Path):
    for path in tas.glob("*_labels_ids/*.png"):
        Image.open(path).convert("RGB").save(path)
    assert_same_as_made(opened("tas500", tas, "fine"))
    for kind in ("labels", "labels_ids"):
        alone = tas.parent / f"only-{kind}"
        for split in ("train", "val"):
            shutil.copytree(tas / split, alone / split)
            shutil.copytree(tas / f"{split}_{kind}", alone / f"{split}_{kind}")
        assert_same_as_made(opened("tas500", alone, "fine"))


def test_tas500_splits_are_the_study_s_and_leave_out_the_broken(tmp_path: Path):
    label = Image.new("L", (8, 8))
    every = [f"15379{i:014d}" for i in range(60)] + sorted(TAS500_BROKEN)
    for split in ("train", "val"):
        for kind in ("", "_labels_ids"):
            (tmp_path / (split + kind)).mkdir()
        for i, name in enumerate(reversed(every)):
            Image.new("RGB", (8, 8), (i, split == "val", 0)).save(tmp_path / split / f"{name}.png")
            if not name.endswith(("077", "119")):  # two of the broken lack their label, too
                label.save(tmp_path / f"{split}_labels_ids" / f"{name}.png")
    (tmp_path / "val" / "1537962190852671077.png").unlink()  # and one its picture
    source = opened("tas500", tmp_path)
    whole = sorted(set(every) - TAS500_BROKEN)
    assert list(source.faults()) == []
    assert names(source.split("train")) == whole
    assert names(source.split("val-all")) == whole
    assert names(source.split("val")) == whole[:50]
    assert names(source.split("test")) == whole[50:]
    for name in whole[50:]:
        for path in tmp_path.glob(f"val*/{name}.png"):
            path.unlink()
    with pytest.raises(FileError, match="none of its 50 pictures falls into split=test"):
        source.split("test")
    with pytest.raises(OptionError, match="did you mean 'val'"):
        source.split("vall")


# --- CamVid


@pytest.mark.parametrize("inside", ["", "CamVid"])
def test_camvid(tmp_path: Path, inside: str):
    save_pair(tmp_path / "x.png", tmp_path / "y.png")  # what lies beside the folders does not matter
    root = camvid(tmp_path / inside, train=3, val=2)
    source = opened("camvid", tmp_path)
    assert list(source.splits) == ["train", "val"]
    assert names(source.split("train")) == ["p0", "p1", "p2"]
    image, ids = source.split("val")[1].read()
    np.testing.assert_array_equal(image, np.asarray(Image.open(root / "val" / "p1.png")))
    np.testing.assert_array_equal(ids, np.asarray(Image.open(root / "valannot" / "p1.png")))
    assert list(source.faults()) == []
    camvid(root, test=1)
    assert names(opened("camvid", tmp_path).split("test")) == ["p0"]


# --- Any two folders


def folder(root: Path, pictures: str = "pictures", labels: str = "labels", count: int = 7, **content: object) -> Path:
    """A data set of `count` pictures per split, with the ids 0 and 1, and the YAML file that describes it."""
    for split in ("train", "val") if "{split}" in pictures else ("",):
        for i in range(count):
            name = str(content.get("label_suffix", ""))
            images, truths = (root / pattern.replace("{split}", split) for pattern in (pictures, labels))
            save_pair(images / f"p{i}.png", truths / f"p{i}{name}.png", seed=SEEDS[split] + i, classes=2)
    described = {"pictures": pictures, "labels": labels, "classes": ["ground", "sky"], **content}
    (root / "data.yaml").write_text(yaml.safe_dump(described))
    return root


def test_folder_keeps_every_fifth_picture_for_val(tmp_path: Path):
    root = folder(tmp_path)
    (root / "data.yaml").write_text("classes: [ground, sky]")  # the folders' names are the default ones
    for path in (root, root / "data.yaml"):
        source = opened("folder", path)
        assert source.labels.classes == ("ground", "sky")
        assert names(source.split("train")) == ["p1", "p2", "p3", "p4", "p6"]
        assert names(source.split("val")) == ["p0", "p5"]
        np.testing.assert_array_equal(source.split("val")[0].read()[1], np.asarray(Image.open(root / "labels/p0.png")))
        assert list(source.faults()) == []


def test_folder_with_splits_suffix_and_absolute_paths(tmp_path: Path):
    root = folder(tmp_path / "a", "{split}/rgb", "{split}/truth", label_suffix="_L")
    source = opened("folder", root)
    assert list(source.splits) == ["train", "val"]
    assert names(source.split("val")) == [f"p{i}" for i in range(7)]
    shutil.copytree(root / "val", root / "test")
    for i in range(7):
        save_pair(root / f"test/rgb/p{i}.png", root / f"test/truth/p{i}_L.png", seed=2000 + i, classes=2)
    assert len(opened("folder", root).split("test")) == 7
    elsewhere = tmp_path / "b"
    elsewhere.mkdir()
    content = {"classes": ["ground", "sky"], "label_suffix": "_L"}
    content |= {"pictures": str(root / "{split}/rgb"), "labels": str(root / "{split}/truth")}
    (elsewhere / "own.yml").write_text(yaml.safe_dump(content))
    assert names(opened("folder", elsewhere).split("val")) == [f"p{i}" for i in range(7)]
    assert list(opened("folder", elsewhere).faults()) == []


CLASSES = [{"name": "soil", "id": 7, "colour": [9, 8, 7]}, {"name": "sky", "id": 3, "colour": [1, 2, 3]}]


@pytest.mark.parametrize("encoding", ["ids", "colours", "auto"])
def test_folder_with_ids_and_colours(tmp_path: Path, encoding: str):
    content = {"classes": CLASSES, "ignore": [9, [0, 0, 0]], "encoding": encoding}
    root = folder(tmp_path, count=2, **content)
    ids = np.random.default_rng(0).choice([7, 3, 255], SIZE).astype(np.uint8)
    colours = np.zeros((256, 3), np.uint8)
    colours[[7, 3]] = (9, 8, 7), (1, 2, 3)
    for i in range(2):
        save(root / f"labels/p{i}.png", ids if encoding == "ids" else colours[ids])
    source = opened("folder", root)
    assert source.labels.colours == ((9, 8, 7), (1, 2, 3))
    assert list(source.faults()) == []
    np.testing.assert_array_equal(source.split("train")[0].read()[1], np.select([ids == 7, ids == 3], [0, 1], IGNORE))
    if encoding == "ids":
        np.testing.assert_array_equal(source.labels.class_ids(np.array([[9, 255, 7]])), [[IGNORE, IGNORE, 0]])


def test_the_documented_example(tmp_path: Path):
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    (tmp_path / "own.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    for split in ("train", "val"):
        save(tmp_path / split / "rgb" / "a.jpg", np.full((1, 5, 3), SEEDS[split] % 251, np.uint8))
        save(tmp_path / split / "truth" / "a_mask.png", np.array([[7, 3, 2, 9, 255]], np.uint8))
    source = opened("folder", tmp_path)
    assert source.labels.classes == ("track", "grass", "sky")
    assert list(source.faults()) == []
    np.testing.assert_array_equal(source.split("val")[0].read()[1], [[0, 1, 2, IGNORE, IGNORE]])


def test_folder_takes_255_for_a_class_only_if_a_class_says_so(tmp_path: Path):
    for i, (classes, expected) in enumerate([(["a"], [0, IGNORE]), (["a", {"name": "b", "id": 255}], [0, 1])]):
        labels = opened("folder", folder(tmp_path / str(i), classes=classes)).labels
        np.testing.assert_array_equal(labels.class_ids(np.array([[0, 255]])), [expected])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("classes: [a", "expected"),
        ("[]", "holds no mapping"),
        ("pictures: images", "classes is not a list"),
        ("classes: road", "classes is not a list"),
        ("classes: []", "classes is not a list of 1 to 254"),
        ("classes: [a]\ningore: [0]", "did you mean 'ignore'"),
        ("classes: [{name: a, colur: [1, 2, 3]}]", "did you mean 'colour'"),
        ("classes: [{id: 1}]", "or one has none"),
        ("classes: [a, a]", "two classes have the same name"),
        ("classes: [{name: a, id: 1}, b]", "1 stands for two classes"),
        ("classes: [{name: a, id: 70000}]", "id 70000 is not a whole number of 0-65535"),
        ("classes: [{name: a, id: x}]", "id x is not"),
        ("classes: [{name: a, colour: [1, 2]}]", "not three numbers of 0-255"),
        ("classes: [{name: a, colour: [1, 2, 256]}]", "not three numbers of 0-255"),
        ("classes: [{name: a, colour: [1, 2, 3]}, {name: b, colour: [1, 2, 3]}]", "stands for two classes"),
        ("classes: [a, b]\nignore: [1]", "1 stands for two classes, or for a class and what is ignored"),
        ("classes: [{name: a, colour: [0, 0, 0]}]\nignore: [[0, 0, 0]]", "stands for"),
        ("classes: [{name: a, id: 255}]\nignore: [[0, 0, 0]]", "255 stands for"),
        ("classes: [a]\nignore: 0", "ignore is not a list"),
        ("classes: [a]\nencoding: colour", "did you mean 'colours'"),
        ("classes: [a]\npictures: 'x/{split}'", "stands in only one of pictures and labels"),
    ],
)
def test_folder_refuses_what_it_does_not_understand(tmp_path: Path, content: str, message: str):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(FileError, match=message) as caught:
        opened("folder", tmp_path)
    assert caught.value.path == tmp_path / "own.yaml"
    assert "docs/data.md" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_folder_needs_one_yaml_file(tmp_path: Path):
    save_pair(tmp_path / "pictures/p.png", tmp_path / "labels/p.png")
    with pytest.raises(FileError, match="holds 0 YAML files"):
        opened("folder", tmp_path)
    for name in ("a.yaml", "b.yml"):
        (tmp_path / name).write_text("classes: [a]")
    with pytest.raises(FileError, match="holds 2 YAML files"):
        opened("folder", tmp_path)
    with pytest.raises(FileError, match="does not describe a data set"):
        opened("folder", tmp_path / "pictures/p.png")


# --- Faults


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def disorder(path: Path) -> None:
    """Says that the pixels take one byte: the next chunk then begins among them."""
    content = bytearray(path.read_bytes())
    content[33:37] = struct.pack(">I", 1)
    path.write_bytes(content)


def filled(value: object, dtype: type = np.uint8, size: tuple[int, int] = SIZE) -> Callable[[Path], object]:
    """What replaces a file by a picture of one value."""
    value = np.array(value, dtype)
    return lambda path: save(path, np.broadcast_to(value, (*size, *value.shape)).copy())


PLANTED: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "picture without label": ("trainannot/p1.png", Path.unlink, "train/p1.png", "has no label; add .*annot/p1.png"),
    "label without picture": ("train/p1.png", Path.unlink, "trainannot/p1.png", "is the label of no picture; add"),
    "sizes differ": ("valannot/p0.png", filled(0, size=(8, 11)), "", "size 8 x 11 .*, 8 x 12; make the label anew"),
    "unknown id": ("valannot/p0.png", filled(40), "", "id 40 outside .*; correct the label"),
    "unknown colour": ("valannot/p0.png", filled((1, 2, 3)), "", "holds colours where ids are expected; write"),
    "transparent label": ("valannot/p0.png", filled((0, 0, 0, 0)), "", "has transparent pixels.*; save it without"),
    "label of 16 bits": ("valannot/p0.png", filled(300, np.uint16), "", "id 300 outside .*; correct the label"),
    "truncated picture": ("train/p2.png", truncate, "", "cannot be read as a picture .*; replace it"),
    "truncated label": ("trainannot/p2.png", truncate, "", "cannot be read as a picture .*; replace it"),
    "disordered picture": ("train/p2.png", disorder, "", "cannot be read as a picture .*broken PNG.*; replace it"),
    "empty picture": ("train/p2.png", lambda p: p.write_bytes(b""), "", "is empty: not a picture; replace it"),
    "empty label": ("trainannot/p2.png", lambda p: p.write_bytes(b""), "", "is empty: not a picture; replace it"),
    "text for a label": ("trainannot/p2.png", lambda p: p.write_text("hello"), "", "is not a picture; replace it"),
    "JPEG for a label": ("valannot/p0.png", lambda p: Image.open(p).save(p, "JPEG"), "", "is JPEG under a PNG's name"),
    "no pictures": ("train", shutil.rmtree, "train", "there is no folder of pictures here; check root="),
    "no labels": ("valannot", shutil.rmtree, "valannot", "there is no folder of labels here; check root="),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_every_planted_fault_is_found_with_its_file_and_remedy(tmp_path: Path, planted: str):
    root = camvid(tmp_path, train=3, val=1)
    assert list(opened("camvid", root).faults()) == []
    where, plant, named, message = PLANTED[planted]
    plant(root / where)
    (fault,) = opened("camvid", root).faults()
    assert fault.path == root / (named or where)
    with pytest.raises(FileError, match=message):
        raise fault


def test_a_folder_without_pictures_names_itself(tmp_path: Path):
    root = camvid(tmp_path, train=1, val=2)
    for path in (root / "val").iterdir():
        path.unlink()
    (fault,) = opened("camvid", root).faults()
    assert (fault.path, fault.problem) == (root / "val", "holds no picture")
    assert len(opened("camvid", root).split("train")) == 1  # the other folder is whole


def test_faults_of_tas500_name_each_file_once(tas: Path):
    first, second, third = sorted(path.name for path in (tas / "train").iterdir())
    truncate(tas / "train" / first)
    label = np.array(Image.open(tas / "train_labels_ids" / second))
    label[0, 0] = 22 if label[0, 0] != 22 else 21
    save(tas / "train_labels_ids" / second, label)
    filled((1, 2, 3))(tas / "train_labels" / third)
    shutil.rmtree(tas / "val")
    faults = {fault.path.relative_to(tas).as_posix(): fault for fault in opened("tas500", tas).faults()}
    assert len(list(opened("tas500", tas).faults())) == 4
    assert "cannot be read" in faults[f"train/{first}"].problem
    assert faults[f"train_labels/{second}"].problem == f"does not agree with {tas / 'train_labels_ids' / second}"
    assert "colour 1,2,3 outside" in faults[f"train_labels/{third}"].problem
    assert "no folder of pictures" in faults["val"].problem


def test_a_split_is_refused_with_its_first_fault(tmp_path: Path):
    root = camvid(tmp_path, train=3, val=1)
    for i in (1, 2):
        (root / "trainannot" / f"p{i}.png").unlink()
    with pytest.raises(FileError, match=r"has no label.*and 1 more: `trailseg data check`") as caught:
        opened("camvid", root).split("train")
    assert caught.value.path == root / "train" / "p1.png"


def test_a_bad_picture_keeps_its_place_so_that_the_others_stay_in_their_split(tmp_path: Path):
    root = folder(tmp_path)
    (root / "labels/p2.png").unlink()
    with pytest.raises(FileError, match="has no label"):
        opened("folder", root).split("val")
    for split, expected in (("train", ["p1", "p2", "p3", "p4", "p6"]), ("val", ["p0", "p5"])):
        found = opened("folder", root).split(split, skip_bad=True)
        assert names(found) == expected
        assert [picture.name for picture in found if isinstance(picture, BadPicture)] == ["p2"] * (split == "train")


@pytest.mark.parametrize(("depth", "kind", "channels"), [(16, 2, 3), (16, 6, 4), (4, 0, 1), (2, 0, 1)])
def test_labels_of_bits_that_pillow_scales_are_refused(tmp_path: Path, depth: int, kind: int, channels: int):
    root = camvid(tmp_path, train=1, val=1)
    rows = (b"\0" + bytes(-(-SIZE[1] * channels * depth // 8))) * SIZE[0]
    (root / "valannot" / "p0.png").write_bytes(png(depth, kind, rows))
    (fault,) = opened("camvid", root).faults()
    assert f"has {depth} bits a channel" in fault.problem


def png(depth: int, kind: int, rows: bytes, size: tuple[int, int] = SIZE) -> bytes:
    """A PNG file made by hand: Pillow does not write these."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_camvids_drives_are_splits_of_the_training_pictures(tmp_path: Path):
    root = camvid(tmp_path, train=5, val=2)
    for folder in ("train", "trainannot"):
        for place, drive in enumerate(("0001TP", "0001TP", "0006R0", "0016E5", "0016E5")):
            (root / folder / f"p{place}.png").rename(root / folder / f"{drive}_{place}.png")
    source = opened("camvid", root)
    assert names(source.split("only-0006R0")) == ["0006R0_2"]
    assert names(source.split("without-0006R0")) == ["0001TP_0", "0001TP_1", "0016E5_3", "0016E5_4"]
    assert names(select(source, "only-0001TP+only-0016E5")) == names(source.split("without-0006R0"))
    assert names(select(source, "train+val")) == [*names(source.split("train")), "p0", "p1"]
    for drive in ("0001TP", "0006R0", "0016E5"):
        parts = [{*names(source.split(f"{which}-{drive}"))} for which in ("only", "without")]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == {*names(source.split("train"))}
    with pytest.raises(OptionError, match="split=only-0001TX is not known: did you mean 'only-0001TP"):
        source.split("only-0001TX")


@pytest.mark.parametrize("data", ["tas500", "camvid", "folder"])
def test_a_root_that_is_not_there_or_empty_or_not_said(tmp_path: Path, data: str):
    with pytest.raises(FileError, match=r"there is no such folder; say root="):
        opened(data, tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"is empty; say root="):
        opened(data, tmp_path)
    with pytest.raises(OptionError, match="say root=FOLDER"):
        open_data(DataOptions(data=data, pictures=1), size=SIZE)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        ("tas50", None, "did you mean 'tas500'"),
        ("tas500", "corse", "did you mean 'coarse'"),
        ("procedural", "corse", "did you mean 'coarse'"),
        ("camvid", "fine", "leave labels out"),
        ("folder", "fine", "leave labels out"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, data: str, labels: str | None, message: str):
    with pytest.raises(OptionError, match=message):
        open_data(DataOptions(data=data, root=str(tmp_path), labels=labels, pictures=1), size=SIZE)


# --- Pictures


def test_read_image_in_every_mode(tmp_path: Path):
    rng = np.random.default_rng(0)
    rgb, grey = rng.integers(0, 256, (6, 9, 3), np.uint8), rng.integers(0, 256, (6, 9), np.uint8)
    grey_rgb, path = np.stack([grey] * 3, -1), tmp_path / "p.png"
    coloured = Image.fromarray(rgb)
    for image, expected in (
        (coloured, rgb),
        (Image.fromarray(grey), grey_rgb),
        (Image.fromarray(grey.clip(max=254).astype(np.uint16) * 257 + 200), grey_rgb.clip(max=254)),
        (Image.fromarray(np.dstack([rgb, grey])), rgb),
        (coloured.quantize(256), np.asarray(coloured.quantize(256).convert("RGB"))),
        (Image.fromarray(grey > 127), np.where(grey_rgb > 127, 255, 0)),
    ):
        image.save(path)
        read = read_image(path)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)


def tiff(values: np.ndarray, kind: int, number: int = 1, *, bits: int = 16, apart: bool = False) -> bytes:
    """An uncompressed TIFF file of (H, W) or (H, W, C), made by hand: Pillow does not write these.

    `kind` is 0 where 0 is white, 1 where it is black, 2 for RGB; `number` is 1 for whole, 2 for signed, 3 for floats.
    """
    height, width, channels = (*values.shape, 1)[:3]
    content = (np.moveaxis(values, -1, 0) if apart else values).tobytes()
    part = len(content) // (channels if apart else 1)
    fields = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [kind]}
    fields |= {273: list(range(8, 8 + len(content), part)), 277: [channels], 278: [height]}
    fields |= {279: [part] * (len(content) // part), 284: [1 + apart], 339: [number] * channels}
    entries, beyond, end = b"", b"", 8 + len(content) + 2 + 12 * len(fields) + 4
    for tag, numbers in fields.items():
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed, beyond = struct.pack("<I", end + len(beyond)), beyond + packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    return head + content + struct.pack("<H", len(fields)) + entries + bytes(4) + beyond


DEEP = np.random.default_rng(0).integers(0, 1 << 16, (*SIZE, 4), np.uint16)


@pytest.mark.parametrize(
    "content",
    [
        png(16, 2, b"".join(b"\0" + row.tobytes() for row in DEEP[..., :3].astype(">u2"))),
        png(16, 6, b"".join(b"\0" + row.tobytes() for row in DEEP.astype(">u2"))),
        tiff(DEEP[..., :3], 2),
    ],
)
def test_read_image_of_16_bits_a_channel_keeps_the_upper_8(tmp_path: Path, content: bytes):
    (tmp_path / "p").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "p"), DEEP[..., :3] >> 8)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (tiff(DEEP[..., 0].astype(np.uint32), 1, bits=32), "numbers of which none is known to be white"),
        (tiff(DEEP[..., 0].astype(np.int16), 1, 2), "numbers of which none is known to be white"),
        (tiff(DEEP[..., 0].astype(np.float32), 1, 3, bits=32), "numbers of which none is known to be white"),
        (tiff(DEEP[..., 0], 0), "12 bits, or one whose white is 0"),
        (tiff(DEEP[..., 0], 1, bits=12), "12 bits, or one whose white is 0"),
        (tiff(DEEP[..., :3], 2, apart=True), "whose channels lie apart"),
        (b"hello", "is not a picture; replace it"),
    ],
)
def test_read_image_refuses_by_name_what_pillow_would_show_wrongly(tmp_path: Path, content: bytes, problem: str):
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(FileError, match=problem):
        read_image(path)
    path.write_bytes(tiff(DEEP[..., 0], 1))  # that, one hand's work away, is read
    np.testing.assert_array_equal(read_image(path)[..., 1], DEEP[..., 0] // 257)
    path.write_bytes(tiff(DEEP[..., :3].astype(np.uint8), 2, bits=8, apart=True))
    np.testing.assert_array_equal(read_image(path), DEEP[..., :3].astype(np.uint8))


@pytest.mark.filterwarnings("error::UserWarning")
def test_read_image_drops_transparency(tmp_path: Path):
    rng, path = np.random.default_rng(0), tmp_path / "p.png"
    image = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).quantize(16)
    shown = np.asarray(image.convert("RGB"))
    for transparency in (3, bytes(range(16))):
        image.save(path, transparency=transparency)
        assert "transparency" in Image.open(path).info
        np.testing.assert_array_equal(read_image(path), shown)
    save(path, np.dstack([shown[..., 0], np.zeros_like(shown[..., 0])]))
    assert Image.open(path).mode == "LA"
    np.testing.assert_array_equal(read_image(path), shown[..., :1].repeat(3, 2))


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.tif", "p.webp"])
def test_read_image_turns_by_every_exif_orientation(tmp_path: Path, name: str):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8], upright[:8, 24:], upright[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    across = upright.swapaxes(0, 1)
    stored |= {5: across, 6: across[::-1], 7: across[::-1, ::-1], 8: across[:, ::-1]}
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name, exif=exif, quality=95)
        read = read_image(tmp_path / name)
        assert read.shape == upright.shape, orientation
        assert np.abs(read.astype(int) - upright).mean() < 8, orientation
    Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 257).save(tmp_path / "deep.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 0], [[2, 5], [1, 4], [0, 3]])


def test_read_image_of_cmyk(tmp_path: Path):
    for colour in ((250, 250, 0), (10, 200, 90), (128, 30, 60)):
        Image.new("RGB", (16, 8), colour).convert("CMYK").save(tmp_path / "p.jpg", quality=95)
        assert b"Adobe" in (tmp_path / "p.jpg").read_bytes()  # which says that the inks are stored inverted
        assert abs(read_image(tmp_path / "p.jpg").astype(int) - colour).max() < 5
        Image.new("RGB", (16, 8), colour).convert("CMYK").save(tmp_path / "p.tif")  # as they are
        assert abs(read_image(tmp_path / "p.tif").astype(int) - colour).max() < 5


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 11_001)])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path: Path, size: tuple[int, int]):
    path, limit = tmp_path / "p.png", Image.MAX_IMAGE_PIXELS
    path.write_bytes(png(1, 0, bytes(size[0] * (1 + -(-size[1] // 8))), size))
    tracemalloc.start()
    with pytest.raises(FileError, match=f"has {size[0]} x {size[1]} pixels, more than the 110 million.*; scale it"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_pillow_likes_are_read_and_no_more_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save(tmp_path / "p.png", np.zeros((*SIZE, 3), np.uint8))
    for limit in (10, 60):  # Pillow would refuse at twice its limit, and warn above it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert read_image(path).shape == (*SIZE, 3)
        assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(pictures, "MAX_PIXELS", 96)
    assert read_image(path).shape == (*SIZE, 3)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 95)
    monkeypatch.setattr(Image.Image, "load", None)  # would be a TypeError if it were called
    with pytest.raises(FileError, match="has 8 x 12 pixels"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of the damage, too
def test_damaged_exif_only_ever_raises_a_file_error(tmp_path: Path):
    rng, path, exif = random.Random(0), tmp_path / "p.webp", Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    Image.new("RGB", (20, 20)).save(path, exif=exif)
    whole, refused = path.read_bytes(), 0
    place = whole.index(b"EXIF")
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(place + 8, len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read_image(path).shape == (20, 20, 3)
        except FileError:
            refused += 1
    assert 5 < refused < 150


# --- Memory


class Held:
    """A picture held in memory."""

    def __init__(self, name: str, image: np.ndarray, ids: np.ndarray) -> None:
        self.name, self.image, self.ids = name, image, ids

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        return self.image, self.ids


def held(count: int = 3, size: tuple[int, int] = SIZE) -> list[Picture]:
    rng = np.random.default_rng(1)
    return [
        Held(f"h{i}", rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 5, size, np.uint8))
        for i in range(count)
    ]


def test_decode_keeps_the_pictures_in_their_order():
    pictures = held(9)
    kept = memory.decode(pictures, SIZE)
    assert kept.names == names(pictures)
    for i, picture in enumerate(pictures):
        image, ids = picture.read()
        np.testing.assert_array_equal(kept.images[i].permute(1, 2, 0), image)
        np.testing.assert_array_equal(kept.labels[i], ids)
        np.testing.assert_array_equal(kept.truths[i], ids)


@pytest.mark.parametrize("size", [(4, 8), (5, 7), (24, 36)])
def test_decode_at_another_size(size: tuple[int, int]):
    image = held(1, (12, 24))[0].read()[0]
    ids = np.repeat(np.array([3, 17], np.uint8), 12)[None].repeat(12, 0)
    kept = memory.decode([Held("a", image, ids)], size)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), size, mode="bilinear", antialias=True
    )
    assert (kept.images - smooth).abs().max() < 1.01
    middle = (torch.arange(size[1]) + 0.5) * 24 / size[1]
    assert (kept.labels[0] == torch.where(middle < 12, 3, 17)).all()  # never a class between the two
    np.testing.assert_array_equal(kept.truths[0], ids)


def test_decode_raises_what_a_reader_raises(tmp_path: Path):
    root = camvid(tmp_path, train=6, val=1)
    truncate(root / "train" / "p4.png")
    with pytest.raises(FileError, match=r"p4\.png: cannot be read"):
        memory.decode(opened("camvid", root).split("train"), SIZE)


def test_fingerprint_tells_of_pixels_and_names_not_of_the_place(tmp_path: Path):
    prints = set()
    for root in (tmp_path / "a", tmp_path / "b"):
        prints.add(
            memory.decode(opened("camvid", camvid(root, train=3, val=1)).split("train"), SIZE).counts.fingerprint
        )
    assert len(prints) == 1
    kept = memory.decode(opened("camvid", tmp_path / "a").split("train"), SIZE)
    for change in ("images", "labels"):
        changed = getattr(kept, change).clone()
        changed.view(-1)[-1] ^= 1
        prints.add(replace(kept, **{change: changed}).counts.fingerprint)
    prints.add(replace(kept, names=["p0", "p1", "q2"]).counts.fingerprint)
    assert len(prints) == 4


def test_mean_and_std():
    kept = memory.decode(held(), SIZE)
    mean, std = kept.mean_and_std()
    values = kept.images.numpy() / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-6)
    flat = replace(kept, images=torch.full_like(kept.images, 51)).mean_and_std()
    np.testing.assert_allclose(flat[0], [0.2] * 3, rtol=1e-6)
    np.testing.assert_allclose(flat[1], [1 / 255] * 3, rtol=1e-6)  # a flat picture must not divide by zero


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 23), batch=st.integers(1, 9), world=st.integers(1, 3), epoch=st.integers(0, 3))
def test_an_epoch_visits_every_picture_once(count: int, batch: int, world: int, epoch: int):
    ranks = [
        list(memory.batches(count, batch=batch, seed=2, epoch=epoch, rank=rank, world=world)) for rank in range(world)
    ]
    assert {len(rank) for rank in ranks} == {-(-count // batch)}
    whole = list(memory.batches(count, batch=batch, seed=2, epoch=epoch))
    order = memory.epoch_order(count, seed=2, epoch=epoch)
    assert sum(len(alone.everyone) for alone in whole) == count
    for alone, *parts in zip(whole, *ranks, strict=True):
        assert not alone.repeated.any()
        assert all(torch.equal(part.everyone, alone.pictures) for part in parts)
        assert len({len(part.pictures) for part in parts}) == 1  # the processes stay in step
        counted = sorted(p for part in parts for p in part.places[~part.repeated.numpy()])
        assert counted == alone.places.tolist()
        for part in (alone, *parts):
            assert part.pictures.tolist() == order[part.places].tolist()
    assert sorted(p for alone in whole for p in alone.pictures.tolist()) == list(range(count))


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): memory.epoch_order(50, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1)
    }
    np.random.seed(3)  # noqa: NPY002  (a global state that must not matter)
    assert memory.epoch_order(50, seed=1, epoch=0).tolist() == orders[1, 0]
    assert len(set(map(tuple, orders.values()))) == 4


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(16, 24), (17, 23), (3, 5)])
def test_labels_at_scale_take_the_middle_of_each_square(scale: int, size: tuple[int, int]):
    height, width = size
    labels = torch.arange(height * width).remainder(200).to(torch.uint8).view(1, height, width)
    small = memory.labels_at_scale(labels, scale)
    assert small.shape == (1, -(-height // scale), -(-width // scale))
    for y in range(small.shape[1]):
        for x in range(small.shape[2]):
            middle = y * scale + scale // 2, x * scale + scale // 2
            inside = middle[0] < height and middle[1] < width
            assert small[0, y, x] == (labels[0, *middle] if inside else IGNORE)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(16, 24), (17, 23), (3, 5)])
def test_shares_at_scale_are_those_of_the_classes_in_each_square(scale: int, size: tuple[int, int]):
    labels = torch.randint(0, 4, (2, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels[labels == 3] = IGNORE
    shares = memory.shares_at_scale(labels, scale, 3)
    assert shares.shape == (2, 3, -(-size[0] // scale), -(-size[1] // scale))
    for b, k, y, x in np.ndindex(*shares.shape):
        square = labels[b, y * scale : (y + 1) * scale, x * scale : (x + 1) * scale]
        assert shares[b, k, y, x] == (square == k).sum() / scale**2


# --- Procedural scenes and counts


def test_procedural():
    source = open_data(DataOptions(data="procedural", labels="fine", pictures=6), size=(16, 32))
    assert isinstance(source, Procedural)
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [6, 1, 1]
    assert len({picture.name for split in ("train", "val", "test") for picture in source.split(split)}) == 8
    image, ids = source.split("val")[0].read()
    expected = scenes.scene(seed=0, index=scenes.OFFSETS["val"], size=(16, 32))
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    assert list(source.faults()) == []


def test_counts_by_hand(tmp_path: Path):
    image = np.zeros((2, 3, 3), np.uint8)
    pictures = [
        Held("a", image, np.array([[0, 0, 1], [1, 1, 255]], np.uint8)),
        Held("b", image, np.array([[0, 0, 0], [0, 0, 8]], np.uint8)),
    ]
    counts = statistics.count(pictures, TAS500_COARSE)
    assert [c.name for c in counts] == [*TAS500_COARSE.classes, "(ignored)"]
    assert [c.pixels for c in counts] == [7, 3, 0, 0, 0, 0, 0, 0, 1, 1]
    assert [c.pictures for c in counts] == [2, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert [c.share for c in counts] == [c.pixels / 12 for c in counts]
    assert [c.colour for c in counts] == [*TAS500_COARSE.colours, (0, 0, 0)]
    plot = np.asarray(Image.open(statistics.plot(counts, "two", tmp_path / "new" / "plot.png")).convert("RGB"))
    drawn = set(map(tuple, plot.reshape(-1, 3).tolist()))
    assert TAS500_COARSE.colours[0] in drawn
    assert TAS500_COARSE.colours[8] in drawn
