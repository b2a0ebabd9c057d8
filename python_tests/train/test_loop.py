import math
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from vidkernels.train import NonFiniteLossError, TrainConfig, Trainer, load_checkpoint


class Regression(nn.Module):
    """Mean brightness from the first pixel: no randomness, so runs can be compared across batch layouts."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, clip, generator=None):
        pixels = clip.float() / 255
        guess = self.linear(pixels[:, 0, 0, 0])[:, 0]
        return {"loss": (guess - pixels.mean((1, 2, 3, 4))).square().mean()}


def clips(count=8):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, 2, 4, 4, 3), generator=generator, dtype=torch.uint8))


def test_schedule_closed_form():
    config = TrainConfig(steps=110, batch_size=1, learning_rate=2.0, warmup_steps=10)
    rates = [config.learning_rate_at(step) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[110] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_one_step_is_adamw_with_decay_on_matrices_only():
    torch.manual_seed(0)
    model = Regression()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    config = TrainConfig(steps=4, batch_size=8, learning_rate=0.01, weight_decay=0.5, clip_norm=1e9)
    trainer = Trainer(model, clips(), config, show_progress=False)
    gradient = torch.autograd.grad(model(torch.stack(clips()))["loss"], list(model.parameters()))
    trainer._train_step(model, torch.stack(clips()), threading.Event())
    # The first Adam step is the sign of the gradient.
    for (name, value), grad in zip(model.named_parameters(), gradient):
        decay = 0.01 * 0.5 * before[name] if name.endswith("weight") else 0
        torch.testing.assert_close(value.detach(), before[name] - decay - 0.01 * grad.sign(), rtol=1e-4, atol=1e-6)


def test_loss_goes_down_and_the_bar_is_drawn(capsys):
    torch.manual_seed(0)
    config = TrainConfig(steps=150, batch_size=4, learning_rate=0.05)
    report = Trainer(Regression(), clips(), config).fit()
    assert sum(report.losses[-10:]) < 0.1 * sum(report.losses[:10])
    shown = capsys.readouterr().out
    assert "150/150" in shown
    assert "loss" in shown


def test_gradients_are_clipped():
    torch.manual_seed(0)
    model = Regression()
    config = TrainConfig(steps=1, batch_size=8, clip_norm=1e-4)
    Trainer(model, clips(), config, show_progress=False).fit()
    norm = torch.stack([value.grad.norm() for value in model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-4, rel=1e-2)


def test_bf16_runs_the_matrix_products_in_bfloat16():
    seen = []

    class Probe(Regression):
        def forward(self, clip, generator=None):
            seen.append(self.linear(torch.zeros(1, 3)).dtype)
            return super().forward(clip)

    model = Probe()
    Trainer(model, clips(), TrainConfig(1, 4, precision="bf16"), show_progress=False).fit()
    assert seen == [torch.bfloat16]
    assert model.linear.weight.dtype == torch.float32


class Breaking(Regression):
    """The loss, or only its gradient, stops being finite at the fifth step."""

    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0

    def forward(self, clip, generator=None):
        self.calls += 1
        loss = super().forward(clip)["loss"]
        if self.calls == 5:
            # sqrt has an infinite slope at zero: a finite loss with a gradient that is not.
            loss = loss * math.nan if self.how == "loss" else loss + (0 * self.linear.weight).sum().sqrt()
        return {"loss": loss}


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("every", [3, 100])
def test_nan_stops_before_the_update_and_keeps_the_last_good_state(how, every, tmp_path):
    path = tmp_path / "last.pt"

    def run(model, steps):
        torch.manual_seed(0)
        model.linear.reset_parameters()
        config = TrainConfig(steps=steps, batch_size=2, learning_rate=0.01, checkpoint_every=every)
        # The learning rate is a function of `steps`, so both runs get the same number of them.
        return Trainer(model, clips(), config, checkpoint=path, show_progress=False)

    model = Breaking(how)
    trainer = run(model, 20)
    with pytest.raises(NonFiniteLossError, match=r"step 5[\s\S]*HINT"):
        trainer.fit()
    assert trainer.step == 4
    if every == 3:
        saved = load_checkpoint(path)
        assert saved["step"] == 3
        assert all(torch.isfinite(value).all() for value in saved["model"].values())
    else:
        assert not path.exists()

    good = run(Regression(), 20)
    for _, clip in zip(range(4), good.batches.iterate({"epoch": 0, "batch": 0})):
        good._train_step(good.model, clip, threading.Event())
    assert torch.equal(model.linear.weight, good.model.linear.weight)


def test_wrong_settings_are_refused_with_a_hint():
    with pytest.raises(ValueError, match=r"`precision`[\s\S]*HINT"):
        TrainConfig(1, 1, precision="fp8")
    with pytest.raises(ValueError, match=r"at least 1[\s\S]*HINT"):
        TrainConfig(0, 1)
    with pytest.raises(ValueError, match=r"one full batch per epoch[\s\S]*HINT"):
        Trainer(Regression(), clips(3), TrainConfig(1, 4))


_DISTRIBUTED = """
import importlib.util, os, sys
import torch
spec = importlib.util.spec_from_file_location("test_loop", sys.argv[1])
test_loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test_loop)
torch.manual_seed(0)
model = test_loop.Regression()
config = test_loop.TrainConfig(steps=10, batch_size=2, learning_rate=0.01, checkpoint_every=4)
path = sys.argv[2] + "/last.pt"
if sys.argv[3] == "stop":
    # Only one of the two is asked to stop; both must.
    class Asking(list):
        def __getitem__(self, index):
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked == 11 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), 2)
            return super().__getitem__(index)
    data = Asking(test_loop.clips())
else:
    data = test_loop.clips()
report = test_loop.Trainer(model, data, config, checkpoint=path, show_progress=False).fit(resume=True)
torch.save((report.step, model.state_dict()), sys.argv[2] + f"/rank{os.environ['RANK']}.pt")
"""


def launch(folder, mode):
    """Two processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _DISTRIBUTED, str(Path(__file__)), str(folder), mode]
    processes = [
        subprocess.Popen(command, env=os.environ | base | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


@needs_distributed
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    torch.manual_seed(0)
    single = Regression()
    config = TrainConfig(steps=10, batch_size=4, learning_rate=0.01)
    Trainer(single, clips(), config, show_progress=False).fit()
    (step, first), (_, second) = launch(tmp_path, "go")
    assert step == 10
    assert torch.equal(first["linear.weight"], second["linear.weight"])
    torch.testing.assert_close(first, dict(single.state_dict()), rtol=1e-4, atol=1e-6)


@needs_distributed
@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_both_and_both_resume(tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir()
    stopped.mkdir()
    (_, expected), _ = launch(straight, "go")
    assert [step for step, _ in launch(stopped, "stop")] == [6, 6]
    (step, resumed), _ = launch(stopped, "go")
    assert step == 10
    assert torch.equal(resumed["linear.weight"], expected["linear.weight"])
