from dataclasses import replace

import pytest
import torch

from vidkernels.codec import gaussian, nerv_plan
from vidkernels.data import write_video


@pytest.fixture
def moving_clip(generator):
    """make(T, H, W): a smooth coloured pattern that moves; compresses like video, unlike noise."""

    def make(frames=6, height=48, width=64):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        t = torch.arange(frames).view(-1, 1, 1)
        waves = [torch.sin((x + 3 * t) / 9), torch.cos((y - 2 * t) / 7), torch.sin((x + y + t) / 13)]
        clip = torch.stack([w.expand(frames, height, width) for w in waves], -1)
        clip = clip * 90 + 128 + torch.randn(clip.shape, generator=generator) * 2
        return clip.round().clamp(0, 255).to(torch.uint8)

    return make


@pytest.fixture
def source(tmp_path, moving_clip):
    """make(frames, height, width): a losslessly coded clip, and the frames that are in it."""

    def make(frames=5, height=48, width=64, grey=False, name="in.mkv", **more):
        clip = moving_clip(frames, height, width)
        clip = clip[..., :1].expand_as(clip).contiguous() if grey else clip
        path = tmp_path / name
        write_video(path, clip, fps=10, codec="libx264rgb", crf=0, **more)
        return path, clip

    return make


@pytest.fixture
def little_work(monkeypatch):
    """A tenth of the steps: what is tested here does not depend on how good the pictures are."""
    monkeypatch.setattr(gaussian, "plan_for", _small_plan(gaussian.plan_for))


@pytest.fixture
def one_thread():
    """What is small is not quicker on two threads, and much slower where others work on the machine, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_steps(monkeypatch):
    """Fits of networks that take a second: what is tested here does not depend on how good the pictures are."""
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 24)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 24)
    monkeypatch.setattr(nerv_plan, "_LOOKS", 3)


def _small_plan(plan):
    def small(clip, grid, goal, gop):
        whole = plan(clip, grid, goal, gop)
        return replace(whole, key_steps=min(whole.key_steps, 24), steps=min(whole.steps, 6))

    return small
