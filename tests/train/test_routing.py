"""Training of sparse models: the routers' losses, the log's record of experts, equal gradients."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pocketclip import checkpoint, zoo
from pocketclip.errors import CheckpointError, ConfigError
from pocketclip.nn import transformer
from pocketclip.nn.build import random_model
from pocketclip.nn.moe import MoE, moe_layers
from pocketclip.nn.upcycle import upcycle
from pocketclip.train import routing as routing_module
from pocketclip.train.initial_model import initial_model
from pocketclip.train.logs import Log, read
from pocketclip.train.loop import train
from pocketclip.train.recipe import dump, load_recipe
from pocketclip.train.routing import Routing
from pocketclip.train.sections import MoESection
from tests.train.test_loop import recipe, same, shards, weights  # noqa: F401  (a fixture)
from tests.train.test_step import VIT, batch, close, gradients, rows, stepper

MOE = {"blocks": (1,), "experts": 4, "top_k": 2}
SPARSE = VIT | {"image.moe": MOE, "text.moe": MOE}
ALL = MoESection(
    capacity_factor=None, local_entropy_weight=0.1, global_entropy_weight=0.2,
    global_entropy_image=1.4, global_entropy_text=1.5,
)  # fmt: skip


def sparse(name="vit-b16", **changes):
    return random_model(name, seed=0, **(SPARSE | changes)).train()


def step_of(model, batches, settings=ALL, **loss):
    """Return gradients, terms and the log's record of one step."""
    model.zero_grad()
    routing = Routing(model, settings, gathered=False)
    one = stepper(model, routing=routing, **loss)
    terms = {name: float(term) for name, term in one.backward(batches).items()}
    return gradients(model), terms, routing.record()


# Losses


def sums(chosen, probability, *, z=0.0, entropy=0.0, tokens):
    values = (chosen, chosen, probability, z, entropy, tokens)
    return torch.cat([torch.tensor(v, dtype=torch.float32).reshape(-1) for v in values])


def only_image(**settings):
    model = sparse(**{"text.moe": None})
    defaults = {"balance_weight": 0.0, "z_weight": 0.0}
    return Routing(model, MoESection(**(defaults | settings)), gathered=False)


def test_balance_is_one_if_experts_are_used_equally():
    routing = only_image(balance_weight=1.0)
    even = routing.terms(sums([5, 5, 5, 5], [2.5] * 4, tokens=10))
    assert even == {"image_balance_loss": pytest.approx(1.0)}
    # Half of all choices each, 0.7 and 0.3 of the probability: 4 (0.5 * 0.7 + 0.5 * 0.3).
    two = routing.terms(sums([10, 10, 0, 0], [7, 3, 0, 0], tokens=10))
    assert float(two["image_balance_loss"]) == pytest.approx(2.0)
    collapsed = routing.terms(sums([10, 10, 0, 0], [10, 0, 0, 0], tokens=10))
    assert float(collapsed["image_balance_loss"]) == pytest.approx(2.0)


def test_other_losses_by_hand():
    routing = only_image(
        z_weight=0.5, local_entropy_weight=2.0, global_entropy_weight=3.0, global_entropy_image=1.0
    )
    terms = routing.terms(sums([10, 10, 0, 0], [5, 5, 0, 0], z=40.0, entropy=6.0, tokens=10))
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {
            "image_z_loss": 0.5 * 4.0,
            "image_local_entropy_loss": 2.0 * 0.6,
            "image_global_entropy_loss": 3.0 * (1.0 - math.log(2)),
        }
    )
    spread = routing.terms(sums([5, 5, 5, 5], [2.5] * 4, tokens=10))
    assert float(spread["image_global_entropy_loss"]) == 0  # ln 4 is above the threshold


def test_default_thresholds_are_those_of_limoe_for_32_experts():
    routing = only_image(global_entropy_weight=1.0)
    assert routing._threshold("image", 32) == pytest.approx(math.log(20))
    assert routing._threshold("text", 32) == pytest.approx(math.log(9))
    assert 0 < routing._threshold("text", 2) < math.log(2)


