"""The network codecs from a video file to a `.vkv` file and back: goals, random access, masks, sources of any shape."""

import itertools
import os

import numpy as np
import pytest
import torch
from codec.fits import psnr, run

from vidkernels.codec import ContainerWriter, nerv, nerv_families, nerv_latent, nerv_plan, nerv_work, protocol
from vidkernels.codec import open as open_vkv
from vidkernels.codec.nerv_train import Plan, Trainer
from vidkernels.codec.protocol import Goal, Source, state_path
from vidkernels.data import write_video

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = {"latent": 8, "channels": [8, 8], "strides": [4, 2, 2]}
PLENTY = Goal(bytes=60_000)


def fit(path, out, goal=None, gop=None, mask=None, exact=True, **cut):
    return run(nerv_latent.fit(Source(path, **cut), out, goal or PLENTY, gop=gop, mask=mask, exact=exact))


def whole(out, frames, profile="exact"):
    """The file draws what the encoder saw."""
    with open_vkv(out) as video:
        report = video.verify()
        assert report.profile == profile
        assert report.ok
        assert report.mismatches == ()
        assert report.frames == report.checked_frames == len(video) == frames
        assert video.bytes == os.path.getsize(out)
        return torch.stack(list(video))


@pytest.mark.parametrize(
    "goal",
    [Goal(seconds=60.0), Goal(bytes=3500), Goal(psnr=26.0), Goal(seconds=60.0, bytes=7000)],
    ids=["seconds", "bytes", "psnr", "bytes in time"],
)
def test_each_goal_is_met(source, tmp_path, goal, monkeypatch):
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 300)
    monkeypatch.setattr(nerv_plan, "_LOOKS", 5)
    # As if a step took a fifth of a second: how fast this machine is does not decide about the test.
    monkeypatch.setattr(
        nerv_plan, "_pace", lambda trainer, most: ([0.2 if n else 0.0 for n in trainer.plan.steps], 0.1)
    )
    path, clip = source()
    reports, returned = fit(path, tmp_path / "o.vkv", goal)
    assert returned.path == path
    assert not state_path(tmp_path / "o.vkv").exists()
    assert reports[-1].done == reports[-1].total
    assert all(a.done <= b.done and a.elapsed <= b.elapsed for a, b in itertools.pairwise(reports))
    assert reports[-1].bytes == os.path.getsize(tmp_path / "o.vkv")
    frames = whole(tmp_path / "o.vkv", 5)
    each = np.mean([psnr(a, b) for a, b in zip(frames, clip, strict=True)])
    assert reports[-1].psnr == pytest.approx(each, abs=1e-3)
    grey = clip.float().mean((0, 1, 2)).expand_as(clip)
    assert psnr(frames, clip) > psnr(grey, clip) + (1 if goal.seconds else 6)
    if goal.bytes is not None:
        assert reports[-1].bytes <= goal.bytes
    if goal.psnr is not None:
        assert reports[-1].psnr >= goal.psnr
    if goal.seconds is not None and goal.bytes is None:
        assert 200 < reports[-1].total <= 0.97 * goal.seconds / 0.2 + 8


def test_time_decides_about_steps_and_decibels_about_the_network(source, tmp_path, monkeypatch):
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    plans, rounds, begun, stage = [], [], nerv.Run.__init__, nerv.Run._after_stage

    def begins(self, model, clip, out, plan, *rest, **more):
        plans.append(plan)
        begun(self, model, clip, out, plan, *rest, **more)

    def ends(self):
        rounds.append(self.rounds)
        return stage(self)

    monkeypatch.setattr(nerv.Run, "__init__", begins)
    monkeypatch.setattr(nerv.Run, "_after_stage", ends)
    path, _ = source(frames=3)
    fit(path, tmp_path / "o.vkv", Goal(psnr=50.0, seconds=0.8))
    whole(tmp_path / "o.vkv", 3)
    assert rounds == [0] * 4  # 50 dB are out of reach; the time is kept all the same
    work = nerv_latent.fit(Source(path), tmp_path / "usual.vkv", Goal(psnr=50.0), gop=None)
    next(work)
    work.close()
    in_time, usual = plans
    assert (in_time.config, in_time.psnr) == (usual.config, 50.0)
    assert in_time.steps != usual.steps
    assert in_time.check < sum(in_time.steps[1:3])  # it is looked at on the way


