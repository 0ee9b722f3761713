"""Fused models rearranged and compiled for CPUs; they compute the same to rounding.

Four changes pay off in measurements (`docs/internals/performance.md`):

- depthwise convolutions with several outputs per channel get repeated inputs, since oneDNN has
  fast kernels only for equal numbers of input and output channels;
- layer scales are folded into weights, so that a residual sum fuses with the convolution before it;
- linear layers over few tokens become 1x1 convolutions, whose packed kernels are faster;
- batches are split, so that activations stay in the CPU cache.

Shapes: B batch, C input channels, O output channels, H W height width, T tokens.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config as inductor

from pocketclip.nn.clip import CLIP
from pocketclip.nn.mci import AttentionBlock, Downsample, MCi
from pocketclip.nn.moe import MoE, route, weighted_sum
from pocketclip.nn.reparam import SqueezeExcite, fuse
from pocketclip.nn.repmixer import RepMixerBlock
from pocketclip.nn.transformer import MLP, TransformerBlock

MICRO_BATCH = 4


class CompiledTower(nn.Module):
    """A tower compiled for batches of one and of `MICRO_BATCH`; other batches are split.

    Each of the two compilations happens at its first use and takes tens of seconds.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.compiled = torch.compile(tower, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map the tower's input (B, ...) to embeddings (B, D)."""
        whole = len(x) - len(x) % MICRO_BATCH
        chunks = [*torch.split(x[:whole], MICRO_BATCH), *torch.split(x[whole:], 1)]
        # Freezing lets the compiler pack the weights, which gives most of the gain. As an option
        # of `torch.compile` it has no effect (torch 2.13).
        with torch.no_grad(), inductor.patch(freezing=True):
            return torch.cat([self.compiled(_channels_last(chunk)) for chunk in chunks])


def _channels_last(x: Tensor) -> Tensor:
    # Chunk by chunk: converting the whole batch would be another pass through memory.
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def compile_for_cpu(model: CLIP) -> CLIP:
    """Return a copy of `model`, fused, rearranged and compiled, for inference on a CPU.

    It computes the same to rounding, and can be neither trained nor saved.

    Args:
        model: fused or not; unchanged.
    """
    fast = optimize_for_onednn(model if model.is_fused else fuse(model))
    fast.image = CompiledTower(fast.image)  # type: ignore[assignment]
    fast.text = CompiledTower(fast.text)  # type: ignore[assignment]
    return fast


def fold_layer_scales(model: CLIP) -> CLIP:
    """Return a copy of the fused `model` with layer scales folded into the weights before them."""
    out = copy.deepcopy(model).eval()
    out.inference_only = True
    with torch.no_grad():
        for module in list(out.modules()):
            for name, child in module.named_children():
                if type(child) is RepMixerBlock or isinstance(child, AttentionBlock):
                    setattr(module, name, _FoldedScales(child))
    return out


def repeat_depthwise_inputs(model: CLIP) -> CLIP:
    """Return a copy of the fused `model` whose depthwise convolutions keep the channel count.

    Those with several outputs per channel read repeated inputs instead, since runtimes have fast
    kernels only for equal numbers of input and output channels.
    """
    out = copy.deepcopy(model).eval()
    out.inference_only = True
    with torch.no_grad():
        for module in list(out.modules()):
            if isinstance(module, Downsample):
                _repeat_inputs(module.conv, module.proj.conv)
            elif isinstance(module, MCi):
                _repeat_inputs(module.expand, module.head)
    return out


def separate_experts(model: CLIP) -> CLIP:
    """Return a copy of `model` whose mixtures of experts compute every expert for every token.

    Each expert has two linear layers of its own, which exporters and their quantisers know, other
    than products with slices of a stack. The results are the same.
    """
    out = copy.deepcopy(model).eval()
    out.inference_only = True
    for module in list(out.modules()):
        if isinstance(module, TransformerBlock) and isinstance(module.mlp, MoE):
            module.mlp = SeparateExperts(module.mlp)  # type: ignore[assignment]
    return out


def optimize_for_onednn(model: CLIP) -> CLIP:
    """Return a copy of the fused `model` made of layers that oneDNN has fast kernels for."""
    out = repeat_depthwise_inputs(fold_layer_scales(model))
    with torch.no_grad():
        for tower in (out.image, out.text):
            for module in list(tower.modules()):
                if isinstance(module, MoE):  # its router's weight is read in float32
                    continue
                for name, child in module.named_children():
                    if isinstance(child, nn.Linear) and child is not tower.head:
                        setattr(module, name, _TokenConv(child))
    out.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return out


class SeparateExperts(nn.Module):
    """A mixture of experts as layers of their own, in evaluation.

    The router keeps its type where the other layers become float16: a rounded logit can change
    which experts are chosen.
    """

    def __init__(self, layer: MoE) -> None:
        super().__init__()
        self.top_k = layer.top_k
        self.router = layer.router
        hidden, width = layer.fc1.weight.shape[1:]
        self.experts = nn.ModuleList()
        for number in range(layer.experts):
            expert = MLP(width, hidden, "gelu").to(layer.fc1.weight)
            expert.act = layer.act
            for one, stacked in ((expert.fc1, layer.fc1), (expert.fc2, layer.fc2)):
                one.weight = nn.Parameter(stacked.weight[number].detach().clone())
                one.bias = nn.Parameter(stacked.bias[number].detach().clone())
            self.experts.append(expert)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., C) to the same shape."""
        gates, chosen = route(self.router(x.to(self.router.weight.dtype)), self.top_k)
        return weighted_sum((expert(x) for expert in self.experts), gates, chosen)


class _RepeatedInputConv(nn.Module):
    """A depthwise convolution with several outputs per channel, as one with a single output.

    Since the input is repeated, the output channels are reordered: the first output of every input
    channel, then the second ones, and so on. `order` maps new channel indices to old ones.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.times = conv.out_channels // conv.in_channels
        self.order = torch.arange(conv.out_channels).reshape(-1, self.times).T.flatten()
        self.conv = nn.Conv2d(
            conv.out_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            groups=conv.out_channels,
            dtype=conv.weight.dtype,
        )
        self.conv.weight.copy_(conv.weight[self.order])
        assert self.conv.bias is not None
        self.conv.bias.copy_(conv.bias[self.order])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W'), channels in the new order."""
        return self.conv(torch.cat([x] * self.times, dim=1))


