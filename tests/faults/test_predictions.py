"""Folders of pictures: whatever is bad among them, kills the process or fills the disk, no answer is lost or torn."""

import json
import os
import random
import shutil
import signal
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import Ended, call, start
from PIL import Image
from small import train

from trailseg.prediction import QUESTION
from trailseg.video import VideoReader, VideoWriter
from trailseg.writing import sweep


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network answers a picture within a millisecond."""
    return train(tmp_path_factory.mktemp("network") / "run", "iterative-v4", channels=4, size="16,24")


@pytest.fixture(scope="module")
def undisturbed(network: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], float]:
    """Forty pictures, what is written of them, and how many seconds that takes."""
    root = tmp_path_factory.mktemp("undisturbed")
    draw(root / "in", 40)
    ended = predict(root, network)
    assert (ended.code, ended.err, len(ended.out.splitlines())) == (0, "", 40)
    return root / "in", content(root / "out"), ended.seconds


def draw(folder: Path, count: int, height: int = 16, width: int = 24) -> None:
    """Pictures of noise, 00000.png and so on."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        pixels = noise.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{number:05}.png", compress_level=1)


def words(root: Path, network: Path, *more: object, pictures: Path | None = None) -> list[object]:
    given = ["predict", network, pictures or root / "in", f"out={root / 'out'}", "steps=2", "device=cpu"]
    return [*given, *more]


def predict(root: Path, network: Path, *more: object, pictures: Path | None = None, **options: Any) -> Ended:
    return call(root / "said", *words(root, network, *more, pictures=pictures), **options)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def whole(folder: Path) -> set[str]:
    """The names of the PNGs, all of which can be decoded."""
    names = {file.name for file in folder.glob("[!.]*.png")}
    for name in names:
        Image.open(folder / name).load()
    return names


def test_of_a_folder_with_a_bad_picture_all_others_are_answered(network: Path, tmp_path: Path, trials: Any, tally: Any):
    count = trials(300, 10_000)
    draw(tmp_path / "in", count)
    bad = tmp_path / "in" / f"{random.Random(0).randrange(count):05}.png"
    bad.write_bytes(bad.read_bytes()[:60])
    ended = predict(tmp_path, network, "batch=3", seconds=600)
    assert ended.code == 1
    (line,) = ended.lines
    assert line.startswith(f"trailseg predict: {bad}: cannot be read as a picture")
    names = {file.name for file in (tmp_path / "in").iterdir()} - {bad.name}
    assert [Path(line).name for line in ended.out.splitlines()] == sorted(names)
    answered = [name for name in sorted(names) if (tmp_path / "out" / name).exists()]
    assert whole(tmp_path / "out") == names | {f"{Path(name).stem}_overlay.png" for name in names}
    tally("pictures answered of a folder with one bad among them", len(answered), count - 1)


def test_ten_times_as_many_pictures_take_no_more_memory(network: Path, tmp_path: Path, trials: Any, tally: Any):
    few = trials(20, 300)
    peaks = []
    for count in (few, 10 * few):
        root = tmp_path / str(count)
        root.mkdir()
        draw(root / "in", count, 96, 128)
        ended = predict(root, network, seconds=600)
        assert ended.code == 0
        peaks.append(ended.peak)
    held = 10 * few * 96 * 128 * 8  # what the answers take
    assert peaks[1] - peaks[0] < min(held / 2, 10e6), f"{peaks[0] / 1e6:.1f} and {peaks[1] / 1e6:.1f} MB"
    tally("folders ten times as large answered in the same memory", 1, 1)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    undisturbed: tuple[Path, dict[str, bytes], float], network: Path, tmp_path: Path, trials: Any, tally: Any
):
    """The PNGs are decoded all the while, and once more when the process is gone."""
    pictures, expected, seconds = undisturbed
    moments, kills, good = random.Random(1), trials(8, 200), 0
    root = tmp_path / "0"
    while good < kills:
        process = start(root / "said", *words(root, network, pictures=pictures))
        end = time.perf_counter() + moments.uniform(0, seconds)
        before: set[str] = set()
        while time.perf_counter() < end:
            before |= whole(root / "out")
        process.send(signal.SIGKILL)
        if (ended := process.wait()).code == -signal.SIGKILL:
            assert before <= whole(root / "out")
            good += 1
        else:
            assert ended.code == 0
        if ended.code == 0 or good == kills:
            assert predict(root, network, pictures=pictures).code == 0
            assert content(root / "out") == expected
            root = tmp_path / str(good)
    tally("predictions killed, and gone on with to the same bytes", good, kills)


