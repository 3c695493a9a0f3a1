"""The Python interface and `trailseg predict`: every kind of picture, every number of steps, folders and videos."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from small import only_line, train
from test_prefetch import until

import trailseg
from trailseg import Predictor, prediction, predictor, writing
from trailseg.cli import run
from trailseg.config import PredictOptions, Size
from trailseg.data import pictures
from trailseg.data.readers import TERMS
from trailseg.data.scenes import scene
from trailseg.errors import FileError, OptionError
from trailseg.labels import make_palette
from trailseg.runs import Run
from trailseg.video import VideoReader, VideoWriter


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories: v4 recalls its picture, v6 does not, and res-hourglass has three steps."""
    root = tmp_path_factory.mktemp("runs")
    return {name: train(root / name, name) for name in ("iterative-v4", "iterative-v6", "res-hourglass")}


@pytest.fixture(scope="module")
def v4(runs: dict[str, Path]) -> Predictor:
    return Predictor(runs["iterative-v4"], device="cpu")


def image(index: int = 0, height: int = 40, width: int = 66) -> np.ndarray:
    return scene(seed=9, index=index, size=Size(height, width))[0]


GIVEN = [image(0), image(1, 33, 51), image(2), np.full((40, 66, 3), 128, np.uint8), image(3, 33, 51)]
MOST = 8


def splitting(folder: Path, given: list[np.ndarray]) -> tuple[float, list[int]]:
    """A tolerance with which these pictures take different numbers of steps, and those, up to MOST."""
    small = [Image.fromarray(pixels).resize((48, 32), Image.Resampling.BILINEAR) for pixels in given]
    with torch.no_grad():
        trail = Run.open(folder).network()(torch.tensor(np.stack(small)).permute(0, 3, 1, 2) / 255, MOST)
    classes = trail.argmax(2)
    changes = (classes[:, 1:] != classes[:, :-1]).double().mean((2, 3)).tolist()
    found = sorted({share for one in changes for share in one})
    middles = [(a + b) / 2 for a, b in pairwise(found)]

    def steps(tolerance: float) -> list[int]:
        return [next((t for t, share in enumerate(one, 2) if share < tolerance), MOST) for one in changes]

    best = max(middles, key=lambda tolerance: len(set(steps(tolerance))))
    assert len(set(steps(best))) > 1, "pictures that need different numbers of steps"
    return best, steps(best)


def same(one: predictor.Answer, other: predictor.Answer) -> bool:
    """Whether two answers agree but for what batching rounds."""
    close = np.allclose(one.probability, other.probability, atol=1e-3)
    return close and one.steps == other.steps and (one.ids != other.ids).mean() < 0.002


# The answer


def test_the_answer_is_the_softmax_of_the_last_steps_logits_at_the_pictures_size(runs: dict[str, Path]):
    pixels = image(height=64, width=96)
    answer = Predictor(runs["iterative-v4"], device="cpu")(pixels, steps=4)
    network = Run.open(runs["iterative-v4"]).network()
    small = np.asarray(Image.fromarray(pixels).resize((48, 32), Image.Resampling.BILINEAR))
    with torch.no_grad():
        logits = network(torch.tensor(small).permute(2, 0, 1)[None] / 255, 4)[0]
        shares = F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False).softmax(1)
    probability, ids = shares.max(1)
    np.testing.assert_array_equal(answer.picture, pixels)
    assert answer.trail is not None
    assert (answer.trail.dtype, answer.ids.dtype, answer.probability.dtype) == (np.uint8, np.uint8, np.float32)
    np.testing.assert_array_equal(answer.trail, ids.numpy())
    np.testing.assert_array_equal(answer.ids, answer.trail[-1])
    np.testing.assert_allclose(answer.probability, probability[-1].numpy(), atol=1e-5)
    assert answer.steps == 4
    assert 0 < answer.seconds < 60
    assert all((a != b).any() for a, b in pairwise(answer.trail)), "steps that differ"


