"""Small files made on the spot, each with one property that readers get wrong."""

import pytest
import torch

from vidkernels.data import sample_clip, write_video

av = pytest.importorskip("av", reason="PyAV is not installed")


def _numbered_frames(count, height=48, width=64):
    """Frames that tell themselves apart: textured, with a bar that moves and a brightness that rises."""
    generator = torch.Generator().manual_seed(0)
    texture = torch.randint(0, 120, (height // 8 + 1, width // 8 + 1, 3), generator=generator, dtype=torch.uint8)
    texture = texture.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width]
    frames = texture.repeat(count, 1, 1, 1)
    for i in range(count):
        x = (3 * i) % (width - 8)
        frames[i, :, x : x + 8] = torch.tensor([255 - 4 * i % 200, 40 + 5 * i % 200, 90], dtype=torch.uint8)
    return frames


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="session")
def make_video(folder):
    """make(name, frames, **write_video arguments) -> path; written once per name."""

    def make(name, count=40, fps=25, *, height=48, width=64, **kwargs):
        if kwargs.get("rotation") and not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
            pytest.skip(f"PyAV {av.__version__} cannot write a rotation")
        path = folder / name
        if not path.exists():
            write_video(path, _numbered_frames(count, height, width), fps, **kwargs)
        return str(path)

    return make


@pytest.fixture(scope="session")
def bframes(make_video):
    """h264 with B-frames and keyframes every 12 frames."""
    return make_video("bframes.mp4", options={"g": "12", "bf": "3", "x264-params": "scenecut=0"})


@pytest.fixture(params=["bigbuckbunny", "bikes"])
def real_clip(request):
    try:
        return sample_clip(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


def _plain_decode(path):
    """Every frame by the shortest PyAV programme there is: the oracle of the reader."""
    with av.open(str(path)) as container:
        return [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.fixture(scope="session")
def numbered_frames():
    return _numbered_frames


@pytest.fixture(scope="session")
def plain_decode():
    return _plain_decode
