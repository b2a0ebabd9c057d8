"""The public functions: shapes, errors, and agreement with scipy's tree."""

import pytest
import torch

from vidkernels.functional.clustering.nearest import nearest, nearest_code


def test_finds_what_a_tree_finds(generator):
    scipy = pytest.importorskip("scipy.spatial")
    x, c = torch.randn(200, 5, generator=generator), torch.randn(90, 5, generator=generator)
    distance, index = scipy.cKDTree(c.double().numpy()).query(x.double().numpy(), k=4)
    got, squared = nearest(x, c, k=4)
    assert torch.equal(got, torch.from_numpy(index))
    torch.testing.assert_close(squared.double(), torch.from_numpy(distance).square(), rtol=2e-6, atol=0)


def test_shapes(generator):
    x, c = torch.randn(2, 6, 3, generator=generator), torch.randn(4, 3, generator=generator)
    index, value = nearest(x, c, k=2)
    assert index.shape == value.shape == (2, 6, 2)
    assert torch.equal(nearest(x[1], c, k=2)[0], index[1])
    assert torch.equal(nearest(x, c[None].expand(2, -1, -1), k=2)[0], index)
    index, distance = nearest_code(x, c)
    assert index.shape == distance.shape == (2, 6)
    assert torch.equal(index, nearest(x, c)[0][..., 0])
    assert nearest_code(x[0, 0], c)[0].shape == ()
    assert nearest_code(x[:0], c)[0].shape == (0, 6)
    assert nearest(x.double(), c.double())[1].dtype is torch.float64
    assert nearest(x.half(), c)[1].dtype is torch.float32


def test_nan_rows_are_named():
    x = torch.zeros(2, 4, 3)
    x[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"nearest: rows with NaN: \(1, 2\)"):
        nearest(x, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"nearest: rows with NaN: 2\."):
        nearest(x[1], torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"nearest_code: rows with NaN: \(1, 2\)\."):
        nearest_code(x, torch.ones(2, 3))


def test_compiled_code_returns_minus_one_for_nan():
    x = torch.tensor([[0.0], [torch.nan]])
    compiled = torch.compile(lambda a, b: nearest_code(a, b), fullgraph=True, backend="aot_eager")
    index, distance = compiled(x, torch.ones(3, 1))
    assert index.tolist() == [0, -1]
    assert distance[0] == 1
    assert bool(distance[1].isnan())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"k": 0}, "`k` between 1 and 32"),
        ({"k": 33}, "`k` between 1 and 32"),
        ({"metric": "l1"}, "`metric` to be one of l2, ip, cosine"),
        ({"candidates": "some"}, "`candidates` to be one of all, others, before"),
        ({"candidates": "others"}, "as many codes as points"),
        ({"codes": torch.zeros(4, 2)}, r"`points` \[N, D\]"),
        ({"codes": torch.zeros(3, 4, 5)}, r"`points` \[N, D\]"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError, match=text):
        nearest(**{"points": torch.zeros(2, 3, 5), "codes": torch.zeros(4, 5)} | arguments)


def test_refusals_of_nearest_code():
    with pytest.raises(ValueError, match="the codebook is empty"):
        nearest_code(torch.zeros(3, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="with the D of the codebook"):
        nearest_code(torch.zeros(3, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="`metric` to be one of"):
        nearest_code(torch.zeros(3, 2), torch.zeros(4, 2), metric="l1")
    with pytest.raises(TypeError, match="`codebook`"):
        nearest_code(torch.zeros(3, 2), [[0.0, 0.0]])


def test_distance_reaches_both_sides(generator):
    x, c = torch.randn(7, 3, generator=generator), torch.randn(4, 3, generator=generator)
    x.requires_grad_(), c.requires_grad_()
    index, distance = nearest_code(x, c)
    got = torch.autograd.grad(distance.sum(), (x, c))
    expected = torch.autograd.grad((x - c[index]).square().sum(), (x, c))
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a, e)
