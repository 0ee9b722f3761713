"""What the builders of both towers share: weights, options, and the blocks of convolutions.

Shapes: B batch, C channels, H W height width, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketclip.graph import fuse, layers
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

    # --- convolutions with their branches

    def batch_norm(self, x: str, path: str) -> str:
        """Add a BatchNorm in evaluation mode."""
        names = ("weight", "bias", "running_mean", "running_var")
        inputs = [self.graph.weight(f"{path}.{n}", self.array(f"{path}.{n}")) for n in names]
        return self.graph.node(
            "BatchNormalization", [x, *inputs], path, epsilon=fuse.BATCH_NORM_EPS
        )

    def conv_bn(
        self, x: str, path: str, *, stride: int = 1, groups: int = 1, padding: int | None = None
    ) -> str:
        """Add a convolution and its BatchNorm (`ConvBN`)."""
        if self.fused or not self.has(f"{path}.conv.weight"):
            kernel = fuse.conv_bn_kernel(self.weights, path)
            return layers.conv(
                self.graph, x, path, kernel, stride=stride, groups=groups, padding=padding
            )
        x = layers.conv(
            self.graph, x, f"{path}.conv", self.kernel(f"{path}.conv"), stride=stride,
            groups=groups, padding=padding,
        )  # fmt: skip
        return self.batch_norm(x, f"{path}.bn")

    def rep_conv(
        self, x: str, path: str, *, stride: int = 1, groups: int = 1, act: bool = True,
        kernel: Kernel | None = None,
    ) -> str:  # fmt: skip
        """Add MobileOne's block (`RepConv`): branches, squeeze-and-excitation, GELU.

        Args:
            x: the input.
            path: of the block.
            stride: of its convolutions.
            groups: of its convolutions.
            act: whether a GELU follows.
            kernel: a changed fused kernel, in place of the branches.
        """
        if kernel is None and (self.fused or self.has(f"{path}.conv.weight")):
            kernel = fuse.rep_conv_kernel(self.weights, path, groups)
        if kernel is not None:
            x = layers.conv(self.graph, x, f"{path}.conv", kernel, stride=stride, groups=groups)
        else:
            out = self.conv_bn(x, f"{path}.conv", stride=stride, groups=groups)
            if self.has(f"{path}.scale.conv.weight"):
                scale = self.conv_bn(x, f"{path}.scale", stride=stride, groups=groups)
                out = self.graph.node("Add", [out, scale], f"{path}/scale_sum")
            if self.has(f"{path}.identity.weight"):
                identity = self.batch_norm(x, f"{path}.identity")
                out = self.graph.node("Add", [out, identity], f"{path}/identity_sum")
            x = out
        return self.epilogue(x, path, act=act)

    def epilogue(
        self, x: str, path: str, *, act: bool = True, order: NDArray[np.int64] | None = None
    ) -> str:
        """Add the squeeze-and-excitation of a block, if it has one, and its GELU.

        Args:
            x: the input.
            path: of the block.
            act: whether a GELU follows.
            order: the channels of `x` are those of the block in this order.
        """
        if self.has(f"{path}.se.fc1.weight"):
            fc1 = self.kernel(f"{path}.se.fc1")
            fc2 = self.kernel(f"{path}.se.fc2")
            if order is not None:
                fc1, fc2 = (fc1[0][:, order], fc1[1]), (fc2[0][order], fc2[1][order])
            x = layers.squeeze_excite(self.graph, x, f"{path}.se", fc1, fc2)
        return layers.activation(self.graph, x, f"{path}.act", "gelu") if act else x

    def depthwise(
        self, x: str, path: str, kernel: Kernel, inputs: int, *, stride: int = 1
    ) -> tuple[str, NDArray[np.int64] | None]:
        """Add a depthwise convolution, with one or several outputs per channel.

        Runtimes have fast kernels only for one output per channel, so several become as many
        convolutions: first the first outputs of all channels, then the second ones, and so on.

        Args:
            x: the input.
            path: of the convolution.
            kernel: its weight (O, 1, kh, kw) and bias (O,).
            inputs: C.
            stride: of the convolution.

        Returns:
            The result, and for each of its channels the index that it has in `kernel`; None if the
            channels are in the order of `kernel`.
        """
        weight, bias = kernel
        times = len(weight) // inputs
        if times == 1:
            return layers.conv(self.graph, x, path, kernel, stride=stride, groups=inputs), None
        parts = [
            layers.conv(
                self.graph, x, f"{path}.{i}", (weight[i::times], bias[i::times]), stride=stride,
                groups=inputs,
            )
            for i in range(times)
        ]  # fmt: skip
        order = np.arange(len(weight)).reshape(-1, times).T.flatten()
        return self.graph.node("Concat", parts, path, axis=1), order

    # --- RepMixer (FastViT, section 3.1)

    def mixer_block(self, x: str, path: str) -> str:
        """Add a RepMixer block (`RepMixerBlock`) over (B, C, H, W)."""
        return self.residual_mlp(self.rep_mixer(x, f"{path}.mixer"), path, "layer_scale")

    def rep_mixer(self, x: str, path: str) -> str:
        """Add `x + s * (mixer(x) - norm(x))` (`RepMixer`), one convolution when fused."""
        if self.fused or self.has(f"{path}.weight"):
            kernel = fuse.rep_mixer_kernel(self.weights, path)
            return layers.conv(self.graph, x, path, kernel, groups=len(kernel[0]))
        channels = len(self.weights[f"{path}.layer_scale"])
        mixed = self.rep_conv(x, f"{path}.mixer", groups=channels, act=False)
        normed = self.batch_norm(x, f"{path}.norm")
        change = self.graph.node("Sub", [mixed, normed], f"{path}/difference")
        return self._scaled_sum(x, change, path, f"{path}.layer_scale")

    def residual_mlp(self, x: str, path: str, scale: str) -> str:
        """Add `x + s * mlp(x)` with the convolutional MLP (`ConvMLP`) of a block.

        Args:
            x: the input.
            path: of the block.
            scale: the name of its layer scale `s`.
        """
        mlp = f"{path}.mlp"
        fc1, fc2 = self.kernel(f"{mlp}.fc1"), self.kernel(f"{mlp}.fc2")
        if self.fused:
            fc2 = fuse.scaled_rows(fc2, self.array(f"{path}.{scale}"))
        out = self.conv_bn(x, f"{mlp}.conv", groups=len(fc2[0]))
        out = layers.conv(self.graph, out, f"{mlp}.fc1", fc1)
        out = layers.activation(self.graph, out, f"{mlp}.act", "gelu")
        out = layers.conv(self.graph, out, f"{mlp}.fc2", fc2)
        if self.fused:
            return self.graph.node("Add", [x, out], f"{path}/mlp_sum")
        return self._scaled_sum(x, out, f"{path}/mlp", f"{path}.{scale}")

    def _scaled_sum(self, x: str, change: str, path: str, scale: str) -> str:
        gain = self.graph.weight(scale, self.array(scale))
        change = self.graph.node("Mul", [change, gain], f"{path}/scaled")
        return self.graph.node("Add", [x, change], f"{path}/sum")
