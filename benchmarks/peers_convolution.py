"""A Hyena language model in torch, with torch.fft (MKL): the peer of the suite `convolution`.

    python -m benchmarks.peers_convolution 65536       prints by how many bytes a step raises the process's peak

It has the sizes of `model()` of benchmarks/convolution.py, from the definition of the operator: projection, short
convolution, gate, long convolution of padded real transforms, gate, projection; LayerNorm and a GELU MLP around it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

WIDTH, LAYERS, VOCAB, FILTER, EMB, TAPS = 128, 2, 16, 64, 5, 3


def convolution(channels: int, length: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """One long convolution of (1, channels, length): forward, and forward with both gradients."""
    from benchmarks.peers import torch

    t = torch()
    u, kernel = t.randn(1, channels, length, requires_grad=True), t.randn(channels, length, requires_grad=True)

    def forward():
        with t.no_grad():
            return _long(t, u, kernel, None)

    def gradient():
        y = _long(t, u, kernel, None)
        return t.autograd.grad(y, (u, kernel), y.detach())

    return forward, gradient


def step(length: int) -> Callable[[], object]:
    """Loss and gradients of the model at batch 1."""
    from benchmarks.peers import torch

    t = torch()
    net = _model(t, length)
    tokens = t.randint(0, VOCAB, (1, length))
    parameters = [p for p in net.parameters() if p.requires_grad]

    def run():
        loss = t.nn.functional.cross_entropy(net(tokens)[0], tokens[0])
        return t.autograd.grad(loss, parameters)

    return run


def _long(t, u, kernel, skip):
    n = 2 * u.shape[-1]
    y = t.fft.irfft(t.fft.rfft(u, n=n) * t.fft.rfft(kernel, n=n), n=n)[..., : u.shape[-1]]
    return y if skip is None else y + skip[:, None] * u


def _model(t, length: int):
    from torch import nn

    class Sin(nn.Module):
        def __init__(self, frequency):
            super().__init__()
            self.frequency = frequency

        def forward(self, x):
            return t.sin(self.frequency * x)

    class Hyena(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.short = nn.Conv1d(3 * WIDTH, 3 * WIDTH, TAPS, groups=3 * WIDTH, padding=TAPS - 1)
            self.skip = nn.Parameter(t.randn(WIDTH))
            sin = Sin(nn.Parameter(10 * t.ones(FILTER)))
            layers = [nn.Linear(EMB, FILTER), sin]
            for _ in range(2):
                layers += [nn.Linear(FILTER, FILTER), sin]
            self.filter = nn.Sequential(*layers, nn.Linear(FILTER, WIDTH, bias=False))
            time = t.linspace(0, 1, length)[:, None]
            angle = 2 * math.pi * t.arange(length)[:, None] / length
            phase = t.linspace(1e-4, (EMB - 1) // 2 - 1, (EMB - 1) // 2)[None] * angle
            self.features = nn.Parameter(t.cat([time, t.cos(phase), -t.sin(phase)], dim=1))
            rates = t.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, WIDTH).abs()
            self.register_buffer("window", t.exp(-time * rates))

        def forward(self, x):
            u = self.short(self.into(x).transpose(1, 2))[..., : x.shape[1]]
            after, before, v = u.split(WIDTH, dim=1)
            kernel = (self.filter(self.features) * self.window).T
            return self.out((after * _long(t, v * before, kernel, self.skip)).transpose(1, 2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCAB, WIDTH)
            self.mixers = nn.ModuleList(Hyena() for _ in range(LAYERS))
            self.mlps = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH))
                for _ in range(LAYERS)
            )
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1))

        def forward(self, tokens):
            x = self.embedding(tokens)
            for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
                x = x + mixer(self.norms[2 * i](x))
                x = x + mlp(self.norms[2 * i + 1](x))
            return self.norms[-1](x) @ self.embedding.weight.T

    return Net()


def _peak() -> int:
    """Bytes: the most that this process has had in memory (Linux; getrusage would count what its parent had)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main(length: int) -> None:
    small = step(256)
    small()  # libraries and their buffers are loaded
    before = _peak()
    run = step(length)
    run()
    run()
    print(_peak() - before)


if __name__ == "__main__":
    main(int(sys.argv[1]))
