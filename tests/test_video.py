"""Videos read back as what was written; one that breaks off gives what it can first, then says where it ended."""

import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trailseg.errors import FileError, OptionError
from trailseg.video import VideoReader, VideoWriter

av = pytest.importorskip("av")
FRAMES = 20
RATE = Fraction(10)


def frame(place: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A red square that moves to the right over blue."""
    pixels = np.full((height, width, 3), (40, 90, 160), np.uint8)
    pixels[8:24, 2 * place : 2 * place + 16] = (220, 60, 40)
    return pixels


def write(path: Path, count: int = FRAMES, rate: Fraction = RATE, **size: int) -> Path:
    copy((frame(place, **size) for place in range(count)), path, rate)
    return path


def encode(path: Path, codec: str = "libx264", sound: int = 0, options: dict[str, str] | None = None) -> Path:
    """The same video by hand, in the container that the name says, with seconds of sound beside it."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "5"})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        voice = container.add_stream("libopus", rate=48000, layout="mono") if sound else None
        if voice:
            say(container, voice, sound)
        for place in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(place), format="rgb24")))
        container.mux(stream.encode())
    return path


def copy(frames: Iterable[np.ndarray], path: Path, rate: Fraction = RATE) -> None:
    with VideoWriter(path, rate) as video:
        for pixels in frames:
            video.write(pixels)


def say(container: Any, voice: Any, seconds: int) -> None:
    """Silence."""
    for second in range(seconds):
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts = 48000, 48000 * second
        container.mux(voice.encode(silence))
    container.mux(voice.encode())


def read(path: Path) -> tuple[list[np.ndarray], FileError | None]:
    """The frames that come, and the error that ends them."""
    frames: list[np.ndarray] = []
    try:
        frames.extend(VideoReader(path))
    except FileError as error:
        caught: FileError | None = error
    else:
        caught = None
    assert caught is None or (caught.path == path and "\n" not in str(caught))
    return frames, caught


def assert_like(read_pixels: np.ndarray, pixels: np.ndarray, tolerance: float = 3) -> None:
    """Equal on average: at the square's edges H.264 blurs the colours."""
    assert read_pixels.dtype == np.uint8
    assert read_pixels.shape == pixels.shape
    assert np.abs(read_pixels.astype(int) - pixels).mean() < tolerance


# --- Whole videos


@pytest.mark.parametrize("rate", [Fraction(10), Fraction(30000, 1001), Fraction(1, 2)])
def test_what_is_written_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: Fraction):
    monkeypatch.chdir(tmp_path)
    path = write(Path("12:30 a%d.mp4"), rate=rate)
    video = VideoReader(path)
    assert video.rate == rate
    frames = list(video)
    assert len(frames) == FRAMES
    for place, pixels in enumerate(frames):
        assert_like(pixels, frame(place))
        np.testing.assert_allclose(pixels[14:18, 2 * place + 6 : 2 * place + 10].mean((0, 1)), (220, 60, 40), atol=6)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(AssertionError, match="not open"):
        next(iter(video))  # it was read


def test_a_browser_can_play_what_is_written(tmp_path: Path):
    path = write(tmp_path / "a.mp4")
    content = path.read_bytes()
    assert content[4:8] == b"ftyp"
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.colorspace, context.color_range) == ("h264", "yuv420p", 1, 1)


@pytest.mark.parametrize(("height", "width"), [(47, 63), (47, 64), (48, 63), (1, 1)])
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path, height: int, width: int):
    frames, error = read(write(tmp_path / "a.mp4", height=height, width=width))
    assert error is None
    expected = np.pad(frame(19, height, width), ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    assert_like(frames[19], expected)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mov", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("full-range.avi", "mjpeg"),
        ("a.webm", "libvpx"),
        ("a.ts", "libx264"),
        ("bare.h264", "libx264"),
        ("bare.mjpeg", "mjpeg"),
    ],
)
def test_other_containers_are_read_whole(tmp_path: Path, name: str, codec: str):
    frames, error = read(encode(tmp_path / name, codec))
    assert error is None
    assert len(frames) == FRAMES
    assert_like(frames[7], frame(7), 8)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
