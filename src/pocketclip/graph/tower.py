"""What the builders of both towers share: the graph, the weights, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

from pocketclip.graph import fuse
from pocketclip.graph.fuse import Doubles, Kernel
from pocketclip.graph.writer import GraphWriter
from pocketclip.types import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A tower under construction.

    Attributes:
        graph: receives the nodes.
        weights: of the model, under our names; fused or not.
        fused: fold branches, BatchNorm and layer scales into the weights. Otherwise every branch
            and every BatchNorm of unfused weights becomes nodes of its own.
    """

    graph: GraphWriter
    weights: Arrays
    fused: bool

    def array(self, name: str) -> Doubles:
        """Return an entry of the weights in float64."""
        return fuse.doubles(self.weights, name)

    def has(self, name: str) -> bool:
        """Return whether the weights have an entry."""
        return name in self.weights

    def affine(self, path: str) -> tuple[Doubles, Doubles]:
        """Return weight and bias of a LayerNorm."""
        return self.array(f"{path}.weight"), self.array(f"{path}.bias")

    def kernel(self, path: str) -> Kernel:
        """Return weight and bias of a convolution or linear layer."""
        return fuse.plain_kernel(self.weights, path)
