"""What a gradient costs beside other ways to write the same t-NN.

    python scripts/bench_networks.py [--smoke]

The others: t-products as einsums, as a competent user would write them; the network merged
into dense matrices; and, as in the authors' demo, a loop over examples that builds the
transform and its inverse anew for each. Each is first compared with ours, then forward and
input gradient are timed in turn in one process; medians. Writes bench_networks.json.
"""

import json
import math
import statistics
import sys
from pathlib import Path

import torch
from bench import input_gradient, interleaved, network
from torch import Tensor, nn

from tnn_robust.attacks.points import frozen
from tnn_robust.models.network import TNN, to_dense

SMOKE = "--smoke" in sys.argv[1:]
CASES = (
    ((4, 3, 5, 6),)
    if SMOKE
    else ((28, 28, 28, 80), (28, 28, 128, 80), (28, 28, 128, 1024), (204, 25, 64, 256))
)
SECONDS = 0.02 if SMOKE else 4.0  # a pair
OUTPUT = Path("bench_networks-smoke.json" if SMOKE else "bench_networks.json")


class Einsum(nn.Module):
    """The t-NN of `model`, a line a step."""

    def __init__(self, model: TNN):
        super().__init__()
        self.m, self.head = model.transform_matrix, model.head.detach()
        self.weights = [layer.faces().detach() for layer in model.t_layers]

    def forward(self, h: Tensor) -> Tensor:
        for weight in self.weights:
            faces = torch.einsum("kc,ndc->nkd", self.m, h)
            faces = torch.einsum("kod,nkd->nko", weight, faces)
            h = torch.relu(torch.einsum("kc,nko->noc", self.m, faces))
        return torch.einsum("sdc,ndc->ns", self.head, h)


class Loop(nn.Module):
    """Example by example, transform and inverse built for every product."""

    def __init__(self, model: TNN):
        super().__init__()
        self.head, self.count = model.head.detach(), model.head.shape[-1]
        self.weights = [layer.faces().detach() for layer in model.t_layers]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self._one(example) for example in x])

    def _one(self, h: Tensor) -> Tensor:
        for weight in self.weights:
            faces = (self._dct() @ h.T).unsqueeze(2)
            product = torch.bmm(weight, faces).squeeze(2)
            h = torch.relu(torch.linalg.inv(self._dct()) @ product).T
        return self.head.flatten(1) @ h.flatten()

    def _dct(self) -> Tensor:
        k, n = torch.arange(self.count)[:, None], torch.arange(self.count)
        matrix = torch.cos(math.pi * k * (n + 0.5) / self.count) * math.sqrt(2 / self.count)
        return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])


OTHERS = {"einsum": Einsum, "dense": to_dense, "loop": Loop}


def rows() -> list[dict]:
    found = []
    for case in CASES:
        model, x = network(case)
        with frozen(model):
            expected, ours = model(x), input_gradient(model, x)
            for name, make in OTHERS.items():
                other = make(model)
                torch.testing.assert_close(other(x), expected, rtol=1e-3, atol=1e-4)
                gradient = input_gradient(other, x)
                times = [statistics.median(t) for t in interleaved(ours, gradient, SECONDS)]
                ms, against = (1e3 * seconds for seconds in times)
                found.append({"case": case, "other": name, "ms": ms, "other_ms": against})
                print(f"{case!s:>19} {ms:9.3f} {name:>7} {against:9.3f} {against / ms:7.1f}")
    return found


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, gradient of 3 layers")
    print("     (c, d, D, n):   ours ms, another's ms, how many times ours")
    OUTPUT.write_text(json.dumps(rows(), indent=2) + "\n")


if __name__ == "__main__":
    main()
