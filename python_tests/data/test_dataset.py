import pytest
import torch
from torch.utils.data import DataLoader

from vidkernels.data import ClipSampler, VideoClipDataset, VideoReader, write_video


@pytest.fixture
def paths(make_video, bframes):
    return [bframes, make_video("odd.mp4", height=45, width=67)]


def dataset_of(paths, **kwargs):
    settings = {"size": (24, 32), "clips_per_video": 3, "seed": 11, **kwargs}
    return VideoClipDataset(paths, ClipSampler(4, 3), **settings)


def epoch_of(dataset, workers, method=None, epoch=0, persistent=False):
    dataset.set_epoch(epoch)
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=persistent,
    )
    return torch.cat(list(loader))


def test_workers_change_nothing(paths):
    alone = epoch_of(dataset_of(paths), 0)
    assert alone.shape == (6, 4, 24, 32, 3)
    assert alone.dtype == torch.uint8
    used = dataset_of(paths, threads=2)
    used[0]  # open a decoder before the workers fork
    assert torch.equal(epoch_of(used, 2, "fork"), alone)
    assert torch.equal(epoch_of(used, 2, "spawn"), alone)
    assert torch.equal(epoch_of(dataset_of(paths, cache=True), 2, "fork"), alone)


def test_item_depends_on_seed_epoch_and_index_alone(paths):
    dataset = dataset_of(paths)
    first = [dataset[i] for i in range(6)]
    assert all(torch.equal(dataset[i], first[i]) for i in (5, 0, 3))
    dataset.set_epoch(1)
    assert not torch.equal(dataset[2], first[2])
    resumed = dataset_of(paths)
    resumed.set_epoch(1)
    assert torch.equal(resumed[2], dataset[2])
    assert not torch.equal(dataset_of(paths, seed=12)[2], first[2])
    assert not torch.equal(first[0], first[2]), "two clips of one video draw apart"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_persistent_workers_see_the_epoch(paths, method):
    dataset = dataset_of(paths)
    expected = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        expected.append(torch.stack([dataset[i] for i in range(6)]))
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=True, multiprocessing_context=method)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat(list(loader)), expected[epoch])


def test_whole_clip_shares_crop_and_flip(tmp_path):
    """A still video must stay still."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(0, 256, (1, 40, 60, 3), generator=generator, dtype=torch.uint8).expand(12, -1, -1, -1)
    write_video(tmp_path / "still.mkv", still, 25, "libx264rgb", crf=0)
    dataset = VideoClipDataset(tmp_path / "still.mkv", ClipSampler(5, 2), size=20, clips_per_video=8)
    clips = [dataset[i] for i in range(8)]
    for clip in clips:
        assert torch.equal(clip, clip[:1].expand(5, -1, -1, -1))
    assert len({clip.numpy().tobytes() for clip in clips}) == 8


def test_flip_is_a_mirror_and_has_its_chance(paths):
    plain = dataset_of(paths, flip=0.0, clips_per_video=40)
    mirrored = dataset_of(paths, flip=1.0, clips_per_video=40)
    some = dataset_of(paths, flip=0.5, clips_per_video=40)
    flips = 0
    for i in range(0, 80, 2):
        a, b, c = plain[i], mirrored[i], some[i]
        assert torch.equal(b, a.flip(2))
        flips += torch.equal(c, b)
        assert torch.equal(c, a) or torch.equal(c, b)
    assert 8 < flips < 32  # four sigma around 20 of 40


def test_crops(bframes):
    reader = VideoReader(bframes)
    still = {"sampler": ClipSampler(2, 1, "center"), "flip": 0.0}
    assert torch.equal(VideoClipDataset(bframes, crop=None, size=(48, 64), **still)[0], reader[19:21])
    center = VideoClipDataset(bframes, crop="center", size=48, **still)[0]
    assert torch.equal(center, reader[19:21][:, :, 8:56])
    random = VideoClipDataset(bframes, scale=(0.3, 0.6), ratio=(0.5, 2.0), **still)
    for seed in range(200):
        top, left, height, width = random._box(48, 64, torch.Generator().manual_seed(seed))
        assert 0 <= top <= 48 - height
        assert 0 <= left <= 64 - width
        assert 0.27 <= height * width / (48 * 64) <= 0.63  # rounding to whole pixels
        assert 0.45 <= width / height <= 2.2
    tall = VideoClipDataset(bframes, scale=(1.0, 1.0), ratio=(4.0, 5.0), size=48, **still)
    assert tall._box(48, 64, torch.Generator().manual_seed(0)) == (0, 8, 48, 48), "nothing fits: centred"


def test_resize_is_antialiased():
    from vidkernels.data.dataset import _resize

    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    small = _resize(stripes, (16, 16))
    assert small.dtype == torch.uint8
    assert (small[:, :, 2:-2].int() - 100).abs().max() <= 15, "a plain bilinear resize would alias to 0 or 200"


def test_cache_equals_decoding_at_that_size(paths):
    cached, decoded = (dataset_of(paths, short_side=30, cache=cache) for cache in (True, False))
    assert cached._cached[0].shape == (40, 30, 40, 3)
    assert cached._cached[0].is_shared()
    for i in range(6):
        assert torch.equal(cached[i], decoded[i])


def test_many_files_keep_few_decoders(make_video):
    paths = [make_video(f"many{k}.mp4", count=6, height=16, width=16) for k in range(12)]
    dataset = VideoClipDataset(paths, ClipSampler(2, 1), size=16)
    first = [dataset[i] for i in range(12)]
    open_now = [reader for reader in dataset._readers.values() if reader._pixels._container is not None]
    assert len(open_now) <= 8
    assert all(torch.equal(dataset[i], first[i]) for i in range(12))


def test_real_clip_batches(real_clip):
    dataset = VideoClipDataset(real_clip, ClipSampler(16, 2), size=112, short_side=128, clips_per_video=2)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch.shape == (2, 16, 112, 112, 3)
    assert batch.float().std() > 10


def test_wrong_arguments(bframes, tmp_path):
    for wrong in (
        {"size": 0},
        {"crop": "corner"},
        {"scale": (0.5, 1.5)},
        {"ratio": (2, 1)},
        {"flip": 2.0},
        {"clips_per_video": 0},
    ):
        with pytest.raises(ValueError, match="VideoClipDataset: expected"):
            VideoClipDataset(bframes, **wrong)
    with pytest.raises(ValueError, match="at least one path"):
        VideoClipDataset([])
    with pytest.raises(IndexError, match="1 items"):
        VideoClipDataset(bframes)[1]
    with pytest.raises(ValueError, match="no such file"):
        VideoClipDataset(tmp_path / "gone.mp4")[0]
