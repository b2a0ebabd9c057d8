"""GaussianImage and GaussianVideo: they fit, render at any size and time, and train like any module."""

import pytest
import torch

import vidkernels as vk


def picture(height=24, width=32):
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    disc = ((x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.06).float()
    return torch.stack([0.2 + 0.6 * x, 0.8 - 0.5 * y, 0.3 + 0.5 * disc], -1)


def moving_blob(frames=6, height=20, width=28):
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    clip = [torch.exp(-((x - 6 - 3 * t) ** 2 + (y - 10) ** 2) / 18) for t in range(frames)]
    return torch.stack(clip)[..., None].repeat(1, 1, 1, 3) * torch.tensor([0.9, 0.5, 0.2])


def fit(model, target, steps, rate):
    slow = [p for n, p in model.named_parameters() if n == "colors"]
    fast = [p for n, p in model.named_parameters() if n != "colors"]
    optimizer = torch.optim.Adam([{"params": slow, "lr": 0.02}, {"params": fast, "lr": rate}])
    errors = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model() - target).square().mean()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    return errors


def psnr(image, target):
    return (-10 * (image - target).square().mean().log10()).item()


def test_image_fits(generator):
    model = vk.nn.GaussianImage.from_image(picture(), 120, generator)
    before = psnr(model().detach(), picture())
    fit(model, picture(), 150, 0.1)
    assert psnr(model().detach(), picture()) > max(26, before + 5)


def test_image_renders_at_another_size(generator):
    model = vk.nn.GaussianImage.from_image(picture(), 150, generator)
    fit(model, picture(), 100, 0.1)
    large = model.render((48, 64)).detach()
    small = torch.nn.functional.avg_pool2d(large.permute(2, 0, 1), 2).permute(1, 2, 0)
    assert psnr(small, model().detach()) > 30


@pytest.mark.parametrize("motion", ["spacetime", "bspline", "polynomial_fourier"])
def test_video_fits_a_moving_blob(motion, generator):
    target = moving_blob()
    model = vk.nn.GaussianVideo(60, (20, 28), frames=6, motion=motion, knots=5, generator=generator)
    still = psnr(target.mean(0, keepdim=True).expand_as(target), target)  # the best that a clip without motion can do
    fit(model, target, 150, 0.05)
    assert psnr(model().detach(), target) > still + 8
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("motion", ["spacetime", "bspline", "polynomial_fourier"])
def test_video_renders_at_given_times(motion, generator):
    model = vk.nn.GaussianVideo(30, (20, 28), frames=6, motion=motion, generator=generator)
    with torch.no_grad():
        for p in model.parameters():  # a fresh path stands still, and hides which time is rendered
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    clip = model()
    assert (clip[2] - clip[3]).abs().max() > 0.01
    torch.testing.assert_close(model(torch.tensor([0.4]))[0], clip[2], rtol=1e-4, atol=1e-4)
    assert model(torch.tensor([0.31, 0.77]), size=(10, 14)).shape == (2, 10, 14, 3)


@pytest.mark.parametrize("size", [(10, 14), (20, 42), (40, 28)])
def test_one_gaussian_at_any_size_is_the_closed_form(size):
    """Pixels of another size sample the same function at other places; 0.5 is added to the factor's diagonal."""
    model = vk.nn.GaussianImage(1, (20, 28), channels=1)
    with torch.no_grad():
        model.means.copy_(torch.tensor([[11.0, 8.0]]))
        model.cholesky.copy_(torch.tensor([[3.5, 1.0, 2.0]]))
        model.colors.fill_(0.8)
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
    dx, dy = x * 28 / size[1] - 11, y * 20 / size[0] - 8
    u = dx / 4.0
    v = (dy - 1.0 * u) / 2.5  # u, v = L^-1 d with L = [[4, 0], [1, 2.5]]
    expected = 0.8 * torch.exp(-(u * u + v * v) / 2)
    torch.testing.assert_close(model.render(size)[..., 0], expected, rtol=0, atol=1 / 255)  # what is below is left out


@pytest.mark.parametrize(
    "make", [lambda: vk.nn.GaussianImage(20, (9, 11)), lambda: vk.nn.GaussianVideo(20, (9, 11), 3)]
)
def test_state_dict_round_trip(make):
    one, two = make(), make()
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(), two())


def test_video_compiles(generator):
    model = vk.nn.GaussianVideo(12, (9, 11), frames=2, motion="bspline", generator=generator)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(torch.tensor([0.2, 0.6])), model(torch.tensor([0.2, 0.6])))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="GaussianVideo: expected `motion`"):
        vk.nn.GaussianVideo(5, (4, 4), 2, motion="teleport")
    with pytest.raises(ValueError, match="GaussianImage: expected a count"):
        vk.nn.GaussianImage(0, (4, 4))
