"""Reading a picture file rightly, or refusing it by name: sizes, modes, depths, orientation."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from trailseg.errors import FileError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

# Room for the largest sensors of cameras: 102 million pixels, of which reading takes 1.4 GB (Pillow holds 4 bytes of
# each, twice, and then there are the arrays). A header that promises more is a map, a mistake or an attack.
MAX_PIXELS = 110_000_000

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
    """The same of a picture that Pillow has opened; ValueError where it cannot give the true colours."""
    if misread := _misread(image):
        raise ValueError(misread)
    turn = image.getexif().get(ExifTags.Base.Orientation)
    if turn in _UPRIGHT:
        image = image.transpose(_UPRIGHT[turn])
    if image.mode.startswith("I;16"):  # Pillow would clip what it should scale
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    image.info.pop("transparency", None)  # of which Pillow would only warn
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
    """A wholly decoded picture of at most MAX_PIXELS; every way in which Pillow fails becomes a FileError."""
    try:
        content = BytesIO(path.read_bytes())
        with _no_limit_of_pillows():
            image = Image.open(content)  # which reads no more than the header
        if image.width * image.height > MAX_PIXELS:
            problem = f"has {image.height} x {image.width} pixels, more than the {MAX_PIXELS // 10**6} million allowed"
            raise FileError(path, problem, "scale it down, or cut it into pieces")
        image.load()
        image.getexif()  # is kept; read here, where damage is told
    except FileNotFoundError:
        raise FileError(path, "there is no such file", "check the path") from None
    except UnidentifiedImageError:
        raise FileError(path, "is not a picture", "replace it with a whole one, or remove it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"cannot be read as a picture ({' '.join(str(error).split())})"
        raise FileError(path, problem, "replace it with a whole one, or remove it") from None
    return image


@contextmanager
def _no_limit_of_pillows() -> Iterator[None]:
    """Meanwhile Pillow neither warns of large pictures nor refuses them, both without saying their size."""
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