def test_a_glance_is_at_frames_evenly_spread(source):
    _, clip = source(frames=7)
    network = nerv_families.NETWORKS["latent"].network(CONFIG, (48, 64), torch.Generator().manual_seed(0))
    trainer = Trainer(network, clip, None, Plan(CONFIG, (4, 4, 4, 4), 7))
    written = trainer.written()
    every = trainer.psnr(written)
    assert len(every) == 7
    assert trainer.psnr(written, 3) == [every[0], every[3], every[6]]
    assert trainer.psnr(written, 24) == every


def test_what_a_look_says_is_what_the_file_weighs(source, tmp_path, few_steps, monkeypatch):
    """Bytes are counted before anything is written; the count is right to the byte, also with uneven times."""
    said = []
    real = nerv_plan.Envelope.bytes

    def told(self, *sizes):
        said.append(real(self, *sizes))
        return said[-1]

    monkeypatch.setattr(nerv_plan.Envelope, "bytes", told)
    path, _ = source(frames=5, timestamps=[0.0, 0.1, 0.15, 0.4, 0.9])
    fit(path, tmp_path / "o.vkv", gop=2)
    assert said[-1] == os.path.getsize(tmp_path / "o.vkv")


@pytest.mark.usefixtures("few_steps")
def test_frames_by_index_slice_and_time(source, tmp_path):
    path, _ = source(frames=7)
    fit(path, tmp_path / "o.vkv", gop=3)
    frames = whole(tmp_path / "o.vkv", 7)
    with open_vkv(tmp_path / "o.vkv") as video:
        assert (video.model, video.size, video.fps) == ("latent", (48, 64), 10)
        assert [g.frames for g in video.reader.gops] == [3, 3, 1]
        for i in (6, 0, 3, 2, -1):
            assert torch.equal(video[i], frames[i])
        assert torch.equal(video[5:0:-2], frames[[5, 3, 1]])
        for i in range(7):
            assert torch.equal(video.at(i / 10 + 1e-12), frames[i])
        assert torch.equal(video.at(0.7), frames[6])
        assert torch.equal(video.at(0.69), frames[6])  # nothing comes after it
        latents = [video.latents(i).double() for i in (2, 3)]
        assert torch.equal(video.at(0.25), video.drawn(((latents[0] + latents[1]) / 2, 2.5)))  # across groups, too
        with pytest.raises(ValueError, match="at:"):
            video.at(0.71)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    ("frames", "height", "width", "gop", "grey"),
    [(1, 48, 64, None, False), (2, 47, 61, 1, False), (3, 81, 90, 2, True), (2, 5, 7, None, False),
     (2, 1, 1, None, False)],
)  # fmt: skip
def test_shapes_of_clips(source, tmp_path, frames, height, width, gop, grey):
    path, clip = source(frames, height, width, grey)
    fit(path, tmp_path / "o.vkv", gop=gop)
    assert whole(tmp_path / "o.vkv", frames).shape == clip.shape


@pytest.mark.usefixtures("few_steps")
def test_ten_bits_a_cut_another_size_and_uneven_times(tmp_path, moving_clip):
    path = tmp_path / "deep.mkv"
    write_video(path, moving_clip(6), fps=10, codec="libx265", pix_fmt="yuv420p10le", crf=8)
    _, returned = fit(path, tmp_path / "o.vkv", start=0.2, end=0.5, size=(24, 32))
    assert (returned.start, returned.end, returned.size) == (0.2, 0.5, (24, 32))
    assert whole(tmp_path / "o.vkv", 3).shape == (3, 24, 32, 3)


@pytest.mark.usefixtures("few_steps")
def test_the_float_profile_promises_nothing_and_reports_what_differs(source, tmp_path):
    path, _ = source(frames=2)
    fit(path, tmp_path / "o.vkv", exact=False)
    whole(tmp_path / "o.vkv", 2, "not exact")  # on the same machine, nothing differs
    with open_vkv(tmp_path / "o.vkv") as video:
        reader = video.reader
        with ContainerWriter(tmp_path / "x.vkv", reader.header) as writer:
            writer.add_chunk("NETW", bytes(reader.chunk("NETW")))
            writer.add_gop(0, reader.pts(0), {0: bytes(reader.read(0))}, [reader.hashes(0)[0], b"\0" * 8])
    with open_vkv(tmp_path / "x.vkv") as video:
        report = video.verify()
    assert report.mismatches == (1,)
    assert report.ok