def test_losses_are_means_over_a_towers_mixtures():
    model = sparse(**{"image.layers": 3, "image.moe": MOE | {"blocks": (1, 2)}})
    settings = MoESection(balance_weight=1.0, z_weight=0.0)
    routing = Routing(model, settings, gathered=False)
    even, uneven = [5, 5, 5, 5], [20, 0, 0, 0]
    own = [
        sums(even, [2.5] * 4, tokens=10),
        sums(uneven, [10, 0, 0, 0], tokens=10),
        sums(even, [2.5] * 4, tokens=10),
    ]
    terms = routing.terms(torch.cat(own))
    assert float(terms["image_balance_loss"]) == pytest.approx((1 + 4) / 2)
    assert float(terms["text_balance_loss"]) == pytest.approx(1)


def test_a_frozen_router_has_no_losses_and_is_logged():
    model = sparse()
    model.freeze("text", train_last="head")
    grads, terms, record = step_of(model, [batch(model, 6)])
    assert {name for name in terms if name.startswith("text_")} == set()
    assert {"image_balance_loss", "image_z_loss"} < terms.keys()
    assert list(record) == ["image.blocks.1.mlp", "text.blocks.1.mlp"]
    assert not any(name.startswith("text.blocks") for name in grads)


def test_the_loss_moves_the_router_towards_balance():
    model = sparse(**{"image.moe": MOE | {"blocks": (0,)}, "text.moe": None})
    (layer,) = moe_layers(model).values()
    routing = Routing(model, MoESection(balance_weight=1.0, z_weight=0.0), gathered=False)
    pixels = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([layer.router.weight], lr=0.01)
    losses = []
    for _ in range(20):
        model.encode_image(pixels)
        loss = routing.terms(routing.take())["image_balance_loss"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 1.03
    assert losses[-1] - 1 < 0.5 * (losses[0] - 1)


# Equal gradients, however the batch is divided


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("vit-b16", {"weights": (0.25, 0.75)}),
        ("vit-b16", {"kind": "siglip", "weights": (1.0, 0.0)}),
        ("coca-tiny", {"kind": "captioning", "weights": (1.0, 0.0)}),
    ],
)
def test_accumulation_equals_the_large_batch(name, loss):
    if name == "vit-b16":
        model = sparse()
    else:
        model = upcycle(random_model(name, seed=0, image_size=32), experts=4, layers=[0]).train()
    if loss.get("kind") == "siglip":
        loss = loss | {"logit_bias": torch.nn.Parameter(torch.tensor(-10.0))}
    whole = batch(model, 6, captions=1)
    parts = [rows(whole, 0, 2), rows(whole, 2, 4), rows(whole, 4, 6)]
    one, terms, record = step_of(model, [whole], **loss)
    other, parted, parted_record = step_of(model, parts, **loss)
    assert {f"{t}_{k}_loss" for t in ("image", "text") for k in ("balance", "z")} < terms.keys()
    assert parted == pytest.approx(terms, rel=1e-5)
    close(other, one)
    assert parted_record == record


def test_the_losses_are_in_the_gradient():
    model = sparse()
    one = batch(model, 6)
    none = MoESection(capacity_factor=None, balance_weight=0.0, z_weight=0.0)
    for settings in (ALL, MoESection(capacity_factor=None)):
        with_losses, without = step_of(model, [one], settings)[0], step_of(model, [one], none)[0]
        for name in moe_layers(model):
            router = f"{name}.router.weight"
            change = (with_losses[router] - without[router]).abs().max()
            assert change > 1e-3 * without[router].abs().max()


def test_no_sums_stay_behind():
    model = sparse()
    whole = batch(model, 8)
    step_of(model, [rows(whole, 0, 4), rows(whole, 4, 8)])
    assert all(layer.sums is None for layer in moe_layers(model).values())


def test_gradient_checkpointing_changes_nothing():
    results = []
    for recompute in (False, True):
        model = sparse(drop_path=0.3)
        model.set_gradient_checkpointing(recompute)
        torch.manual_seed(1)
        settings = MoESection(noise=0.25, capacity_factor=1.0, local_entropy_weight=0.1)
        results.append(step_of(model, [batch(model, 8)], settings))
    (one, terms, record), (other, again, other_record) = results
    assert terms == again
    assert record == other_record
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own
def test_a_compiled_model_trains_the_same():
    model = sparse()
    whole = batch(model, 8)
    settings = MoESection(local_entropy_weight=0.1)
    one, terms, record = step_of(model, [whole], settings, text_multiple=0)
    model.zero_grad()
    routing = Routing(model, settings, gathered=False)
    compiled = stepper(model, routing=routing, text_multiple=0)
    compiled.wrapped = torch.compile(model, backend="aot_eager")  # generates no code: seconds
    again = {name: float(term) for name, term in compiled.backward([whole]).items()}
    assert again == pytest.approx(terms, rel=1e-5)
    close(gradients(model), one)
    assert routing.record() == record


