"""Compare ways to compute a mixture of experts, and the dense MLP that it replaces.

    python benchmarks/moe.py
    python benchmarks/moe.py --layers small --batches 1 --rounds 30

`loop` multiplies each expert's tokens in turn, `grouped` all of them in one call of torch's grouped
product (on a CPU a loop inside torch), `every` computes each expert for every token, as exported
graphs do. Eight experts, two per token: 2.0 times the operations of `dense`, and 8.0 times for
`every`. All alternate in one process; a time is the smallest of the rounds, and each is also given
in units of `dense`. With one thread it is the CPU's time, which other programs change less. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pocketclip.nn.moe import MoE, route
from pocketclip.nn.transformer import MLP

EXPERTS, TOP_K = 8, 2
LAYERS = {"b16": (768, 197), "small": (128, 65)}
"""Width and tokens per image: ViT-B/16 at 224 pixels; 64 pixels in patches of 8."""
VARIANTS = ("dense", "loop", "grouped", "every")


class Mixture(nn.Module):
    """A mixture of experts without capacity, computed in one of the ways."""

    def __init__(self, layer: MoE, variant: str) -> None:
        super().__init__()
        self.layer, self.variant = layer, variant

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, C) to the same shape."""
        layer = self.layer
        gates, chosen = route(layer.router_logits(x), layer.top_k)
        if self.variant == "every":
            return layer._mix_all(x, gates, chosen)
        layer._can_group = lambda tokens: self.variant == "grouped"  # type: ignore[method-assign]  # noqa: ARG005
        return layer._mix_chosen(x, gates, chosen)


def make(width: int, variant: str, dtype: torch.dtype) -> nn.Module:
    """Return a layer of random weights."""
    torch.manual_seed(0)
    if variant == "dense":
        return MLP(width, 4 * width, "gelu").to(dtype)
    layer = MoE(width, 4 * width, nn.GELU(), experts=EXPERTS, top_k=TOP_K)
    return Mixture(layer.to(dtype), variant)


def run(layer: nn.Module, x: Tensor) -> None:
    """Run the layer; where the input needs a gradient, the backward pass too."""
    if not x.requires_grad:
        with torch.inference_mode():
            layer(x)
        return
    layer.zero_grad()
    layer(x).square().mean().backward()


def measure(
    layers: dict[str, nn.Module], x: Tensor, rounds: int, seconds: float
) -> dict[str, float]:
    """Return the smallest time of each layer in milliseconds; they take turns.

    There are at most `rounds`, and after two of them no more than fit into `seconds`.
    """
    best = dict.fromkeys(layers, float("inf"))
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = time.perf_counter()
    for turn in range(rounds + 1):
        for name, layer in layers.items():
            start = clock()
            run(layer, x)
            if turn:  # the first turn allocates
                best[name] = min(best[name], 1000 * (clock() - start))
        if turn >= 2 and time.perf_counter() - begin > seconds:
            break
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--passes", nargs="+", choices=("forward", "train"),
                        default=["forward", "train"])  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20, help="for each line, about")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    variants = dict.fromkeys(["dense", *options.variants])  # dense is the unit
    result = {"threads": options.threads, "dtype": options.dtype, "torch": torch.__version__}
    for name in options.layers:
        width, tokens = LAYERS[name]
        layers = {variant: make(width, variant, dtype) for variant in variants}
        for batch in options.batches:
            x = torch.randn(batch * tokens, width).to(dtype)
            for step in options.passes:
                # Computing every expert is of no use in training, and takes the longest.
                compared = {v: m for v, m in layers.items() if (v, step) != ("every", "train")}
                given = x.clone().requires_grad_(step == "train")
                times = measure(compared, given, options.rounds, options.seconds)
                figures = {
                    v: {"ms": round(t, 3), "over_dense": round(t / times["dense"], 2)}
                    for v, t in times.items()
                }
                key = f"{name}, batch {batch}, {step}"
                result[key] = figures
                print(
                    key,
                    *(f"{v} {f['ms']} ({f['over_dense']})" for v, f in figures.items()),
                    flush=True,
                )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
