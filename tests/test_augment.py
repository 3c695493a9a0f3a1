"""Augmentation: picture and label move together, what is drawn depends on its place alone, nothing is invented."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trailseg.data import augment
from trailseg.data.augment import PRESETS, Augmentation, draw, draw_mixes, paste
from trailseg.labels import IGNORE

NOTHING = torch.tensor([[1.0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1]])


def pictures(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Random images (B, 3, H, W) and labels (B, H, W) of the classes 0..4."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=random)
    return images, torch.randint(0, 5, (batch, height, width), generator=random, dtype=torch.uint8)


def apply(images: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Views as large as the pictures."""
    return augment.apply(images, labels, drawn, (images.shape[2], images.shape[3]))


def matrix(values: list[float]) -> Tensor:
    """Drawn parameters of a 2x3 matrix alone."""
    return torch.tensor([[*values, *[1.0] * 7]])


def test_nothing_drawn_changes_nothing():
    drawn = draw(PRESETS["none"], seed=3, epoch=2, places=range(4))
    torch.testing.assert_close(drawn, NOTHING.expand(4, -1), rtol=0, atol=0)
    images, labels = pictures(4, 23, 40)
    moved, moved_labels = apply(images, labels, drawn)
    torch.testing.assert_close(moved, images, rtol=0, atol=1e-5)
    assert (moved_labels == labels).all()


def test_a_flip_mirrors():
    images, labels = pictures(3, 23, 40)
    drawn = draw(Augmentation(flip=1.0), seed=0, epoch=0, places=range(3))
    moved, moved_labels = apply(images, labels, drawn)
    torch.testing.assert_close(moved, images.flip(3), rtol=0, atol=1e-5)
    assert (moved_labels == labels.flip(2)).all()


@pytest.mark.parametrize(("drawn", "turns"), [(matrix([0, -1, 0, 1, 0, 0]), 1), (matrix([0, 1, 0, -1, 0, 0]), 3)])
def test_a_quarter_turn_keeps_squares_square(drawn: Tensor, turns: int):
    images, labels = pictures(1, 20, 32)
    moved, moved_labels = apply(images, labels, drawn)
    middle = slice(6, 26)  # 20 x 20: what a quarter turn leaves inside the picture
    expected = torch.rot90(images[..., middle], turns, (2, 3))
    torch.testing.assert_close(moved[..., middle], expected, rtol=0, atol=1e-5)
    assert (moved_labels[..., middle] == torch.rot90(labels[..., middle], turns, (1, 2))).all()
    assert (moved_labels[..., :6] == IGNORE).all()
    assert (moved_labels[..., 26:] == IGNORE).all()


def test_the_seed_preset_turns_by_its_angles_in_pixels():
    drawn = draw(PRESETS["seed"], seed=0, epoch=0, places=range(200))
    mirror = drawn[:, 0] * drawn[:, 4] - drawn[:, 1] * drawn[:, 3]
    angles = torch.rad2deg(torch.atan2(-drawn[:, 1], drawn[:, 4])).round().int().tolist()
    assert set(angles) == {-30, -15, 0, 15, 30}
    assert 0.35 < (mirror < 0).float().mean() < 0.65
    torch.testing.assert_close(mirror.abs(), torch.ones(200))


def test_shift_is_a_share_of_the_size_and_what_comes_from_outside_is_ignored():
    images, labels = pictures(1, 20, 40)
    moved, moved_labels = apply(images, labels, matrix([1, 0, 0.25, 0, 1, 0.1]))
    assert (moved_labels[:, :18, :30] == labels[:, 2:, 10:]).all()
    assert (moved_labels[:, 18:] == IGNORE).all()
    assert (moved_labels[:, :, 30:] == IGNORE).all()
    torch.testing.assert_close(moved[..., :18, :30], images[..., 2:, 10:], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[..., :18, 30:], images[..., 2:, -1:].expand(1, 3, 18, 10), rtol=0, atol=1e-5)


def test_zoom_above_1_makes_things_grow():
    labels = torch.zeros(1, 40, 40, dtype=torch.uint8)
    labels[:, 15:25, 15:25] = 1
    drawn = draw(Augmentation(zoom=(2.0, 2.0)), seed=0, epoch=0, places=[0])
    moved = apply(torch.zeros(1, 3, 40, 40), labels, drawn)[1]
    assert (moved == 1).sum() == 400
    assert (moved[:, 10:30, 10:30] == 1).all()


