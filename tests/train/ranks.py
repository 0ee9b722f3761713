"""What two real processes compute in `test_distributed`; run by multiprocessing, not by pytest."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pocketclip.errors import ConfigError
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.train import distributed
from pocketclip.train.batch_types import Batch
from pocketclip.train.losses import (
    captioning_loss,
    contrastive_loss,
    distillation_loss,
    reinforced_loss,
    siglip_distillation_loss,
    siglip_loss,
)
from pocketclip.train.recipe import load_recipe
from pocketclip.train.routing import Routing
from pocketclip.train.sections import MoESection
from pocketclip.train.setup import wrap_model
from pocketclip.train.step import Stepper
from pocketclip.train.sync_batch_norm import (
    CudaSyncBatchNorm,
    SyncBatchNorm,
    convert_sync_batch_norm,
)

SIZE = 2
ROWS = 5  # per rank; no multiple of the chunk
DIMS, SCALES, BIASES = (3, 5), (9.0, 14.0), (-4.0, -5.0)
LOSSES = (
    "contrastive",
    "distillation",
    "reinforced",
    "siglip",
    "siglip distillation",
    "contrastive same text",
    "reinforced same text",
    "siglip same text",
    "reinforced weighted",
    "siglip distillation weighted",
)
SAME = torch.tensor([0, 1, 1, 2, 3, 1, 4, 3, 5, 1])  # texts of the joined batch, also across ranks
MODELS = {"plain": {}, "recomputed": {"gradient_checkpointing": True}, "frozen": {}, "lora": {}}


def embeddings(name, rows, **options):
    """Return the loss `name` of the joined batch's rows `rows` and its gradients."""
    draw = torch.Generator().manual_seed(0)

    def unit(*shape):
        x = torch.randn(SIZE * ROWS, *shape, generator=draw, dtype=torch.float64)
        return nn.functional.normalize(x, dim=-1)[rows]

    image, *texts = [unit(4).requires_grad_() for _ in range(3)]
    known = [torch.cat([unit(dim) for dim in DIMS], 1) for _ in range(3)]
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    teacher = (*known[:2], DIMS, SCALES)
    if name.endswith(" weighted"):
        name = name.removesuffix(" weighted")
        options |= {"teacher_weights": (3.0, 1.0)}
    if name.endswith(" same text"):
        name = name.removesuffix(" same text")
        # Token ids per caption; the synthetic captions are equal where no two of the others are.
        ids = [torch.stack([SAME, -SAME], 1)[rows], torch.arange(SIZE * ROWS)[rows] % 7]
        options |= {"text_ids": ids if name == "reinforced" else ids[0]}
    if name == "contrastive":
        loss = contrastive_loss(image, texts[0], scale, **options)
    elif name == "distillation":
        loss = distillation_loss(image, texts[0], scale, *teacher, **options)
    elif name == "reinforced":
        targets = (known[0], known[1:], scale, DIMS, SCALES)
        if "text_ids" in options:  # and only the synthetic caption is distilled
            targets = (known[0], [None, known[2]], *targets[2:])
        terms = reinforced_loss(image, texts, *targets, weights=(0.25, 0.75), **options)
        loss = terms["contrastive_loss"] + terms["distill_loss"]
    elif name == "siglip":
        loss = siglip_loss(image, texts[0], scale, bias, **options)
    else:
        loss = siglip_distillation_loss(image, texts[0], scale, bias, *teacher, BIASES, **options)
    loss.backward()
    results = {"loss": loss.detach(), "image": image.grad, "text": texts[0].grad}
    results |= {"synthetic": texts[1].grad, "scale": scale.grad, "bias": bias.grad}
    return {key: value for key, value in results.items() if value is not None}


def captioning(rows, *, gathered):
    """Return the captioning loss of `rows` and its gradient; the second half has no labels."""
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 5, 7, generator=draw, dtype=torch.float64)[rows].requires_grad_()
    labels = torch.randint(1, 7, (4, 5), generator=draw)
    labels[1, 2:] = 0
    labels[2:] = 0
    loss = captioning_loss(logits, labels[rows], gathered=gathered)
    loss.backward()
    return {"loss": loss.detach(), "gradient": logits.grad}