def test_going_on_leaves_out_what_is_answered_and_says_how_much(
    undisturbed: tuple[Path, dict[str, bytes], float], network: Path, tmp_path: Path, tally: Any
):
    shutil.copytree(undisturbed[0], tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    asked = json.loads(undisturbed[1][QUESTION]) | {"pictures": os.path.realpath(tmp_path / "in")}
    expected = undisturbed[1] | {QUESTION: json.dumps(asked).encode()}
    for name, pixels in expected.items():
        if name == QUESTION or name < "00030" or name.endswith("_overlay.png"):  # an overlay alone is no answer
            (out / name).write_bytes(pixels)
    (out / ".00031.png.1.part").write_bytes(b"half")
    os.utime(tmp_path / "in" / "00003.png", (time.time() + 5, time.time() + 5))  # a newer picture
    kept = {name: (out / name).stat().st_ino for name in undisturbed[1] if name < "00030" and "00003" not in name}
    ended = predict(tmp_path, network)
    assert (ended.code, ended.err) == (0, "")
    named = [out / "00003.png", *(out / f"{number:05}.png" for number in range(30, 40))]
    assert ended.out.splitlines() == [*map(str, named), "29 answered already, and left as they were"]
    assert content(out) == expected
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    tally("predictions gone on with that leave out what is answered", 1, 1)


def test_an_interrupt_says_how_to_go_on(
    undisturbed: tuple[Path, dict[str, bytes], float], network: Path, tmp_path: Path, trials: Any, tally: Any
):
    pictures, expected, _ = undisturbed
    tries, good = trials(2, 20), 0
    for number in range(tries):
        root = tmp_path / str(number)
        process = start(root / "said", *words(root, network, pictures=pictures))
        while len(list((root / "out").glob("?????.png"))) <= number:
            time.sleep(0.001)
        process.send(signal.SIGINT)
        ended = process.wait()
        go_on = f"go on with the same command and out={root / 'out'}"
        assert (ended.code, ended.err) == (130, f"trailseg predict: interrupted; {go_on}\n")
        assert not list((root / "out").glob(".*"))
        assert whole(root / "out")
        assert predict(root, network, pictures=pictures).code == 0
        good += content(root / "out") == expected
    tally("predictions interrupted, and gone on with to the same bytes", good, tries)


def test_a_disk_that_is_full_in_the_middle_ends_it_in_a_line(network: Path, tmp_path: Path, tally: Any):
    """No file may have more than 4096 bytes, and the overlay of one picture has."""
    draw(tmp_path / "in", 20)
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "00010.png")
    ended = predict(tmp_path, network, RLIMIT_FSIZE=4096)
    assert ended.code == 1
    full = "cannot be written (File too large); make room or give permission there"
    assert ended.lines == [f"trailseg predict: {tmp_path / 'out' / '00010_overlay.png'}: {full}"]
    assert ended.out.splitlines() == [str(tmp_path / "out" / f"{number:05}.png") for number in range(10)]
    assert "00010_overlay.png" not in whole(tmp_path / "out")
    ended = predict(tmp_path, network)
    assert (ended.code, ended.err) == (0, "")
    assert len(whole(tmp_path / "out")) == 40
    assert not list((tmp_path / "out").glob(".*"))
    tally("predictions ended by a full disk in a line, and gone on with", 1, 1)


HOSTILE = [
    b"a line\nand another", b"\x1b[31mred\x07", b"-rf", b"--out=x", b".hidden", b"..", b"...", b"not \xff\xfe text",
    b"$(touch owned)", b"%s%n", b"\xe2\x80\xaegnp", b"a\rb\tc", b"predict.json", b" ", b"x" * 200, b"'\"\\",
]  # fmt: skip


def test_names_of_any_kind_stay_inside_and_are_told_in_a_line(network: Path, tmp_path: Path, tally: Any):
    """`trailseg predict` is given the folder; its name is as bad."""
    pictures = tmp_path / "in\n\x1b[2J"
    draw(pictures, 1)
    one = pictures / "00000.png"
    hostile = [name for name in HOSTILE if Path(os.fsdecode(name + b".png")).suffix]  # "...png" has none in Python 3.14
    for name in hostile:
        shutil.copy(one, os.fsencode(pictures) + b"/" + name + b".png")
    for name in (b"y" * 243, b"z" * 250):  # of which no overlay can be made, and no file beside it
        shutil.copy(one, os.fsencode(pictures) + b"/" + name + b".png")
    one.unlink()
    ended = predict(tmp_path, network, pictures=pictures)
    assert ended.code == 1
    assert len(ended.lines) == 2
    for line, letter in zip(ended.lines, "yz", strict=True):
        assert line.endswith(f"{letter}.png: its answer cannot be written (File name too long); give it another name")
    assert len(ended.out.split("\n")) == len(hostile) + 1
    assert (ended.out + ended.err).replace("\n", "").isprintable()
    names = {os.fsencode(file.name) for file in (tmp_path / "out").iterdir()}
    expected = {name + ending for name in hostile for ending in (b".png", b"_overlay.png")}
    assert names == expected | {QUESTION.encode()}
    assert {file.name for file in tmp_path.iterdir()} == {pictures.name, "out", "said"}
    tally("hostile names whose answers stay inside the folder", len(expected & names), 2 * len(hostile))