@pytest.mark.parametrize("seconds", [1, 5])
def test_sound_may_be_shorter_or_longer_than_the_picture(tmp_path: Path, name: str, seconds: int):
    frames, error = read(encode(tmp_path / name, "libvpx" if name.endswith("webm") else "libx264", sound=seconds))
    assert error is None
    assert len(frames) == FRAMES


def test_a_title_in_another_encoding_does_not_matter(tmp_path: Path):
    path = encode(tmp_path / "a.avi", "mpeg4")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Lavf", b"\xe4\xf6\xfc\xdf"))
    assert len(read(path)[0]) == FRAMES
    assert path.read_bytes() != content


def test_frames_come_the_way_up_that_the_file_says(tmp_path: Path):
    path = write(tmp_path / "a.mp4")
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 44  # nine numbers, 16.16: the first four turn
    for turn, quarters in (((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)):
        turned = bytearray(content)
        for place, number in zip((0, 1, 3, 4), turn, strict=True):
            turned[matrix + 4 * place : matrix + 4 * place + 4] = (number << 16).to_bytes(4, "big", signed=True)
        path.write_bytes(turned)
        frames, error = read(path)
        assert error is None
        assert_like(frames[3], np.rot90(frame(3), quarters))
        assert frames[3].flags.c_contiguous


def test_reading_is_lazy(tmp_path: Path):
    video = VideoReader(write(tmp_path / "a.mp4", count=300))
    frames = iter(video)
    next(frames)
    assert len(list(video._container.demux())) > 200  # packets that were not read for the first frame


# --- Videos that break off


def cuts(path: Path, step: int) -> Iterator[tuple[int, list[np.ndarray], FileError | None]]:
    """What is read of the file's first bytes, for ever more of them."""
    whole = path.read_bytes()
    for size in range(1, len(whole), step):
        path.write_bytes(whole[:size])
        yield (size, *read(path))
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "options", "silent"),
    [
        ("first.mp4", {"movflags": "faststart"}, 1),
        ("last.mp4", {}, 0),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}, 20),
        ("a.mkv", {}, 4),  # the last two, and those between that are decoded after them
        ("a.avi", {}, 4),
    ],
)
def test_a_video_cut_anywhere_gives_its_frames_and_then_a_file_error(
    tmp_path: Path, name: str, options: dict[str, str], silent: int
):
    path = encode(tmp_path / name, "mpeg4" if name == "a.avi" else "libx264", options=options)
    whole = read(path)[0]
    lengths = []
    for size, frames, error in cuts(path, 37):
        lengths.append(len(frames))
        places = [next((i for i, known in enumerate(whole) if (known == pixels).all()), None) for pixels in frames]
        assert None not in places, f"damaged frame {places} of {size} bytes"
        assert places == sorted(set(places))  # the last frames may lack those between, decoded after them
        if error is None:  # at most `silent` frames may be missing without a word
            assert len(frames) >= FRAMES - silent
            assert frames
        elif frames:
            count = f"{len(frames)} frame{'s' if len(frames) > 1 else ''}"
            assert error.problem == f"breaks off after {count}"
    assert lengths[0] == 0
    assert all(a <= b for a, b in pairwise(lengths))
    between = {length for length in lengths if 0 < length < FRAMES}
    assert len(between) > 4 if name != "last.mp4" else not between


def test_fragments_that_can_only_be_read_straight_through_are_known_to_break_off(tmp_path: Path):
    path, rescued = encode(tmp_path / "a.mp4", options={"movflags": "frag_keyframe+empty_moov"}), 0
    for _, frames, error in cuts(path, 37):
        try:
            av.open(str(path)).close()
        except av.FFmpegError:
            rescued += bool(frames)
            assert error is not None
    assert rescued > 1


