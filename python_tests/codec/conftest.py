import pytest
import torch


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
