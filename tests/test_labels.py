"""Label pictures decode to class ids in every form they come in; what is ambiguous or impossible is refused by name."""

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from trailseg.labels import CAMVID, IGNORE, TAS500_COARSE, TAS500_FINE, LabelError, LabelSet, decode, make_palette

FINE_MAP = np.array([[0, 3, 16], [22, 5, 255]], np.uint8)


def colours(file_ids: np.ndarray, labels: LabelSet = TAS500_FINE) -> np.ndarray:
    """File ids (H, W) as the colours (H, W, 3) that the data set writes them in."""
    colour_of = {i: colour for colour, i in labels.file_colours.items()}
    return np.array([[colour_of[int(i)] for i in row] for row in file_ids], np.uint8)


def with_palette(indices: np.ndarray, palette: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([value for colour in palette for value in colour])
    return image


def with_alpha(rgb: np.ndarray, alpha: int) -> Image.Image:
    image = Image.fromarray(rgb).convert("RGBA")
    image.putpixel((1, 0), (*image.getpixel((1, 0))[:3], alpha))
    return image


def as_grey(ids: np.ndarray, _: LabelSet) -> Image.Image:
    return Image.fromarray(ids)


def as_deep_grey(ids: np.ndarray, _: LabelSet) -> Image.Image:
    return Image.fromarray(ids.astype(np.uint16))


def as_three_equal_channels(ids: np.ndarray, _: LabelSet) -> Image.Image:
    return Image.fromarray(np.stack([ids] * 3, -1))


def as_indices(ids: np.ndarray, _: LabelSet) -> Image.Image:
    return with_palette(ids, [(7, i, 9) for i in range(256)])


def as_rgb(ids: np.ndarray, labels: LabelSet) -> Image.Image:
    return Image.fromarray(colours(ids, labels))


def as_rgba(ids: np.ndarray, labels: LabelSet) -> Image.Image:
    return as_rgb(ids, labels).convert("RGBA")


def as_palette_colours(ids: np.ndarray, labels: LabelSet) -> Image.Image:
    """The class colours in a palette whose order is not that of the ids."""
    order = list(reversed(labels.file_colours.items()))
    place = {i: k for k, (_, i) in enumerate(order)}
    return with_palette(np.vectorize(place.__getitem__)(ids), [colour for colour, _ in order])


IDS = (as_grey, as_deep_grey, as_three_equal_channels, as_indices)
COLOURS = (as_rgb, as_rgba, as_palette_colours)


@pytest.mark.parametrize("form", [*IDS, as_rgb, as_rgba])
def test_every_form_decodes_without_being_told(form: Callable[[np.ndarray, LabelSet], Image.Image]):
    classes = decode(form(FINE_MAP, TAS500_FINE), TAS500_FINE)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, FINE_MAP)


@pytest.mark.parametrize("labels", [TAS500_FINE, TAS500_COARSE, CAMVID], ids=lambda labels: labels.name)
@pytest.mark.parametrize("form", IDS + COLOURS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_map_goes_round_through_any_form(
    form: Callable[[np.ndarray, LabelSet], Image.Image], labels: LabelSet, data: st.DataObject
):
    known = sorted(labels.file_ids)
    shape = arrays.array_shapes(min_dims=2, max_dims=2, max_side=5)
    ids = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from(known)))
    expected = np.vectorize(labels.file_ids.__getitem__)(ids)
    image, encoding = form(ids, labels), "ids" if form in IDS else "colours"
    np.testing.assert_array_equal(decode(image, labels, encoding), expected)
    with contextlib.suppress(LabelError):  # untold, it is right or refused
        np.testing.assert_array_equal(decode(image, labels), expected)


def test_a_palette_that_means_two_things_is_refused_until_the_encoding_is_said():
    ids = np.array([[0, 1], [2, 1]])
    image = with_palette(ids, [TAS500_FINE.colours[k] for k in (2, 0, 1)])
    with pytest.raises(LabelError, match=r"ambiguous.*; say which encoding"):
        decode(image, TAS500_FINE)
    np.testing.assert_array_equal(decode(image, TAS500_FINE, "ids"), ids)
    np.testing.assert_array_equal(decode(image, TAS500_FINE, "colours"), [[2, 0], [1, 0]])
    # The coarse set puts all three into terrain: nothing is left to disagree about.
    np.testing.assert_array_equal(decode(image, TAS500_COARSE), [[0, 0], [0, 0]])


def test_black_is_class_0_or_undefined():
    black = Image.new("RGB", (3, 2))
    with pytest.raises(LabelError, match="ambiguous"):
        decode(black, TAS500_FINE)
    assert (decode(black, TAS500_FINE, "ids") == 0).all()
    assert (decode(black, TAS500_FINE, "colours") == IGNORE).all()
    assert (decode(Image.new("L", (3, 2)), TAS500_FINE) == 0).all()