def test_light_is_what_it_says():
    images = pictures(1, 6, 8)[0] / 2
    labels = torch.zeros(1, 6, 8, dtype=torch.uint8)
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    mean = images.mean()
    for light, expected in (
        ((1.5, 1, 1), images * 1.5),
        ((1, 0.5, 1), mean + (images - mean) * 0.5),
        ((1, 1, 0), grey.expand(1, 3, 6, 8)),
        ((9, 1, 1), (images * 9).clamp(max=1)),
    ):
        moved = apply(images, labels, torch.tensor([[1.0, 0, 0, 0, 1, 0, *light, 1, 1, 1, 1]]))[0]
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", ["seed", "drive", "views"])
def test_picture_and_label_move_together(preset: str):
    # Large patches of three classes, each class one channel: the picture is an image of its own label.
    patches = torch.randint(0, 3, (16, 4, 6), generator=torch.Generator().manual_seed(1))
    labels = patches.repeat_interleave(12, 1).repeat_interleave(12, 2).to(torch.uint8)
    images = torch.nn.functional.one_hot(labels.long(), 3).permute(0, 3, 1, 2).float() * 0.8
    images, moved = apply(images, labels, draw(PRESETS[preset], seed=0, epoch=0, places=range(16)))
    near = torch.nn.functional.unfold(moved[:, None].float(), 3, padding=1).view(16, 9, 48, 72)
    inner = (near == near[:, :1]).all(1) & (moved != IGNORE)  # away from borders between classes
    assert inner.float().mean() > 0.3
    assert (images.argmax(1) == moved)[inner].all()
    assert (moved != labels).float().mean() > 0.1


def test_what_is_drawn_depends_on_seed_epoch_and_place_only():
    drive = PRESETS["drive"]
    whole = draw(drive, seed=5, epoch=7, places=range(12))
    split = torch.cat([draw(drive, seed=5, epoch=7, places=places) for places in ([0, 1, 2, 3, 4], range(5, 12))])
    assert (whole == split).all()
    ranks = [draw(drive, seed=5, epoch=7, places=np.arange(12)[rank::2]) for rank in range(2)]
    assert all((whole[rank::2] == drawn).all() for rank, drawn in enumerate(ranks))
    assert len(torch.unique(whole, dim=0)) == 12
    for seed, epoch in ((6, 7), (5, 8)):
        assert (draw(drive, seed=seed, epoch=epoch, places=range(12)) != whole)[:, 1:9].all()


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.tuples(*[st.floats(-2, 2)] * 6, *[st.floats(0, 2)] * 3, st.floats(0.5, 2), *[st.floats(0, 2)] * 3),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    classes=st.lists(st.integers(0, 254), min_size=1, max_size=4),
)
def test_labels_are_never_invented(drawn: tuple[float, ...], size: tuple[int, int], classes: list[int]):
    picked = torch.arange(math.prod(size)) % len(classes)
    labels = torch.tensor(classes, dtype=torch.uint8)[picked].view(1, *size)
    images, moved = apply(torch.rand(1, 3, *size), labels, torch.tensor([drawn]))
    assert set(moved.unique().tolist()) <= {*classes, IGNORE}
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_zoom_is_drawn_from_its_whole_range():
    drawn = draw(Augmentation(zoom=(0.5, 2.0)), seed=0, epoch=0, places=range(300))
    zooms = 1 / drawn[:, 0]
    assert zooms.min() >= 0.5
    assert zooms.max() <= 2.0
    assert (zooms < 0.6).any()
    assert (zooms > 1.8).any()
    assert abs((zooms < 1).float().mean() - 0.5) < 0.1  # as often smaller as larger


def test_a_view_at_zoom_1_is_a_piece_of_the_picture():
    images, labels = pictures(1, 20, 32)
    drawn = draw(PRESETS["none"], seed=0, epoch=0, places=[0], view=(0.5, 0.25))
    view, view_labels = augment.apply(images, labels, drawn, (10, 8))
    torch.testing.assert_close(view, images[..., 5:15, 12:20], rtol=0, atol=1e-5)
    assert (view_labels == labels[:, 5:15, 12:20]).all()


