"""Decoding the frames of a video that are asked for, with jumps to key frames on the way."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from pipeline.videos.frame_pixels import MAX_PIXELS
from pipeline.videos.video_file import FrameIndex, opened

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

JUMP_FROM = 24  # frames; decoding through fewer is faster than a jump to a key frame

NumberedFrames = Iterator[tuple[int, "VideoFrame"]]


class FrameReader:
    """Decodes frames of a video file, asked for in rising order.

    The file is open until `close`, or until nobody holds the reader any more: what runs in it does
    not refer to it. Raises ImageError where the file cannot be opened.
    """

    def __init__(self, path: str, index: FrameIndex):
        self._path, self._index = path, index
        self._file = ExitStack()
        self._start()

    def close(self) -> None:
        self._frames = iter(())
        self._file.close()

    @property
    def pixel_shape(self) -> float:
        """The width of a pixel, divided by its height."""
        return float(self._stream.sample_aspect_ratio or 1)

    def frame(self, number: int) -> "tuple[int, VideoFrame] | None":
        """The frame of this number, or the next one where it is damaged, and its own number.

        None where no further frame can be decoded.
        """
        key = np.searchsorted(self._index.keys, number, "right") - 1
        if self._index.keys[key] - self._number > JUMP_FROM:
            self._jump(number, int(key))
        for last, frame in self._frames:
            self._number = last
            if last >= number:
                return last, frame
        return None

    def _start(self) -> None:
        self._file.close()
        self._container = self._file.enter_context(opened(self._path))
        self._stream = self._container.streams[self._index.stream]
        self._stream.thread_type = "AUTO"
        # What is in the stream may claim to be larger than the header says.
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self._number = -1  # of the last frame decoded
        self._frames = _decoded(_packets(self._container, self._stream), self._index, 0)

    def _jump(self, number: int, key: int) -> None:
        """Go on from a key frame, `keys[key]` or one before, from which the frame can be reached.

        Where a file has no index, FFmpeg lands where it guesses, and what can be decoded there may
        begin behind the frame that is wanted. Then it has to go further back. If the frame cannot
        be had from there either, it is damaged, unless FFmpeg never landed before it.
        """
        for back in (0, 1, 3):
            landed = self._land(self._index.keys[max(0, key - back)])
            if landed is None or landed[0] > number:
                landed = None
                continue
            frames = _decoded(landed[1], self._index, landed[0])
            first = next(frames, None)
            self._frames = chain([first] if first else [], frames)
            if first and first[0] <= number:
                return
        if landed is None:
            self._start()

    def _land(self, key: int) -> "tuple[int, Iterator[Packet]] | None":
        """Jump to a key frame: its number or that of the one where FFmpeg landed, and the packets
        from there on. None where there is no further one."""
        import av

        try:
            self._container.seek(int(self._index.stamps[key]), stream=self._stream)
        except (av.FFmpegError, OSError):
            return None
        packets = _packets(self._container, self._stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None:
                return self._index.number(packet.pts), chain([packet], packets)
        return None


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet]":
    """The packets from where the file stands until they end or, as the index knows, break off."""
    import av

    try:
        yield from container.demux(stream)
    except (av.FFmpegError, OSError):
        return


def _decoded(packets: "Iterator[Packet]", index: FrameIndex, number: int) -> NumberedFrames:
    """The frames of packets of which the first holds the frame of this number, with their numbers.

    Left out are damaged ones and those that are shown before the first, whose packets are missing.
    """
    import av

    first, last = number, number - 1
    for packet in packets:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            if index.counted or frame.pts is None:
                last += 1
            else:
                last = index.number(frame.pts)
            if max(0, first) <= last < len(index) and not frame.is_corrupt:
                yield last, frame
