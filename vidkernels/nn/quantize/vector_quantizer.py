"""The codebook of a VQ-VAE as a module: quantise, learn, revive."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.clustering._collective import all_reduce, broadcast, row_counts
from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.functional.quantize.vq import VectorQuantized, code_sums, ema_codebook, perplexity, vector_quantize

__all__ = ["VectorQuantizer"]


class VectorQuantizer(nn.Module):
    """Nearest-code quantisation with a codebook that learns, see `vidkernels.functional.vector_quantize`.

    In training, a forward pass quantises with the codebook as it is and then moves it. Under torch.distributed, all
    processes of the group move it together, as one process would with all their vectors.

    Args:
        dim: D, size of a vector.
        codes: K, size of the codebook.
        metric: "l2", or "cosine": vectors and codes are brought to unit length first, and so is the output.
        decay: of the moving average that trains the codebook (0.8 to 0.99); None trains it as a parameter by its loss.
        commitment: weight of the pull of vectors towards their codes.
        eps: Laplace smoothing of the counts.
        dead_below: a code whose moving count of vectors falls below this moves to a random vector of the batch and
            starts from this count; 0 leaves dead codes alone.
        start: "random", or "k-means": the first batch in training is clustered (it needs at least K vectors).
        start_iterations: of that k-means.
        channel_first: vectors lie along axis 1, as in [B, C, T, H, W], instead of along the last.
        group: the torch.distributed group; None: all processes, if torch.distributed is initialised.
        backend: force one of vidkernels' backends; None chooses.
    Example:
        >>> vq = VectorQuantizer(4, 16)
        >>> quantized, index, loss = vq(torch.randn(2, 10, 4))
        >>> quantized.shape, index.shape, loss.shape
        (torch.Size([2, 10, 4]), torch.Size([2, 10]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        codes: int,
        *,
        metric: str = "l2",
        decay: float | None = 0.99,
        commitment: float = 0.25,
        eps: float = 1e-5,
        dead_below: float = 0.0,
        start: str = "random",
        start_iterations: int = 10,
        channel_first: bool = False,
        group=None,
        backend: str | None = None,
    ):
        super().__init__()
        if metric not in ("l2", "cosine") or start not in ("random", "k-means"):
            _check.fail("VectorQuantizer", 'expected `metric` "l2" or "cosine", `start` "random" or "k-means".',
                        metric=metric, start=start)  # fmt: skip
        if dim < 1 or codes < 1 or (decay is not None and not 0 <= decay <= 1):
            _check.fail("VectorQuantizer", "expected `dim` and `codes` of at least 1, `decay` in [0, 1] or None.",
                        dim=dim, codes=codes, decay=decay)  # fmt: skip
        self.dim, self.codes, self.metric = dim, codes, metric
        self.decay, self.commitment, self.eps, self.dead_below = decay, commitment, eps, dead_below
        self.start_iterations, self.channel_first = start_iterations, channel_first
        self.group, self.backend = group, backend
        codebook = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        codebook = F.normalize(codebook, dim=1) if metric == "cosine" else codebook
        self.register_buffer("started", torch.tensor(start == "random"))
        self._started = start == "random"  # the buffer as Python knows it, without asking a GPU
        if decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_sums", codebook.clone())
        self.register_buffer("ema_counts", torch.ones(codes))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> VectorQuantized:
        """Quantise [..., D] ([B, D, ...] with `channel_first`); in training, move the codebook afterwards.

        Args: x: float16/bfloat16/float32. generator: source of the vectors that replace dead codes, and of the start.
        """
        vectors = self._vectors(x)
        flat = vectors.reshape(-1, self.dim)
        if self.training and not self._started:
            if torch.compiler.is_compiling():  # k-means is no graph
                hint = "call start(x) before compiling."
                _check.fail("VectorQuantizer", "the codebook has not been started.", hint, RuntimeError, x=x)
            self.start(x, generator)
        codebook = F.normalize(self.codebook, dim=1) if self._normalises_codes else self.codebook
        quantized, index, loss = vector_quantize(
            flat,
            codebook,
            commitment=self.commitment,
            codebook_loss=1.0 if self.decay is None else 0.0,
            backend=self.backend,
        )
        learns = self.decay is not None or self.dead_below > 0
        if self.training and learns and (flat.shape[0] or self._group() is not None):
            self._learn(flat.detach().to(self.ema_counts.dtype), index, generator)
        quantized = quantized.view(vectors.shape).to(x.dtype)
        quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
        return VectorQuantized(quantized, index.view(vectors.shape[:-1]), loss)

    @torch.no_grad()
    def start(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Set the codebook by k-means of these vectors; called by the first forward pass in training if asked for."""
        flat = self._vectors(x).reshape(-1, self.dim)
        found = kmeans(
            flat,
            self.codes,
            iterations=self.start_iterations,
            metric=self.metric,
            generator=generator,
            group=self._group(),
            backend=self.backend,
        )
        self.codebook.copy_(found.centres)
        self.ema_counts.copy_(found.counts)
        if self.decay is not None:
            self.ema_sums.copy_(found.centres * found.counts[:, None])
        self.started.fill_(True)
        self._started = True

    def lookup(self, index: Tensor) -> Tensor:
        """The codes that indices [...] name, [..., D] ([B, D, ...] with `channel_first`)."""
        codebook = F.normalize(self.codebook, dim=1) if self._normalises_codes else self.codebook
        codes = F.embedding(index, codebook)
        return codes.movedim(-1, 1) if self.channel_first else codes

    def perplexity(self, index: Tensor) -> Tensor:
        """How many codes these indices use, 1 to K: see `vidkernels.functional.perplexity`."""
        return perplexity(index, self.codes)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.codes}, metric={self.metric!r}, decay={self.decay}, commitment={self.commitment}"

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._started = bool(self.started)

    @property
    def _normalises_codes(self) -> bool:
        # A moving average keeps its codes at unit length itself; an optimiser does not.
        return self.metric == "cosine" and self.decay is None

    def _vectors(self, x: Tensor) -> Tensor:
        axis = 1 if self.channel_first else -1
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[axis] != self.dim:
            shape = f"[B, {self.dim}, ...]" if self.channel_first else f"[..., {self.dim}]"
            _check.fail("VectorQuantizer", f"expected `x` of shape {shape}.", x=x)
        vectors = x.movedim(1, -1) if self.channel_first else x
        if self.metric == "cosine":
            vectors = F.normalize(vectors if vectors.dtype is torch.float64 else vectors.float(), dim=-1)
        return vectors

    def _group(self):
        if self.group is not None:
            return self.group
        return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None

    @torch.no_grad()
    def _learn(self, flat: Tensor, index: Tensor, generator: torch.Generator | None) -> None:
        group = self._group()
        sums, counts = code_sums(flat, index, self.codes, backend=self.backend)
        fresh = self._random_vectors(flat, generator, group) if self.dead_below > 0 else None
        all_reduce(*(t for t in (sums, counts, fresh) if t is not None), group=group)
        codebook = self.codebook
        if self.decay is not None:
            codebook, ema_counts, ema_sums = ema_codebook(
                self.ema_counts, self.ema_sums, counts, sums, decay=self.decay, eps=self.eps
            )
            if self.metric == "cosine":
                codebook = F.normalize(codebook, dim=1)
        else:
            ema_counts, ema_sums = torch.lerp(counts, self.ema_counts, _COUNT_DECAY), None
        if fresh is not None:
            dead = ema_counts < self.dead_below
            codebook = torch.where(dead[:, None], fresh, codebook)
            ema_counts = torch.where(dead, self.dead_below, ema_counts)
            if ema_sums is not None:
                ema_sums = torch.where(dead[:, None], fresh * self.dead_below, ema_sums)
        if codebook is not self.codebook:
            self.codebook.copy_(codebook)
        self.ema_counts.copy_(ema_counts)
        if ema_sums is not None:
            self.ema_sums.copy_(ema_sums)

    def _random_vectors(self, flat: Tensor, generator: torch.Generator | None, group) -> Tensor:
        """[K, D] vectors of everybody's batches; a process fills in the rows that it owns."""
        source = flat.device if generator is None else generator.device
        place = torch.rand(self.codes, generator=generator, dtype=torch.float64, device=source).to(flat.device)
        length = flat.shape[0]
        if group is None:
            return flat[(place * length).long().clamp(max=length - 1)]
        place = broadcast(place, group)
        lengths, rank = row_counts(flat, group)
        total = lengths.sum()
        row = torch.minimum((place * total).long(), total - 1) - lengths[:rank].sum()
        if length == 0:
            return flat.new_zeros(self.codes, self.dim)
        mine = (row >= 0) & (row < length)
        return torch.where(mine[:, None], flat[row.clamp(0, length - 1)], 0)


_COUNT_DECAY = 0.99  # of the counts that tell dead codes, where no moving average trains the codebook
