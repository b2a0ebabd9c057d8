"""The kernel of block motion against plain torch."""

import pytest
import torch

from vidkernels import _native
from vidkernels.codec import block_motion

pytestmark = pytest.mark.skipif(_native._C is None, reason="needs the compiled module")


@pytest.mark.parametrize(("height", "width", "side"), [(64, 96, 16), (35, 50, 8), (7, 5, 4), (1, 1, 8), (40, 33, 64)])
@pytest.mark.parametrize("far", [0.0, 0.7, 9.0, 500.0])
def test_sums_equal_plain_torch(height, width, side, far, generator):
    pictures = 255 * torch.rand(2, 1, 1, height, width, generator=generator)
    slopes = torch.randn(2, 1, 1, height, width, generator=generator)
    blocks = -(-height // side), -(-width // side)
    vectors = far * torch.randn(1, 2, *blocks, generator=generator)
    got = block_motion._sums(*pictures, *slopes, vectors, side)
    doubles = (x.double() for x in (*pictures, *slopes, vectors))
    expected = block_motion._sums_in_torch(*doubles, side)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=2e-3)


def test_vectors_that_are_no_numbers_do_not_crash():
    picture = torch.rand(1, 1, 16, 16)
    vectors = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38]).reshape(1, 1, 2, 2).expand(1, 2, 2, 2)
    assert block_motion._sums(picture, picture, picture, picture, vectors.contiguous(), 8).shape == (1, 3, 2, 2)


def test_the_number_of_threads_changes_nothing(generator):
    pictures = torch.rand(4, 1, 1, 90, 130, generator=generator)
    vectors = torch.randn(1, 2, 12, 17, generator=generator)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(block_motion._sums(*pictures, vectors, 8))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_wrong_shapes_are_refused():
    picture = torch.rand(16, 16)
    with pytest.raises(ValueError, match="block_sums"):
        _native._C.block_sums_cpu(picture, picture, picture, picture, torch.zeros(2, 2, 3), torch.zeros(3, 2, 2), 8)
    with pytest.raises(ValueError, match="block_sums"):
        _native._C.block_sums_cpu(picture, picture[:8], picture, picture, torch.zeros(2, 2, 2), torch.zeros(3, 2, 2), 8)
