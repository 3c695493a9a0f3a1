"""Files that are no pictures, or would take hours or gigabytes: refused in one line, quickly and in little memory."""

import random
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import children
import numpy as np
import pytest
from PIL import Image
from test_bad_data import encoded, good, tags
from test_data import png

from trailseg.data import pictures
from trailseg.data.pictures import read_image
from trailseg.errors import FileError

NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def written(form: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    Image.fromarray(NOISE).save(buffer := BytesIO(), form, exif=exif, **options)
    return buffer.getvalue()


WAYS = {
    "PNG": written("PNG"),
    "JPEG": written("JPEG"),
    "progressive JPEG": written("JPEG", progressive=True),
    "WebP": written("WEBP"),
    "lossless WebP": written("WEBP", lossless=True),
    "TIFF": written("TIFF"),
    "LZW TIFF": written("TIFF", compression="tiff_lzw"),
    "deflated TIFF": written("TIFF", compression="tiff_deflate"),
}


def refusal(path: Path, content: bytes) -> FileError | None:
    """Why the file is not read, if it is not; any other exception is a failure."""
    path.write_bytes(content)
    found: np.ndarray | FileError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells of damage, too
        try:
            found = read_image(path)
        except FileError as fault:
            found = fault
    if isinstance(found, FileError):
        assert str(found).startswith(f"{path}: {found.problem}; {found.remedy}")
        assert len(str(found).splitlines()) == 1
        return found
    assert found.dtype == np.uint8
    assert found.shape[2] == 3
    return None


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_damaged_is_read_or_refused(way, tmp_path, tally, trials):
    rng, whole, path = random.Random(way), WAYS[way], tmp_path / "p"
    assert refusal(path, whole) is None
    count = trials(60, 2500)
    for _ in range(count):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            damaged[rng.randrange(len(damaged) if rng.random() < 0.5 else 200)] = rng.randrange(256)
        refusal(path, bytes(damaged))
    tally("damaged pictures that were read, or refused in one line", count, count)


@pytest.mark.parametrize("way", WAYS)
def test_a_torn_picture_is_refused_wherever_it_is_torn(way, tmp_path, tally, trials):
    whole = WAYS[way]
    last = len(whole) - {"JPEG": 2, "PNG": 4}.get(way.split()[-1], 0)  # without its end mark, it has lost nothing
    places = range(1, last, trials(max(1, last // 25), 1))
    torn = sum(refusal(tmp_path / "p", whole[:place]) is not None for place in places)
    tally("pictures torn at any byte that were refused", torn, len(places))


def test_every_flipped_bit_of_a_png_is_noticed(tmp_path, tally, trials):
    whole = WAYS["PNG"]
    bits = range(0, 8 * (len(whole) - 12), trials(101, 1))  # not those of the end mark
    noticed = 0
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        noticed += refusal(tmp_path / "p", bytes(damaged)) is not None
    tally("flipped bits of a PNG that were noticed", noticed, len(bits))


FOREIGN = ("GIF", "BMP", "PDF", "PPM", "TGA", "ICO", "DDS", "JPEG2000", "SGI", "PCX", "EPS", "AVIF")


@pytest.mark.parametrize("form", FOREIGN)
def test_no_other_decoder_is_ever_called(form, tmp_path, monkeypatch, tally):
    Image.init()
    if form not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    content = encoded(form)
    called = list[str]()
    for name, (factory, accept) in list(Image.OPEN.items()):
        monkeypatch.setitem(Image.OPEN, name, (watched(called, name, factory), accept))
    fault = refusal(tmp_path / "p.png", content)
    tally("formats without a decoder refused", fault is not None and not {*called} - {*pictures.FORMATS}, 1)


def watched(called: list[str], name: str, factory: Callable[..., object]) -> Callable[..., object]:
    def open_(*given: object) -> object:
        called.append(name)
        return factory(*given)

    return open_


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunks(*chunks: bytes) -> bytes:
    """A PNG with these behind its header."""
    whole = WAYS["PNG"]
    return whole[:33] + b"".join(chunks) + whole[33:]


def bombs() -> dict[str, bytes]:
    """Files of at most a few megabytes, each of which would take gigabytes or minutes."""
    zeros = zlib.compress(bytes(200_000_000), 9)
    jpeg = encoded("JPEG", progressive=True)
    return {
        "pixels": png(8, 2, bytes(1000), (60_000, 60_000)),
        "text": with_chunks(chunk(b"zTXt", b"a\0\0" + zeros)),
        "profile": with_chunks(chunk(b"iCCP", b"a\0\0" + zeros)),
        "translated": with_chunks(chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)),
        "chunks": with_chunks(chunk(b"prVt", b"") * 500_000),
        "tags": tags(5000, 1_000_000),
        "torn tags": tags(5000, 1_000_000)[:-16],
        "exif": encoded("PNG", exif=tags(5000, 1_000_000)),
        "hexadecimal": with_chunks(
            chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + tags(2000, 200_000).hex().encode())
        ),
        "scans": jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 2000 + jpeg[-2:],
    }


def test_bombs_are_refused_quickly_and_in_little_memory(tmp_path, tally):
    root = good(tmp_path / "set")
    before = children.call(tmp_path / "child", "data", "check", "data=folder", f"root={root}")
    assert before.code == 0, before
    planted = bombs()
    for name, content in planted.items():
        (root / f"train/rgb/{name}.png").write_bytes(content)
        (root / f"train/truth/{name}.png").write_bytes((root / "train/truth/p0.png").read_bytes())
    after = children.call(tmp_path / "child", "data", "check", "data=folder", f"root={root}", seconds=60)
    lines = after.out.splitlines()
    told = [name for name in planted if sum(f"/rgb/{name}.png: " in line for line in lines) == 1]
    assert (after.code, len(lines)) == (1, len(planted) + 1), after
    assert after.seconds < before.seconds + 10
    assert after.peak < before.peak + 100_000_000
    tally("small files that would take gigabytes or minutes, refused in 10 s and 100 MB", len(told), len(planted))
