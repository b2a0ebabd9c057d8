import pytest
import torch

from vidkernels import functional as vkf


def rotation(vector):
    x, y, z = vector
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def cloud(count, seed=0):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_photometric_loss_against_a_published_ssim():
    metrics = pytest.importorskip("skimage.metrics")
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (40, 37, 3), dtype=torch.uint8, generator=generator)
    image = (frame / 255 + 0.1 * torch.randn(40, 37, 3, generator=generator)).double()
    zeros = torch.zeros(64, 64, 3, dtype=torch.float64)
    padded_image, padded_frame = zeros.clone(), zeros.to(torch.uint8)
    padded_image[12:52, 12:49], padded_frame[12:52, 12:49] = image, frame
    # Far outside both are 0, where any two borders agree.
    _, full = metrics.structural_similarity(
        padded_image.numpy(), padded_frame.numpy() / 255, channel_axis=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=1.0, full=True,
    )  # fmt: skip
    expected = 0.8 * (image - frame / 255).abs().mean() + 0.2 * (1 - full[12:52, 12:49].mean()) / 2
    assert vkf.photometric_loss(image, frame).item() == pytest.approx(float(expected), rel=1e-6)
    assert vkf.photometric_loss(image, frame, dssim=0).item() == pytest.approx(
        float((image - frame / 255).abs().mean())
    )


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 40, 3), (11, 11, 2), (37, 41, 3)])
def test_photometric_loss_of_any_size_in_float32(size):
    """Windows hang over the border on all sides; smooth pictures, where variances are small differences."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    frame = (128 + 100 * torch.sin(0.1 * x + 0.07 * y)).to(torch.uint8).unsqueeze(2).expand(size).contiguous()
    image = (0.9 * (frame / 255) + 0.03).requires_grad_()
    wide = image.detach().double().requires_grad_()
    loss, exact = vkf.photometric_loss(image, frame), vkf.photometric_loss(wide, frame)
    assert loss.item() == pytest.approx(exact.item(), rel=5e-6)
    loss.backward()
    exact.backward()
    assert float((image.grad - wide.grad).norm()) <= 1e-5 * float(wide.grad.norm())


def test_photometric_gradient():
    frame = torch.randint(0, 256, (4, 5, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: vkf.photometric_loss(x, frame), (image,))


def test_flow_loss_by_hand():
    flow = torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]])
    target = torch.zeros(2, 1, 2)
    assert vkf.rendered_flow_loss(flow, target).item() == pytest.approx((1 + 3 + 5 + 5) / 4)
    valid = torch.tensor([[True, False]])
    assert vkf.rendered_flow_loss(flow, target, valid).item() == pytest.approx(2)
    assert vkf.rendered_flow_loss(flow, target, torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_flow_loss_ignores_nan_where_it_is_not_valid():
    flow = torch.ones(2, 1, 2, requires_grad=True)
    target = torch.tensor([[[0.0, torch.nan]], [[0.0, torch.nan]]])
    loss = vkf.rendered_flow_loss(flow, target, torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == 1
    assert flow.grad.isfinite().all()


def test_depth_loss_ignores_scale_and_shift_only():
    depth = torch.rand(7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert vkf.scale_shift_invariant_loss(depth, 5 * depth - 3).item() == pytest.approx(0, abs=1e-12)
    assert vkf.scale_shift_invariant_loss(depth, -depth).item() > 0.5
    # Medians 1 and 0; mean absolute deviations 1 and 2/3.
    a, b = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[-1.0, 0.0, 1.0]])
    expected = (abs(-1 + 1.5) + 0 + abs(2 - 1.5)) / 3
    assert vkf.scale_shift_invariant_loss(a, b).item() == pytest.approx(expected)


def test_depth_loss_of_a_flat_map_is_finite():
    flat = torch.ones(3, 3, requires_grad=True)
    loss = vkf.scale_shift_invariant_loss(flat, torch.rand(3, 3))
    loss.backward()
    assert loss.isfinite()
    assert flat.grad.isfinite().all()
    valid = torch.zeros(3, 3, dtype=torch.bool)
    assert vkf.scale_shift_invariant_loss(flat, torch.rand(3, 3), valid).item() == 0


@pytest.mark.parametrize("count", [5, 200])
def test_knn_graph_against_sorting(count, monkeypatch):
    monkeypatch.setattr("vidkernels.functional.splatting.losses._BLOCK", 7 * count)  # several blocks
    points = cloud(count)
    distance = (points[:, None] - points).square().sum(2)
    distance.fill_diagonal_(torch.inf)
    assert torch.equal(vkf.knn_graph(points, 3), distance.argsort(1)[:, :3])


def test_rigid_motion_costs_nothing_and_stretching_does():
    points = cloud(40)
    near = vkf.knn_graph(points, 6)
    moved = points @ rotation([0.4, -1.1, 2.0]).T + torch.tensor([3.0, 0.0, -1.0], dtype=torch.float64)
    assert vkf.arap_loss(points, moved, near).item() < 1e-20
    # Twice as large: no rotation helps, each edge misses by its own length.
    edges = (points[near] - points[:, None]).square().sum(2).mean()
    assert vkf.arap_loss(points, 2 * points, near).item() == pytest.approx(edges.item())
    # A reflection is no rotation.
    assert vkf.arap_loss(points, points * torch.tensor([1, 1, -1]), near).item() > 0.1


def test_arap_gradient_and_rows():
    source, target = cloud(9).requires_grad_(), cloud(9, 1).requires_grad_()
    near = vkf.knn_graph(source, 4)
    assert torch.autograd.gradcheck(lambda a, b: vkf.arap_loss(a, b, near), (source, target))
    rows = torch.tensor([2, 7])
    each = [vkf.arap_loss(source, target, near[row : row + 1], torch.tensor([row])) for row in (2, 7)]
    torch.testing.assert_close(vkf.arap_loss(source, target, near[rows], rows), torch.stack(each).mean())


def test_label_loss_by_hand():
    probabilities = torch.tensor([[[0.25, 0.75], [1.0, 0.0]]])
    loss = vkf.label_loss(probabilities, torch.tensor([[0, 0]]))
    assert loss.item() == pytest.approx(-torch.tensor(0.25).log().item() / 2)
    valid = torch.tensor([[True, False]])
    assert vkf.label_loss(probabilities, torch.tensor([[1, 1]]), valid).item() == pytest.approx(0.28768, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vkf.photometric_loss(torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)), "uint8"),
        (lambda: vkf.rendered_flow_loss(torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)), r"\[..., 2, H, W\]"),
        (lambda: vkf.rendered_flow_loss(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2), torch.ones(2, 2)), "valid"),
        (lambda: vkf.scale_shift_invariant_loss(torch.zeros(2, 2), torch.zeros(2, 3)), "depth"),
        (lambda: vkf.knn_graph(torch.zeros(3, 2), 3), "k"),
        (lambda: vkf.arap_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 1).long()), r"\[N, 3\]"),
        (lambda: vkf.arap_loss(torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(2, 1).long()), "neighbours"),
        (lambda: vkf.label_loss(torch.zeros(2, 2, 3), torch.zeros(3, 2).long()), "labels"),
    ],
)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