def test_the_trail_holds_what_fewer_steps_answer_and_can_be_left_out(v4: Predictor):
    whole = v4(image(), steps=5)
    assert whole.trail is not None
    assert whole.trail.shape == (5, 40, 66)
    for steps in (1, 3, 5):
        fewer = v4(image(), steps=steps, trail=False)
        assert fewer.trail is None
        np.testing.assert_array_equal(fewer.ids, whole.trail[steps - 1])


def test_the_overlay_is_half_the_picture_and_half_the_colours_of_its_classes(v4: Predictor):
    answer = v4(image())
    assert answer.trail is not None
    for step, ids in ((None, answer.ids), (1, answer.trail[0]), (3, answer.trail[2])):
        colours = np.array(v4.facts.colours)[ids]
        np.testing.assert_array_equal(answer.overlay(step), (image().astype(int) + colours) // 2)
    with pytest.raises(AssertionError, match="without its trail"):
        v4(image(), trail=False).overlay(1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (2, 300), (31, 47)])
def test_pictures_of_any_size_are_answered_at_their_own(height: int, width: int, v4: Predictor):
    answer = v4(
        image(height=height, width=width) if min(height, width) > 16 else np.zeros((height, width, 3), np.uint8)
    )
    assert answer.trail is not None
    assert answer.ids.shape == answer.probability.shape == answer.trail.shape[1:] == (height, width)
    assert answer.ids.max() < len(v4.facts.classes)
    assert (1 / len(v4.facts.classes) <= answer.probability).all()
    assert (answer.probability <= 1).all()


def test_a_picture_that_is_given_stays_as_it_is(v4: Predictor):
    palette = Image.fromarray(image()).quantize(8)
    palette.info["transparency"] = 3
    v4(palette)
    assert palette.info["transparency"] == 3


def test_opening_a_network_leaves_the_random_numbers_alone(runs: dict[str, Path]):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Predictor(runs["iterative-v4"], device="cpu")
    assert torch.rand(1) == expected


def test_another_size_to_compute_at_is_another_answer(runs: dict[str, Path], v4: Predictor):
    large = Predictor(runs["iterative-v4"], device="cpu", size=Size(40, 66))(image())
    network = Run.open(runs["iterative-v4"]).network()
    with torch.no_grad():
        logits = network(torch.tensor(image()).permute(2, 0, 1)[None] / 255, 3)[0]
        expected = F.interpolate(logits, (40, 66), mode="bilinear", align_corners=False).argmax(1)
    np.testing.assert_array_equal(large.trail, expected.numpy())
    assert (large.ids != v4(image()).ids).any()


def test_the_facts_are_those_of_the_run(runs: dict[str, Path]):
    for name, max_steps, recalls in (
        ("iterative-v4", None, True),
        ("iterative-v6", None, False),
        ("res-hourglass", 3, False),
    ):
        facts, config = Predictor(runs[name], device="cpu").facts, Run.open(runs[name]).config
        assert (facts.name, facts.network, facts.size, facts.scale) == (name, name, (32, 48), 2)
        assert (facts.trained_steps, facts.max_steps, facts.recalls) == (3, max_steps, recalls)
        assert list(facts.classes) == config["data"]["classes"]
        assert [list(colour) for colour in facts.colours] == config["data"]["colours"]
        assert {n: getattr(facts, n) for n in ("parameters", "macs_stem", "macs_step")}.items() <= config[
            "network"
        ].items()
        assert (facts.data, facts.licence) == TERMS["procedural"]
        assert type(facts).from_texts(facts.to_texts()) == facts


def test_the_fingerprint_is_that_of_the_weights(runs: dict[str, Path]):
    made = {name: Predictor(folder, device="cpu") for name, folder in runs.items()}
    prints = {name: one.fingerprint for name, one in made.items()}
    assert len(set(prints.values())) == 3
    assert all(len(one) == 16 for one in prints.values())
    again = Predictor(runs["iterative-v4"], device="cpu")
    assert again.fingerprint == prints["iterative-v4"]
    with torch.no_grad():
        again._model.network.head.bias[0] += 1e-3  # type: ignore[attr-defined]
    assert again.fingerprint != prints["iterative-v4"]


# What it is given


