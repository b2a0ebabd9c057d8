import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidkernels.data import ClipSampler


def test_center():
    assert ClipSampler(4, 3, "center")(20).tolist() == [5, 8, 11, 14]
    assert ClipSampler(4, 3, "center")(10).tolist() == [0, 3, 6, 9]
    assert ClipSampler(1, 7, "center")(9).tolist() == [4]


def test_uniform_takes_segment_middles():
    assert ClipSampler(4, mode="uniform")(100).tolist() == [12, 37, 62, 87]
    assert ClipSampler(3, mode="uniform")(3).tolist() == [0, 1, 2]
    assert ClipSampler(6, mode="uniform")(3).tolist() == [0, 0, 1, 1, 2, 2]


def test_short_videos():
    assert ClipSampler(5, 2, "center")(4).tolist() == [0, 2, 3, 3, 3]
    assert ClipSampler(5, 2, "center", short="loop")(4).tolist() == [0, 2, 0, 2, 0]
    assert ClipSampler(5, 2, "random")(1).tolist() == [0] * 5


def test_random_reaches_every_start_evenly():
    sampler = ClipSampler(3, 2, generator=torch.Generator().manual_seed(0))
    starts = torch.stack([sampler(9) for _ in range(5000)])
    assert torch.equal(starts - starts[:, :1], torch.tensor([[0, 2, 4]]).expand(5000, 3))
    counts = torch.bincount(starts[:, 0], minlength=5)
    assert len(counts) == 5
    assert (counts - 1000).abs().max() < 150  # five sigma: sqrt(5000 * 0.2 * 0.8) = 28


def test_generator_decides():
    sampler = ClipSampler(8, 4, jitter=1)
    draws = [sampler(500, torch.Generator().manual_seed(5)).tolist() for _ in range(2)]
    assert draws[0] == draws[1]
    assert draws[0] != sampler(500, torch.Generator().manual_seed(6)).tolist()


@given(
    length=st.integers(1, 300),
    frames=st.integers(1, 20),
    stride=st.integers(1, 9),
    mode=st.sampled_from(["random", "uniform", "center"]),
    jitter=st.integers(0, 4),
    short=st.sampled_from(["repeat", "loop"]),
    seed=st.integers(0, 1000),
)
def test_numbers_stay_inside_and_in_order(length, frames, stride, mode, jitter, short, seed):
    if mode != "uniform" and jitter and 2 * jitter >= stride:
        with pytest.raises(ValueError, match="2 \\* jitter < stride"):
            ClipSampler(frames, stride, mode, jitter=jitter, short=short)
        return
    sampler = ClipSampler(frames, stride, mode, jitter=jitter, short=short)
    numbers = sampler(length, torch.Generator().manual_seed(seed))
    assert numbers.shape == (frames,)
    assert numbers.dtype == torch.int64
    assert 0 <= numbers.min() <= numbers.max() < length
    if short == "repeat" or mode == "uniform" or length >= sampler.span:
        assert (numbers.diff() >= 0).all()
    if mode != "uniform" and length >= sampler.span:
        assert ((numbers.diff() - stride).abs() <= 2 * jitter).all()


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 0}, {"stride": 0}, {"mode": "dense"}, {"short": "pad"}, {"jitter": -1}, {"jitter": 2}],
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="ClipSampler: "):
        ClipSampler(**wrong)
    with pytest.raises(ValueError, match="length"):
        ClipSampler()(0)
