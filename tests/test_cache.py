"""The cache of decoded splits: used where nothing has changed, made anew where anything has, and never in the data."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import grown
from test_data import camvid, opened, save_pair
from test_training import TINY, weights, without_times
from test_training import train as train_tiny

from trailseg.config import DataOptions
from trailseg.data.cache import decoded
from trailseg.data.files import FilePicture
from trailseg.data.memory import Memory, decode
from trailseg.data.readers import open_data
from trailseg.errors import FileError
from trailseg.locks import lock

SIZE = (6, 8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trailseg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return camvid(tmp_path / "data", train=5, val=2)


def train_split(root: Path) -> list[FilePicture]:
    return list(opened("camvid", root).split("train"))  # type: ignore[arg-type]


def same(one: Memory, two: Memory) -> bool:
    return (
        one.names == two.names
        and torch.equal(one.images, two.images)
        and torch.equal(one.labels, two.labels)
        and all(np.array_equal(a, b) for a, b in zip(one.truths, two.truths, strict=True))
        and one.counts == two.counts
    )


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("budget", [0, 1e9])
def test_it_gives_what_decoding_gives_and_reads_no_picture_twice(cache, root, monkeypatch, budget):
    pictures, before = train_split(root), tree(root)
    plain = decode(pictures, SIZE)
    first = decoded(pictures, SIZE, budget=budget)
    monkeypatch.setattr(FilePicture, "read", None)  # would fail if it were called
    second = decoded(train_split(root), SIZE, budget=budget)
    assert same(plain, first)
    assert same(plain, second)
    assert (first.mapped is None) == (second.mapped is None) == (budget > 0)
    assert tree(root) == before
    assert len(list(cache.iterdir())) == 2


def test_what_is_counted_is_kept(cache, root, monkeypatch):
    counts = decoded(train_split(root), SIZE, budget=0).counts
    monkeypatch.setattr(Memory, "take", None)
    assert decoded(train_split(root), SIZE, budget=0).counts == counts == replace(counts)


@pytest.mark.parametrize("changed", ["train/p3.png", "trainannot/p3.png"])
def test_a_changed_file_is_read_anew_and_the_older_entry_removed(cache, root, changed):
    old = decoded(train_split(root), SIZE, budget=0)
    files = set(cache.iterdir())
    was = (root / changed).stat()
    save_pair(root / "train/p3.png", root / "trainannot/p3.png", seed=77)
    for other in {"train/p3.png", "trainannot/p3.png"} - {changed}:
        save_pair(root / other, root / "spare.png", seed=3) if other.startswith("train/") else save_pair(
            root / "spare.png", root / other, seed=3
        )
    os.utime(root / changed, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    new = decoded(train_split(root), SIZE, budget=0)
    assert same(new, decode(train_split(root), SIZE))
    assert not same(new, old)
    assert len(list(cache.iterdir())) == 2
    assert not files & set(cache.iterdir())


def test_sizes_splits_and_label_maps_have_entries_of_their_own(cache, root):
    pictures = train_split(root)
    swapped = replace(pictures[0].labels, file_ids={i: (10 - i if i < 11 else 255) for i in range(12)})
    wanted = [
        (pictures, SIZE),
        (pictures, (3, 4)),
        (pictures[:3], SIZE),
        ([replace(picture, labels=swapped) for picture in pictures], SIZE),
    ]
    for _ in range(2):
        for some, size in wanted:
            assert same(decoded(some, size, budget=0), decode(some, size))
    assert len(list(cache.iterdir())) == 2 * len(wanted)


@pytest.mark.parametrize("damage", ["short data", "no data", "half an index", "another's index"])
def test_a_damaged_entry_is_made_anew(cache, root, damage):
    decoded(train_split(root), SIZE, budget=0)
    data, index = sorted(cache.iterdir(), key=lambda path: path.suffix)
    if damage == "short data":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "no data":
        data.unlink()
    else:
        index.write_text(index.read_text()[:-9] if damage == "half an index" else json.dumps([1]))
    assert same(decoded(train_split(root), SIZE, budget=0), decode(train_split(root), SIZE))


def flip(data: Path, place: int) -> None:
    """One bit of one byte."""
    content = bytearray(data.read_bytes())
    content[place] ^= 1
    data.write_bytes(content)


@pytest.mark.parametrize("part", ["image", "label"])
def test_one_flipped_bit_is_noticed_before_it_is_used(cache, root, part):
    pictures, pixels = train_split(root), SIZE[0] * SIZE[1]
    decoded(pictures, SIZE, budget=0)
    flip(next(path for path in cache.iterdir() if not path.suffix), (3 * 4 if part == "image" else 3 * 5 + 4) * pixels)
    mapped = decoded(pictures, SIZE, budget=0)
    mapped.take(torch.tensor([0, 3]))  # what is whole is of use
    with pytest.raises(FileError, match="has been damaged since it was written; remove it"):
        mapped.on(torch.device("meta"))  # or any other but the processor
    with pytest.raises(FileError, match="has been damaged since it was written; remove it"):
        mapped.take(torch.tensor([0, 4]))
    assert same(decoded(pictures, SIZE, budget=1e9), decode(pictures, SIZE))  # which makes it anew
    assert same(decoded(pictures, SIZE, budget=0), decode(pictures, SIZE))


@pytest.mark.parametrize("budget", [0, 1e9])
def test_one_flipped_bit_of_a_truth_is_noticed_before_it_is_used(cache, root, budget):
    decoded(train_split(root), SIZE, budget=0)
    flip(next(path for path in cache.iterdir() if not path.suffix), -1)
    memory = decoded(train_split(root), SIZE, budget=budget)
    assert memory.truths[3].shape == (8, 12)
    with pytest.raises(FileError, match="has been damaged since it was written; remove it"):
        memory.truths[4]


def test_what_a_killed_start_left_is_swept_and_what_another_writes_is_not(cache, root):
    cache.mkdir(parents=True)
    left, living = cache / ".x.123.part", cache / ".y.123.part"
    for path in (left, living):
        path.write_bytes(b"half")
    with living.open("rb") as file:
        assert lock(file)
        decoded(train_split(root), SIZE, budget=0)
        assert living.exists()
    assert not left.exists()


# --- Bad pictures that are left out


@pytest.fixture
def spoilt(root) -> Path:
    """Of five pictures p0 is a dangling link, p2 is torn, p3 has no label; and one label has no picture."""
    (root / "train/p0.png").unlink()
    (root / "train/p0.png").symlink_to("gone.png")
    (root / "train/p2.png").write_bytes((root / "train/p2.png").read_bytes()[:60])
    (root / "trainannot/p3.png").rename(root / "trainannot/q.png")
    return root


def leaving_out(root: Path, budget: float) -> Memory:
    return decoded(opened("camvid", root).split("train", skip_bad=True), SIZE, budget=budget, skip_bad=True)


@pytest.mark.parametrize("budget", [0, 1e9])
def test_bad_pictures_are_left_out_and_known_at_the_next_start(cache, spoilt, monkeypatch, budget):
    every = {picture.name: picture for picture in opened("camvid", spoilt).split("train", skip_bad=True)}
    plain = decode([every["p1"], every["p4"]], SIZE)
    uncached = decode(list(every.values()), SIZE, skip_bad=True)
    first = leaving_out(spoilt, budget)
    monkeypatch.setattr(FilePicture, "read", None)  # would fail if it were called
    second = leaving_out(spoilt, budget)
    for memory in (uncached, first, second):
        assert same(memory, plain)
        assert [fault.path.name for fault in memory.left_out] == ["p0.png", "p2.png", "p3.png", "q.png"]
    assert (first.mapped is None) == (second.mapped is None) == (budget > 0)
    assert list(map(str, first.left_out)) == list(map(str, second.left_out))
    pictures = [picture for picture in every.values() if picture.name in ("p1", "p2", "p4")]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    decoded(pictures, SIZE, budget=budget, skip_bad=True)
    with pytest.raises(FileError, match=r"p2\.png: cannot be read as a picture .*; replace it"):
        decoded(pictures, SIZE, budget=budget)  # the entry is there, but nothing was to be left out


def test_a_mended_picture_is_no_longer_left_out(cache, spoilt):
    leaving_out(spoilt, 0)
    save_pair(spoilt / "train/gone.png", spoilt / "trainannot/gone.png", seed=9)
    (spoilt / "train/p2.png").write_bytes((spoilt / "train/p1.png").read_bytes())
    (spoilt / "trainannot/q.png").rename(spoilt / "trainannot/p3.png")
    memory = leaving_out(spoilt, 0)
    assert memory.names == ["gone", "p0", "p1", "p2", "p3", "p4"]
    assert not memory.left_out


def test_permission_that_is_given_later_is_noticed(cache, root, monkeypatch):
    was = Path.read_bytes
    refused = root / "train/p1.png"

    def read_bytes(path: Path) -> bytes:
        if path == refused and not path.stat().st_mode & 0o400:
            raise PermissionError(13, "Permission denied")
        return was(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)  # root may read all
    refused.chmod(0)
    assert [fault.path for fault in leaving_out(root, 0).left_out] == [refused]
    refused.chmod(0o644)
    assert not leaving_out(root, 0).left_out


def test_nothing_to_leave_out_changes_nothing(cache, root):
    plain = decoded(train_split(root), SIZE, budget=0)
    files = tree(cache)
    assert same(leaving_out(root, 0), plain)
    assert tree(cache) == files


@pytest.mark.parametrize("budget", [0, 1e9])
def test_where_every_picture_is_bad_nothing_can_be_left_out(cache, root, budget):
    for path in (root / "train").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(FileError, match=r"p0\.png: is not a picture \(and none of 5 pictures is whole\); replace it"):
        leaving_out(root, budget)
    assert not list(cache.iterdir())


def test_pictures_that_are_no_files_are_not_cached(cache):
    scenes = open_data(DataOptions(data="procedural", pictures=2), size=SIZE).split("train")
    assert same(decoded(scenes, SIZE, budget=0), decode(scenes, SIZE))
    assert not cache.exists()


def test_a_bad_picture_is_told_and_leaves_nothing_behind(cache, root):
    (root / "train" / "p2.png").write_bytes(b"no picture")
    with pytest.raises(FileError, match=r"p2\.png: is not a picture"):
        decoded(train_split(root), SIZE, budget=0)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_done_without_or_told(cache, root):
    cache.parent.write_text("a file where the folder should be")
    assert same(decoded(train_split(root), SIZE, budget=1e9), decode(train_split(root), SIZE))
    with pytest.raises(FileError, match=r"cannot be written there .*; set XDG_CACHE_HOME to a folder with room"):
        decoded(train_split(root), SIZE, budget=0)


def test_training_from_mapped_pictures_is_the_same_to_the_bit(cache, tmp_path):
    root = tmp_path / "data"
    for i in range(7):
        name = f"p{i}.png"
        save_pair(root / "train" / name, root / "trainannot" / name, seed=i)
    camvid(root, val=2)
    options = {"data": "camvid", "root": str(root), "augment": "robust", "epochs": 2}
    held, mapped = (train_tiny(tmp_path / name, memory=m, **options) for name, m in (("held", 1.0), ("mapped", 0.0)))
    one, two = weights(held), weights(mapped)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert without_times(held) == without_times(mapped)
    assert held.differences(mapped.options) == []
    assert TINY.memory > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the memory of a process so")
def test_memory_is_bounded_however_many_pictures_there_are(cache, tmp_path):
    """Decoding, opening and taking every picture of 40 and of 400, of which the decoded ones take 59 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    for split, count in (("train", 400), ("val", 40)):
        for i in range(count):
            for folder, values in ((split, noise), (f"{split}annot", np.zeros((120, 160), np.uint8))):
                path = tmp_path / "data" / folder / f"p{i:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path, compress_level=0)

    def peak(split: str, call: str) -> int:
        return grown(
            f"""
import torch
from trailseg.config import DataOptions
from trailseg.data.cache import decoded
from trailseg.data.readers import open_data
def pictures(split):
    return open_data(DataOptions(data="camvid", root={str(tmp_path / "data")!r}, pictures=1), size=(1, 1)).split(split)
def call():
    memory = decoded(pictures({split!r}), (192, 192), budget=0)
    for part in torch.arange(len(memory.names)).split(8):
        memory.take(part)
        memory.truths[int(part[0])]
{call}
"""
        )

    drop = f"import shutil; was = call\ndef call():\n    shutil.rmtree({str(cache)!r}, ignore_errors=True); was()"
    for extra in ("", drop):
        assert peak("train", extra) < 2 * peak("val", extra) + 4_000_000
