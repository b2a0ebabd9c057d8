"""The codec model "pfnr": videos that join a file one after another, and never change those before."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from codec.fits import psnr, run

from vidkernels.codec import ContainerReader, ContainerWriter, DamagedFileError, nerv_pfnr, nerv_pfnr_bits, nerv_work
from vidkernels.codec import open as open_vkv
from vidkernels.codec.nerv_pfnr_train import Plan, Trainer
from vidkernels.codec.protocol import Goal, Source, state_path

pytest.importorskip("av")
pytest.importorskip("safetensors")

SIZE = (20, 28)


@pytest.fixture
def few_steps(monkeypatch):
    from vidkernels.codec import nerv_plan

    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 12)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 12)
    monkeypatch.setattr(nerv_pfnr, "_ROUNDS", 1)
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)


def learned(sessions=2, steps=(6, 6)):
    """A network that has learned noise, and each session as bytes."""
    config = nerv_pfnr_bits.make_config(SIZE, 1000, 0.6)
    network = nerv_pfnr_bits.make_network(config, SIZE, 2, torch.Generator().manual_seed(0))
    frames = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    chunks = []
    for session in range(sessions):
        if session:
            network.start_session(2, generator=torch.Generator().manual_seed(session))
        nerv_pfnr_bits.draw_scores(network)
        trainer = Trainer(network, frames, None, Plan(config, steps, 2))
        for stage in range(2):
            if stage:
                trainer.refine()
            for _ in range(steps[stage]):
                trainer.step()
        written = trainer.written()
        network = written.network
        for tensor in network.tensors():
            tensor.scores.requires_grad_(True)
        chunks.append(written.chunk)
    return config, network, chunks


@pytest.fixture(scope="module")
def two():
    return learned()


def test_sessions_come_back_from_bytes_to_the_bit(two):
    config, network, chunks = two
    again = nerv_pfnr_bits.make_network(config, SIZE, 1)
    for chunk in chunks:
        nerv_pfnr_bits.decode_session(again, memoryview(chunk), 2)
    assert again.lengths == network.lengths == [2, 2]
    for mine, theirs in zip(again.tensors(), network.tensors(), strict=True):
        assert torch.equal(mine.used, theirs.used)
        assert torch.equal(mine.stored, theirs.stored)
    t = torch.tensor([0, 1])
    with torch.no_grad():
        for session in (0, 1):
            assert torch.equal(again(t, session), network(t, session))
        assert not torch.equal(again(t, 0), again(t, 1))


def philox(counter, key):
    """Philox 4x64 of ten rounds, from its publication (Salmon et al. 2011)."""
    low = (1 << 64) - 1
    for _ in range(10):
        a, b = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [(b >> 64) ^ counter[1] ^ key[0], b & low, (a >> 64) ^ counter[3] ^ key[1], a & low]
        key = [(key[0] + 0x9E3779B97F4A7C15) & low, (key[1] + 0xBB67AE8584CAA73B) & low]
    return counter


def test_first_scores_are_those_of_philox():
    """A file made today must be read for ever."""
    raw = [x for counter in (1, 2) for x in philox([counter, 0, 0, 0], [5, 7])]
    expected = [(-1) ** (x & 1) * ((x >> 40) + 1) / 2**24 for x in raw[:6]]
    assert nerv_pfnr_bits._first_scores((2, 3), 5, 7).flatten().tolist() == expected


def test_a_mask_that_follows_its_first_scores_costs_little():
    config = nerv_pfnr_bits.make_config(SIZE, 1000, 0.6)
    sizes = []
    for known in (True, False):
        network = nerv_pfnr_bits.make_network(config, SIZE, 2, torch.Generator().manual_seed(0))
        if known:
            nerv_pfnr_bits.draw_scores(network)
        for tensor in network.tensors():
            tensor.step = 100.0  # every value is 0
        nerv_pfnr_bits.round_head(network)
        network.finish_session()
        sizes.append(len(nerv_pfnr_bits.encode_session(network, 0)))
    masks = sum(tensor.used.numel() for tensor in network.tensors()) / 8
    assert sizes[1] - sizes[0] > 0.9 * masks


def test_a_later_session_costs_its_mask_and_its_new_weights(two):
    _, network, (first, second) = two
    assert network.taken(1) < 0.5 * network.taken(0)
    masks = sum(t.used.numel() for t in network.tensors()) / 8
    assert len(second) < masks + 0.5 * (len(first) - masks) + 400


def test_damaged_bytes_are_refused_or_harmless(two, generator):
    config, _, (first, second) = two
    for data in (first, second):
        for _ in range(60):
            broken = bytearray(data)
            broken[int(torch.randint(len(broken), (1,), generator=generator))] ^= 1 << int(
                torch.randint(8, (1,), generator=generator)
            )
            broken = broken[: int(torch.randint(1, len(broken) + 1, (1,), generator=generator))] if _ % 2 else broken
            network = nerv_pfnr_bits.make_network(config, SIZE, 1)
            try:
                nerv_pfnr_bits.decode_session(network, memoryview(bytes(broken)), 2)
            except ValueError:
                continue
            assert torch.isfinite(network.tensors()[0].stored).all()


@pytest.mark.parametrize(
    "wrong",
    [{"width": 0}, {"width": "8"}, {"strides": []}, {"strides": [5, 1 << 20]}, {"fourier": [9]}, {"fourier": [-1]},
     {"modes": [4]}, {"share": 0}, {"share": "all"}, {"width": 4096, "hidden": 4096}, {"levels": None}],
)  # fmt: skip
def test_configs_without_sense_are_refused(wrong):
    config = nerv_pfnr_bits.make_config(SIZE, 1000, 0.6)
    with pytest.raises(ValueError, match="config"):
        nerv_pfnr_bits.make_network(config | wrong, SIZE, 1)


def test_appended_videos_follow_and_the_old_ones_stay(source, tmp_path, monkeypatch):
    from vidkernels.codec import nerv_plan

    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 160)
    path, clip = source(frames=6, height=31, width=45)
    first, second = Source(path, end=0.3), Source(path, start=0.3)
    out = tmp_path / "o.vkv"
    reports, returned = run(nerv_pfnr.fit(first, out, Goal(psnr=15.0), gop=2))
    assert returned.end == 0.3
    assert reports[-1].bytes == os.path.getsize(out)
    with open_vkv(out) as video:
        old, hashes = video[:], [video.reader.hashes(gop) for gop in video.reader.gops]
        assert psnr(old, clip[:3]) == pytest.approx(reports[-1].psnr, abs=0.5)
    before = out.read_bytes()
    reports, _ = run(nerv_pfnr.append(out, second, Goal(psnr=15.0), gop=2))
    assert reports[-1].bytes == os.path.getsize(out) > len(before)
    assert out.read_bytes()[: len(before)] == before  # nothing is rewritten
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 20)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 20)
    run(nerv_pfnr.append(out, Source(path, end=0.1), Goal(psnr=60.0)))
    with open_vkv(out) as video:
        assert (len(video), video.first, video.size) == (7, [0, 3, 6], (31, 45))
        report = video.verify()
        assert (report.mismatches, report.checked_frames) == ((), 7)
        assert [video.reader.hashes(gop) for gop in video.reader.gops[:2]] == hashes
        assert torch.equal(video[:3], old)
        assert torch.equal(video[4], list(video)[4])  # any frame at once
        assert psnr(video[3:6], clip[3:]) > 13
        assert torch.equal(video.at(0.25), video[2])  # no picture lies between two videos
        assert not torch.equal(video.at(0.45), video[4])
        assert not torch.equal(video.at(0.45), video[5])
        assert float(video.reader.duration) == pytest.approx(0.7)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("goal", [Goal(bytes=9000), Goal(psnr=60.0)], ids=["bytes", "psnr"])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(source, tmp_path, goal):
    """The first video and an appended one, in both stages, also in the rounds that a goal out of reach adds."""
    path, _ = source(frames=3)
    whole = tmp_path / "whole.vkv"
    reports, _ = run(nerv_pfnr.fit(Source(path), whole, goal, gop=2))
    alone = whole.read_bytes()
    appended, _ = run(nerv_pfnr.append(whole, Source(path, end=0.2), goal, gop=2))
    if goal.bytes:
        assert len(alone) <= goal.bytes >= len(whole.read_bytes()) - len(alone)
    for stop in (5, reports[-1].done - 1):
        out = tmp_path / f"o{stop}.vkv"
        _closed_after(stop, nerv_pfnr.fit(Source(path), out, goal, gop=2))
        assert not out.exists()
        run(nerv_pfnr.resume(state_path(out)))
        assert out.read_bytes() == alone, f"closed after {stop} steps"
        _closed_after(min(stop, appended[-1].done - 1), nerv_pfnr.append(out, Source(path, end=0.2), goal, gop=2))
        assert out.read_bytes() == alone
        run(nerv_pfnr.resume(state_path(out)))
        assert out.read_bytes() == whole.read_bytes(), f"append closed after {stop} steps"
        assert not state_path(out).exists()


def _closed_after(steps, work):
    for _ in range(steps):
        next(work)
    work.close()


@pytest.mark.usefixtures("few_steps")
def test_an_append_does_not_go_on_with_another_file(source, tmp_path):
    path, _ = source(frames=2)
    out = tmp_path / "o.vkv"
    run(nerv_pfnr.fit(Source(path), out, Goal(psnr=12.0), gop=None))
    _closed_after(3, nerv_pfnr.append(out, Source(path), Goal(psnr=12.0)))
    shutil.copy(state_path(out), tmp_path / "kept")
    run(nerv_pfnr.append(out, Source(path), Goal(psnr=12.0)))
    shutil.copy(tmp_path / "kept", state_path(out))
    with pytest.raises(ValueError, match="no longer the file that the append began with"):
        run(nerv_pfnr.resume(state_path(out)))


@pytest.mark.usefixtures("few_steps")
def test_what_a_mask_covers_does_not_count(source, tmp_path):
    pictures = pytest.importorskip("PIL.Image")
    path, clip = source(frames=1)
    hidden = pictures.new("L", (64, 48), 0)
    hidden.paste(255, (0, 0, 32, 48))
    hidden.save(tmp_path / "mask.png")
    out = tmp_path / "o.vkv"
    reports, _ = run(nerv_pfnr.fit(Source(path), out, Goal(psnr=60.0), gop=1, mask=tmp_path / "mask.png"))
    with open_vkv(out) as video:
        assert psnr(video[0][:, 32:], clip[0][:, 32:]) == pytest.approx(reports[-1].psnr, abs=1e-3)


@pytest.mark.usefixtures("few_steps")
def test_a_limit_in_time_sets_the_steps(source, tmp_path):
    path, _ = source(frames=2)
    for goal in (Goal(seconds=1.0), Goal(seconds=1.0, psnr=60.0)):  # which is out of reach, and no reason to go on
        reports, _ = run(nerv_pfnr.fit(Source(path), tmp_path / "o.vkv", goal, gop=2))
        assert reports[-1].done == reports[-1].total >= 40
        assert reports[-1].total == reports[0].total


@pytest.mark.usefixtures("few_steps")
def test_what_does_not_fit_is_refused(source, tmp_path, monkeypatch):
    path, _ = source(frames=2)
    with pytest.raises(ValueError, match=r"leave .* bytes for the network"):
        run(nerv_pfnr.fit(Source(path), tmp_path / "o.vkv", Goal(bytes=800), gop=2))
    monkeypatch.setattr("vidkernels.codec.nerv_pfnr_train._FINENESS", [1e-3])
    with pytest.raises(ValueError, match="did not come below"):
        run(nerv_pfnr.fit(Source(path), tmp_path / "p.vkv", Goal(bytes=4000), gop=2))
    out = tmp_path / "q.vkv"
    run(nerv_pfnr.fit(Source(path), out, Goal(psnr=12.0), gop=None))
    with ContainerReader(out) as reader:
        header, chunk = reader.header, bytes(reader.chunk("NETW"))
    for name, make in (("short", lambda: chunk[: len(chunk) // 2]), ("late", lambda: b"\x01" + chunk[1:])):
        with ContainerWriter(tmp_path / name, header) as writer:
            writer.add_chunk("NETW", make())
            writer.add_gop(0, range(2), {0: b""})
        with pytest.raises(DamagedFileError, match="NETW"):
            open_vkv(tmp_path / name)
    with ContainerWriter(tmp_path / "config", replace(header, config=header.config | {"width": 0})) as writer:
        writer.add_chunk("NETW", chunk)
        writer.add_gop(0, range(2), {0: b""})
    with pytest.raises(ValueError, match="is not from 1 to"):
        open_vkv(tmp_path / "config")
    with ContainerWriter(tmp_path / "other", replace(header, model="gaussian", config={})) as writer:
        writer.add_gop(0, range(2), {0: b""})
    with pytest.raises(ValueError):  # noqa: PT011  (the Gaussian model has its own words for an empty config)
        run(nerv_pfnr.append(tmp_path / "other", Source(path), Goal(psnr=12.0)))


def test_diverging_it_stops_with_the_last_good_numbers(source, tmp_path, monkeypatch):
    path, _ = source(frames=2)
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    work = nerv_pfnr.fit(Source(path), tmp_path / "o.vkv", Goal(psnr=12.0), gop=2)
    next(work)
    monkeypatch.setattr("vidkernels.codec.nerv_pfnr_train.picture_loss", lambda *a: a[0].sum() * np.inf)
    with pytest.raises(FloatingPointError, match="the fit diverged"):
        run(work)
    assert state_path(tmp_path / "o.vkv").exists()
