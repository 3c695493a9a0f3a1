"""Data sets that are spoiled in one way each: `data check` tells the file, the cause and the remedy in one line."""

import json
import os
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import children
import numpy as np
import pytest
import yaml
from PIL import Image
from test_data import DEEP, SIZE, camvid, png, save, save_pair, tiff

from trailseg.cli import run
from trailseg.config import DataOptions
from trailseg.data import scenes
from trailseg.data.memory import decode
from trailseg.data.readers import open_data, select
from trailseg.errors import FileError
from trailseg.runs import Run

CLASSES = [{"name": "soil", "id": 0, "colour": [10, 20, 30]}, {"name": "sky", "id": 1, "colour": [200, 100, 50]}]
DESCRIBED = {"pictures": "{split}/rgb", "labels": "{split}/truth", "classes": CLASSES}
PICTURE, LABEL, YAML = "train/rgb/p1.png", "train/truth/p1.png", "data.yaml"


def good(root: Path) -> Path:
    """A data set of 4 pictures for train and 2 for val, and the YAML file that describes it."""
    for split, first, count in (("train", 0, 4), ("val", 10, 2)):
        for i in range(first, first + count):
            save_pair(root / split / "rgb" / f"p{i}.png", root / split / "truth" / f"p{i}.png", seed=i, classes=2)
    (root / YAML).write_text(yaml.safe_dump(DESCRIBED))
    return root


class Kind(NamedTuple):
    """One way to spoil a data set."""

    spoil: Callable[[Path], object]
    """Called with the file at `where`."""
    where: str
    cause: str
    remedy: str
    named: str = ""
    """What the line begins with, if not with `where`."""
    data: str = "folder"
    stops: bool = True
    """Whether a training stops for it, too."""


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def described(**changes: object) -> Callable[[Path], object]:
    return text(yaml.safe_dump({**DESCRIBED, **changes}))


def filled(value: object, dtype: type = np.uint8, size: tuple[int, int] = SIZE) -> Callable[[Path], object]:
    """A picture of one value, as PNG."""
    value = np.array(value, dtype)
    return lambda path: save(path, np.broadcast_to(value, (*size, *value.shape)).copy())


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer := BytesIO(), form, **options)
    return buffer.getvalue()


def instead(name: str, content: bytes) -> Callable[[Path], object]:
    """Another picture file in the place of this one, with the same label."""

    def spoil(path: Path) -> None:
        path.unlink()
        path.with_name(name).write_bytes(content)

    return spoil