def test_noise_and_capacity_are_replayed_with_accumulation():
    model = sparse()
    whole = batch(model, 8)
    parts = [rows(whole, 0, 4), rows(whole, 4, 8)]
    settings = MoESection(noise=0.25, capacity_factor=1.0)
    seen = []

    class Spy(Routing):
        def take(self):
            seen.append(super().take())
            return seen[-1]

    routing = Spy(model, settings, gathered=False)
    stepper(model, routing=routing).backward(parts)
    assert len(seen) == 4
    for first, second in zip(seen[:2], seen[2:], strict=True):
        assert torch.equal(first, second.detach())
    assert any(one["dropped"] > 0 for one in routing.record().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_the_router_in_single(dtype):
    settings = MoESection(capacity_factor=None, balance_weight=50.0)  # most of its gradient
    model = sparse()
    routing = Routing(model, settings, gathered=False)
    one = stepper(model, routing=routing, dtype=dtype)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=64, enabled=one.scaler.is_enabled())
    kinds = []
    take = routing.take
    routing.take = lambda: kinds.append(sums := take()) or sums
    whole = batch(model, 8)
    expected, terms, _ = step_of(sparse(), [whole], settings)
    for parts in ([whole], [rows(whole, 0, 4), rows(whole, 4, 8)]):
        model.zero_grad()
        halved = one.backward(parts)
        assert kinds[-1].dtype == torch.float32
        assert float(halved["image_balance_loss"]) == pytest.approx(
            terms["image_balance_loss"], 0.02
        )
        scale = one.scaler.get_scale()
        router = "image.blocks.1.mlp.router.weight"
        grad = gradients(model)[router] / scale
        assert (grad - expected[router]).norm() < 0.1 * expected[router].norm()


# The record of the log


def test_the_record_sums_up_the_steps_since_the_last_one():
    routing = only_image()
    assert routing.record() == {}
    one = sums([8, 4, 4, 4], [2.5] * 4, entropy=10.0, tokens=10)
    one[4:8] = torch.tensor([5.0, 4, 4, 4])  # three choices found no room
    routing.terms(one)
    routing.terms(sums([10, 10, 0, 0], [5, 5, 0, 0], entropy=5.0, tokens=10))
    assert routing.record() == {
        "image.blocks.1.mlp": {
            "shares": [0.45, 0.35, 0.1, 0.1],
            "dropped": pytest.approx(3 / 40),
            "entropy": 0.75,
            "dead": 0,
        }
    }
    routing.terms(sums([10, 10, 0, 0], [5, 5, 0, 0], tokens=10))
    assert routing.record()["image.blocks.1.mlp"]["dead"] == 2
    assert routing.record() == {}


def test_a_warning_of_an_unused_expert_comes_once(monkeypatch, caplog):
    monkeypatch.setattr(routing_module, "LOW_STEPS", 5)
    routing = only_image()
    low = sums([100, 100, 99, 1], [75] * 4, tokens=150)
    even = sums([75] * 4, [75] * 4, tokens=150)
    for own in [low] * 4 + [even] + [low] * 4:
        routing.terms(own)
        routing.record()
    assert not caplog.text
    routing.terms(low)
    routing.terms(even)  # five in a row, though not at the end
    routing.record()
    assert caplog.text.count("image.blocks.1.mlp: expert 3 got under 1 % of the tokens in 5") == 1
    for _ in range(6):
        routing.terms(low)
    routing.record()
    assert caplog.text.count("expert") == 1


