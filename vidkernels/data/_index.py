"""The frame index of a file: which frames it holds, in display order, and where decoding must start for each.

    decode order (packets)   I0  P3  B1  B2  I6  B4  B5 ...      `order` = position in this row
    display order (frames)   I0  B1  B2  P3  B4  B5  I6 ...      i = rank of the packet's pts
    start of frame i         the last keyframe packet at or before it in BOTH orders, so that the
                             leading pictures of an open group of pictures (B4, B5) start at I0, not at I6

Files whose packets carry no trustworthy pts (raw streams, AVI with B-frames) are decoded once and their frames are
simply counted: `counted` is then True and frame i is the i-th picture out of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from .._check import fail
from ._container import import_av, open_video


@dataclass(frozen=True)
class FrameIndex:
    pts: list[int]  # display order, in units of time_base
    time_base: Fraction
    end: int  # pts at which the last frame leaves the screen
    rate: Fraction  # average frames per second
    promised: int  # frames the container's header announces; more than len(pts) when the file is cut
    counted: bool  # True: frames are found by counting, not by pts
    order: dict[int, int] = field(default_factory=dict)  # pts -> position in decode order, discarded packets too
    keys: list[tuple[int, int]] = field(default_factory=list)  # (position, pts) of keyframe packets
    start: list[int] = field(default_factory=list)  # per frame: which entry of `keys` decoding starts from
    corrupt: frozenset[int] = frozenset()  # frames whose packet is damaged according to the container


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    duration: int
    key: bool
    discard: bool
    corrupt: bool


def build_index(path: str, threads: int) -> FrameIndex:
    """Read every packet header of the file once (no decoding unless its timestamps are unusable)."""
    av = import_av()
    container, stream = open_video(path, threads)
    with container:
        packets = []
        try:
            for packet in container.demux(stream):
                if packet.size:
                    packets.append(
                        _Packet(
                            packet.pts,
                            packet.duration or 0,
                            packet.is_keyframe,
                            packet.is_discard,
                            packet.is_corrupt,
                        )
                    )
        except (av.error.FFmpegError, OSError, ValueError):
            pass  # a cut file: what came before the fault is the index
        if not packets:
            fail("VideoReader", "the file holds no video frame.", path=path)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        base = Fraction(stream.time_base or 1 / rate)
        promised = stream.frames if stream.frames > len(packets) else 0
        pts = [packet.pts for packet in packets]
        if None in pts or len(set(pts)) < len(pts) or container.format.name == "avi":
            return _count_frames(path, threads, rate, promised, base)
    return _from_packets(packets, base, rate, promised)


def _from_packets(packets: list[_Packet], base: Fraction, rate: Fraction, promised: int) -> FrameIndex:
    discarded = sum(packet.discard for packet in packets)
    cut = bool(promised)
    if packets[-1].corrupt:  # the packet the cut went through; nothing after it can be there
        packets, cut = packets[:-1], True
    order = {packet.pts: at for at, packet in enumerate(packets)}
    keys = [(at, packet.pts) for at, packet in enumerate(packets) if packet.key]
    if not keys or keys[0][0] != 0:
        keys.insert(0, (0, packets[0].pts if packets else 0))  # a stream without marked keyframes: from the start
    shown = sorted((packet for packet in packets if not packet.discard), key=lambda packet: packet.pts)
    pts = [packet.pts for packet in shown]
    start, corrupt = [], set()
    for i, packet in enumerate(shown):
        entry = _last_key_before(keys, order[packet.pts], packet.pts)
        start.append(entry)
        if packet.corrupt:
            corrupt.add(i)
    step = shown[-1].duration if shown else 0
    if step <= 0:
        step = max(1, round(1 / (rate * base)))
    end = pts[-1] + step if pts else 0
    announced = max(promised - discarded, len(pts) + 1) if cut else len(pts)
    return FrameIndex(pts, base, end, rate, announced, False, order, keys, start, frozenset(corrupt))


def _last_key_before(keys: list[tuple[int, int]], position: int, pts: int) -> int:
    low, high = 0, len(keys)
    while low < high:  # keys are sorted by position
        middle = (low + high) // 2
        if keys[middle][0] <= position:
            low = middle + 1
        else:
            high = middle
    entry = low - 1
    while entry > 0 and keys[entry][1] > pts:
        entry -= 1
    return max(entry, 0)


def _count_frames(path: str, threads: int, rate: Fraction, promised: int, base: Fraction) -> FrameIndex:
    """Decode once and count. Keep the frames' own pts when they come out increasing, else use i / rate."""
    from ._cursor import decode_all

    pts = [frame.pts for frame in decode_all(path, threads)]
    count = len(pts)
    rising = None not in pts and all(a < b for a, b in pairwise(pts))
    if not rising:
        base = 1 / rate
        pts = list(range(count))
    step = max(1, round(1 / (rate * base)))
    end = pts[-1] + step if pts else 0
    return FrameIndex(pts, base, end, rate, max(promised, count), True)