def torn(form: str) -> Callable[[Path], object]:
    suffix = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tif"}[form]
    content = encoded(form)
    return instead(f"p1.{suffix}", content[: len(content) * 2 // 3])


def wrong_checksum(path: Path) -> None:
    """One bit of the checksum of the pixels, which decode as well as before."""
    content = bytearray(path.read_bytes())
    place = content.index(b"IEND") - 8
    content[place] ^= 1
    path.write_bytes(content)


def both(new: str | bytes) -> Callable[[Path], object]:
    """Renames picture and label."""

    def spoil(path: Path) -> None:
        name = os.fsdecode(new)
        (path.parents[1] / "truth" / path.name).rename(path.parents[1] / "truth" / name)
        path.rename(path.with_name(name))

    return spoil


def two_forms(path: Path) -> None:
    """A picture whose accent is one character, and a label whose accent is two."""
    path.rename(path.with_name(normalize("NFC", "é.png")))
    label = path.parents[1] / "truth" / path.name
    label.rename(label.with_name(normalize("NFD", "é.png")))


def link(to: str, *, hard: bool = False) -> Callable[[Path], object]:
    """The file becomes a link to `to`, a path from its own folder."""

    def spoil(path: Path) -> None:
        path.unlink(missing_ok=True)
        if hard:
            path.hardlink_to(path.parent / to)
        else:
            path.symlink_to(to)

    return spoil


def sparse(path: Path) -> None:
    """More bytes than allowed, of which the disk holds none."""
    with path.open("r+b") as file:
        file.truncate(1_000_000_001)


def smoothed(path: Path) -> None:
    ids = np.asarray(Image.open(path))
    colours = np.array([c["colour"] for c in CLASSES], np.uint8)[ids]
    Image.fromarray(colours).resize((36, 24), Image.Resampling.BILINEAR).resize(SIZE[::-1]).save(path)


def palette(path: Path) -> None:
    """Ids 0 and 1 whose colours are those of the classes 1 and 0."""
    image = Image.fromarray(np.asarray(Image.open(path))).convert("P")
    image.putpalette([*CLASSES[1]["colour"], *CLASSES[0]["colour"]])  # type: ignore[misc]
    image.save(path)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def one_folder(path: Path) -> None:
    """Six pictures of one folder, of which every fifth is val: p1, and in val p5, are one."""
    root = path.parent
    for i in range(6):
        save_pair(root / "pictures" / f"p{i}.png", root / "labels" / f"p{i}.png", seed=i if i < 5 else 1, classes=2)
    path.write_text(yaml.safe_dump({"classes": CLASSES}))


def tags(repeated: int = 300, size: int = 10_000) -> bytes:
    """A TIFF directory whose tags all have the same bytes for their value."""
    shape = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    shape += [(277, 3, 1, 1), (278, 4, 1, 4), (279, 4, 1, 16)]
    every = sorted([*shape, *((1000 + i, 1, size, 8) for i in range(repeated))])
    packed = b"".join(struct.pack("<HHII", *tag) for tag in every)
    return struct.pack("<2sHI", b"II", 42, 8 + size) + bytes(size) + struct.pack("<H", len(every)) + packed + bytes(4)


def scans(count: int = 200) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encoded("JPEG", progressive=True)
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * count + content[-2:]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
REPLACE, CORRECT = "replace it with a whole one", "correct the label or the class table"
SHOWS, CHECK, APART = "docs/data.md shows", "check root=", "leave it out of one of the two"
VAL = "val/rgb/p10.png"

KINDS: dict[str, Kind] = {
    # the folders
    "label missing": Kind(Path.unlink, LABEL, "has no label", "add .*truth/p1.png", PICTURE),
    "label spare": Kind(Path.unlink, PICTURE, "label of no picture", "or remove it", LABEL),
    "ending in capitals": Kind(
        lambda p: p.rename(p.with_suffix(".PNG")), LABEL, "capitals", "rename it to p1.png", "train/truth/p1.PNG"
    ),
    "accents of two forms": Kind(two_forms, PICTURE, "accents", "rename it to", "train/truth/" + normalize("NFD", "é")),
    "name is not UTF-8": Kind(both(b"p\xff.png"), PICTURE, "no text: not UTF-8", "rename it", "train/rgb/p\udcff.png"),
    "name of two lines": Kind(both("p\n1.png"), PICTURE, "control characters", "rename it", "train/rgb/p\\n1.png"),
    "two of one name": Kind(
        lambda p: (p.parent / "p1.jpg").write_bytes(encoded("JPEG")), PICTURE, "has the name of", "rename or remove"
    ),
    "no pictures": Kind(
        lambda p: [x.unlink() for x in p.iterdir()], "train/rgb", "holds no picture", CHECK,
    ),
    "no folder of pictures": Kind(shutil.rmtree, "train/rgb", "no folder of pictures", CHECK),
    "no folder of labels": Kind(shutil.rmtree, "val/truth", "no folder of labels", CHECK),
    "a file for the folder": Kind(
        lambda p: (shutil.rmtree(p), p.write_text("x")), "val/truth", "no folder of labels", CHECK
    ),
    "folder in a ring of links": Kind(
        lambda p: (shutil.rmtree(p), p.symlink_to("rgb")), "val/rgb", "pictures cannot be read", "give permission"
    ),
    "root is a file": Kind(lambda p: (shutil.rmtree(p), p.write_text("x")), "", "is a file", "root=", data="camvid"),
    "root is not there": Kind(shutil.rmtree, "", "no such folder", "root="),
    "root is empty": Kind(lambda p: (shutil.rmtree(p), p.mkdir()), "", "is empty", "root="),
    "two YAML files": Kind(lambda p: shutil.copy(p, p.with_name("b.yml")), YAML, "2 YAML files", "put one", " "),
    "no YAML file": Kind(Path.unlink, YAML, "0 YAML files", "put one", " "),
    # the YAML file
    "unknown key": Kind(described(label="x"), YAML, "key=label is not known: did you mean 'labels'", SHOWS),
    "two classes of a name": Kind(described(classes=["a", "a"]), YAML, "same name", SHOWS),
    "two classes of an id": Kind(described(classes=["a", {"name": "b", "id": 0}]), YAML, "0 stands for two", SHOWS),
    "two classes of a colour": Kind(
        described(classes=[{**c, "colour": [1, 2, 3]} for c in CLASSES]), YAML, "stands for two classes", SHOWS
    ),
    "bad colour": Kind(described(classes=[{"name": "a", "colour": [1, 2, 256]}]), YAML, "three numbers", SHOWS),
    "bad id": Kind(described(classes=[{"name": "a", "id": 70000}]), YAML, "0-65535", SHOWS),
    "no classes": Kind(described(classes=[]), YAML, "classes is not a list", SHOWS),
    "too many classes": Kind(described(classes=[f"c{i}" for i in range(255)]), YAML, "list of 1 to 254", SHOWS),
    "unknown encoding": Kind(described(encoding="colour"), YAML, "did you mean 'colours'", SHOWS),
    "half a split": Kind(described(pictures="train/rgb"), YAML, "only one of pictures and labels", SHOWS),
    "YAML with an alias": Kind(text("classes: &a [x]\nignore: *a\n"), YAML, "alias", SHOWS),
    "YAML with a tag": Kind(text("classes: !!python/object:os.x {}\n"), YAML, "tag", SHOWS),
    "YAML not UTF-8": Kind(text(b"classes: [stra\xdfe, sky]\n"), YAML, "utf-8|codec", SHOWS),
    "YAML cut off": Kind(text("classes: [a"), YAML, "expected", SHOWS),
    "YAML is a list": Kind(text("[a, b]"), YAML, "holds no mapping", SHOWS),
    "YAML too large": Kind(text("#" * 1_000_000), YAML, "larger than", SHOWS),
    "YAML nested deep": Kind(text("classes: " + "[" * 5000), YAML, "deep", SHOWS),
    # labels
    "sizes differ": Kind(filled(0, size=(8, 11)), LABEL, "size 8 x 11 is not that of its picture", "make the label"),
    "JPEG as a label": Kind(text(encoded("JPEG", "L")), LABEL, "is JPEG under a PNG's name", "as PNG"),
    "CMYK label": Kind(text(encoded("TIFF", "CMYK")), LABEL, "is TIFF under a PNG's name", "as PNG"),
    "label of 16 bits and colours": Kind(
        text(png(16, 2, (b"\0" + bytes(72)) * 8)), LABEL, "16 bits a channel", "8 bits a channel"
    ),
    "label of 4 bits": Kind(text(png(4, 0, (b"\0" + bytes(6)) * 8)), LABEL, "4 bits a channel", "8 bits a channel"),
    "16 bits and an id above 255": Kind(filled(300, np.uint16), LABEL, "id 300 outside", CORRECT),
    "unknown id": Kind(filled(7), LABEL, "id 7 outside the classes", CORRECT),
    "unknown colour": Kind(filled((1, 2, 3)), LABEL, "colour 1,2,3 outside", CORRECT),
    "transparent label": Kind(filled((10, 20, 30, 99)), LABEL, "transparent pixels", "without an alpha channel"),
    "grey and transparent label": Kind(filled((1, 99)), LABEL, "transparent pixels", "without an alpha channel"),
    "ambiguous label": Kind(palette, LABEL, "is ambiguous", "say which encoding"),
    "smoothed label": Kind(smoothed, LABEL, "outside the classes", "smoothed"),
    "photograph as a label": Kind(text(encoded("PNG")), LABEL, "outside the classes", "is this a photograph"),
    "all ignored": Kind(filled(255), LABEL, "no pixel of a class", "label it, or remove it"),
    "label torn": Kind(lambda p: p.write_bytes(p.read_bytes()[:50]), LABEL, "cannot be read as a picture", REPLACE),
    "label empty": Kind(text(""), LABEL, "is empty", REPLACE),
    "label of Git LFS": Kind(text(POINTER), LABEL, "pointer of Git LFS", "git lfs pull"),
    "label a dangling link": Kind(link("gone.png"), LABEL, "is a link to gone.png", "mend the link"),
    "two share a label by link": Kind(link("p2.png"), LABEL, "is one file with .*p2.png", "a label of its own"),
    "two share a label by hard link": Kind(
        link("p2.png", hard=True), LABEL, "is one file with .*p2.png", "a label of its own"
    ),
    "ids where colours are said": Kind(described(encoding="colours"), YAML, "grey where colours", "encoding", LABEL),
    # pictures
    "PNG torn": Kind(torn("PNG"), PICTURE, "cannot be read as a picture", REPLACE),
    "JPEG torn": Kind(torn("JPEG"), PICTURE, "cannot be read as a picture", REPLACE, "train/rgb/p1.jpg"),
    "WebP torn": Kind(torn("WEBP"), PICTURE, "cannot be read|not a picture", REPLACE, "train/rgb/p1.webp"),
    "TIFF torn": Kind(torn("TIFF"), PICTURE, "cannot be read|not a picture", REPLACE, "train/rgb/p1.tif"),
    "wrong checksum": Kind(wrong_checksum, PICTURE, "checksum", REPLACE),
    "text as PNG": Kind(text("hello"), PICTURE, "is not a picture", REPLACE),
    "HTML as JPEG": Kind(instead("p1.jpg", b"<!DOCTYPE html>"), PICTURE, "is HTML", "save it as", "train/rgb/p1.jpg"),
    "GIF as PNG": Kind(text(encoded("GIF")), PICTURE, "is GIF, whatever", "save it as PNG"),
    "BMP as PNG": Kind(text(encoded("BMP")), PICTURE, "is BMP, whatever", "save it as PNG"),
    "PDF as PNG": Kind(text(encoded("PDF")), PICTURE, "is PDF, whatever", "save it as PNG"),
    "HEIF as JPEG": Kind(
        instead("p1.jpg", b"\0\0\0\x18ftypheic\0\0"), PICTURE, "is HEIF", "save it as", "train/rgb/p1.jpg"
    ),
    "PPM as PNG": Kind(text(encoded("PPM")), PICTURE, "is not a picture", REPLACE),
    "picture empty": Kind(text(""), PICTURE, "is empty", REPLACE),
    "picture of Git LFS": Kind(text(POINTER), PICTURE, "pointer of Git LFS", "git lfs pull"),
    "a folder for a picture": Kind(to_folder, PICTURE, "is a folder", "rename or remove"),
    "a pipe for a picture": Kind(to_pipe, PICTURE, "is a pipe", "rename or remove"),
    "picture a dangling link": Kind(link("gone.png"), PICTURE, "is a link to gone.png, which is not", "mend the link"),
    "picture in a ring of links": Kind(link("p1.png"), PICTURE, "cannot be read .*links", REPLACE),
    "too many pixels": Kind(text(png(1, 0, b"", (20_000, 20_000))), PICTURE, "20000 x 20000 pixels", "scale it down"),
    "too many bytes": Kind(sparse, PICTURE, "1000 MB, more than", "scale it down"),
    "TIFF of floats": Kind(
        instead("p1.tif", tiff(DEEP[..., 0].astype(np.float32), 1, 3, bits=32)), PICTURE, "none is known to be white",
        "8 bits a channel", "train/rgb/p1.tif",
    ),
    "TIFF of 12 bits": Kind(
        instead("p1.tif", tiff(DEEP[..., 0], 1, bits=12)), PICTURE, "12 bits", "8 bits a channel", "train/rgb/p1.tif"
    ),
    "TIFF of tags in each other": Kind(
        instead("p1.tif", tags()), PICTURE, "tags say that they are larger", REPLACE, "train/rgb/p1.tif"
    ),
    "JPEG of many scans": Kind(
        instead("p1.jpg", scans()), PICTURE, "more than 100 scans", "save it anew", "train/rgb/p1.jpg"
    ),
    "far too much EXIF": Kind(text(encoded("PNG", exif=tags(size=70_000))), PICTURE, "kB of EXIF", "save it without"),
    # splits
    "val has a picture of train, by bytes": Kind(
        lambda p: shutil.copy(p, p.parents[2] / VAL), PICTURE, "is also in train", APART, VAL, stops=False
    ),
    "val has a picture of train, by link": Kind(
        link("../../train/rgb/p1.png"), VAL, "is also in train", APART, stops=False
    ),
    "val has a picture of train, by hard link": Kind(
        link("../../train/rgb/p1.png", hard=True), VAL, "is also in train", APART, stops=False
    ),
    "test has pictures of val": Kind(
        lambda p: shutil.copytree(p, p.parent / "test"), "val", "of test is also in val", APART, "test/rgb/p10.png",
        stops=False,
    ),
    "one folder has a picture twice": Kind(
        one_folder, YAML, "of val is also in train|of train is also in val", APART, "pictures/p", stops=False
    ),
    # the layouts of CamVid and TAS500
    "CamVid without labels": Kind(
        lambda p: (camvid(p, train=2, val=2), shutil.rmtree(p / "valannot")), "", "no folder of labels", CHECK,
        "valannot", "camvid",
    ),
    "TAS500's copies of a label disagree": Kind(
        lambda p: (
            scenes.write(p, train=2, val=1, test=0, size=(24, 40), seed=3),
            [Image.open(f).rotate(180).save(f) for f in sorted(p.glob("tas500v1.1/train_labels/*"))[:1]],
        ),
        "", "does not agree with", "replace the wrong one", "tas500v1.1/train_labels", "tas500", stops=False,
    ),
}  # fmt: skip


QUICK = ("label missing", "no YAML file", "root is a file", "unknown id", "all ignored", "PNG torn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return good(tmp_path_factory.mktemp("good") / "set")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def train_words(root: Path, out: Path, **options: object) -> list[str]:
    given = {
        "data": "folder", "root": root, "stem": "x2", "channels": 8, "depth": 1, "size": "16,24", "batch": 2,
        "epochs": 1, "steps": 2, "augment": "none", "device": "cpu", "out": out,
    } | options  # fmt: skip
    return ["train", *(f"{name}={value}" for name, value in given.items())]


def told(capfd) -> list[str]:
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return (captured.out + captured.err).splitlines()


def shown(path: str) -> str:
    """As a path stands in a line: what is no text is written out."""
    return re.escape(path.encode(errors="backslashreplace").decode())


def read(data: str, root: Path) -> None:
    """All that a training reads."""
    source = open_data(DataOptions(data=data, root=str(root), pictures=1), size=SIZE)
    for split in ("train", "val"):
        decode(select(source, split), SIZE)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_bad_data_set_is_told_with_file_cause_and_remedy(name, copy, tmp_path, capfd, tally, trials):
    kind = KINDS[name]
    kind.spoil(copy / kind.where if kind.where else copy)
    command = ["data", "check", f"data={kind.data}", f"root={copy}"]
    named = shown(str(copy / (kind.named.strip() or ("" if kind.named else kind.where))))
    wanted = re.compile(rf"(trailseg data check: )?{named}[^;]*({kind.cause}).*;.*({kind.remedy})")
    if name == "a pipe for a picture":  # might wait for ever
        ended = children.call(tmp_path / "child", *command, seconds=30)
        code, lines = ended.code, (ended.out + ended.err).splitlines()
    else:
        code, lines = run(command), told(capfd)
    found = [line for line in lines if wanted.match(line.encode(errors="backslashreplace").decode())]
    assert (code, len(found) >= 1) == (1, True), "\n".join([wanted.pattern, *lines])
    if kind.stops:
        with pytest.raises(FileError):
            read(kind.data, copy)
    if kind.stops and trials(name in QUICK, True):
        assert run(train_words(copy, tmp_path / "run", data=kind.data)) == 1
        (line,) = told(capfd)
        assert line.startswith("trailseg train: ")
        assert not (tmp_path / "run").exists()
    tally("kinds of bad data set told with file, cause and remedy", len(found) > 0, 1)


def test_a_good_data_set_has_no_faults_whatever_its_names(copy, tmp_path, capfd):
    for i, new in enumerate((normalize("NFC", "Straße é"), normalize("NFD", "ü"), "日本 1", "narrow\u202fspace")):
        for kind in ("rgb", "truth"):
            (copy / "train" / kind / f"p{i}.png").rename(copy / "train" / kind / f"{new}.png")
    assert run(["data", "check", "data=folder", f"root={copy}"]) == 0
    assert told(capfd) == [f"0 faults in {copy}"]
    assert run(train_words(copy, tmp_path / "run")) == 0


def test_bad_files_stop_a_run_or_are_left_out_and_listed(whole, copy, tmp_path, capfd, tally):
    assert run(train_words(whole, tmp_path / "whole", skip_bad="true")) == 0
    wrong_checksum(copy / PICTURE)
    both("p2\udcff.png")(copy / "train/rgb/p2.png")
    (copy / "val/truth/p11.png").unlink()
    told(capfd)
    assert run(train_words(copy, tmp_path / "run")) == 1
    (line,) = told(capfd)
    assert re.search(r"p2.*no text.*; rename it", line)
    assert not (tmp_path / "run").exists()
    for out in (tmp_path / "run", tmp_path / "again"):  # the second from the cache
        assert run(train_words(copy, out, skip_bad="true")) == 0
        assert f"left out 3 of 6 pictures, listed in {out}/skipped.txt" in told(capfd)
        listed = (out / "skipped.txt").read_text().splitlines()
        wanted = [
            rf"{re.escape(str(copy))}/train/rgb/p1\.png: cannot be read .*checksum.*; replace it",
            rf"{re.escape(str(copy))}/train/rgb/p2\\udcff\.png: has a name that is no text.*; rename it",
            rf"{re.escape(str(copy))}/val/rgb/p11\.png: has no label; add ",
        ]
        assert all(re.match(*pair) for pair in zip(wanted, listed, strict=True)), listed
        assert Run.open(out).config["data"]["left_out"] == 3
        assert run(["evaluate", str(out), "device=cpu", "json=true"]) == 0
        measured = json.loads("".join(told(capfd)))
        assert (measured["images"], measured["left_out"]) == (1, 1)
        tally("runs that left out bad pictures, said so and listed them", 1, 1)
    assert not (tmp_path / "whole/skipped.txt").exists()
    assert "left_out" not in Run.open(tmp_path / "whole").config["data"]


# --- What the user may not do: root may do all, so a process of its own becomes nobody


@pytest.fixture
def open_to_all():
    """A folder that nobody, too, can reach and write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in [folder, *(Path(where) for where, _, _ in os.walk(folder))]:
        path.chmod(0o777)
    shutil.rmtree(folder)


def become_nobody(home: Path) -> None:
    """Called in a process of its own."""
    os.umask(0)
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "HOME"):
        os.environ[name] = str(home)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def as_nobody(folder: Path, *words: object) -> children.Ended:
    child = folder / "child"
    child.mkdir(exist_ok=True)
    child.chmod(0o777)
    return children.call(child, *words, before=(become_nobody, folder))


@pytest.mark.parametrize(
    ("where", "mode"), [(PICTURE, 0), (LABEL, 0), ("train/rgb", 0o311)], ids=["picture", "label", "folder"]
)
def test_what_may_not_be_read_is_told(open_to_all, where, mode, tally):
    root = good(open_to_all / "set")
    (root / where).chmod(mode)
    ended = as_nobody(open_to_all, "data", "check", "data=folder", f"root={root}")
    wanted = re.compile(rf"{re.escape(str(root / where))}.* cannot be read \(Permission denied\); give permission")
    assert ended.code == 1, ended
    assert any(wanted.search(line) for line in ended.out.splitlines()), ended
    tally("kinds of bad data set told with file, cause and remedy", 1, 1)


def tree(root: Path) -> str:
    """A hash of every name, content, mode and time of change under a folder."""
    digest = sha256()
    for path in sorted([root, *root.rglob("*")]):
        found = path.lstat()
        digest.update(repr((str(path), found.st_mode, found.st_mtime_ns, found.st_ctime_ns)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


@pytest.mark.skipif(
    os.getuid() == 0 and not all(p.stat().st_mode & 1 for p in [*Path(sys.prefix).parents, *Path(__file__).parents]),
    reason="this checkout is closed to others, so nobody cannot run it",
)
def test_a_data_set_is_never_written_to(open_to_all, tally):
    root, out = good(open_to_all / "set"), open_to_all / "run"
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree(root)
    commands = [
        ["data", "check", "data=folder", f"root={root}"],
        ["data", "stats", "data=folder", f"root={root}", f"out={open_to_all / 'stats.png'}"],
        train_words(root, out),
        train_words(root, open_to_all / "mapped", memory=0),
        ["evaluate", out, "device=cpu"],
        ["predict", f"model={out}", f"pictures={root / 'val/rgb'}", f"out={open_to_all / 'answers'}", "device=cpu"],
    ]
    for words in commands:
        ended = as_nobody(open_to_all, *words)
        assert ended.code == 0, ended
        assert tree(root) == before, words
        tally("commands that left a read-only data set as it was", 1, 1)
    assert len(list((open_to_all / "trailseg").iterdir())) == 2 * 2  # the cache was used, and lies elsewhere