def test_an_equal_share_is_never_low(monkeypatch, caplog):
    monkeypatch.setattr(routing_module, "LOW_STEPS", 1)
    moe = MOE | {"experts": 128}
    model = sparse(**{"image.moe": moe, "text.moe": None})
    routing = Routing(model, MoESection(), gathered=False)
    routing.terms(sums([5] * 128, [2.5] * 128, tokens=320))
    routing.record()
    assert not caplog.text


# Recipes and the start of a run


def sparse_recipe(shards, **fields):  # noqa: F811
    overrides = {name: list(v) if isinstance(v, tuple) else v for name, v in SPARSE.items()}
    base = {"model.name": "vit-b16", "model.overrides": overrides, "steps": 2, "batch_size": 8}
    return recipe(shards, **(base | fields))


def test_settings_of_a_sparse_model_are_spelled_out():
    whole = sparse_recipe("dr")
    assert whole.moe == MoESection()
    assert load_recipe(dump_of(whole)) == whole
    changed = sparse_recipe("dr", **{"moe.capacity_factor": None, "moe.noise": 0.125})
    assert (changed.moe.capacity_factor, changed.moe.noise) == (None, 0.125)
    assert changed.moe.balance_weight == 0.01
    dense = recipe("dr")
    assert dense.moe is None
    assert load_recipe(dump_of(dense)) == dense


def dump_of(one):
    from pocketclip.formats.yaml_text import load_yaml

    return load_yaml(dump(one), what="recipe")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"moe.capacity_factor": 0}, "moe.capacity_factor: .*greater than 0"),
        ({"moe.noise": -1}, "moe.noise: "),
        ({"moe.balance": 1}, "moe.balance: unknown field; did you mean 'balance_weight'"),
        ({"moe": 3}, "moe: should hold fields such as `capacity_factor:`"),
        ({"model.overrides": VIT, "moe.noise": 0.1}, "moe: vit-b16 as configured is dense"),
        ({"moe.global_entropy_image": 3.0}, "global_entropy_image: 3 cannot be reached"),
        ({"model.overrides.text.moe.blocks": "odd"}, "give the numbers of transformer blocks"),
        ({"model.overrides.text.moe": 8}, "give blocks, experts and top_k"),
        ({"model.lora": {"rank": 2}}, "model.lora: vit-b16 as configured has mixtures of experts"),
        ({"model.overrides.image.moe": MOE | {"top_k": 5}}, "top_k cannot be 5"),
        ({"model.overrides.image.moe": MOE | {"blocks": [2]}}, "no block 2"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        sparse_recipe("dr", **fields)
    assert "\n" not in str(caught.value)


@pytest.fixture
def dense(tmp_path):
    model = random_model("vit-b16", seed=5, **VIT)
    checkpoint.save(model, tmp_path / "dense")
    return tmp_path / "dense"


def test_a_dense_start_is_made_sparse(dense, caplog, tmp_path):
    start = sparse_recipe("dr", **{"model.init": str(dense), "seed": 3})
    with caplog.at_level(logging.INFO):
        model = initial_model(start)
    assert caplog.messages == [
        f"model.init {dense} is dense: every expert begins as a copy of its MLP, and the routers "
        "are drawn from seed 3"
    ]
    assert model.config == start.model.config()
    original = checkpoint.load(dense)
    one = batch(original, 3)
    pixels = one.images.float() / 255
    with torch.no_grad():
        before = original.encode_image(pixels, normalize=True)
        after = model.eval().encode_image(pixels, normalize=True)
    assert (before - after).abs().max() < 1e-5
    assert same(model.state_dict(), initial_model(start).state_dict())
    other = initial_model(sparse_recipe("dr", **{"model.init": str(dense), "seed": 4}))
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, other.state_dict()[n])}
    assert moved == {f"{name}.router.weight" for name in moe_layers(model)}
    # The sparse model is a start itself, which is loaded as it is.
    checkpoint.save(model, tmp_path / "sparse")
    again = sparse_recipe("dr", **{"model.init": str(tmp_path / "sparse"), "seed": 9})
    assert same(initial_model(again).state_dict(), model.state_dict())


