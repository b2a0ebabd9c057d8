"""NeRV and HNeRV in `.vkv` files: what is stored, drawn, interpolated, masked, resumed and refused."""

import pytest
import torch
from codec.fits import psnr, run
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec import nerv_plan, nerv_work, protocol
from vidkernels.codec import open as open_vkv
from vidkernels.codec.nerv_families import NETWORKS
from vidkernels.codec.nerv_train import Plan, Trainer
from vidkernels.codec.protocol import Goal, Source, state_path
from vidkernels.data import write_video

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = ("nerv", "hnerv")


def fit(model, path, out, goal=None, **more):
    gop = more.pop("gop", 2)
    return protocol.model(model).fit(Source(path, **more), out, goal or Goal(bytes=60_000), gop=gop)


@pytest.mark.parametrize("model", MODELS)
def test_a_fit_stores_what_its_decoder_needs(source, tmp_path, monkeypatch, model):
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 120)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 120)
    monkeypatch.setattr(nerv_plan, "_LOOKS", 2)
    path, clip = source(frames=5)
    out = tmp_path / "o.vkv"
    reports, _ = run(fit(model, path, out, Goal(bytes=7000)))
    assert reports[-1].bytes == out.stat().st_size <= 7000
    with open_vkv(out) as video:
        assert video.model == model
        report = video.verify()
        assert (report.profile, report.ok, report.mismatches, report.checked_frames) == ("not exact", True, (), 5)
        frames = torch.stack(list(video))
        assert torch.equal(video[3], frames[3])
        between = video.at(0.15)
        middle = (video.latents(1).double() + video.latents(2).double()) / 2
        assert torch.equal(between, video.drawn((middle, 1.5)))
        assert not any(torch.equal(between, frame) for frame in frames)
        stored = {name.split(".")[1] for name in video.network.shapes}
        assert stored == {"stem", "blocks", "head"}
        assert video.latents(0).shape == ((0, 3, 4) if model == "nerv" else (16, 3, 4))
    grey = clip.float().mean((0, 1, 2)).expand_as(clip)
    assert psnr(frames, clip) > psnr(grey, clip) + 1


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("model", MODELS)
def test_closed_and_resumed_it_writes_the_same_bytes(source, tmp_path, monkeypatch, model):
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    path, _ = source(frames=3, height=24, width=32)
    reports, _ = run(fit(model, path, tmp_path / "whole.vkv"))
    for stop in (4, 16, reports[-1].done - 1):
        out = tmp_path / f"o{stop}.vkv"
        work = fit(model, path, out)
        for _ in range(stop):
            next(work)
        work.close()
        assert protocol.state_model(state_path(out)) == model
        run(protocol.model(model).resume(state_path(out)))
        assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes(), f"closed after {stop} steps"


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(("model", "shape"), [("nerv", (1, 5, 7)), ("hnerv", (2, 47, 61)), ("hnerv", (1, 1, 1))])
def test_shapes_of_clips(source, tmp_path, model, shape):
    path, clip = source(*shape)
    run(fit(model, path, tmp_path / "o.vkv", gop=None))
    with open_vkv(tmp_path / "o.vkv") as video:
        assert video[:].shape == clip.shape
        assert video.verify().mismatches == ()


def test_the_encoder_does_not_see_what_a_mask_hides():
    network = NETWORKS["hnerv"].network(
        NETWORKS["hnerv"].config((24, 32), 3000, 3), (24, 32), torch.Generator().manual_seed(0)
    )
    frames = torch.randint(256, (3, 24, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    counted = torch.ones(1, 24, 32, dtype=torch.bool)
    counted[:, 8:16] = False
    other = torch.where(counted.unsqueeze(-1), frames, 255 - frames)
    found = []
    for shown in (frames, other):
        trainer = Trainer(network, shown, counted, Plan(network.config, (4, 4, 4, 4), 3, exact=False))
        for stage in (0, 1):
            trainer.enter(stage)
            for _ in range(3):
                trainer.step()
        found.append(trainer.written())
    assert found[0].chunks == found[1].chunks
    assert found[0].layers == found[1].layers


def test_latents_follow_the_pictures(source, tmp_path, monkeypatch):
    """Frames that are the same have the same latents, as far as an encoder made them: nothing but a content counts."""
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 24)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 24)
    monkeypatch.setattr(NETWORKS["hnerv"], "shares", (0.3, 0.5, 0.2, 0.0))
    _, clip = source(frames=4, height=24, width=32)
    write_video(tmp_path / "twice.mkv", torch.cat([clip, clip]), fps=10, codec="libx264rgb", crf=0)
    run(fit("hnerv", tmp_path / "twice.mkv", tmp_path / "o.vkv"))
    with open_vkv(tmp_path / "o.vkv") as video:
        for k in range(4):
            assert torch.equal(video[k], video[k + 4])


def test_sizes_are_the_published_ones():
    decoder = 1_505_172 - 132 * 16 * 2 * 4  # of the released network, less its embeddings
    config = NETWORKS["hnerv"].config((640, 1280), decoder, 132)
    assert (config["width"], config["lowest"], config["latent"]) == (68, 12, 16)
    network = NETWORKS["hnerv"].network(config, (640, 1280))
    assert sum(torch.Size(shape).numel() for shape in network.shapes.values()) == decoder
    config = NETWORKS["nerv"].config((720, 1280), 3_000_000, 132)
    assert (config["hidden"], config["lowest"]) == (512, 96)  # as in NeRV-S


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.dictionaries(
        st.sampled_from(["latent", "width", "hidden", "levels", "lowest", "frames"]),
        st.one_of(st.integers(1, 99), st.integers(-3, 1 << 40), st.none()), min_size=3,
    ),
    st.one_of(st.none(), st.lists(st.integers(1, 5), max_size=6), st.lists(st.integers(-2, 1 << 20), max_size=20)),
)  # fmt: skip
def test_any_config_is_refused_or_a_network(model, config, strides):
    try:
        network = NETWORKS[model].network({**config, "strides": strides}, (64, 48))
    except ValueError:
        return
    assert all(p.is_meta for p in network.module.parameters())  # nothing is allocated for a number in a header