@pytest.mark.usefixtures("few_steps")
def test_exact_pictures_do_not_depend_on_threads(source, tmp_path):
    path, _ = source(frames=2, height=90, width=100)
    fit(path, tmp_path / "o.vkv")
    frames, threads = whole(tmp_path / "o.vkv", 2), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(whole(tmp_path / "o.vkv", 2), frames)
    finally:
        torch.set_num_threads(threads)


def test_what_the_mask_hides_does_not_count(source, tmp_path, monkeypatch):
    """A bright bar over the pictures: hidden, it costs nothing, and PSNR is that of the rest."""
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 200)
    monkeypatch.setattr(nerv_plan, "_LOOKS", 3)
    _, clip = source(frames=3)
    generator = torch.Generator().manual_seed(3)
    clip[:, :, 20:40] = torch.randint(0, 256, (3, 48, 20, 3), generator=generator, dtype=torch.uint8)
    path = tmp_path / "noisy.mkv"
    write_video(path, clip, fps=10, codec="libx264rgb", crf=0)
    hidden = torch.zeros(48, 64, 3, dtype=torch.uint8)
    hidden[:, 20:40] = 255
    pictures = pytest.importorskip("PIL.Image")
    pictures.fromarray(hidden.numpy()).save(tmp_path / "mask.png")
    write_video(tmp_path / "mask.mkv", hidden.expand(3, -1, -1, -1), fps=10, codec="libx264rgb", crf=0)
    seen = {}
    for mask in (None, "mask.png", "mask.mkv"):
        reports, _ = fit(path, tmp_path / "o.vkv", Goal(bytes=6000), mask=None if mask is None else tmp_path / mask)
        frames = whole(tmp_path / "o.vkv", 3)
        seen[mask] = np.mean([psnr(a[hidden == 0], b[hidden == 0]) for a, b in zip(frames, clip, strict=True)])
        if mask is not None:
            assert reports[-1].psnr == pytest.approx(seen[mask], abs=1e-3)
    assert seen["mask.png"] == seen["mask.mkv"]
    assert seen["mask.png"] > seen[None] + 1


@pytest.mark.usefixtures("few_steps")
def test_masks_that_do_not_fit_are_refused(source, tmp_path):
    path, _ = source(frames=3)
    pictures = pytest.importorskip("PIL.Image")
    for name, size, shade in (("small.png", (32, 24), 0), ("all.png", (64, 48), 255)):
        pictures.new("RGB", size, (shade,) * 3).save(tmp_path / name)
        with pytest.raises(ValueError, match="mask"):
            fit(path, tmp_path / "o.vkv", mask=tmp_path / name)
    with pytest.raises(FileNotFoundError, match="mask"):
        fit(path, tmp_path / "o.vkv", mask=tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="mask"):
        fit(path, tmp_path / "o.vkv", mask=tmp_path / "text.png")


@pytest.mark.usefixtures("few_steps")
def test_too_few_bytes_are_refused(source, tmp_path):
    path, _ = source()
    with pytest.raises(ValueError, match="allow more bytes"):
        fit(path, tmp_path / "o.vkv", Goal(bytes=900))
    with pytest.raises(ValueError, match="allow more bytes"):
        fit(path, tmp_path / "o.vkv", Goal(bytes=1700))
    assert not (tmp_path / "o.vkv").exists()


@pytest.mark.usefixtures("few_steps")
def test_a_fit_that_diverges_keeps_its_last_good_state(source, tmp_path, monkeypatch):
    path, _ = source()
    real = Trainer.step

    def broken(self):
        if self.at == 12:
            self.tensors["head.weight"].data.fill_(float("nan"))
        real(self)

    out = tmp_path / "o.vkv"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", broken)
        with pytest.raises(FloatingPointError, match="diverged"):
            fit(path, out)
    assert not out.exists()
    run(nerv_latent.resume(state_path(out)))  # which was saved while its numbers were numbers
    fit(path, tmp_path / "whole.vkv")
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_the_state_knows_its_model(source, tmp_path, few_steps, monkeypatch):
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    path, _ = source()
    work = nerv_latent.fit(Source(path), tmp_path / "o.vkv", Goal(psnr=24.0), gop=None)
    next(work)
    work.close()
    assert protocol.state_model(state_path(tmp_path / "o.vkv")) == "latent"