def test_a_start_that_does_not_fit_says_what_to_do(dense, tmp_path):
    init = {"model.init": str(dense)}
    with pytest.raises(CheckpointError, match=r"more than their mixtures .* set model.name and"):
        initial_model(sparse_recipe("dr", **init, **{"model.overrides.text.layers": 3}))
    with pytest.raises(
        CheckpointError, match=r"^model.init, .*nothing: no such file .* --set model.init=MODEL"
    ):
        initial_model(sparse_recipe("dr", **{"model.init": str(tmp_path / "nothing")}))
    moe = {"blocks": [1], "experts": 3, "top_k": 1}
    config = zoo.override(zoo.entry("vit-b16").config, **VIT, **{"image.moe": moe})
    model = random_model("vit-b16", seed=0, **VIT, **{"image.moe": moe})
    assert model.config == config
    checkpoint.save(model, tmp_path / "sparse")
    overrides = {n: list(v) if isinstance(v, tuple) else v for n, v in VIT.items()}
    into_dense = {"model.name": "vit-b16", "model.overrides": overrides}
    into_dense |= {"model.init": str(tmp_path / "sparse")}
    what = (
        r"it is sparse: model.overrides.image.moe=\{blocks: \[1\], experts: 3, top_k: 1\}\), or "
        "another model.init"
    )
    with pytest.raises(CheckpointError, match=what):
        initial_model(recipe("dr", **into_dense))
    # What the message says is what helps.
    into_dense["model.overrides.image.moe"] = moe
    assert initial_model(recipe("dr", **into_dense)).config == config


# Runs


def test_a_sparse_run_logs_its_experts(shards, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    train(sparse_recipe(shards, log_every=2, **{"moe.noise": 0.25}), run, device="cpu")
    (record,) = read(run / "log.jsonl")
    parts = [record[name] for name in ("contrastive_loss", "distill_loss")]
    parts += [record[f"{t}_{k}_loss"] for t in ("image", "text") for k in ("balance", "z")]
    assert record["loss"] == pytest.approx(sum(parts), abs=1e-5)
    experts = record["experts"]
    assert list(experts) == ["image.blocks.1.mlp", "text.blocks.1.mlp"]
    for one in experts.values():
        assert sum(one["shares"]) == pytest.approx(1, abs=1e-3)
        assert 0 <= one["dropped"] < 1
        assert 0 < one["entropy"] <= math.log(4) + 1e-4
    assert checkpoint.load(run).config == sparse_recipe(shards).model.config()
    pytest.importorskip("jsonschema")
    from tests.test_schemas import check

    check("log", record)


def test_checkpoints_are_scored_without_capacity(shards, tmp_path, monkeypatch):  # noqa: F811
    tried = []

    class Watched(MoE):
        def _mix_chosen(self, tokens, gates, chosen, kept=None):
            tried.append((self.training, kept is None))
            return super()._mix_chosen(tokens, gates, chosen, kept)

    monkeypatch.setattr(transformer, "MoE", Watched)
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        path = tmp_path / "shelf" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    fields = {"moe.capacity_factor": 0.25, "ema": 0.9}
    fields |= {"evaluation": {"data": str(tmp_path / "shelf")}}
    run = tmp_path / "run"
    train(sparse_recipe(shards, **fields), run, device="cpu")
    assert (True, False) in tried
    assert (False, True) in tried
    assert len(set(tried)) == 2
    assert "eval/main_metric" in read(run / "log.jsonl")[-1]
    assert all(one["dropped"] > 0.5 for one in read(run / "log.jsonl")[0]["experts"].values())


def test_trackers_get_flat_numbers(tmp_path):
    written = {}

    class Board:
        def add_scalar(self, name, value, step):
            written[name] = (value, step)

        def close(self):
            pass

    with Log(tmp_path, sparse_recipe("dr"), 0) as log:
        log._board = Board()
        layer = {"shares": [0.75, 0.25], "dropped": 0.0, "entropy": 0.5, "dead": 1}
        log.write({"step": 3, "loss": 2.0, "experts": {"image.blocks.1.mlp": layer}, "note": "x"})
    assert written == {
        "loss": (2.0, 3),
        "experts/image.blocks.1.mlp/shares/0": (0.75, 3),
        "experts/image.blocks.1.mlp/shares/1": (0.25, 3),
        "experts/image.blocks.1.mlp/dropped": (0.0, 3),
        "experts/image.blocks.1.mlp/entropy": (0.5, 3),
        "experts/image.blocks.1.mlp/dead": (1, 3),
    }
