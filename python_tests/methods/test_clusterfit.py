"""ClusterFit: a network trained on noisy tags, and one trained on the clusters of its features."""

from dataclasses import replace

import pytest
import torch

from vidkernels.methods.clustering.clusterfit import ClusterFit

SIDE, STRIPES, CLASSES = 16, 8, 6
CLIPS, STEPS, CLUSTERS, NOISE = 600, 400, 48, 0.6


def striped(count, generator):
    """Clips with a moving striped patch, and its direction of stripes; phase, shades, place and noise vary freely."""
    label = torch.randint(CLASSES, (count,), generator=generator)
    y, x = torch.meshgrid(torch.arange(STRIPES), torch.arange(STRIPES), indexing="ij")
    angle = (label * torch.pi / CLASSES).view(-1, 1, 1)
    phase = 6.28 * torch.rand(count, 1, 1, generator=generator)
    wave = 0.5 + 0.5 * torch.sin(2.2 * (angle.cos() * x + angle.sin() * y) + phase)
    colour = 0.8 + 0.2 * torch.rand(count, 1, 1, 3, generator=generator)
    patch = wave[..., None] * colour + (1 - wave[..., None]) * (1 - colour)
    clip = (0.3 + 0.4 * torch.rand(count, 1, 1, 1, 1, generator=generator)).repeat(1, 2, SIDE, SIDE, 3)
    corner = torch.randint(SIDE - STRIPES - 1, (count, 2), generator=generator).tolist()
    for i, (top, left) in enumerate(corner):
        for t in range(2):
            clip[i, t, top + t : top + t + STRIPES, left + t : left + t + STRIPES] = patch[i]
    clip += 0.15 * torch.randn(clip.shape, generator=generator)
    return (clip * 255).clamp(0, 255).to(torch.uint8), label


def probe(features, labels, test_features, test_labels, ridge):
    """Accuracy of least squares on the labels: what a linear layer can read in the features."""
    mean, std = features.mean(0), features.std(0) + 1e-6

    def rows(x):
        return torch.cat([(x - mean) / std, torch.ones(len(x), 1)], 1).double()

    a, target = rows(features), torch.nn.functional.one_hot(labels, CLASSES).double()
    weight = torch.linalg.solve(a.T @ a + ridge * len(a) * torch.eye(a.shape[1], dtype=a.dtype), a.T @ target)
    return float(((rows(test_features) @ weight).argmax(1) == test_labels).double().mean())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def test_fits_clusters_of_features_from_elsewhere():
    generator = torch.Generator().manual_seed(0)
    clips, label = striped(60, generator)
    features = torch.eye(CLASSES)[label] + 0.01 * torch.randn(60, CLASSES, generator=generator)
    torch.manual_seed(0)
    model = ClusterFit(replace(ClusterFit.Config.tiny(), classes=CLASSES))
    clusters = model.clusters(features, generator)
    # The clusters are the classes under other names.
    assert len(set(zip(clusters.tolist(), label.tolist()))) == CLASSES
    before = model.training_step(clips, labels=clusters)["loss"].item()
    assert model.fit(clips, clusters, steps=60, batch=32, generator=generator) is model
    assert model.training_step(clips, labels=clusters)["loss"].item() < 0.8 * before
    assert model.features(clips, batch=7).shape == (60, 32)
    assert torch.allclose(model.features(clips, batch=7), model.features(clips), atol=1e-6)
    assert model.training


def test_refuses_clips_that_are_not_bytes():
    with pytest.raises(ValueError, match="uint8"):
        ClusterFit(ClusterFit.Config.tiny())(torch.zeros(1, 2, 16, 16, 3))


@pytest.mark.slow
def test_clusters_forget_the_noise_of_the_tags():
    generator = torch.Generator().manual_seed(0)
    (tagged, label), (plain, _) = striped(CLIPS, generator), striped(CLIPS, generator)
    probe_clips, probe_label = striped(400, generator)
    held_out, held_out_label = striped(800, generator)
    wrong = torch.rand(CLIPS, generator=generator) < NOISE
    tags = torch.where(wrong, torch.randint(CLASSES, (CLIPS,), generator=generator), label)
    wrong = tags != label
    config = replace(ClusterFit.Config.tiny(), features=64, classes=CLASSES)

    def clean(net):
        return probe(net.features(probe_clips), probe_label, net.features(held_out), held_out_label, 1e-2)

    def remembered(net):
        """How well the wrong tags can be read in the features of the clips that bore them."""
        features = net.features(tagged[wrong])
        return probe(features, tags[wrong], features, tags[wrong], 1e-3)

    torch.manual_seed(0)
    first = ClusterFit(config).fit(tagged, tags, steps=STEPS, generator=generator)
    source = first.features(plain)
    nets = {}
    for k in (CLUSTERS, CLIPS):
        torch.manual_seed(1)
        nets[k] = ClusterFit(replace(config, classes=k))
        nets[k].fit(plain, nets[k].clusters(source, generator), steps=STEPS, generator=generator)
    scores = {name: (clean(net), remembered(net)) for name, net in {"tags": first, **nets}.items()}
    print(scores)
    assert scores[CLUSTERS][0] >= scores["tags"][0] + 0.03
    assert scores[CLUSTERS][1] <= scores["tags"][1] - 0.2
    assert scores[CLIPS][0] < scores["tags"][0] + 0.03  # one cluster for each clip: nothing is gained
