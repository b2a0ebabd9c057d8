"""An index from the chunks themselves, for files whose own index is lost."""

from __future__ import annotations

import zlib

import numpy as np

from . import layout


def scan(data: memoryview) -> tuple[layout.Index, int]:
    """(index of the whole GOPs in front of the first damaged chunk, offset behind the last sound chunk)."""
    gops: list[tuple] = []
    layers: list[list[tuple[int, int]]] = []
    others: dict[bytes, tuple] = {}
    at = layout.PRELUDE.size
    while at < len(data):
        try:
            chunk = layout.parse_head(data, at)
            payload = data[chunk.start : chunk.start + chunk.length]
            if zlib.crc32(payload) != chunk.crc:
                break
            if chunk.kind == b"GOPI":
                number, first, pts, end, hash_layers, _ = layout.parse_gop(payload)
                if number != len(gops):
                    break
                gops.append((first, int(pts[0]), end, at, len(pts), hash_layers))
                layers.append([])
            elif chunk.kind == b"LAYR":
                gop, layer = layout.LAYER.unpack_from(payload) if len(payload) >= layout.LAYER.size else (1 << 32, 0)
                if gop >= len(gops) or layer != len(layers[gop]):
                    break
                layers[gop].append((at, chunk.length - layout.LAYER.size))
            elif chunk.kind not in (b"HEAD", b"INDX", b"TAIL"):
                others[chunk.kind] = (chunk.kind, chunk.flags, at, chunk.length)
        except ValueError:
            break
        at = chunk.end
    while layers and not layers[-1]:  # a GOP whose base layer did not arrive
        gops.pop(), layers.pop()
    return _index(gops, layers, list(others.values())), at


def _index(gops: list[tuple], layers: list[list[tuple[int, int]]], others: list[tuple]) -> layout.Index:
    table = np.zeros(len(gops), layout.GOP_RECORD)
    for row, (first, start, end, offset, frames, hash_layers), have in zip(table, gops, layers):
        row["first_frame"], row["first_pts"], row["end_pts"], row["offset"] = first, start, end, offset
        row["frames"], row["layers"], row["hash_layers"] = frames, len(have), hash_layers
    table["first_layer"] = np.cumsum([0, *(len(have) for have in layers)])[:-1]
    rows = np.array([row for have in layers for row in have], layout.LAYER_RECORD)
    total = int(table["frames"].sum())
    return layout.Index(total, table, rows, np.array(others, layout.OTHER_RECORD))