def test_a_path_a_pil_image_and_an_array_of_the_same_picture_give_the_same(v4: Predictor, tmp_path: Path):
    pixels = image()
    grey = Image.fromarray(pixels).convert("L")
    turned, exif = Image.fromarray(np.rot90(pixels).copy()), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    see_through = Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 99, np.uint8)]))
    printed = Image.fromarray(pixels).convert("CMYK")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    given = {
        "path": (tmp_path / "plain.png", pixels),
        "text": (str(tmp_path / "plain.png"), pixels),
        "RGB": (Image.fromarray(pixels), pixels),
        "RGBA": (see_through, pixels),
        "L": (grey, np.dstack([np.asarray(grey)] * 3)),
        "CMYK": (printed, np.asarray(printed.convert("RGB"))),
        "turned": (Image.open(tmp_path / "turned.png"), pixels),
        "turned file": (tmp_path / "turned.png", pixels),
    }
    for name, (picture, expected) in given.items():
        answer = v4(picture)
        np.testing.assert_array_equal(answer.picture, expected, err_msg=name)
        np.testing.assert_array_equal(answer.ids, v4(expected).ids, err_msg=name)


WRONG = [
    (np.zeros((4, 4, 3), np.float32), "an array of float32 (4, 4, 3); give (H, W, 3) uint8 RGB"),
    (np.zeros((4, 4), np.uint8), "an array of uint8 (4, 4); give"),
    (np.zeros((4, 4, 4), np.uint8), "an array of uint8 (4, 4, 4); give"),
    (np.zeros((0, 4, 3), np.uint8), "an array of uint8 (0, 4, 3); give"),
    (np.zeros((2, 4, 4, 3), np.uint8), "an array of uint8 (2, 4, 4, 3); give"),
    (Image.new("F", (4, 4)), "none is known to be white; give it with 8 bits a channel"),
]


@pytest.mark.parametrize(("picture", "problem"), WRONG, ids=[problem[:30] for _, problem in WRONG])
def test_a_wrong_array_is_told(picture: Any, problem: str, v4: Predictor):
    for ask in (v4, lambda picture: v4.batch([image(), picture])):
        with pytest.raises(OptionError) as error:
            ask(picture)
        assert str(error.value).startswith("picture: ")
        assert problem in str(error.value)
        assert "\n" not in str(error.value)


