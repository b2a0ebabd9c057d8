import av
import pytest
import torch

from vidkernels.data import VideoReader, write_video
from vidkernels.data._motion import dense_field


def panned(count, dx, dy, height=96, width=128):
    """A window that slides over a smooth texture so that its content moves by (dx, dy) pixels a frame."""
    generator = torch.Generator().manual_seed(3)
    margin = count * max(abs(dx), abs(dy))
    coarse = torch.rand(1, 3, (height + 2 * margin) // 6, (width + 2 * margin) // 6, generator=generator)
    texture = torch.nn.functional.interpolate(coarse, (height + 2 * margin, width + 2 * margin), mode="bicubic")
    texture = (texture[0].permute(1, 2, 0).clamp(0, 1) * 255).byte()
    window = [(margin - t * dy, margin - t * dx) for t in range(count)]
    return torch.stack([texture[y : y + height, x : x + width] for y, x in window])


@pytest.mark.parametrize("pan", [(3, 0), (-2, 4), (0, -5)])
def test_median_vector_is_the_pan(tmp_path, pan):
    write_video(tmp_path / "pan.mp4", panned(8, *pan), 25, crf=10, options={"bf": "0", "refs": "1", "g": "60"})
    reader = VideoReader(tmp_path / "pan.mp4")
    for i in range(1, 8):
        blocks = reader.motion_vectors(i)
        assert (blocks["source"] < 0).all()
        assert blocks["motion"].median(0).values.tolist() == list(pan), i
        rounded = (blocks["dst"] - blocks["src"]).float()
        assert (rounded - blocks["motion"]).abs().max() <= 1
        field = reader.motion_field(i)
        assert field.shape == (2, 96, 128)
        assert field.flatten(1).median(1).values.tolist() == list(pan)


def test_intra_frames_have_no_vectors(tmp_path):
    write_video(tmp_path / "pan.mp4", panned(6, 2, 0), 25, options={"bf": "0", "g": "3"})
    reader = VideoReader(tmp_path / "pan.mp4")
    for i in (0, 3):
        assert reader.motion_vectors(i)["motion"].shape == (0, 2)
        assert not reader.motion_field(i).any()
    assert len(reader.motion_vectors(4)["motion"]) > 10


def test_vectors_are_the_same_at_every_reading(real_clip):
    """With frame threads FFmpeg hands out half-filled vectors now and then: about one frame in twenty on bikes."""
    first, second = (VideoReader(real_clip, threads=2) for _ in range(2))
    forward = [first.motion_vectors(i) for i in range(60)]
    assert sum(len(blocks["source"]) > 0 for blocks in forward) > 50
    assert all((blocks["block"] <= 16).all() for blocks in forward)
    for i in reversed(range(0, 60, 4)):
        again = second.motion_vectors(i)
        assert all(torch.equal(again[name], forward[i][name]) for name in again), i
    for i in range(60):
        again = second.motion_vectors(i)
        assert all(torch.equal(again[name], forward[i][name]) for name in again), i


def test_vectors_turn_with_the_picture(tmp_path):
    """Content that moves right in the stored picture moves down in the picture turned by 90 degrees clockwise."""
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip(f"PyAV {av.__version__} cannot write a rotation")
    write_video(tmp_path / "turned.mp4", panned(5, 3, 0), 25, rotation=90, crf=10, options={"bf": "0", "refs": "1"})
    reader = VideoReader(tmp_path / "turned.mp4")
    field = reader.motion_field(3)
    assert field.shape == (2, *reader.size)
    assert field.flatten(1).median(1).values.tolist() == [0, 3]


def test_painting_prefers_the_past_and_clips():
    blocks = {
        "source": torch.tensor([1, -1, -1], dtype=torch.int32),
        "block": torch.tensor([[8, 8], [4, 4], [4, 8]], dtype=torch.int32),
        "dst": torch.tensor([[4, 4], [2, 2], [15, 4]], dtype=torch.int32),
        "motion": torch.tensor([[-2.0, 1.0], [5.0, 6.0], [7.0, 0.5]]),
    }
    expected = torch.zeros(2, 8, 16)
    expected[:, :8, :8] = torch.tensor([2.0, -1.0])[:, None, None]  # a future reference, sign turned
    expected[:, 0:4, 0:4] = torch.tensor([5.0, 6.0])[:, None, None]
    expected[:, 0:8, 13:16] = torch.tensor([7.0, 0.5])[:, None, None]  # a column of the block lies outside
    assert torch.equal(torch.from_numpy(dense_field(blocks, 8, 16)), expected)
