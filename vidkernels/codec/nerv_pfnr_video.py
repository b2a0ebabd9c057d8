"""An opened `.vkv` file of videos that one progressive network holds."""

from __future__ import annotations

from bisect import bisect_right

import torch

from .. import _check
from ..models.nerv.pfnr import PFNR
from .bits import unpack_varint
from .container import ContainerReader, Report
from .errors import damaged
from .nerv_model import APPENDED, CHUNK
from .nerv_pfnr_bits import decode_session, make_network
from .opened import OpenedFile


class ProgressiveFile(OpenedFile):
    """Videos behind each other in a file, each drawn by its own subnetwork. The network is decoded at once; pictures
    need nothing else."""

    model = "pfnr"

    def __init__(self, reader: ContainerReader):
        super().__init__(reader)
        try:
            self.network = make_network(reader.header.config, self.size, 1)
        except ValueError as error:
            reader.close()
            _check.fail("open", f"{reader.path}: {str(error).splitlines()[0]}.")
        kind = CHUNK
        try:
            kinds = [CHUNK, *sorted(k for k in reader.kinds if APPENDED.fullmatch(k))]
            chunks = [reader.chunk(kind) for kind in kinds]
            if chunks[0] is None:
                raise ValueError("the chunk with the weights is missing")
            starts = [unpack_varint(data, 0) for data in chunks]
            self.first = [first for first, _ in starts]  # frame of each video
            ends = [*self.first[1:], len(self)]
            if self.first[0] or any(a >= b for a, b in zip(self.first, ends, strict=True)):
                raise ValueError("the videos do not follow one another")
            for kind, data, (first, at), end in zip(kinds, chunks, starts, ends, strict=True):  # noqa: B007
                decode_session(self.network, data[at:], end - first)
        except ValueError as error:
            reader.close()
            damaged(reader.path, 0, kind, str(error).splitlines()[0])

    def numbers(self, frame: int) -> tuple[int, float]:
        """The video of a frame, and the time in it."""
        session = bisect_right(self.first, frame) - 1
        return session, (frame - self.first[session]) / self.network.lengths[session]

    def drawn(self, numbers: tuple[int, float]) -> torch.Tensor:
        session, time = numbers
        return draw(self.network, session, time)

    def at(self, seconds: float) -> torch.Tensor:
        """The picture [H, W, 3] at a time from the first frame on: between two frames the network is asked for that
        time."""
        gop, k, share = self.moment(seconds)
        frame = gop.first_frame + k
        session, time = self.numbers(frame)
        if share == 0 or frame + 1 == len(self) or self.numbers(frame + 1)[0] != session:
            return self[frame]
        return self.drawn((session, time + share / self.network.lengths[session]))

    def verify(self) -> Report:
        """Check every byte, and every frame against its hash."""
        return self.reader.verify(
            lambda gop, layers: (self.drawn(self.numbers(gop.first_frame + k)) for k in range(gop.frames))
        )


@torch.no_grad()
def draw(network: PFNR, session: int, time: float) -> torch.Tensor:
    """[H, W, 3] uint8 at a time from 0 to 1 of a finished session's video."""
    picture = network(torch.tensor([time], dtype=torch.float64), session)
    return picture[0].permute(1, 2, 0).mul(255).round_().clamp_(0, 255).to(torch.uint8).contiguous()
