"""Reading a picture file correctly, or rejecting it with an error: format, size, damage, mode, depth, EXIF."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from threading import Lock

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from trailseg.errors import FileError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")  # the only decoders of Pillow's that are ever called

# Room for the largest sensors of cameras: 102 million pixels, of which reading takes 1.4 GB (Pillow holds 4 bytes of
# each, twice, and then there are the arrays). A header that promises more is a map, a mistake or an attack.
MAX_PIXELS = 110_000_000
MAX_BYTES = 1_000_000_000  # those of as many pixels, of 16 bits and four channels, uncompressed

# Files that open as quickly as others and then take minutes or gigabytes for nothing.
_MAX_EXIF = 1 << 16  # bytes; what JPEG has room for
_MAX_CHUNKS = 1 << 17  # of a PNG; libpng would make as many of MAX_BYTES
_MAX_SCANS = 100  # of a progressive JPEG, of which each passes over the whole picture; cameras and tools write about 10

_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"%PDF": "PDF", b"<": "HTML or XML"}  # by first bytes
_PNG = b"\x89PNG\r\n\x1a\n"
_POINTER = b"version https://git-lfs"
_WHOLE = "replace it with a whole one, or remove it"
_PILLOW = Lock()  # pictures are read by several threads, and Pillow's limit is global
_BITS, _KIND, _PLANES = 258, 262, 284  # tags of TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation; ImageOps.exif_transpose would also write the tags anew, and fail on some cameras' tags


def read_image(path: Path) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB, the way up that its EXIF tag says; FileError where it cannot be read rightly.

    16 bits a channel are scaled to 8. Transparency is dropped: a pixel has the colour that it hides. Of several
    pictures in a file, the first is read.
    """
    image = open_picture(path)
    try:
        return as_rgb(image)
    except ValueError as error:
        raise FileError(path, str(error), "save it with 8 bits a channel") from None


def as_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright, of a picture opened by Pillow; ValueError where it cannot give the true colours."""
    if misread := _misread(image):
        raise ValueError(misread)
    turn = image.getexif().get(ExifTags.Base.Orientation)
    if turn in _UPRIGHT:
        image = image.transpose(_UPRIGHT[turn])
    if image.mode.startswith("I;16"):  # Pillow would clip what it should scale
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if "transparency" in image.info:  # of which Pillow would only warn
        image = image.copy()
        del image.info["transparency"]
    return np.array(image.convert("RGB"))


def _misread(image: Image.Image) -> str | None:
    """What keeps Pillow from giving the picture's true colours, if anything does."""
    if image.mode in ("I", "F"):
        return "holds numbers of which none is known to be white"
    if isinstance(image, TiffImagePlugin.TiffImageFile) and max(image.tag_v2.get(_BITS, (1,))) > 8:
        if image.mode.startswith("I;16") and (image.tag_v2[_BITS], image.tag_v2.get(_KIND)) != ((16,), 1):
            return "is a grey TIFF of 12 bits, or one whose white is 0"
        if image.tag_v2.get(_PLANES) == 2:
            return "is a TIFF of more than 8 bits whose channels lie apart"
    return None


def open_picture(path: Path) -> Image.Image:
    """A wholly decoded picture of at most MAX_PIXELS; every way in which it cannot be one becomes a FileError."""
    content = _content(path)
    if unlike := _unlike(content):
        raise FileError(path, *unlike)
    try:
        image = _opened(content)
        if image.width * image.height > MAX_PIXELS:
            problem = f"has {image.height} x {image.width} pixels, more than the {MAX_PIXELS // 10**6} million allowed"
            raise FileError(path, problem, "scale it down, or cut it into pieces")
        image.verify()  # the checksums of PNG, which decoding does not look at; it uses the picture up
        image = _opened(content)
        image.load()
        if len(image.info.get("exif", "")) + len(image.info.get("Raw profile type exif", "")) // 2 > _MAX_EXIF:
            raise FileError(path, f"has more than {_MAX_EXIF >> 10} kB of EXIF tags", "save it without them")
        image.getexif()  # is kept; read here, where damage is told
    except UnidentifiedImageError:
        raise FileError(path, "is not a picture", _WHOLE) from None
    except (FileError, MemoryError):
        raise
    except Exception as error:  # of damaged files, decoders raise all that there is
        raise FileError(path, f"cannot be read as a picture ({' '.join(str(error).split())})", _WHOLE) from None
    return image