def test_an_mp4_without_its_index_says_so(tmp_path: Path):
    path = encode(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(FileError, match=r"cannot be opened as a video \(.*often lost the index at its end"):
        VideoReader(path)


def test_a_whole_number_of_packets_is_still_too_few(tmp_path: Path):
    """A file that ends between two packets damages none: only the declared time tells."""
    for name in ("a.mkv", "a.mp4"):
        path = encode(tmp_path / name, options={"movflags": "faststart"} if name == "a.mp4" else {})
        with av.open(str(path)) as container:
            places = [packet.pos + packet.size for packet in container.demux(video=0) if packet.pos]
        path.write_bytes(path.read_bytes()[: places[8]])
        frames, error = read(path)
        assert 7 <= len(frames) <= 9
        assert error is not None
        assert "breaks off after" in error.problem


def test_damage_in_the_middle_ends_the_video(tmp_path: Path):
    path = encode(tmp_path / "a.mp4")
    whole = read(path)[0]
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pos]
    content = bytearray(path.read_bytes())
    damaged = packets[10]
    content[damaged.pos : damaged.pos + damaged.size] = b"\xff" * damaged.size
    path.write_bytes(content)
    frames, error = read(path)
    assert error is not None
    assert error.problem == f"breaks off after {len(frames)} frames"
    assert 8 <= len(frames) <= 10
    np.testing.assert_array_equal(frames, whole[: len(frames)])


# --- Not videos


def test_what_is_not_a_video_is_refused(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with pytest.raises(FileError, match="there is no such file; check the path"):
        VideoReader(path)
    with pytest.raises(FileError, match="there is no such file"):
        VideoReader(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(FileError, match="is empty; replace it"):
        VideoReader(path)
    path.write_text("hello\n" * 1000)
    with pytest.raises(FileError, match=r"cannot be opened as a video \(Invalid data"):
        VideoReader(path)
    with av.open(str(path), "w") as container:
        say(container, container.add_stream("aac", rate=48000, layout="mono"), 1)
    with pytest.raises(FileError, match="holds no video; name a file with pictures"):
        VideoReader(path)


def test_without_av_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for use in (lambda: VideoReader(tmp_path / "a.mp4"), lambda: VideoWriter(tmp_path / "a.mp4", RATE)):
        with pytest.raises(OptionError, match=r"needs av: pip install '\.\[video\]' in its repository"):
            use()


# --- Writing that fails


def test_a_source_that_breaks_off_leaves_a_whole_video(tmp_path: Path):
    source, target = encode(tmp_path / "a.mkv"), tmp_path / "out" / "b.mp4"
    source.write_bytes(source.read_bytes()[:-900])
    video = VideoReader(source)
    with pytest.raises(FileError, match=r"a\.mkv: breaks off after"):
        copy(video, target)
    frames, error = read(target)
    assert error is None
    assert len(frames) == len(read(source)[0])
    assert [file.name for file in target.parent.iterdir()] == ["b.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("ours"), FileError("b.mp4", "is full", "make room")])
def test_any_other_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    monkeypatch.chdir(tmp_path)

    def frames() -> Iterator[np.ndarray]:
        yield from map(frame, [*range(FRAMES)] * 5)  # more than the encoder holds back
        assert [file.suffix for file in tmp_path.iterdir()] == [".part"]
        raise error

    with pytest.raises(type(error)):
        copy(frames(), Path("b.mp4"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, FileError("a.mkv", "holds no frame", "replace it")])
def test_without_a_frame_nothing_is_left_behind(tmp_path: Path, error: FileError | None):
    try:
        with VideoWriter(tmp_path / "b.mp4", RATE):
            if error:
                raise error
    except FileError as caught:
        assert caught is error  # noqa: PT017
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_was_there_stays_until_the_new_one_is_whole(tmp_path: Path):
    path = write(tmp_path / "b.mp4", count=3)
    with pytest.raises(ValueError, match="broadcast"):
        copy([frame(0), np.zeros((2, 2))], path)
    assert len(read(path)[0]) == 3
    assert len(read(write(path, count=5))[0]) == 5


def test_a_place_that_cannot_be_written_is_a_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"b\.mp4: cannot be written \(.*; make room"):
        write(tmp_path / "file" / "b.mp4")
    with pytest.raises(FileError, match=r"b\.mp4: cannot be written \(Generic error in an external library"):
        write(tmp_path / "b.mp4", height=2, width=40_000)  # too wide for H.264
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(FileError, match=r"b\.mp4: cannot be written \(No space left"):
        write(tmp_path / "b.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def fail(_: int) -> None:
    raise OSError(28, "No space left on device")
