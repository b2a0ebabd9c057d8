"""Other people's models, where they are installed."""

import importlib.util
from pathlib import Path

import pytest
import torch

try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:
    # A torchvision built for CUDA beside a CPU torch fails on import because its operator library does not load. The
    # models here use none of its operators, so the two that the import trips over are declared and nothing more.
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session")
def tome():
    """ToMe as plain loops, tome_by_hand.py."""
    path = Path(__file__).with_name("tome_by_hand.py")
    spec = importlib.util.spec_from_file_location("tome_by_hand", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
