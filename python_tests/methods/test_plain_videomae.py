"""The benchmark's peer computes the same thing, or its timing would mean nothing."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from vidkernels import methods

_PATH = Path(__file__).parents[2] / "benchmarks" / "peers" / "plain_videomae.py"
_SPEC = importlib.util.spec_from_file_location("plain_videomae", _PATH)
_PEER = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_PEER)


@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_same_loss_and_gradients_with_the_same_weights_and_mask(attention):
    torch.manual_seed(0)
    cls = methods.get("videomae")
    ours = cls(cls.Config.tiny())
    clip = torch.randint(0, 256, (3, 6, 24, 40, 3), dtype=torch.uint8)
    plain = _PEER.PlainVideoMAE(ours.config, ours.grid(clip), attention)
    plain.load_state_dict(ours.state_dict())

    loss = ours.training_step(clip, torch.Generator().manual_seed(1))["loss"]
    loss.backward()
    mask = ours.mask(clip, torch.Generator().manual_seed(1)).to_bool()
    plain_loss = plain(plain.normalise(clip), mask)
    plain_loss.backward()

    torch.testing.assert_close(loss, plain_loss, rtol=1e-4, atol=0)
    theirs = dict(plain.named_parameters())
    for name, value in ours.named_parameters():
        mine, other = value.grad, theirs[name].grad
        if name.endswith("qkv.bias"):
            # Softmax cancels the keys' bias: its gradient is rounding noise in both.
            third = len(mine) // 3
            mine, other = (torch.cat([g[:third], g[2 * third :]]) for g in (mine, other))
        assert F.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.9999, name
        torch.testing.assert_close(mine.norm(), other.norm(), rtol=1e-3, atol=0, msg=name)
