"""Video, frame by frame: what PyAV decodes, up to where it breaks off, and an mp4 that any browser plays."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from trailseg.errors import FileError, optional
from trailseg.writing import half_written

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


class VideoReader:
    """A video to be read once, frame by frame; only a few frames are ever in memory.

    FileError where it cannot be opened or holds no video; OptionError where av is not installed.
    """

    rate: Fraction
    """Frames per second (on average, where they differ)."""

    def __init__(self, path: Path) -> None:
        self.path, self._av = path, _av()
        self._container, self._torn = self._open()
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise FileError(path, "holds no video", "name a file with pictures in it, not sound alone")
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise FileError(path, "does not say how many frames it has a second", "replace it with a whole one")
        self.rate = rate

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames (H, W, 3) uint8 RGB, the way up that the file says, all of the size of the first.

        FileError, after the last frame before it, where the video is damaged, or where it ends more than two frames
        before the time that the file declares.
        """
        count, size = 0, dict[str, int]()
        with self._container:
            for frame in self._decoded():
                count, size = count + 1, size or {"width": frame.width, "height": frame.height}
                pixels = frame.to_ndarray(format="rgb24", **size)
                yield np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))  # both count anticlockwise
        if not count:
            raise FileError(self.path, "holds no frame that can be decoded", "replace it with a whole one")
        if self._torn:
            problem = f"breaks off after {count} frame{'s' if count > 1 else ''}"
            raise FileError(self.path, problem, "replace it with a whole one, or make do with those")

    def _open(self) -> tuple[Any, bool]:
        """The file as PyAV's container, and whether it is known to be torn."""
        if not self.path.is_file():
            raise FileError(self.path, "there is no such file", "check the path")
        if not self.path.stat().st_size:
            raise FileError(self.path, "is empty", "replace it with a whole one")
        # A fragmented mp4 that was torn in the head of a fragment opens only if it is read straight through.
        for options in ({}, {"seekable": "0"}):
            try:  # "file:" because a name such as 12:30.mp4 would be taken for an address
                container = self._av.open(f"file:{self.path}", options=options, metadata_errors="replace")
                return container, bool(options)
            except self._av.FFmpegError as error:
                reason = error.strerror
        remedy = "replace it with a whole one (an mp4 that was cut short has often lost the index at its end)"
        raise FileError(self.path, f"cannot be opened as a video ({reason})", remedy)

    def _decoded(self) -> Iterator[Any]:
        """PyAV's frames, up to the first damage or the end; then it is known whether the video is torn."""
        stream, container, end = self._stream, self._container, Fraction(0)  # in seconds
        declared = Fraction(
            container.duration or 0, self._av.time_base
        )  # of the file: the sound may outlast the picture
        try:
            for packet in container.demux(*container.streams.video, *container.streams.audio):
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream_index != stream.index:
                    continue
                for frame in packet.decode():
                    if frame.is_corrupt:
                        self._torn = True
                        return
                    yield frame
        except self._av.FFmpegError:
            self._torn = True
            with suppress(self._av.FFmpegError):
                yield from stream.decode(None)  # what the decoder held back
        self._torn |= declared - end > 2 / self.rate


class VideoWriter:
    """An mp4 (H.264, yuv420p, the index first) that stands under its name only when it is whole.

    Used in a `with` block. Leaving it finishes the video, also if a FileError of another file ended it: what was made
    of a source until it broke off is kept. After any other exception, or without a frame, nothing is left behind.
    Folders are made as needed. FileError where it cannot be written; OptionError where av is not installed.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate, self._av = path, rate, _av()
        self._half = half_written(path)
        self._container: Any = None
        self._stream: Any = None
        self._count = 0

    def __enter__(self) -> Self:
        with self._explained():
            self._file = self._half.__enter__()
            faststart = {"movflags": "faststart"}
            self._container = self._av.open(f"file:{self._file.name}", "w", format="mp4", options=faststart)
        return self

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame (H, W, 3) uint8 RGB, of the size of the first.

        H.264 halves the colours' resolution: an odd height or width is made even by repeating the last row or column.
        """
        even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
        with self._explained():
            if self._stream is None:
                self._stream = self._start(*even.shape[:2])
            assert even.shape[:2] == (self._stream.height, self._stream.width), "frames of several sizes"
            picture = self._av.VideoFrame.from_ndarray(even, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            picture.pts, picture.time_base = self._count, 1 / self.rate
            self._container.mux(self._stream.encode(picture))
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = error is None or (isinstance(error, FileError) and error.path != self.path)
        try:
            if kept and self._count:
                with self._explained():
                    self._container.mux(self._stream.encode())  # what the encoder held back
                    self._container.close()
                    os.fsync(self._file.fileno())
                    Path(self._file.name).replace(self.path)
        finally:
            with suppress(OSError, self._av.FFmpegError):
                self._container.close()
            self._half.__exit__(None, None, None)

    def _start(self, height: int, width: int) -> Any:
        """The one stream of the video. The colours' matrix is written down: players guess it from the size if not."""
        stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.colorspace = self._av.video.reformatter.Colorspace.ITU709
        stream.codec_context.color_range = self._av.video.reformatter.ColorRange.MPEG
        return stream

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What fails in here becomes a FileError."""
        try:
            yield
        except (OSError, self._av.FFmpegError) as error:
            problem = f"cannot be written ({error.strerror})"
            raise FileError(self.path, problem, "make room or give permission there") from None


_av = partial(optional, "av", "video needs av", "video")
