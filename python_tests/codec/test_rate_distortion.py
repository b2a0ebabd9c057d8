"""Points and curves: kept, shown, compared."""

import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from vidkernels.codec import compare as comparing
from vidkernels.codec.rate_distortion import (
    RDPoint,
    bd_rows,
    bd_table,
    curves,
    load_points,
    plot_rd,
    rd_table,
    save_points,
)


def curve(name, factor=1.0, gain=0.0):
    return [
        RDPoint(name, round(1000 * factor * 2**i), 0.01 * factor * 2**i, 30 + 3 * i + gain, 29.5 + 3 * i + gain,
                10, 32, 48, {"crf": 40 - 5 * i}, encode_s=1.5)
        for i in range(4)
    ]  # fmt: skip


def shown(table):
    console = Console(width=200, record=True)
    console.print(table)
    return console.export_text()


def test_a_point_from_frames():
    point = RDPoint.of("a", torch.tensor([30.0, 40.0]), (4, 8), 64, settings={"crf": 1})
    assert point.bpp == 8 * 64 / (2 * 4 * 8)
    assert point.psnr == pytest.approx(35)
    assert point.psnr_pixels == pytest.approx(-10 * math.log10((1e-3 + 1e-4) / 2))
    assert (point.frames, point.height, point.width) == (2, 4, 8)
    assert RDPoint.of("a", torch.tensor([math.inf]), (4, 8), 64).psnr_pixels == math.inf


def test_points_survive_json(tmp_path):
    points = [*curve("a"), replace(curve("b")[0], psnr=math.inf, psnr_pixels=math.inf, stream_bytes=7, decode_fps=90.5)]
    save_points(tmp_path / "points.json", points)
    assert load_points(tmp_path / "points.json") == points
    assert [p.name for p in tmp_path.iterdir()] == ["points.json"]
    json.loads((tmp_path / "points.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "points.json"
    save_points(path, curve("a"))
    good = json.loads(path.read_text())
    changes = [
        ("not a JSON file", "{"),
        ("of format 1", "[]"),
        ("of format 1", json.dumps(good | {"format": 2})),
        ("malformed", json.dumps({"format": 1})),
        ("malformed", json.dumps({"format": 1, "points": [{}]})),
        ("malformed.*bytes", json.dumps({"format": 1, "points": [good["points"][0] | {"bytes": "many"}]})),
        ("malformed.*width", json.dumps({"format": 1, "points": [good["points"][0] | {"width": True}]})),
        ("malformed.*surprise", json.dumps({"format": 1, "points": [good["points"][0] | {"surprise": 1}]})),
    ]
    for words, text in changes:
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_points(path)


def test_curves_are_sorted_by_size():
    points = [*curve("b")[::-1], *curve("a")]
    assert list(curves(points)) == ["b", "a"]
    assert [p.bytes for p in curves(points)["b"]] == [1000, 2000, 4000, 8000]


def test_deltas_of_known_curves():
    points = curve("a") + curve("half", factor=0.5) + curve("better", gain=1.0) + curve("alone")[:1]
    rows = {(test, anchor): (rate, quality, why) for test, anchor, rate, quality, why in bd_rows(points)}
    assert len(rows) == 12
    rate, quality, why = rows["half", "a"]
    assert rate == pytest.approx(-50, abs=1e-9)
    assert quality == pytest.approx(3, abs=1e-9)  # 3 dB per doubling
    assert not why
    assert rows["better", "a"][1] == pytest.approx(1, abs=1e-9)
    assert rows["alone", "a"][:2] == (None, None)
    assert "two or more points" in rows["alone", "a"][2]


def test_beaten_points_do_not_spoil_a_curve():
    beaten = replace(curve("a")[2], bytes=3000, psnr=20.0)
    rows = {(test, anchor): rate for test, anchor, rate, *_ in bd_rows([*curve("a"), beaten, *curve("b", 0.5)])}
    assert rows["b", "a"] == pytest.approx(-50, abs=1e-9)


def test_tables_show_every_point():
    points = curve("a") + curve("b", 0.5)
    text = shown(rd_table(points))
    assert text.count("crf=") == 8
    for word in ("8.0", "0.0800", "39.00", "38.50", "1.5"):
        assert word in text
    text = shown(bd_table(points))
    assert "-50.0 %" in text
    assert "+100.0 %" in text
    assert "+3.00 dB" in text


def test_plot_draws_every_curve(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    plot_rd(curve("a") + curve("b", 0.5), tmp_path / "one.png")
    plot_rd(curve("a"), tmp_path / "two.png")
    with image.open(tmp_path / "one.png") as one, image.open(tmp_path / "two.png") as two:
        assert one.size == two.size == (960, 660)
        assert one.tobytes() != two.tobytes()
    plot_rd(curve("a"), tmp_path / "one.svg", title="A clip")
    assert "<svg" in (tmp_path / "one.svg").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png"]
    with pytest.raises(ValueError, match="no point"):
        plot_rd([], tmp_path / "three.png")
    with pytest.raises(ValueError, match="refused"):
        plot_rd(curve("a"), tmp_path / "three.nonsense")


class Opened:
    """A file of raw frames that says it is a video."""

    model, fps = "raw", 25

    def __init__(self, clip):
        self.clip = clip
        self.size = tuple(clip.shape[1:3])

    def __len__(self):
        return len(self.clip)

    def __iter__(self):
        return iter(self.clip)


def test_compare_measures_files_and_peers_on_the_same_frames(tmp_path, moving_clip):
    pytest.importorskip("av")
    source = moving_clip(5, 48, 64)
    (tmp_path / "a.vkv").write_bytes(b"x" * 1234)
    save_points(tmp_path / "earlier.json", [replace(curve("old")[0], frames=5, height=48, width=64)])
    said = []
    points = comparing.compare(
        source, 25, [tmp_path / "a.vkv", tmp_path / "earlier.json"], ["x264"], crfs=[20, 40], progress=said.append,
        opener=lambda path: Opened(source ^ 1),
    )  # fmt: skip
    assert [p.name for p in points] == ["raw", "old", "x264-medium", "x264-medium"]
    assert points[0].bytes == 1234
    assert points[0].psnr == pytest.approx(20 * math.log10(255))
    assert points[0].decode_fps > 0
    assert points[2].psnr > points[3].psnr
    assert len(said) == 4


def test_compare_refuses_another_clip_and_unknown_peers(tmp_path, moving_clip):
    source = moving_clip(5, 48, 64)
    (tmp_path / "a.vkv").write_bytes(b"x")
    for other in (source[:4], source[:, :40]):
        with pytest.raises(ValueError, match=r"(?s)different frames.*--resize"):
            comparing.compare(source, 25, [tmp_path / "a.vkv"], [], opener=lambda path, other=other: Opened(other))
    save_points(tmp_path / "earlier.json", curve("old"))
    with pytest.raises(ValueError, match="another clip"):
        comparing.compare(source, 25, [tmp_path / "earlier.json"], [])
    with pytest.raises(ValueError, match="no encoder named 'h266'"):
        comparing.compare(source, 25, [tmp_path / "a.vkv"], ["h266"])