def _content(path: Path) -> bytes:
    """What a regular file holds, at most MAX_BYTES; FileError where there is none, or nothing in it.

    A pipe or a device is not opened: it might never end.
    """
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):
            kind = "a folder" if S_ISDIR(found.st_mode) else "a pipe or a device"
            raise FileError(path, f"is {kind} under a picture's name", "rename or remove it")
        if not found.st_size:
            raise FileError(path, "is empty: not a picture", _WHOLE)
        if found.st_size > MAX_BYTES:
            problem = f"has {found.st_size / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} allowed"
            raise FileError(path, problem, "scale it down, or cut it into pieces")
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            problem = f"is a link to {os.readlink(path)}, which is not there"
            raise FileError(path, problem, "mend the link, or remove it") from None
        raise FileError(path, "there is no such file", "check the path") from None
    except PermissionError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", "give permission to read it") from None
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", _WHOLE) from None


def _unlike(content: bytes) -> tuple[str, str] | None:
    """What, before Pillow looks at it, speaks against a file, and the remedy."""
    if content.startswith(_POINTER):
        return "is a pointer of Git LFS: not a picture, but where to find one", "run `git lfs pull` there"
    other = next((name for start, name in _OTHERS.items() if content[:64].lstrip().startswith(start)), None)
    if other or content[4:8] == b"ftyp":
        return f"is {other or 'HEIF, AVIF or a video'}, whatever its name says", "save it as PNG or JPEG"
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MAX_SCANS:
        return f"is a JPEG of more than {_MAX_SCANS} scans, which may take hours", "save it anew"
    if content.startswith(_PNG) and sum(1 for _ in islice(_chunks(content), _MAX_CHUNKS + 1)) > _MAX_CHUNKS:
        return f"is a PNG of more than {_MAX_CHUNKS} chunks", "save it anew"
    if content[:4] in _TIFF and _size_of_tags(content) > 2 * len(content):  # some share their values, by twos
        return "is a TIFF whose tags say that they are larger than the file", _WHOLE
    return None


def _chunks(content: bytes) -> Iterator[int]:
    """Where each chunk of a PNG begins."""
    place = len(_PNG)
    while place < len(content):
        yield place
        place += 12 + int.from_bytes(content[place : place + 4])


# By a TIFF's first bytes: the order of its bytes, and how many of them say a place in it.
_TIFF = {b"II*\0": ("<", 4), b"MM\0*": (">", 4), b"II+\0": ("<", 8), b"MM\0+": (">", 8)}
_TIFF |= {b"II\0*": ("<", 4), b"MM*\0": (">", 4)}  # which Pillow opens as well
_WIDTHS = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8])  # bytes of a value, by type


def _size_of_tags(content: bytes) -> int:
    """The bytes that the tags of a TIFF's first directory say they have; 0 where it has none.

    Pillow reads all of them, even where they overlap.
    """
    order, wide = _TIFF[content[:4]]
    tag = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u{wide}"), ("at", f"u{wide}")])
    try:
        start = int(np.frombuffer(content, f"{order}u{wide}", 1, wide)[0])
        length = np.dtype(f"{order}u{2 if wide == 4 else 8}")
        many = int(np.frombuffer(content, length, 1, start)[0])
        start += length.itemsize
        tags = np.frombuffer(content, tag, min(many, (len(content) - start) // tag.itemsize), start)
    except ValueError:
        return 0
    return int((_WIDTHS[tags["type"].clip(max=len(_WIDTHS) - 1)] * tags["count"].astype(float)).sum())


def _opened(content: bytes) -> Image.Image:
    """A picture of which no more than the header has been read."""
    with _no_limit_of_pillows():
        return Image.open(BytesIO(content), formats=FORMATS)


@contextmanager
def _no_limit_of_pillows() -> Iterator[None]:
    """Meanwhile Pillow neither warns of large pictures nor refuses them, both without saying their size."""
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