def test_links_in_the_folder_of_answers_lead_nowhere(
    undisturbed: tuple[Path, dict[str, bytes], float], network: Path, tmp_path: Path, tally: Any
):
    pictures, expected, _ = undisturbed
    outside, out = tmp_path / "outside", tmp_path / "out"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("of another")
    out.mkdir()
    links = {"00001.png": "none", "00002_overlay.png": "none", "00003.png": "file", "00004_overlay.png": "file"}
    for name, target in links.items():
        (out / name).symlink_to(outside / target)
    refused = predict(tmp_path, network, pictures=pictures)
    assert refused.code == 1
    assert refused.lines == [f"trailseg predict: {out / '00001.png'}: is there already; say another out=, or remove it"]
    (out / QUESTION).write_bytes(expected[QUESTION])
    (out / "00005.png").symlink_to(outside / "folder")
    assert predict(tmp_path, network, pictures=pictures).code == 0
    assert {file.name for file in outside.rglob("*")} == {"file", "folder"}
    assert (outside / "file").read_text() == "of another"
    assert not any(file.is_symlink() for file in out.iterdir())
    assert content(out) == expected
    tally("links in the folder of answers that were not followed", 5, 5)


def test_answers_to_another_question_are_never_mixed(
    undisturbed: tuple[Path, dict[str, bytes], float], network: Path, tmp_path: Path, tally: Any
):
    other = train(tmp_path / "run", "iterative-v4", channels=4, size="16,24", seed=1)
    pictures, answers, _ = undisturbed
    out = tmp_path / "out"
    out.mkdir()
    for name in (QUESTION, "00000.png", "00000_overlay.png"):
        (out / name).write_bytes(answers[name])
    before = content(out)
    asked = [
        (network, ["steps=3"], "(steps 2, not 3)"),
        (network, ["size=16,16"], "(size [16, 24], not [16, 16])"),
        (network, ["steps=auto", "most_steps=2"], "(tolerance 0.0, not 0.01)"),
        (network, ["precision=bf16"], "(precision 32, not bf16)"),
        (other, [], f"(weights {json.loads(answers[QUESTION])['weights']}, not "),
    ]
    good = 0
    for model, more, difference in asked:
        ended = predict(tmp_path, model, *more, pictures=pictures)
        assert ended.code == 1
        (line,) = ended.lines
        assert line.startswith(f"trailseg predict: {out}: holds answers to another question {difference}")
        good += content(out) == before
    for damaged in (b"", b"[1]", b'"text"', b"{", b"\xff"):
        (out / QUESTION).write_bytes(damaged)
        (line,) = predict(tmp_path, network, pictures=pictures).lines
        assert line.startswith(f"trailseg predict: {out / QUESTION}: is not what `trailseg predict` wrote")
        good += content(out) == before | {QUESTION: damaged}
    (out / QUESTION).unlink()
    (line,) = predict(tmp_path, network, pictures=pictures).lines
    assert line.startswith(f"trailseg predict: {out / '00000.png'}: is there already")
    tally("answers to another question that were left alone", good, 10)


def test_pictures_are_never_taken_for_answers_nor_answers_for_pictures(
    undisturbed: tuple[Path, dict[str, bytes], float], network: Path, tmp_path: Path, tally: Any
):
    pictures, answers, _ = undisturbed
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(pictures / "00000.png", out)
    Image.open(pictures / "00001.png").save(out / "00001.jpg")
    good = 0
    for question in (None, answers[QUESTION]):
        if question:
            (out / QUESTION).write_bytes(question)
        before = content(out)
        cases = {out: "00000.png: is there already", out / "00000.png": "00000.png: is there already"}
        for asked, problem in cases.items():
            (line,) = predict(tmp_path, network, pictures=asked).lines
            assert problem in line
            good += content(out) == before
    (out / "00000.png").unlink()
    before = content(out)
    (line,) = predict(tmp_path, network, pictures=out).lines
    assert "holds the pictures, for which its answers would be taken next time" in line
    good += content(out) == before
    (out / QUESTION).unlink()
    assert predict(tmp_path, network, pictures=out / "00001.jpg").code == 0  # one picture may lie beside its answer
    assert whole(out) == {"00001.png", "00001_overlay.png"}
    tally("pictures among the answers that were left alone", good, 5)


def test_a_video_is_there_whole_or_not_at_all(network: Path, tmp_path: Path, trials: Any, tally: Any):
    video, target = tmp_path / "drive.mp4", tmp_path / "out" / "drive_overlay.mp4"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with VideoWriter(video, Fraction(10)) as writer:
        for place in range(30):
            writer.write(np.roll(pixels, place, 1))
        sweep(tmp_path)
        assert len(list(tmp_path.glob(".*.part"))) == 1, "what is being written stays"
    assert len(list(VideoReader(video))) == 30
    kills, moments, good = trials(2, 30), random.Random(2), 0
    while good < kills:
        process = start(tmp_path / "said", *words(tmp_path, network, pictures=video))
        while not list((tmp_path / "out").glob(".*.part")):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.send(signal.SIGKILL)
        good += process.wait().code == -signal.SIGKILL and not target.exists()
        target.unlink(missing_ok=True)
    assert predict(tmp_path, network, pictures=video).code == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == [target.name]
    assert len(list(VideoReader(target))) == 30
    tally("videos killed, of which nothing was visible", good, kills)
