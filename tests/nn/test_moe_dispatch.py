"""How a mixture of experts is computed: the loop, the grouped product, compiled and traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pocketclip.nn.cpu_optimize import SeparateExperts
from pocketclip.nn.moe import MoE

# torch's CPU kernel of the grouped product stands in for that of CUDA. Version 2.9 has the first.
needs_grouped = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch lacks it")


def layer(dtype: torch.dtype = torch.float32, *, experts: int = 5, width: int = 16) -> MoE:
    torch.manual_seed(0)
    moe = MoE(width, 2 * width, nn.GELU(), experts=experts, top_k=2).to(dtype)
    nn.init.normal_(moe.router.weight)
    nn.init.normal_(moe.fc1.bias)
    nn.init.normal_(moe.fc2.bias)
    return moe


def tokens_without(moe: MoE, expert: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return 40 tokens, of which none chooses the expert."""
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = x[(moe.router_logits(x).topk(2).indices != expert).all(1)][:40]
    assert len(x) == 40
    return x.requires_grad_()


def gradients(moe: MoE, x: Tensor, real: Tensor | None) -> tuple[Tensor, ...]:
    out = moe(x, real)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return out, *torch.autograd.grad(out, [x, *moe.parameters()], weights)


@needs_grouped
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("capacity", [None, 0.7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
def test_the_grouped_product_equals_the_loop(
    dtype: str, capacity: float | None, padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moe = layer(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    moe.capacity_factor = capacity
    x = tokens_without(moe, 3, moe.fc1.weight.dtype)
    real = torch.arange(40) % 4 != 3 if padding else None
    results, calls = [], []
    product = F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", lambda *a, **k: calls.append(a) or product(*a, **k))
    for grouped in (False, True):
        monkeypatch.setattr(moe, "_can_group", lambda _, grouped=grouped: grouped)
        assert not calls
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            results.append(gradients(moe, x, real))
    assert [a[0].dtype for a in calls] == [
        torch.float32 if dtype == "float32" else torch.bfloat16
    ] * 2
    assert moe.sums is not None
    assert not moe.sums.kept[3]
    assert (moe.sums.kept.sum() < moe.sums.chosen.sum()) == (capacity is not None)
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        bound = 1e-5 if dtype == "float32" else 2e-2
        assert (one - other).abs().max() <= bound * one.abs().max()


@needs_grouped
@pytest.mark.parametrize("capacity", [None, 2.0])
@pytest.mark.filterwarnings("ignore")
def test_the_grouped_product_never_makes_the_host_wait(
    capacity: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors have no values, so whatever the host would read raises."""
    moe = layer(torch.bfloat16)
    moe.capacity_factor = capacity
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(40, 16, dtype=torch.bfloat16, requires_grad=True)
        real = torch.empty(40, dtype=torch.bool)
        monkeypatch.setattr(moe, "_can_group", lambda _: True)
        assert [x.shape for x in gradients(moe, x, real)[3:]] == [
            p.shape for name, p in moe.named_parameters() if name != "router.weight"
        ]
        monkeypatch.setattr(moe, "_can_group", lambda _: False)
        with pytest.raises(DataDependentOutputException):
            moe(x, real)


@pytest.mark.parametrize(
    ("major", "dtype", "width", "function", "expected"),
    [
        (9, torch.bfloat16, 16, "grouped_mm", True),
        (12, torch.bfloat16, 16, "grouped_mm", True),
        (8, torch.bfloat16, 16, "grouped_mm", False),
        (9, torch.float32, 16, "grouped_mm", False),
        (9, torch.float16, 16, "grouped_mm", False),
        (9, torch.bfloat16, 20, "grouped_mm", False),  # rows of 40 bytes
        (9, torch.bfloat16, 16, "_grouped_mm", True),
        (10, torch.bfloat16, 16, "_grouped_mm", False),
        (9, torch.bfloat16, 16, "", False),
    ],
)
def test_when_the_product_is_grouped(
    major: int, dtype: torch.dtype, width: int, function: str, expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module, name in ((F, "grouped_mm"), (torch, "_grouped_mm")):
        monkeypatch.delattr(module, name, raising=False)
        if name == function:
            monkeypatch.setattr(module, name, object(), raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    moe: Any = layer(dtype, width=width)
    tokens = SimpleNamespace(is_cuda=True, device=torch.device("cuda:0"), dtype=dtype)
    assert moe._can_group(tokens) is expected
    if expected and dtype == torch.bfloat16:
        assert not moe._can_group(torch.zeros(1, width, dtype=dtype))
        shifted = torch.zeros(moe.fc1.weight.numel() + 1, dtype=dtype)[1:].view_as(moe.fc1.weight)
        moe.fc1.weight = nn.Parameter(shifted)
        assert not moe._can_group(tokens)


def _torchscript(moe: MoE, x: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    traced = torch.jit.trace(moe, x)
    torch.jit.save(traced, path)
    loaded: Callable[[Tensor], Tensor] = torch.jit.load(path)
    return loaded


def _exported(moe: MoE, x: Tensor, path: Path) -> Callable[[Tensor], Tensor]:  # noqa: ARG001
    program = torch.export.export(moe, (x,), dynamic_shapes=({0: torch.export.Dim("tokens")},))
    module: Callable[[Tensor], Tensor] = program.module()
    return module


def _onnx(moe: MoE, x: Tensor, path: Path, *, dynamo: bool = False) -> Callable[[Tensor], Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.onnx.export(moe, (x,), path, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda given: torch.from_numpy(session.run(None, {name: given.numpy()})[0])


def _onnx_dynamo(moe: MoE, x: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    return _onnx(moe, x, path, dynamo=True)


def _separate(moe: MoE, x: Tensor, path: Path) -> Callable[[Tensor], Tensor]:  # noqa: ARG001
    return SeparateExperts(moe).eval()


@pytest.mark.parametrize("convert", [_torchscript, _exported, _onnx, _onnx_dynamo, _separate])
@pytest.mark.filterwarnings("ignore")
def test_a_traced_layer_computes_experts_that_the_example_did_not_use(
    convert: Callable[[MoE, Tensor, Path], Callable[[Tensor], Tensor]], tmp_path: Path
) -> None:
    moe = layer().eval().requires_grad_(False)
    example = tokens_without(moe, 3).detach()
    run = convert(moe, example, tmp_path / "layer")
    other = torch.randn(40, 16, generator=torch.Generator().manual_seed(5))
    assert (moe.router_logits(other).topk(2).indices == 3).sum() > 5
    for x in (other, 3 * other.flip(1), example):
        assert torch.allclose(run(x), moe(x), atol=2e-5)


def test_a_compiled_layer_follows_the_routing() -> None:
    """A mixture is left to Python, so one compilation serves every routing: two graphs."""
    torch._dynamo.reset()
    moe = layer().eval()
    ends = nn.Linear(16, 16), nn.Linear(16, 16)
    model = nn.Sequential(ends[0], moe, ends[1]).requires_grad_(False)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for seed in range(4):
        x = torch.randn(9, 16, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        assert counter.frame_count == 2