@pytest.mark.parametrize("zoom", [0.4, 0.5, 1.0, 2.0])
def test_a_roaming_view_reaches_every_edge_and_never_leaves_the_picture(zoom: float):
    roaming, view = Augmentation(zoom=(zoom, zoom), roam=1.0), (0.5, 0.25)
    drawn = draw(roaming, seed=0, epoch=0, places=range(400), view=view)
    for axis, share in ((5, view[0] / zoom), (2, view[1] / zoom)):
        free = abs(1 - share) / 2  # a view larger than the picture holds all of it
        assert drawn[:, axis].abs().max() <= free + 1e-6
        assert drawn[:, axis].max() >= 0.97 * free
        assert drawn[:, axis].min() <= -0.97 * free
    inside = share <= 1 and view[0] / zoom <= 1
    images, labels = pictures(400, 16, 32)
    moved = augment.apply(images, labels, drawn, (8, 8))[1]
    assert (moved != IGNORE).all() == inside


def test_gamma_and_tint_are_what_they_say():
    images, labels = pictures(1, 6, 8)
    moved = apply(images, labels, torch.tensor([[1.0, 0, 0, 0, 1, 0, 1, 1, 1, 2, 0.9, 1, 1.3]]))[0]
    expected = (images**2 * torch.tensor([0.9, 1, 1.3]).view(3, 1, 1)).clamp(max=1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    drawn = draw(Augmentation(gamma=2.0, tint=0.1), seed=0, epoch=0, places=range(300))
    gamma, tint = drawn[:, 9], drawn[:, 10:]
    assert 0.5 <= gamma.min() < 0.55
    assert 1.9 < gamma.max() <= 2.0
    assert abs((gamma < 1).float().mean() - 0.5) < 0.1
    assert 0.9 <= tint.min() < 0.91
    assert 1.09 < tint.max() <= 1.1


def test_a_cover_shows_the_other_picture_in_its_rectangle():
    (images, labels), box = pictures(2, 8, 10), [0.25, 0.5, 0.75, 0.9]
    others, other_labels = 1 - images, labels + 10
    boxes = torch.tensor([box, [0.0, 0, 0, 0]])
    mixed, mixed_labels = paste(images, labels, others, other_labels, boxes, torch.full((2, 256), True))
    inside = torch.zeros(8, 10, dtype=torch.bool)
    inside[2:6, 5:9] = True
    assert torch.equal(mixed_labels[0], torch.where(inside, other_labels[0], labels[0]))
    assert torch.equal(mixed[0], torch.where(inside, others[0], images[0]))
    assert torch.equal(mixed[1], images[1])


def test_a_cover_shows_only_the_labels_that_are_seen():
    (images, labels), seen = pictures(2, 8, 10), torch.full((2, 256), False)
    others, other_labels = 1 - images, labels.flip(1)
    seen[1, 3] = True
    everything = torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4)
    mixed, mixed_labels = paste(images, labels, others, other_labels, everything, seen)
    assert torch.equal(mixed[0], images[0])
    inside = other_labels[1] == 3
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(mixed_labels[1], torch.where(inside, 3, labels[1]))
    assert torch.equal(mixed[1], torch.where(inside, others[1], images[1]))


def test_half_of_the_covers_of_classmix_are_half_of_the_classes_wherever_they_lie():
    drawing = {"seed": 1, "epoch": 2, "places": range(400), "view": (1, 1)}
    cutmix, classmix = (draw_mixes(PRESETS[name], 20, **drawing) for name in ("mild", "classmix"))
    assert torch.equal(cutmix[0], classmix[0])
    assert torch.equal(cutmix[1], classmix[1])
    assert cutmix[3].all()
    everywhere = (classmix[2] == torch.tensor([0.0, 0, 1, 1])).all(1)
    assert abs(everywhere.float().mean() - 0.5) < 0.1
    assert torch.equal(classmix[2][~everywhere], cutmix[2][~everywhere])
    assert classmix[3][~everywhere].all()
    assert abs(classmix[3][everywhere][:, :IGNORE].float().mean() - 0.5) < 0.01
    assert not classmix[3][everywhere][:, IGNORE].any()


def test_partners_depend_on_seed_epoch_and_place_only_and_cover_half_on_average():
    robust = PRESETS["robust"]
    drawn = [
        draw_mixes(robust, 20, seed=1, epoch=2, places=places, view=(1, 1)) for places in (range(400), range(7, 400))
    ]
    for whole, part in zip(*drawn, strict=True):
        assert torch.equal(whole[7:], part)
    partners, _, boxes, _ = drawn[0]
    mixed = partners >= 0
    assert abs(mixed.float().mean() - robust.mix) < 0.1
    assert set(partners[mixed].tolist()) == set(range(20))
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert abs(area.mean() - 0.5) < 0.05
    assert (draw_mixes(PRESETS["views"], 50, seed=1, epoch=2, places=range(99), view=(1, 1))[0] == -1).all()