def _repeat_inputs(block: nn.Module, consumer: nn.Module) -> None:
    """Replace `block.conv`, and reorder the weights of the layers that read its channels."""
    conv = block.conv
    assert isinstance(conv, nn.Conv2d)
    if conv.in_channels == conv.out_channels:
        return
    repeated = _RepeatedInputConv(conv)
    block.conv, order = repeated, repeated.order
    if isinstance(block.se, SqueezeExcite):
        _reorder(block.se.fc1.weight, order, 1)
        _reorder(block.se.fc2.weight, order, 0)
        assert block.se.fc2.bias is not None
        _reorder(block.se.fc2.bias, order, 0)
    assert isinstance(consumer.weight, nn.Parameter)
    _reorder(consumer.weight, order, 1)


def _reorder(parameter: Tensor, order: Tensor, dim: int) -> None:
    parameter.copy_(parameter.index_select(dim, order))


class _FoldedScales(nn.Module):
    """A block with layer scales folded into the weights before them."""

    def __init__(self, block: RepMixerBlock | AttentionBlock) -> None:
        super().__init__()
        if isinstance(block, AttentionBlock):
            _scale_rows(block.attn.proj, block.layer_scale_1)
            _scale_rows(block.mlp.fc2, block.layer_scale_2)
            self.mixer: nn.Module = _ResidualAttention(block)
        else:
            _scale_rows(block.mlp.fc2, block.layer_scale)
            self.mixer = block.mixer
        self.mlp = block.mlp

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.mixer(x)
        return x + self.mlp(x)


class _ResidualAttention(nn.Module):
    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        self.norm, self.attn = block.norm, block.attn

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H * W, C)
        return x + self.attn(tokens).transpose(1, 2).reshape(x.shape)


def _scale_rows(layer: nn.Linear | nn.Conv2d, scale: Tensor) -> None:
    gain = scale.flatten()
    layer.weight.mul_(gain.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    assert layer.bias is not None
    layer.bias.mul_(gain)


class _TokenConv(nn.Module):
    """A linear layer over tokens, as a 1x1 convolution in channels-last memory (no copies)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()[:, :, None, None]
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, O)."""
        columns = x.transpose(1, 2).unsqueeze(-1)  # (B, C, T, 1)
        return F.conv2d(columns, self.weight, self.bias).squeeze(-1).transpose(1, 2)
