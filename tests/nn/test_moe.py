"""Mixtures of experts: routing, capacity, gradients, and dense models made sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pocketclip import checkpoint, zoo
from pocketclip.checkpoint.parameters import shapes
from pocketclip.errors import ConfigError
from pocketclip.nn.build import build_empty, random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import MoE, moe_layers
from pocketclip.nn.reparam import fuse
from pocketclip.nn.transformer import MLP
from pocketclip.nn.upcycle import copy_dense_weights, upcycle
from pocketclip.tokenizer import Tokenizer

SMALL: dict[str, Any] = {"image_size": 32, "embed_dim": 32}
VIT = {"image.width": 32, "image.layers": 4, "image.heads": 4}
TEXT = {"text.width": 32, "text.layers": 4, "text.heads": 4, "text.embedding_buckets": 256}
TOWERS: dict[str, dict[str, Any]] = {
    "vit-b16": SMALL | VIT | TEXT,
    "vit-l14-quickgelu": SMALL | VIT | TEXT | {"image_size": 28},
    "mobileclip-b": SMALL | VIT | TEXT,
    "mobileclip2-s0": SMALL | TEXT | {"image.depths": [1, 1, 1, 1]},
    "mobileclip-s0": SMALL | TEXT | {"image.depths": [1, 1, 1, 1]},
    "coca-tiny": {},
}
TEXTS = ["a photo of a dog", "two cats on a red mat in the sun", "x"]


def dense_model(name: str = "vit-b16", **changes: Any) -> CLIP:
    return random_model(name, seed=0, **TOWERS[name], **changes)


def inputs(model: CLIP, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    size = model.config.image_size
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return pixels, torch.from_numpy(Tokenizer()(TEXTS, model.config.text.context_length))


def layer(experts: int = 4, top_k: int = 2, *, dtype: torch.dtype = torch.float64) -> MoE:
    torch.manual_seed(0)
    return MoE(8, 16, nn.GELU(), experts=experts, top_k=top_k).to(dtype)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_sparse_model_equals_the_dense_one_at_first(
    name: str, dtype: torch.dtype, bound: float
) -> None:
    dense = dense_model(name).to(dtype)
    sparse = upcycle(dense)
    assert moe_layers(sparse)
    pixels, ids = inputs(dense, dtype)
    with torch.no_grad():
        for one, other in zip(dense(pixels, ids)[:2], sparse(pixels, ids)[:2], strict=True):
            assert (one - other).abs().max() < bound


def test_shapes_are_described_and_stored(tmp_path: Any) -> None:
    dense = dense_model()
    sparse = upcycle(dense, experts=3, layers="last-2", towers=("text",))
    assert list(moe_layers(sparse)) == ["text.blocks.2.mlp", "text.blocks.3.mlp"]
    own = {name: tuple(value.shape) for name, value in sparse.state_dict().items()}
    assert dict(shapes(sparse.config)) == own
    checkpoint.save(sparse, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model")
    assert loaded.config == sparse.config
    assert loaded.space_id == sparse.space_id != dense.space_id


def test_published_size_of_b16() -> None:
    config = zoo.sparse_config(zoo.entry("vit-b16").config)
    total = sum(p.numel() for p in build_empty(config).parameters())
    assert total / 1e6 == pytest.approx(436.2, abs=0.1)


def test_all_experts_with_equal_gates_are_the_mean_of_experts() -> None:
    moe = layer(experts=4, top_k=4).eval()
    nn.init.zeros_(moe.router.weight)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        mlp = MLP(8, 16, "gelu").double()
        total = torch.zeros_like(x)
        for e in range(4):
            for linear, stacked in ((mlp.fc1, moe.fc1), (mlp.fc2, moe.fc2)):
                linear.weight.copy_(stacked.weight[e])
                linear.bias.copy_(stacked.bias[e])
            total += mlp(x)
        assert torch.allclose(moe(x), total / 4, atol=1e-12)


def test_capacity_is_given_to_first_choices_then_to_earlier_tokens() -> None:
    """Ten tokens, four experts, two each: room for 0.8 * 2 * 10 / 4 = 4 tokens per expert."""
    moe = layer()
    moe.capacity_factor = 0.8
    first = [0, 0, 0, 0, 0, 1, 1, 2, 0, 3]
    second = [1, 1, 2, 3, 1, 0, 2, 0, 1, 0]
    # Expert 0: first choices of tokens 0 to 3 fill it; 4 and 8, and the second choices of 5, 7 and
    # 9, find no room. Expert 1: first choices of 5 and 6, then second ones of 0 and 1; 4 and 8 not.
    # Expert 2: 7, then 2 and 6. Expert 3: 9, then 3.
    first_kept = [1, 1, 1, 1, 0, 1, 1, 1, 0, 1]
    second_kept = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]
    tokens = _tokens_that_choose(moe, first, second)
    chosen = moe.router_logits(tokens).topk(2).indices
    assert chosen.T.tolist() == [first, second]
    kept = moe._kept(chosen, None)
    assert kept is not None
    assert kept.T.int().tolist() == [first_kept, second_kept]
    out = moe(tokens)
    assert moe.sums is not None
    assert moe.sums.chosen.tolist() == [9, 6, 3, 2]
    assert moe.sums.kept.tolist() == [4, 4, 3, 2]
    assert not out[[4, 8]].any()  # the residual branch alone
    moe.eval()
    assert moe(tokens)[[4, 8]].any()  # dropless


def test_padding_takes_no_room_and_does_not_count() -> None:
    moe = layer()
    tokens = torch.randn(1, 12, 8, dtype=torch.float64)
    real = torch.arange(12)[None] < 7
    moe.capacity_factor = 0.5
    alone = moe(tokens[:, :7])
    sums = moe.sums
    padded = moe(tokens, real)
    assert torch.allclose(padded[:, :7], alone, atol=1e-12)
    assert sums is not None
    assert moe.sums is not None
    for one, other in zip(sums, moe.sums, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    moe.eval()
    assert torch.allclose(padded[:, 7:], moe(tokens[:, 7:]), atol=1e-12)


def test_expert_without_tokens_has_zero_gradients() -> None:
    moe = layer()
    with torch.no_grad():
        moe.router.weight[3] = 0
        moe.router.weight[:3] *= 100
    tokens = torch.randn(50, 8, dtype=torch.float64)
    tokens = tokens[(moe.router_logits(tokens).topk(2).indices != 3).all(1)]
    assert len(tokens)
    moe(tokens).sum().backward()
    for linear in (moe.fc1, moe.fc2):
        assert linear.weight.grad is not None
        assert linear.bias.grad is not None
        assert not linear.weight.grad[3].any()
        assert linear.weight.grad[0].any()


def test_router_has_no_task_gradient_at_first_and_experts_diverge() -> None:
    sparse = upcycle(dense_model().double()).train()
    for moe in moe_layers(sparse).values():
        moe.capacity_factor = None
    pixels, ids = inputs(sparse, torch.float64)
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    for step in range(3):
        image, text, _ = sparse(pixels, ids)
        loss = (image * text).sum()
        optimizer.zero_grad()
        loss.backward()
        routers = [moe.router.weight.grad for moe in moe_layers(sparse).values()]
        largest = max(float(grad.abs().max()) for grad in routers if grad is not None)
        assert (largest < 1e-12) == (step == 0)
        optimizer.step()
    for moe in moe_layers(sparse).values():
        assert (moe.fc1.weight[0] - moe.fc1.weight[1:]).abs().amax((1, 2)).max() > 1e-6


def test_computing_every_expert_gives_the_same() -> None:
    moe = layer(experts=5, top_k=3).eval()
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    exported = torch.export.export(moe, (torch.zeros_like(x),), strict=False)
    assert torch.allclose(exported.module()(x), moe(x), atol=1e-12)


@pytest.mark.parametrize("name", ["vit-b16", "mobileclip-s0", "coca-tiny"])
def test_embeddings_depend_neither_on_the_batch_nor_on_padding(name: str) -> None:
    model = upcycle(dense_model(name).double(), noise=0.5)
    pixels, ids = inputs(model, torch.float64)
    with torch.no_grad():
        images, texts = model.encode_image(pixels), model.encode_text(ids)
        for row in range(len(pixels)):
            one = slice(row, row + 1)
            assert torch.allclose(model.encode_image(pixels[one]), images[one], atol=1e-12)
            assert torch.allclose(model.encode_text(ids[one]), texts[one], atol=1e-12)
        if model.config.text.ignores_padding:
            short = ids[:1, : int(ids[0].argmax()) + 1]
            assert torch.allclose(model.encode_text(short), texts[:1], atol=1e-12)


def test_gradient_checkpointing_routes_identically() -> None:
    results = []
    for recompute in (False, True):
        model = upcycle(dense_model(), noise=0.5).train()
        model.set_gradient_checkpointing(recompute)
        pixels, ids = inputs(model)
        torch.manual_seed(3)
        for moe in moe_layers(model).values():
            moe.noise = 0.3
        image, text, _ = model(pixels, ids)
        sums = [moe.sums for moe in moe_layers(model).values()]
        (image * text).sum().backward()
        assert all(
            moe.sums is one for moe, one in zip(moe_layers(model).values(), sums, strict=True)
        )
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_frozen_router_has_neither_capacity_nor_noise() -> None:
    moe = layer()
    moe.capacity_factor, moe.noise = 0.1, 5.0
    tokens = torch.randn(20, 8, dtype=torch.float64)
    evaluated = moe.eval()(tokens)
    assert not torch.allclose(moe.train()(tokens), evaluated)
    moe.router.requires_grad_(False)
    assert torch.equal(moe(tokens), evaluated)


def test_a_model_in_training_can_be_copied() -> None:
    model = upcycle(dense_model()).train()
    pixels, ids = inputs(model)
    model(pixels, ids)
    assert fuse(model).is_fused


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit-b16", {"top_k": 9}, "top_k cannot be 9: there are only 8 experts"),
        ("vit-b16", {"experts": 0}, "experts"),
        ("vit-b16", {"layers": "3,12"}, "no block 12"),
        ("vit-b16", {"layers": [-1]}, "no block -1"),
        ("vit-b16", {"layers": "last-4"}, "last-3"),
        ("vit-b16", {"layers": "every-9"}, "names no block"),
        ("vit-b16", {"layers": "odd"}, "every-N, last-N or numbers"),
        ("vit-b16", {"layers": ""}, "every-N, last-N or numbers"),
        ("vit-b16", {"towers": ()}, "towers"),
        ("mobileclip2-s0", {"towers": ("image",)}, "no transformer blocks"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        upcycle(dense_model(name), **settings)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("vit-b16", {"image.layers": 2}), ("vit-b16", {"text.width": 64}), ("mobileclip2-s0", {})],
)
def test_weights_of_another_dense_model_are_refused(name: str, changes: dict[str, Any]) -> None:
    sparse, other = upcycle(dense_model()), random_model(name, seed=0, **TOWERS[name] | changes)
    with pytest.raises(ConfigError, match="differ in more than their mixtures"):
        copy_dense_weights(sparse, other)


def test_a_sparse_model_cannot_be_made_sparse() -> None:
    with pytest.raises(ConfigError, match="already"):
        upcycle(upcycle(dense_model()))


def _tokens_that_choose(moe: MoE, first: list[int], second: list[int]) -> Tensor:
    with torch.no_grad():
        moe.router.weight.zero_()
        for expert in range(moe.experts):
            moe.router.weight[expert, expert] = 1
    tokens = torch.zeros(len(first), 8, dtype=torch.float64)
    tokens[torch.arange(len(first)), first] = 2
    tokens[torch.arange(len(first)), second] = 1
    return tokens