def test_too_many_pixels_are_refused(v4: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (predictor, pictures):
        monkeypatch.setattr(module, "MAX_PIXELS", 2_000_000)
    fitting, large = np.zeros((2, 1_000_000, 3), np.uint8), np.zeros((2, 1_000_001, 3), np.uint8)
    assert predictor._image(fitting) is fitting
    for picture in (large, Image.fromarray(large)):
        with pytest.raises(OptionError, match=r"^picture: has more than the 2 million pixels allowed; scale it down$"):
            v4(picture)
    Image.fromarray(large).save(tmp_path / "large.png")
    with pytest.raises(FileError, match=r"large\.png: has 2 x 1000001 pixels, more than the 2 million allowed"):
        v4(tmp_path / "large.png")


def test_a_file_that_is_no_picture_is_told(v4: Predictor, tmp_path: Path):
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(FileError, match="is not a picture"):
        v4(tmp_path / "text.png")
    with pytest.raises(FileError, match="there is no such file"):
        v4(tmp_path / "none.png")


# Steps


@pytest.mark.parametrize(
    ("network", "asked", "problem"),
    [
        ("iterative-v4", {"steps": 0}, "steps=0: take 1 to 256 steps"),
        ("iterative-v4", {"steps": -1}, "steps=-1: take 1 to 256 steps"),
        ("iterative-v4", {"steps": 257}, "steps=257: take 1 to 256 steps"),
        ("iterative-v4", {"steps": "x"}, "steps=x: take a whole number or auto"),
        ("iterative-v4", {"steps": True}, "steps=True: take a whole number or auto"),
        ("iterative-v4", {"steps": 2.5}, "steps=2.5: take a whole number or auto"),
        ("res-hourglass", {"steps": 4}, "steps=4: res-hourglass takes at most 3 steps"),
        ("iterative-v4", {"steps": "auto", "tolerance": 0}, "tolerance=0: take a share of the pixels above 0"),
        ("iterative-v4", {"steps": "auto", "tolerance": 2}, "tolerance=2: take a share"),
        ("iterative-v4", {"steps": "auto", "tolerance": float("nan")}, "tolerance=nan: take a share"),
        ("iterative-v4", {"steps": "auto", "most_steps": 0}, "most_steps=0: take 1 to 256 steps"),
        ("iterative-v4", {"steps": "auto", "most_steps": 2.5}, "most_steps=2.5: take a whole number"),
        ("iterative-v4", {"steps": "auto", "most_steps": "auto"}, "most_steps=auto: take a whole number"),
        ("res-hourglass", {"steps": "auto", "most_steps": 4}, "most_steps=4: res-hourglass takes at most 3 steps"),
    ],
)
def test_wrong_steps_are_told(network: str, asked: dict[str, Any], problem: str, runs: dict[str, Path]):
    subject = Predictor(runs[network], device="cpu")
    for ask in (lambda: subject(image(), **asked), lambda: subject.batch([image()], **asked)):
        with pytest.raises(OptionError) as error:
            ask()
        assert str(error.value).startswith(problem)


def test_without_a_number_the_trained_steps_are_taken(v4: Predictor, runs: dict[str, Path]):
    assert v4(image()).steps == 3
    assert v4.limits(None, 0.01, None) == (3, 0)
    assert v4.limits("auto", 0.03, None) == (6, 0.03)
    assert v4.limits("auto", 0.03, 20) == (20, 0.03)
    assert Predictor(runs["res-hourglass"], device="cpu").limits("auto", 0.03, None) == (3, 0.03)


def test_auto_never_asks_for_more_steps_than_are_allowed(v4: Predictor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predictor, "STEPS_LIMIT", 5)
    assert v4.limits("auto", 0.03, None) == (5, 0.03)


def test_auto_stops_after_the_first_step_that_changes_too_little(runs: dict[str, Path], v4: Predictor):
    tolerance, expected = splitting(runs["iterative-v4"], GIVEN)
    for pixels, steps in zip(GIVEN, expected, strict=True):
        answer = v4(pixels, steps="auto", tolerance=tolerance, most_steps=MOST)
        assert answer.steps == steps
        assert answer.trail is not None
        assert len(answer.trail) == steps
        np.testing.assert_array_equal(answer.trail, v4(pixels, steps=steps).trail)
    assert v4(GIVEN[0], steps="auto", tolerance=1.0).steps == 2
    assert v4(GIVEN[0], steps="auto", tolerance=1e-9, most_steps=1).steps == 1


# Several pictures


def test_a_batch_of_several_sizes_keeps_its_order_and_each_stops_by_itself(runs: dict[str, Path], v4: Predictor):
    tolerance, expected = splitting(runs["iterative-v4"], GIVEN)
    asked: dict[str, Any] = {"steps": "auto", "tolerance": tolerance, "most_steps": MOST}
    answers = v4.batch(GIVEN, **asked)
    assert [answer.steps for answer in answers] == expected
    for pixels, answer in zip(GIVEN, answers, strict=True):
        np.testing.assert_array_equal(answer.picture, pixels)
        assert answer.trail is not None
        assert answer.trail.shape == (answer.steps, *pixels.shape[:2])
        assert same(answer, v4(pixels, **asked))
    assert v4.batch([]) == []


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_folder_tells_of_a_bad_picture_and_goes_on(batch: int, v4: Predictor, tmp_path: Path):
    for index, name in enumerate(["a.png", "c.jpg", "d.PNG"]):
        Image.fromarray(image(index)).save(tmp_path / name)
    (tmp_path / "b.png").write_text("text")
    (tmp_path / "e.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    found = list(v4.folder(tmp_path, batch=batch, steps=2, trail=False))
    assert [path.name for path, _ in found] == ["a.png", "b.png", "c.jpg", "d.PNG", "e.png"]
    for name, problem in (("b.png", "is not a picture"), ("e.png", "")):
        bad = dict(found)[tmp_path / name]
        assert isinstance(bad, FileError)
        assert str(bad).startswith(f"{tmp_path / name}: {problem}")
    for path, answer in found:
        if path.name not in ("b.png", "e.png"):
            assert isinstance(answer, predictor.Answer)
            assert answer.trail is None
            assert same(answer, v4(path, steps=2))


def test_a_folder_without_pictures_is_told(v4: Predictor, tmp_path: Path):
    with pytest.raises(FileError, match="holds no picture; name a folder with"):
        next(v4.folder(tmp_path))
    with pytest.raises(FileError, match="no such file or folder"):
        next(v4.folder(tmp_path / "none"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve small pictures, 00.png to 11.png."""
    (tmp_path / "in").mkdir()
    for index in range(12):
        Image.fromarray(image(index, 20, 30)).save(tmp_path / "in" / f"{index:02}.png")
    return tmp_path / "in"


class Watched:
    """Stands in for a function: notes each call, does `before` with its number, and then what the function does."""

    def __init__(self, function: Callable[..., Any], before: Callable[[int], object] = lambda number: None) -> None:
        self.function, self.before, self.calls = function, before, list[Any]()

    def __call__(self, *given: Any, **options: Any) -> Any:
        self.calls.append(given[0])
        self.before(len(self.calls) - 1)
        return self.function(*given, **options)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_bounded_number_of_pictures_is_read_while_those_before_are_answered(
    batch: int, v4: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    depth = max(batch, predictor.THREADS)
    read = Watched(predictor.read_image, lambda number: number or until(lambda: len(read.calls) == 1 + depth))
    expected = [min(batch * number + depth, 12) for number in range(1, 13)]
    model = Watched(v4._model.answer, lambda number: until(lambda: len(read.calls) == expected[number]))
    monkeypatch.setattr(predictor, "read_image", read)
    monkeypatch.setattr(v4._model, "answer", model)
    for place, (path, _) in enumerate(v4.folder(folder, batch=batch, steps=1, trail=False)):
        assert path.name == f"{place:02}.png"
        assert len(model.calls) == place // batch + 1
    assert len(read.calls) == 12


# Frames of a video


def test_a_warm_start_goes_on_where_the_frame_before_ended(v4: Predictor):
    frames = [image()] * 3
    warm = list(v4.video(frames, warm_start=True, steps=2))
    whole = v4(image(), steps=6)
    assert whole.trail is not None
    for place, answer in enumerate(warm):  # of the same picture they are the steps of one answer
        np.testing.assert_array_equal(answer.trail, whole.trail[2 * place : 2 * place + 2])
        assert answer.steps == 2
    for answer in v4.video(frames, steps=2):
        np.testing.assert_array_equal(answer.trail, whole.trail[:2])
    moved = list(v4.video([image(0), image(1)], warm_start=True, steps=1))[1]
    assert (moved.ids != v4(image(1), steps=1).ids).any()


def test_a_warm_start_is_refused_where_it_cannot_work(runs: dict[str, Path], v4: Predictor):
    for name in ("iterative-v6", "res-hourglass"):
        other = Predictor(runs[name], device="cpu")
        with pytest.raises(OptionError, match=f"^warm_start: {name} does not look at the picture again"):
            list(other.video([image()] * 2, warm_start=True))
        assert len(list(other.video([image()] * 2))) == 2
    before = Predictor(runs["iterative-v4"], device="cpu", size=Size(16, 24))(image())
    with pytest.raises(OptionError, match="before: that answer is of pictures of another size or number"):
        v4(image(), before=before)
    with pytest.raises(OptionError, match="before: that answer is of pictures of another size or number"):
        v4(image(), before=v4.batch([image(), image(1)])[0])


# What is no network


def test_what_is_no_trained_network_is_told(tmp_path: Path, runs: dict[str, Path]):
    for path, problem in ((tmp_path / "none", "there is no such run directory"), (tmp_path, "holds no run")):
        with pytest.raises(FileError, match=problem):
            Predictor(path)
    with pytest.raises(OptionError, match="device=mps: there is none here"):
        Predictor(runs["iterative-v4"], device="mps")
    with pytest.raises(AttributeError, match="module 'trailseg' has no attribute 'Predicter'"):
        getattr(trailseg, "Predicter")  # noqa: B009


# On the command line


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Nine frames that move."""
    path = tmp_path / "drive.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for place in range(9):
            writer.write(np.roll(image(height=40, width=66), 3 * place, 1))
    return path


def predict(*words: object) -> int:
    return run(["predict", *map(str, words), "device=cpu"])


@pytest.mark.parametrize("warm", [False, True])
def test_a_video_is_overlaid_frame_by_frame(
    warm: bool, video: Path, runs: dict[str, Path], v4: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    frames = []

    class Watched(VideoWriter):
        def write(self, frame: np.ndarray) -> None:
            frames.append(frame)
            super().write(frame)

    monkeypatch.setattr(prediction, "VideoWriter", Watched)
    target = tmp_path / "out" / "drive_overlay.mp4"
    words = [runs["iterative-v4"], video, f"out={target.parent}", "steps=2", f"warm_start={str(warm).lower()}"]
    assert predict(*words) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert [file.name for file in target.parent.iterdir()] == [target.name]
    written, read = VideoReader(target), VideoReader(video)
    assert written.rate == read.rate == 10
    answers = list(v4.video(read, warm_start=warm, steps=2))
    assert len(list(written)) == len(frames) == len(answers) == 9
    assert all((a == answer.overlay()).all() for a, answer in zip(frames, answers, strict=True))
    cold = [answer.overlay() for answer in v4.video(VideoReader(video), steps=2)]
    assert any((a != b).any() for a, b in zip(frames, cold, strict=True)) == warm


def test_of_a_video_that_breaks_off_what_was_done_is_kept(
    video: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 3 // 4])
    assert predict(runs["iterative-v4"], video, f"out={tmp_path / 'out'}", "steps=1") == 1
    printed = capsys.readouterr()
    count = len(list(VideoReader(tmp_path / "out" / "drive_overlay.mp4")))
    assert 1 <= count < 9
    assert printed.out == f"{tmp_path / 'out' / 'drive_overlay.mp4'}\n"
    assert printed.err.startswith(f"trailseg predict: {video}: breaks off after {count} frame")
    assert printed.err.count("\n") == 1


def test_a_video_whose_folder_cannot_be_written_or_that_is_none_leaves_nothing(
    video: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("of mine")
    assert predict(runs["iterative-v4"], video, f"out={tmp_path / 'file'}") == 1
    assert f"{tmp_path / 'file' / 'drive_overlay.mp4'}: cannot be written" in only_line(capsys)
    (tmp_path / "text.mp4").write_text("this is text")
    assert predict(runs["iterative-v4"], tmp_path / "text.mp4", f"out={tmp_path / 'out'}") == 1
    assert f"{tmp_path / 'text.mp4'}: cannot be opened as a video" in only_line(capsys)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "drive_overlay.mp4").write_text("of mine")
    assert predict(runs["iterative-v4"], video, f"out={tmp_path / 'out'}") == 1
    assert "drive_overlay.mp4: is there already; say another out=" in only_line(capsys)
    assert (tmp_path / "out" / "drive_overlay.mp4").read_text() == "of mine"
    assert predict(runs["iterative-v6"], video, f"out={tmp_path / 'new'}", "warm_start=true") == 2
    assert "warm_start: iterative-v6 does not look at the picture again" in only_line(capsys)
    assert not list((tmp_path / "new").glob("*"))


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["warm_start=true"], 2, "warm_start=true: only the frames of a video follow each other"),
        (["steps=0"], 2, "steps=0: take 1 to 256 steps"),
        (["steps=257"], 2, "steps=257: take 1 to 256 steps"),
        (["steps=often"], 2, "steps=often: take a whole number or auto"),
        (["steps=2.5"], 2, "steps=2.5: take a whole number or auto"),
        (["steps=auto", "tolerance=0"], 2, "tolerance=0.0: take a share of the pixels above 0"),
        (["steps=auto", "tolerance=1.5"], 2, "tolerance=1.5: take a share"),
        (["steps=auto", "tolerance=nan"], 2, "tolerance=nan: take a number"),
        (["steps=auto", "tolerance=little"], 2, "tolerance=little: take a number"),
        (["steps=auto", "most_steps=0"], 2, "most_steps=0: take 1 to 256 steps"),
        (["batch=0"], 2, "batch=0: take at least 1"),
        (["precision=16"], 2, "precision=16 is not known"),
        (["size=0,0"], 2, "size=0,0: take height,width in pixels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    words: list[str], code: int, problem: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "in").mkdir()
    Image.fromarray(image()).save(tmp_path / "in" / "a.png")
    assert predict(runs["iterative-v4"], tmp_path / "in", f"out={tmp_path / 'out'}", *words) == code
    assert only_line(capsys).startswith(f"trailseg predict: {problem}")
    assert not (tmp_path / "out").exists()


def test_auto_prints_the_steps_that_each_picture_took(
    runs: dict[str, Path], v4: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "in").mkdir()
    for name, pixels in zip("abcde", GIVEN, strict=True):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    tolerance, expected = splitting(runs["iterative-v4"], GIVEN)
    auto = ["steps=auto", f"tolerance={tolerance}", f"most_steps={MOST}"]
    assert predict(runs["iterative-v4"], tmp_path / "in", f"out={tmp_path / 'out'}", *auto, "batch=3") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'out' / name}.png  after {steps} steps" for name, steps in zip("abcde", expected, strict=True)
    ]
    for name, pixels, steps in zip("abcde", GIVEN, expected, strict=True):
        ids = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert (ids != v4(pixels, steps=steps).ids).mean() < 0.002
        overlay = np.asarray(Image.open(tmp_path / "out" / f"{name}_overlay.png"))
        np.testing.assert_array_equal(overlay, (pixels.astype(int) + make_palette(v4.facts.colours)[ids]) // 2)


def written(run: Path, folder: Path, out: Path) -> Iterator[prediction.Written | FileError]:
    return prediction.predict(PredictOptions(model=str(run), pictures=str(folder), device="cpu", steps=1), out)


def whole_pairs(out: Path) -> list[str]:
    """The names of the pictures of which both files are there and whole; nothing else may be but their question."""
    names = sorted(file.stem for file in out.glob("??.png"))
    *files, question = sorted(out.iterdir())
    assert question.name == prediction.QUESTION
    assert files == [out / f"{name}{ending}" for name in names for ending in (".png", "_overlay.png")]
    for file in files:
        Image.open(file).load()
    return names


def test_a_bounded_number_of_pictures_is_answered_while_those_before_are_written(
    folder: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answered = Watched(Predictor.batch)
    ahead = predictor.THREADS + 1
    waits = Watched(prediction.write_whole, lambda number: number != 1 or until(lambda: len(answered.calls) == ahead))
    monkeypatch.setattr(Predictor, "batch", lambda *given, **options: answered(*given, **options))
    monkeypatch.setattr(prediction, "write_whole", waits)
    for place, one in enumerate(written(runs["iterative-v4"], folder, tmp_path / "out")):
        assert isinstance(one, prediction.Written)
        assert one.path == tmp_path / "out" / f"{place:02}.png"
        assert one.path.exists()
        assert len(answered.calls) <= place + ahead
    assert whole_pairs(tmp_path / "out") == [f"{place:02}" for place in range(12)]


def test_a_file_that_is_named_twice_is_answered_twice(folder: Path, v4: Predictor):
    one, other = folder / "00.png", folder / "01.png"
    told = list(v4.files([one, one, other, one], batch=3))
    assert [path for path, _ in told] == [one, one, other, one]
    assert all(isinstance(answer, predictor.Answer) for _, answer in told)


def test_another_folders_pictures_of_the_same_names_are_not_taken_for_answered(
    folder: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(folder, other)
    assert predict(runs["iterative-v4"], folder, f"out={out}") == 0
    capsys.readouterr()
    assert predict(runs["iterative-v4"], other, f"out={out}") == 1
    asked = f"pictures {os.path.realpath(folder)}, not {os.path.realpath(other)}"
    assert only_line(capsys).startswith(f"trailseg predict: {out}: holds answers to another question ({asked})")


def test_a_picture_that_takes_the_place_of_an_answered_one_is_answered_anew_however_old_it_is(
    folder: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    older, out = tmp_path / "older.png", tmp_path / "out"
    Image.fromarray(image(99, 20, 30)).save(older)
    assert predict(runs["iterative-v4"], folder, f"out={out}") == 0
    before = (out / "05.png").read_bytes()
    older.replace(folder / "05.png")
    capsys.readouterr()
    assert predict(runs["iterative-v4"], folder, f"out={out}") == 0
    assert capsys.readouterr().out.splitlines()[0] == str(out / "05.png")
    assert (out / "05.png").read_bytes() != before


def test_what_is_written_is_told_in_order_though_it_is_done_in_another(
    folder: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write(path: Path, content: bytes) -> Path:
        if path.name == "00.png":
            until(lambda: len(done) == 3)
        writing.write_whole(path, content)
        if path.suffix == ".png" and not path.stem.endswith("_overlay"):
            done.append(path)
        return path

    done: list[Path] = []
    (folder / "01.png").write_text("text")
    monkeypatch.setattr(prediction, "write_whole", write)
    told = list(written(runs["iterative-v4"], folder, tmp_path / "out"))
    assert done[3].name == "00.png"
    names = [(one.path if isinstance(one, prediction.Written) else Path(str(one).split(":")[0])).name for one in told]
    assert names == [f"{place:02}.png" for place in range(12)]
    assert [place for place, one in enumerate(told) if isinstance(one, FileError)] == [1]


def test_a_write_that_fails_is_told_in_its_place_and_ends_it(
    folder: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    def write(path: Path, content: bytes) -> Path:
        if path.name == "03_overlay.png":
            raise FileError(path, "cannot be written", "make room")
        return writing.write_whole(path, content)

    monkeypatch.setattr(prediction, "write_whole", write)
    out = tmp_path / "out"
    assert predict(runs["iterative-v4"], folder, f"out={out}", "steps=1") == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(out / f"{place:02}.png") for place in range(3)]
    assert printed.err == f"trailseg predict: {out / '03_overlay.png'}: cannot be written; make room\n"
    assert whole_pairs(out)[:3] == ["00", "01", "02"]
    assert "11" not in whole_pairs(out), "it went on"


def test_an_interrupt_leaves_no_half_files(
    folder: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    def interrupted(number: int) -> None:
        if number == 4:
            until(lambda: slow.calls)
            raise KeyboardInterrupt

    slow = Watched(prediction.write_whole, lambda number: time.sleep(0.05))
    answer = Watched(Predictor.batch, interrupted)
    monkeypatch.setattr(prediction, "write_whole", slow)
    monkeypatch.setattr(Predictor, "batch", lambda *given, **options: answer(*given, **options))
    assert predict(runs["iterative-v4"], folder, f"out={tmp_path / 'out'}", "steps=1") == 130
    go_on = f"go on with the same command and out={tmp_path / 'out'}"
    assert only_line(capsys) == f"trailseg predict: interrupted; {go_on}\n"
    pairs = whole_pairs(tmp_path / "out")
    assert pairs == [f"{place:02}" for place in range(4)][: len(pairs)]
    assert len(slow.calls) == 1 + 2 * len(pairs) > 1


def test_the_steps_of_a_video_are_the_mean_of_its_frames(
    video: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tolerance, expected = splitting(runs["iterative-v4"], list(VideoReader(video)))
    auto = ["steps=auto", f"tolerance={tolerance}", f"most_steps={MOST}"]
    assert predict(runs["iterative-v4"], video, f"out={tmp_path / 'out'}", *auto) == 0
    assert capsys.readouterr().out.endswith(f"drive_overlay.mp4  after {np.mean(expected):.3g} steps\n")
