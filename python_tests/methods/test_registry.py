import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from vidkernels import functional, methods
from vidkernels.methods import Card


def test_listing_imports_no_method():
    code = (
        "import sys; from vidkernels import methods; names = methods.list_methods();"
        "assert 'videomae' in names, names;"
        "assert not [m for m in sys.modules if m.startswith('vidkernels.methods.') and '._' not in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_family_filter():
    assert "videomae" in methods.list_methods("masked_video")
    assert methods.list_methods("no_such_family") == []


def test_unknown_name_suggests_the_closest():
    with pytest.raises(KeyError, match="did you mean 'videomae'"):
        methods.get("videomea")


@pytest.mark.parametrize("name", methods.list_methods())
def test_every_method_keeps_the_protocol(name):
    cls, card = methods.get(name), methods.card(name)
    assert isinstance(card, Card)
    assert cls.card is card
    assert card.family == cls.__module__.split(".")[-2]
    for op in card.ops:
        assert callable(getattr(functional, op))
    config = cls.Config.tiny()
    assert type(config).__dataclass_params__.frozen
    model = cls(config)
    assert isinstance(model, nn.Module)
    assert isinstance(model, methods.Method)
    clip = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    first = model.training_step(clip, torch.Generator().manual_seed(3))["loss"]
    again = model.training_step(clip, torch.Generator().manual_seed(3))["loss"]
    assert first.dim() == 0
    assert torch.equal(first, again)
    first.backward()
    without = [key for key, value in model.named_parameters() if value.grad is None]
    assert without == []


@pytest.mark.parametrize(
    "wrong", [{"arxiv": "2203"}, {"family": "masked"}, {"fidelity": "perfect"}, {"fidelity": "partial"}]
)
def test_card_refuses_nonsense(wrong):
    good = methods.card("videomae")
    with pytest.raises(ValueError, match=r"Card: expected[\s\S]*HINT"):
        dataclasses.replace(good, **wrong)
