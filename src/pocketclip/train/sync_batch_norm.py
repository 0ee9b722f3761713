"""BatchNorm over the batches of all processes (arXiv 1502.03167).

    model = convert_sync_batch_norm(model, "cuda")

torch's own `nn.SyncBatchNorm` is not used. It refuses CPU tensors, and it is no BatchNorm2d, so
fusing and freezing would overlook it. It also makes the host wait for the GPU in every layer, to
leave out processes without images; here each has some.

Shapes: b images of a process, C channels, H W height width.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from pocketclip.train.distributed import all_rows, world_size

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def convert_sync_batch_norm(model: ModuleT, device_type: str = "cpu") -> ModuleT:
    """Make every BatchNorm2d of `model` compute its statistics over all ranks, in place.

    Parameters, buffers, their names and frozen statistics are unchanged, and each layer still is a
    BatchNorm2d, which `pocketclip.nn.reparam.fuse` folds.

    Args:
        model: the model.
        device_type: where it is trained: on `cuda` torch's kernels are used, elsewhere ours.

    Returns:
        `model` itself.
    """
    chosen = CudaSyncBatchNorm if device_type == "cuda" else SyncBatchNorm
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = chosen
    return model


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks, on any device.

    In a single process, and in evaluation, it is plain BatchNorm. Every rank must call it equally
    often, with at least one image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, C, H, W) to the same shape.

        In training, mean and variance are over B, H and W, and gradients flow through them to the
        images of all ranks. The running statistics become the same on every rank.
        """
        uses_batch = self.training or self.running_mean is None
        if not uses_batch or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        share = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # the plain mean of all batches so far
                share = 1.0 / float(self.num_batches_tracked)
        with torch.autocast(x.device.type, enabled=False):
            return self._normalised(x, share or 0.0)

    def _normalised(self, x: Tensor, share: float) -> Tensor:
        """Return the result, and let the batch be this share of the running statistics."""
        mean, variance, count = _moments(x)
        if self.training and self.running_mean is not None:
            assert self.running_var is not None
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        out: Tensor = _SharedNorm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, mean, variance, count, self.eps
        )
        return out


@torch.no_grad()
def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,) and biased variance (C,) over all ranks, and the values per channel."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    variance, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
    counted = mean.new_full((1,), x.numel() / x.shape[1])
    parts = all_rows(torch.cat([mean, variance, counted])[None])
    means, variances, counts = torch.split(parts, [len(mean), len(mean), 1], 1)  # (ranks, .)
    count = counts.sum()
    share = counts / count
    mean = (means * share).sum(0)
    # Variance within ranks plus between ranks, which avoids a difference of large squares.
    variance = ((variances + (means - mean) ** 2) * share).sum(0)
    return mean, variance, count


class _SharedNorm(Function):
    """BatchNorm with moments that depend on all ranks' x; saves only x for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (b, C, H, W)
        weight: Tensor | None,  # (C,)
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,  # (), of all ranks
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        gain, shift = (None if p is None else p.to(mean.dtype) for p in (weight, bias))
        return F.batch_norm(x, mean, variance, gain, shift, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        grad = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - mean[:, None, None]) * inverse[:, None, None]
        mine = torch.stack([(grad * normal).sum((0, 2, 3)), grad.sum((0, 2, 3))])
        total = mine.clone()
        dist.all_reduce(total)
        slope, shift = (total / count)[:, :, None, None]
        gain = inverse if weight is None else inverse * weight.to(mean.dtype)
        back = (grad - shift - normal * slope) * gain[:, None, None]
        # This rank's sums only: DistributedDataParallel averages parameter gradients afterwards.
        affine = (None, None) if weight is None else mine.to(weight.dtype).unbind()
        return back.to(x.dtype), *affine, None, None, None, None


class CudaSyncBatchNorm(SyncBatchNorm):
    """The same by torch's kernels for CUDA, which are faster there."""

    def _normalised(self, x: Tensor, share: float) -> Tensor:
        running = (self.running_mean, self.running_var) if self.training else (None, None)
        out: Tensor = _CudaNorm.apply(  # type: ignore[no-untyped-call]
            _dense(x), self.weight, self.bias, *running, share, self.eps
        )
        return out


class _CudaNorm(Function):
    """BatchNorm over all ranks' x; updates the running statistics, if they are given."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (b, C, H, W)
        weight: Tensor | None,  # (C,)
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        share: float,
        eps: float,
    ) -> Tensor:
        channels = x.shape[1]
        mean, inverse = torch.batch_norm_stats(x, eps)
        counted = mean.new_full((1,), x.numel() // channels)
        rows = all_rows(torch.cat([mean, inverse, counted])[None])
        means, inverses, counts = torch.split(rows, [channels, channels, 1], 1)
        counts = counts.flatten()
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x, means.contiguous(), inverses.contiguous(), running_mean, running_var,
            share, eps, counts if running_mean is None else counts.to(running_mean.dtype),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, inverse, counts.to(torch.int32))
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts = ctx.saved_tensors
        grad = _dense(grad)
        affine = weight is not None
        total, slope, *own = torch.batch_norm_backward_reduce(
            grad, x, mean, inverse, weight, True, affine, affine
        )
        shared = torch.stack([total, slope])
        dist.all_reduce(shared)
        gain = weight.to(mean.dtype) if affine else None
        back = torch.batch_norm_backward_elemt(
            grad, x, mean, inverse, gain, shared[0], shared[1], counts
        )
        # This rank's sums only: DistributedDataParallel averages parameter gradients afterwards.
        return back, *(own if affine else (None, None)), None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """Return x in one of the two memory formats that the kernels know."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