def test_one_bit_is_class_0_or_1():
    image = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(image, TAS500_FINE), [[0, 1, 1]])


def deep(value: int) -> Image.Image:
    return Image.fromarray(np.full((1, 2), value, np.uint16))


@pytest.mark.parametrize(
    ("image", "encoding", "message"),
    [
        (Image.new("L", (2, 1), 40), "auto", "id 40 outside the classes of 'fine', whose ids are 0-22, 255"),
        (Image.new("RGB", (2, 1), (40, 40, 40)), "auto", "id 40 outside"),
        (with_palette(np.array([[40]]), [(1, 2, 3)] * 50), "auto", "id 40 outside"),
        (Image.fromarray(np.arange(23, 30, dtype=np.uint8)[None]), "auto", "ids 23, 24, 25, 26, 27 and 2 more"),
        (deep(256), "auto", "id 256 outside"),
        (deep(65535), "auto", "id 65535 outside"),
        (Image.fromarray(np.array([[70000]], np.int32)), "auto", "ids outside 0-65535"),
        (Image.fromarray(np.array([[-1]], np.int32)), "auto", "ids outside 0-65535"),
        (Image.new("RGB", (2, 1), (1, 2, 3)), "auto", "colour 1,2,3 outside the classes of 'fine'"),
        (Image.new("RGB", (2, 1), (255, 255, 255)), "colours", "colour 255,255,255 outside"),
        (Image.fromarray(colours(FINE_MAP)), "ids", "holds colours where ids are expected"),
        (Image.new("L", (2, 1), 3), "colours", "is grey where colours are expected"),
        (with_alpha(colours(FINE_MAP), 254), "auto", "has transparent pixels"),
        (Image.new("CMYK", (2, 1)), "auto", "has the mode CMYK"),
        (Image.new("F", (2, 1)), "auto", "has the mode F"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(image: Image.Image, encoding: str, message: str):
    with pytest.raises(LabelError, match=f"^{message}.*; ."):  # what; what to do
        decode(image, TAS500_FINE, encoding)


def test_a_transparent_palette_colour_is_refused():
    image = with_palette(np.array([[0, 1]]), [TAS500_FINE.colours[4], TAS500_FINE.colours[9]])
    image.info["transparency"] = b"\xff\x00"
    with pytest.raises(LabelError, match="transparent"):
        decode(image, TAS500_FINE, "colours")


def test_colours_without_a_table_are_refused():
    bare = LabelSet("bare", ("a",), ((1, 2, 3),), {0: 0}, {})
    with pytest.raises(LabelError, match="'bare' have no colours"):
        decode(Image.new("RGB", (1, 1), (1, 2, 3)), bare)
    with pytest.raises(LabelError, match="id 1 outside"):  # not: no colours
        decode(with_palette(np.array([[1]]), [(1, 2, 3)] * 2), bare)


def test_ignored_ids():
    assert (decode(Image.new("L", (1, 1), 255), TAS500_COARSE) == IGNORE).all()
    assert (decode(Image.new("L", (1, 1), 11), CAMVID) == IGNORE).all()
    with pytest.raises(LabelError, match="id 255"):
        decode(Image.new("L", (1, 1), 255), CAMVID)


def test_the_coarse_classes_are_those_of_the_study():
    names = {  # docs/data.md
        "terrain": range(4), "vegetation": range(4, 11), "construction": range(11, 14), "vehicle": range(14, 16),
        "sky": [16], "object": range(17, 20), "human": [20], "animal": [21], "void": [22],
    }  # fmt: skip
    expected = {i: name for name, ids in names.items() for i in ids}
    classes = TAS500_COARSE.class_ids(np.arange(23)[None])[0]
    assert {i: TAS500_COARSE.classes[k] for i, k in enumerate(classes)} == expected


@pytest.mark.parametrize("labels", [TAS500_FINE, TAS500_COARSE, CAMVID], ids=lambda labels: labels.name)
def test_tables_are_whole(labels: LabelSet):
    assert len(labels.classes) == len(labels.colours) == len(set(labels.classes)) == len(set(labels.colours))
    assert set(labels.file_ids.values()) == {*range(len(labels.classes)), IGNORE}
    assert set(labels.file_colours.values()) == set(labels.file_ids)
    palette = make_palette(labels.colours)
    assert [tuple(colour) for colour in palette[: len(labels.colours)]] == list(labels.colours)
    assert not palette[len(labels.colours) :].any()