def model_step(kind, rows, *, synchronised):
    """Return the loss of a whole model on the joined batch's `rows`, gradients and statistics."""
    model = random_model("tiny", seed=0, **MODELS[kind]).double().train()
    if kind == "frozen":
        model.freeze_batch_norm_statistics()
    updates = None
    if kind == "lora":
        updates = LowRankUpdates(model, rank=2, alpha=4, towers=("image", "text"), seed=0)
        with torch.no_grad():
            for name in updates.names():
                updates.factors(name)[1].fill_(0.01)
        updates.merge()
    draw = torch.Generator().manual_seed(1)
    pixels = torch.rand(8, 3, 64, 64, generator=draw, dtype=torch.float64)[rows]
    ids = torch.randint(1, 49407, (8, 8), generator=draw)[rows]
    whole: nn.Module = model
    if synchronised:
        whole = DistributedDataParallel(convert_sync_batch_norm(model), broadcast_buffers=False)
    image, text, scale = whole(pixels, ids)
    loss = contrastive_loss(image, text, scale, gathered=synchronised)
    loss.backward()
    results = {"loss": loss.detach()}
    if updates is not None:
        updates.take_gradients()
        for name in updates.names():
            for letter, factor in zip("ab", updates.factors(name), strict=True):
                results[f"gradient {name} {letter}"] = factor.grad
    results |= {f"gradient {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    results |= {f"buffer {n}": b.clone() for n, b in model.named_buffers()}
    assert isinstance(model, CLIP)
    return results


SPARSE = {
    "image.width": 16, "image.layers": 3, "image.heads": 2, "image.patch_size": 8,
    "image_size": 16, "text.width": 16, "text.layers": 2, "text.heads": 2, "embed_dim": 8,
    "text.embedding_buckets": 512,
    "image.moe": {"blocks": [0, 2], "experts": 4, "top_k": 2},
    "text.moe": {"blocks": [1], "experts": 3, "top_k": 2},
}  # fmt: skip
DENSE = {key: value for key, value in SPARSE.items() if not key.endswith("moe")} | {
    "image.layers": 1, "text.layers": 1, "text.embedding_buckets": None, "text.context_length": 16,
}  # fmt: skip
UNUSED = "image.blocks.0.mlp"  # its expert 3 has no token on any rank


def sparse_step(rows, *, synchronised, recompute):
    """Return the losses of a sparse model on the joined batch's rows, gradients and record."""
    model = random_model("vit-b16", seed=0, gradient_checkpointing=recompute, **SPARSE)
    model = model.double().train()
    block = model.image.blocks[0]
    with torch.no_grad():
        block.norm2.weight[0], block.norm2.bias[0] = 0, 1
        block.mlp.router.weight[3, 0] = -100
    settings = MoESection(capacity_factor=None, balance_weight=0.3, local_entropy_weight=0.2)
    routing = Routing(model, settings, gathered=synchronised)
    draw = torch.Generator().manual_seed(1)
    pixels = torch.rand(8, 3, 16, 16, generator=draw, dtype=torch.float64)[rows]
    ids = torch.randint(1, 49406, (8, 12), generator=draw)
    ids[torch.arange(8), torch.arange(8) + 3] = 49407  # texts of unequal length
    whole: nn.Module = DistributedDataParallel(model) if synchronised else model
    image, text, scale = whole(pixels, ids[rows])
    terms = routing.terms(routing.take())
    loss = contrastive_loss(image, text, scale, gathered=synchronised)
    (loss + sum(terms.values())).backward()
    results = {"loss": loss.detach()} | {name: term.detach() for name, term in terms.items()}
    results |= {f"gradient {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return results, routing.record()


class CudaKernels:
    """What torch's kernels for BatchNorm on CUDA compute, by their documentation, on a CPU."""

    def __init__(self):
        self.used = []

    def stats(self, x, eps):
        self.used.append("stats")
        variance, mean = torch.var_mean(_wide(x), (0, 2, 3), correction=0)
        return mean, (variance + eps).rsqrt()

    def gather(self, _x, means, inverses, running_mean, running_var, momentum, eps, counts):
        self.used.append("gather")
        assert means.is_contiguous()
        assert inverses.is_contiguous()
        share = (counts / counts.sum())[:, None].to(means.dtype)
        mean = (means * share).sum(0)
        variance = ((inverses**-2 - eps + (means - mean) ** 2) * share).sum(0)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * (counts.sum() / (counts.sum() - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return mean, (variance + eps).rsqrt()

    def elemt(self, x, weight, bias, mean, inverse, _eps):
        self.used.append("elemt")
        normal = (_wide(x) - mean[:, None, None]) * inverse[:, None, None]
        if weight is not None:
            normal = normal * weight[:, None, None] + bias[:, None, None]
        return normal.to(x.dtype)

    def backward_reduce(self, grad, x, mean, inverse, weight, of_x, of_weight, of_bias):
        self.used.append("backward_reduce")
        assert of_x
        assert of_weight == of_bias == (weight is not None)
        total = _wide(grad).sum((0, 2, 3))
        slope = (_wide(grad) * (_wide(x) - mean[:, None, None])).sum((0, 2, 3))
        if weight is None:
            return total, slope, None, None
        return total, slope, (slope * inverse).to(weight.dtype), total.to(weight.dtype)

    def backward_elemt(self, grad, x, mean, inverse, weight, total, slope, counts):
        self.used.append("backward_elemt")
        assert counts.dtype == torch.int32
        count = counts.sum()
        centred = _wide(x) - mean[:, None, None]
        back = _wide(grad) - (total / count)[:, None, None]
        back = back - centred * (inverse**2 * slope / count)[:, None, None]
        gain = inverse if weight is None else inverse * weight
        return (back * gain[:, None, None]).to(x.dtype)

    @contextlib.contextmanager
    def in_place(self):
        """Within this context, they are torch's."""
        with mock.patch.multiple(
            torch, batch_norm_stats=self.stats, batch_norm_elemt=self.elemt,
            batch_norm_gather_stats_with_counts=self.gather,
            batch_norm_backward_reduce=self.backward_reduce,
            batch_norm_backward_elemt=self.backward_elemt,
        ):  # fmt: skip
            yield
        assert len(set(self.used)) == 5


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def batch_norm(
    rows, *, synchronised, momentum, dtype=torch.float64, offset=100.0, affine=True, kernels=None
):
    """Return output, gradients and statistics of one layer after two batches of `rows`.

    With `kernels`, the layer is the one for CUDA, with these kernels.
    """
    if kernels is not None and synchronised:
        with kernels().in_place():
            return _batch_norm(rows, "cuda", momentum, dtype, offset, affine)
    return _batch_norm(rows, "cpu" if synchronised else None, momentum, dtype, offset, affine)


def _batch_norm(rows, device_type, momentum, dtype, offset, affine):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    if dtype == torch.float64:
        norm = norm.double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    if device_type is not None:
        convert_sync_batch_norm(norm, device_type)
        assert type(norm) is {"cpu": SyncBatchNorm, "cuda": CudaSyncBatchNorm}[device_type]
    draw = torch.Generator().manual_seed(2)
    for _ in range(2):
        x = offset + torch.randn(5, 3, 4, 2, generator=draw, dtype=torch.float64)
        weight = torch.randn(5, 3, 4, 2, generator=draw, dtype=torch.float64)[rows]
        x = x[rows].to(dtype).requires_grad_()
        out = norm(x)
        (out * weight).sum().backward()
    results = {"rows": out.detach(), "rows_gradient": x.grad}
    results |= {f"{n}_gradient": p.grad for n, p in norm.named_parameters()}
    return results | dict(norm.named_buffers())


ON_CPU = {
    "usual": {"momentum": 0.1},
    "plain mean of batches": {"momentum": None},
    "without weights": {"momentum": 0.1, "affine": False},
    "single precision": {"momentum": 0.1, "dtype": torch.float32, "offset": 0.0},
    "half precision": {"momentum": 0.1, "dtype": torch.bfloat16, "offset": 0.0},
}
NORMS = ON_CPU | {
    f"{name}, on CUDA": settings | {"kernels": CudaKernels} for name, settings in ON_CPU.items()
}
UNEVEN = [slice(0, 1), slice(1, 5)]  # what each rank has in `batch_norm`


def _gathered(rank):
    """Return rows of both ranks for several dtypes, and a gradient."""
    results = {}
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        mine = (torch.arange(6).reshape(3, 2) + 10 * rank).to(dtype)
        results[str(dtype)] = distributed.gather_rows(mine)
    results["strided"] = distributed.gather_rows((torch.arange(6).reshape(2, 3) + 10 * rank).T)
    half = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    rows = distributed.gather_rows(half)
    asked = torch.arange(4.0)[:, None].expand(4, 3) * (rank + 1)  # rank 0 asks 0..3, rank 1 twice
    (rows * asked.bfloat16()).sum().backward()
    results["gradient"] = half.grad
    return results


def _message(call):
    try:
        call()
    except ConfigError as error:
        return str(error)
    return "no error"


def _messages(rank):
    rows = torch.ones(2 + rank, 4)
    kinds = torch.float32 if rank else torch.float64
    return {
        "rows": _message(lambda: distributed.gather_rows(rows)),
        "loss": _message(lambda: contrastive_loss(rows, rows, 1.0, gathered=True)),
        "dtype": _message(lambda: distributed.gather_rows(torch.ones(2, 4, dtype=kinds))),
        "dimensions": _message(lambda: distributed.gather_rows(torch.ones(2, *[1] * rank))),
        "names": _message(lambda: distributed.average({f"loss{rank}": 1.0})),
        "number": _message(lambda: distributed.average(dict.fromkeys("abc"[: rank + 1], 1.0))),
    }


def _figures(world):
    rank = world.rank
    values = {"b": 1.0 + rank, "a": 0.1 * rank, "c": float("nan") if rank else 1.0}
    if rank:
        values = dict(reversed(values.items()))  # another order
    distributed.barrier()
    return {
        "world": (world.rank, world.size, world.local_rank, str(world.device), world.is_main),
        "functions": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "again": distributed.start("cpu") == world,
        "average": distributed.average(values),
        "empty": distributed.average({}),
        "object": distributed.broadcast_object({"from": rank}, source=1),
    }


def trained_step(world, *, compiled, accumulate):
    """Return the loss and gradients of the second step of a wrapped model."""
    fields = {
        "model": {"name": "vit-b16", "overrides": DENSE}, "steps": 9, "batch_size": 8,
        "accumulate": accumulate, "precision": "float32",
        "loss": {"weights": [1.0, 0.0]}, "compile": compiled,
    }  # fmt: skip
    recipe = load_recipe(fields)
    model = random_model("vit-b16", seed=0, **DENSE).train()
    # This backend generates no code, which takes seconds instead of minutes.
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="aot_eager")):
        wrapped = wrap_model(recipe, world, model)
    stepper = Stepper(model, wrapped, recipe.loss, device=world.device, gathered=True)
    draw = torch.Generator().manual_seed(world.rank)
    for _ in range(2):
        model.zero_grad()
        terms = stepper.backward(
            [
                Batch(
                    images=torch.randint(0, 256, (4, 3, 16, 16), generator=draw).byte(),
                    captions=[torch.randint(1, 49407, (4, 8), generator=draw)],
                    uids=list("abcd"),
                )
                for _ in range(accumulate)
            ]
        )
    results = {"loss": terms["contrastive_loss"]}
    return results | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def run_compiled(rank: int, port: int, folder: str) -> None:
    """Leave what compiled and eager steps compute as rank `rank` in `folder`."""
    world = _join(rank, port)
    results = {
        (compiled, accumulate): trained_step(world, compiled=compiled, accumulate=accumulate)
        for compiled in (False, True)
        for accumulate in (1, 2)
    }
    distributed.stop()
    torch.save(results, Path(folder) / f"{rank}.pt")


def _join(rank, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    return distributed.start("cpu")


def run(rank: int, port: int, folder: str) -> None:
    """Compute everything as rank `rank` and leave it in `folder`."""
    world = _join(rank, port)
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    results = {
        "figures": _figures(world),
        "messages": _messages(rank),
        "gathered": _gathered(rank),
        "embeddings": {
            (name, chunk): embeddings(name, mine, gathered=True, chunk=chunk)
            for name in LOSSES
            for chunk in (None, 2)
        },
        "captioning": captioning(slice(2 * rank, 2 * rank + 2), gathered=True),
        "batch_norm": {
            kind: batch_norm(UNEVEN[rank], synchronised=True, **options)
            for kind, options in NORMS.items()
        },
        "models": {
            kind: model_step(kind, slice(4 * rank, 4 * rank + 4), synchronised=True)
            for kind in MODELS
        },
        "sparse": {
            recompute: sparse_step(
                slice(4 * rank, 4 * rank + 4), synchronised=True, recompute=recompute
            )
            for recompute in (False, True)
        },
    }
    distributed.stop()
    results["after"] = (distributed.world_size(), distributed.is_main())
    torch.save(results, Path(folder) / f"{rank}.pt")
