"""An opened `.vkv` file of a network model as a sequence of frames."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from threading import Lock

import torch

from .. import _check
from .bits import unpack_varint
from .container import ContainerReader, Gop, Report
from .errors import damaged
from .nerv_bits import decode_latents
from .nerv_families import NETWORKS
from .nerv_integer import IntegerDrawer
from .nerv_model import APPENDED, CHUNK, FINER, SIDE, Drawer, Numbers
from .nerv_planes import MOST_PLANES
from .opened import OpenedFile

_KEPT_GOPS = 4
_MOST_LATENTS = 1 << 28  # of one group of pictures


class NetworkFile(OpenedFile):
    """A network video in a file. The weights are decoded at once, the latents of a GOP when one of its frames is asked
    for."""

    def __init__(self, reader: ContainerReader, planes: int | None = None):
        super().__init__(reader)
        self._planes = planes
        self.model = reader.header.model
        self._gops: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._lock = Lock()  # iterating decodes ahead on a thread of its own
        try:
            side = bytes(reader.chunk(SIDE) or b"")
            self.network = NETWORKS[self.model].network(reader.header.config, self.size, side=side)
            self.side_bytes = len(side)
        except ValueError as error:
            reader.close()
            _check.fail("open", f"{reader.path}: {str(error).splitlines()[0]}.")
        try:
            self.parts = self._parts()
        except ValueError as error:
            reader.close()
            damaged(reader.path, 0, CHUNK, str(error).splitlines()[0])

    def _parts(self) -> list[tuple[int, Numbers, Drawer | IntegerDrawer]]:
        """(first frame, numbers, what draws them) of the fit and of everything that was appended, in order."""
        data, exact = self.reader.chunk(CHUNK), self.reader.header.exact
        if data is None:
            raise ValueError("the chunk with the weights is missing")
        finer, self.planes = self._finer()
        numbers = Numbers.from_bytes(data, self.network, exact).refined(finer, self.planes)
        self.seen_planes = 1 + len(finer)
        parts = [(0, numbers, numbers.drawer(self.network))]
        for kind in sorted(k for k in self.reader.kinds if APPENDED.fullmatch(k)):
            first, at = unpack_varint(data := self.reader.chunk(kind), 0)
            if not parts[-1][0] < first < len(self):
                raise ValueError(f"the frames of {kind} do not follow those before")
            more = Numbers.from_bytes(data[at:], self.network, exact, numbers.weights)
            parts.append((first, more, more.drawer(self.network)))
        return parts

    def _finer(self) -> tuple[list[memoryview], int]:
        """(the chunks that make the weights finer, as far as they are there and wanted, how many planes there are)"""
        planes = self.reader.header.config.get("planes", 1)
        if type(planes) is not int or not 1 <= planes <= MOST_PLANES:
            raise ValueError(f"`planes` of the header's config is not from 1 to {MOST_PLANES}")
        finer = []
        for kind in FINER[: min(planes, self._planes or planes) - 1]:
            data = self.reader.chunk(kind)
            if data is None:
                break
            finer.append(data)
        return finer, planes

    def _part(self, frame: int) -> tuple[int, Numbers, Drawer | IntegerDrawer]:
        return self.parts[bisect_right(self.parts, frame, key=lambda part: part[0]) - 1]

    def latents(self, frame: int) -> torch.Tensor:
        """[C, h, w] int32 latents of a frame, in steps."""
        gop = self.reader.gop_of_frame(frame)
        with self._lock:
            if gop.number not in self._gops:
                self._gops[gop.number] = self._decoded(gop, self.reader.read(gop))
                while len(self._gops) > _KEPT_GOPS:
                    self._gops.popitem(last=False)
            self._gops.move_to_end(gop.number)
            return self._gops[gop.number][frame - gop.first_frame]

    def numbers(self, frame: int) -> tuple[torch.Tensor, float]:
        return self.latents(frame), frame

    def drawn(self, numbers: tuple[torch.Tensor, float]) -> torch.Tensor:
        latents, time = numbers
        first, _, drawer = self._part(int(time))
        return drawer.draw(latents, time - first)

    def at(self, seconds: float) -> torch.Tensor:
        """The picture [H, W, 3] at a time from the first frame on: between two frames, the latents are half way,
        too."""
        gop, k, share = self.moment(seconds)
        frame = gop.first_frame + k
        if share == 0 or frame + 1 == len(self) or self._part(frame) is not self._part(frame + 1):
            return self[frame]
        between = torch.lerp(self.latents(frame).double(), self.latents(frame + 1).double(), share)
        return self.drawn((between, frame + share))

    def verify(self) -> Report:
        """Check every byte, and every frame against its hash, unless it is drawn from fewer planes than there are."""
        if self.seen_planes < self.planes:
            return self.reader.verify()

        def pictures(gop, layers):
            return (self.drawn((x, gop.first_frame + k)) for k, x in enumerate(self._decoded(gop, layers[0])))

        return self.reader.verify(pictures)

    def _decoded(self, gop: Gop, data: memoryview) -> torch.Tensor:
        shape = (gop.frames, *self.network.latent_shape)
        try:
            if shape[0] * shape[1] * shape[2] * shape[3] > _MOST_LATENTS:
                raise ValueError("a group of pictures has more latents than this version reads")
            return torch.from_numpy(decode_latents(data, shape, self._part(gop.first_frame)[1].code))
        except ValueError as error:
            self.damaged_layer(gop, error)
