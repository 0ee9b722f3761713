"""Sparse mixtures of experts as ONNX nodes; `pocketclip.nn.moe` names the sources.

Which experts a token goes to is computed by the graph, so it is right for any input. Two forms give
the same result. In the sorted form, the default, each expert multiplies only the tokens that chose
it, none if there are none. In the other, unfused towers compute every expert for every token, with
nothing sorted and no size that depends on values; an export is compared with it. The sorted form is
the faster one for any number of tokens, in ONNX Runtime and in OpenVINO
(docs/internals/performance.md).

Shapes: B batch, T tokens, N = B * T tokens of a batch, C channels, H hidden channels, E experts,
K experts per token.
"""

from __future__ import annotations

import numpy as np

from pocketclip.graph import layers, proto
from pocketclip.graph.tower import Tower

_EXPERT = "/expert_"
ROUTER = ".router"
"""What the name of a router's node ends with."""


def module_name(name: str) -> str:
    """Return the name of a node without the number of an expert.

    The experts' products in one layer of a mixture are one module of the torch model, and one
    layer to quantise.
    """
    return name.partition(_EXPERT)[0]


def mixture(tower: Tower, x: str, path: str, *, activation: str, top_k: int) -> str:
    """Add a mixture of experts over (B, T, C).

    Args:
        tower: the graph and the weights.
        x: the tokens.
        path: of the mixture.
        activation: between the two layers of an expert.
        top_k: K.
    """
    graph = tower.graph
    router = tower.array(f"{path}{ROUTER}.weight")  # (E, C)
    tokens = graph.node("Reshape", [x, graph.constant([-1, router.shape[1]])], f"{path}/flat")
    gates, chosen = route(tower, tokens, path, top_k)
    # Which choices name an expert, (E, N, K).
    numbers = graph.constant(np.arange(len(router)).reshape(-1, 1, 1))
    here = graph.node("Equal", [chosen, numbers], f"{path}/here")
    experts = _Experts(tower, path, activation)
    mix = _mix_sorted if tower.fused else _mix_all
    out = mix(tower, tokens, gates, here, experts)
    return graph.node("Reshape", [out, graph.node("Shape", [x], f"{path}/shape")], path)


def route(tower: Tower, tokens: str, path: str, top_k: int) -> tuple[str, str]:
    """Add the choice of experts for tokens (N, C); return weights (N, K) and numbers (N, K)."""
    graph, name = tower.graph, f"{path}{ROUTER}"
    # In float32 in any precision: a rounded router would choose other experts.
    weight = graph.weight(f"{name}.weight", tower.array(f"{name}.weight").T, may_halve=False)
    logits = graph.node("MatMul", [tokens, weight], name)
    probabilities = graph.node("Softmax", [logits], f"{path}/probabilities", axis=-1)
    names = [f"{path}/best", f"{path}/chosen"]
    best, chosen = graph.nodes("TopK", [probabilities, graph.constant([top_k])], names, axis=-1)
    total = graph.node("ReduceSum", [best, graph.constant([-1])], f"{path}/total", keepdims=1)
    return graph.node("Div", [best, total], f"{path}/gates"), chosen


class _Experts:
    """The experts of one mixture, whose nodes are added one by one."""

    def __init__(self, tower: Tower, path: str, activation: str) -> None:
        self.tower, self.path, self.activation = tower, path, activation
        # Read once: each access to an array may read it from a file.
        self.fc1, self.fc2 = (
            [tower.weights[f"{path}.{layer}.{leaf}"] for leaf in ("weight", "bias")]
            for layer in ("fc1", "fc2")
        )
        self.count = len(self.fc1[1])

    def add(self, x: str, number: int) -> str:
        """Add one expert over tokens (any number, C)."""
        graph, suffix = self.tower.graph, f"{_EXPERT}{number}"
        weight, bias = (np.asarray(stack[number], np.float64) for stack in self.fc1)
        x = layers.linear(graph, x, f"{self.path}.fc1{suffix}", (weight, bias))
        x = layers.activation(graph, x, f"{self.path}.act{suffix}", self.activation)
        weight, bias = (np.asarray(stack[number], np.float64) for stack in self.fc2)
        return layers.linear(graph, x, f"{self.path}.fc2{suffix}", (weight, bias))


def _mix_sorted(tower: Tower, tokens: str, gates: str, here: str, experts: _Experts) -> str:
    """Add the mix of the chosen experts' results (N, C), each of its own tokens."""
    graph, path = tower.graph, experts.path
    # The places of true values come in order: sorted by expert, then by token.
    places = graph.node("NonZero", [here], f"{path}/places")
    parts = [f"{path}/{part}" for part in ("expert", "token", "choice")]
    _, token, choice = (
        graph.node("Squeeze", [row, graph.constant([0])], f"{row}_flat")
        for row in graph.nodes("Split", [places], parts, axis=0, num_outputs=3)
    )
    rows = graph.node("Gather", [tokens, token], f"{path}/rows")  # (N K, C)
    ones = graph.node("Cast", [here], f"{path}/ones", to=proto.INT64)
    counts = graph.node(
        "ReduceSum", [ones, graph.constant([1, 2])], f"{path}/counts", keepdims=0
    )  # (E,)
    names = [f"{path}/rows{_EXPERT}{number}" for number in range(experts.count)]
    pieces = graph.nodes("Split", [rows, counts], names, axis=0)
    pieces = [experts.add(piece, number) for number, piece in enumerate(pieces)]
    results = graph.node("Concat", pieces, f"{path}/results", axis=0)
    # Back in order of the tokens: the place of each choice among the sorted rows.
    top_k = graph.node("Shape", [gates], f"{path}/top_k", start=1, end=2)
    first = graph.node("Mul", [token, top_k], f"{path}/first")
    order = graph.node("Add", [first, choice], f"{path}/order")
    size = graph.node("Size", [order], f"{path}/size")
    ranks = graph.node("Range", [graph.constant(0), size, graph.constant(1)], f"{path}/ranks")
    back = graph.node("ScatterElements", [order, order, ranks], f"{path}/back", axis=0)
    choices = graph.node("Shape", [gates], f"{path}/choices")
    back = graph.node("Reshape", [back, choices], f"{path}/back_by_token")
    results = graph.node("Gather", [results, back], f"{path}/by_token")  # (N, K, C)
    scales = graph.node("Unsqueeze", [gates, graph.constant([-1])], f"{path}/scales")
    results = graph.node("Mul", [results, scales], f"{path}/scaled")
    return graph.node("ReduceSum", [results, graph.constant([1])], f"{path}/mix", keepdims=0)


def _mix_all(tower: Tower, tokens: str, gates: str, here: str, experts: _Experts) -> str:
    """Add the same, with every expert computed for every token."""
    graph, path = tower.graph, experts.path
    gates = graph.node(
        "Where", [here, gates, graph.constant(0.0, np.float32)], f"{path}/gates_here"
    )
    axis = graph.constant([2])
    gates = graph.node("ReduceSum", [gates, axis], f"{path}/gate", keepdims=1)  # (E, N, 1)
    parts = []
    for number in range(experts.count):
        part = experts.add(tokens, number)
        gate = graph.node("Gather", [gates, graph.constant(number)], f"{path}/gate_{number}")
        parts.append(graph.node("Mul", [part, gate], f"{path}/part_{number}"))
    return graph.node("Sum", parts, f"{path}/mix")
