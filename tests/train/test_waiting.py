"""A step reads nothing back from the device: on a CPU shown by counting, on a GPU by torch."""

from __future__ import annotations

import ast
import functools
import itertools
import math
import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pocketclip.train as package
from pocketclip.errors import ConfigError, DivergedError
from pocketclip.train import checkpoints, setup
from pocketclip.train.logs import read
from pocketclip.train.loop import train
from pocketclip.train.optim import make_optimizer
from pocketclip.train.run import Run
from pocketclip.train.step import Stepper
from pocketclip.train.step_values import StepValues
from tests.train.test_loop import recipe, shards  # noqa: F401  (a fixture)
from tests.train.test_step import VIT, batch, random_model, rows, stepper

# What may wait: it is called at records and checkpoints only, or before the first step.
AT_RECORDS = {"check_steps", "check_weights", "report", "save_checkpoint", "record"}
SPARSE = {"blocks": [0], "experts": 4, "top_k": 2}
SIGLIP = {"loss.kind": "siglip", "loss.teacher_biases": [-5.0, -6.0]}
KINDS = {
    "reinforced": {"ema": 0.9},
    "positives": {"loss.same_text": "positive", "loss.weights": [1.0, 0.5]},
    "siglip": SIGLIP | {"loss.same_text": "positive"},
    "captioning": {
        "model": {"name": "coca-tiny", "overrides": {"image_size": 32}}, "loss.kind": "captioning",
        "loss.weights": [1.0, 0.0], "loss.captioning_weight": 2.0, "data.captions": "truth",
        "accumulate": 2,
    },
    "accumulated": {"accumulate": 2, "ema": 0.9, "loss.chunk": 2, "gradient_checkpointing": True},
    "low rank": {"model.lora": {"rank": 2, "alpha": 4}},
    "float16": {"precision": "float16", "ema": 0.9},
    # One head per tower; the loop over experts on a CPU needs the number of tokens of each.
    "sparse": {
        "model.overrides.text.moe": SPARSE, "moe.noise": 0.25, "moe.capacity_factor": 1.0,
        "accumulate": 2,
    },
}  # fmt: skip


aten = torch.ops.aten
# The size of what they return depends on values, or they return one.
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.unique_dim.default, aten._unique2.default, aten.bincount.default,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


def _by_mask(args):
    return any(index is not None and index.dtype == torch.bool for index in args[1])


class Reads(TorchDispatchMode):
    """Notes who makes the host wait for a value, as it would for a GPU's."""

    def __init__(self):
        super().__init__()
        self.by = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITING or (function in INDEXING and _by_mask(args)):
            frames = [frame.name for frame in traceback.extract_stack()]
            if not AT_RECORDS & set(frames):
                self.by.append([name for name in frames if "dispatch" not in name][-4:])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def fused(monkeypatch):
    """Update weights as on CUDA: by kernels that know on the device whether to."""
    monkeypatch.setattr(setup, "make_optimizer", functools.partial(make_optimizer, fused=True))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_reads_nothing_between_two_records(kind, shards, tmp_path):  # noqa: F811
    reads = Reads()
    seen = []
    fields = {"steps": 5, "log_every": 2, "checkpoint.every_steps": 5} | KINDS[kind]
    with reads:
        summary = train(
            recipe(shards, **fields), tmp_path / "run", device="cpu",
            on_log=lambda record: seen.append((record["step"], len(reads.by))),
        )  # fmt: skip
    assert summary.step == 5
    # From the first record on; before it, optimiser and scaler are set up.
    assert [step for step, _ in seen] == [2, 4, 5]
    assert reads.by[seen[0][1] : seen[-1][1]] == []


def test_a_read_of_a_step_would_be_noticed():
    values = torch.ones(3)
    with Reads() as reads:
        float(values[0])
        values[values > 0]
        values[torch.tensor([1])]
    assert len(reads.by) == 2


# Functions of the step's modules that read from the device: at records, or on a CPU.
READERS = {
    "distributed.any_rank": "small values on the CPU, by gloo",
    "distributed.average": "at records",
    "distributed._check_equal": "in the first step",
    "losses.captioning_loss": "not the training step's",
    "routing.Routing.record": "at records",
    "routing.Routing._warn": "at records",
    "step_values.StepValues.read": "at records and checkpoints",
    "moe.MoE._run_loop": "the loop over experts on a CPU",
}
MODULES = [
    "step", "loop", "run", "step_values", "losses", "loss_terms", "loss_inputs", "routing", "optim",
    "batch_types", "distributed", "pacing", "../nn/moe", "../nn/clip", "../nn/text", "../nn/mci",
    "../nn/transformer", "../nn/vit", "../nn/coca", "../nn/lora",
]  # fmt: skip


def _readers(path):
    """Return the names of functions of a module that call `item`, `tolist` or `nonzero`."""
    found = set()

    def visit(node, names):
        for child in ast.iter_child_nodes(node):
            inner = names
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = [*names, child.name]
            reads = isinstance(child, ast.Attribute) and child.attr in ("item", "tolist", "nonzero")
            if reads:
                found.add(".".join([path.stem, *names]))
            visit(child, inner)

    visit(ast.parse(path.read_text("utf-8")), [])
    return found


def test_the_sources_of_the_step_read_at_records_only():
    folder = Path(package.__file__).parent
    found = set().union(*(_readers(folder / f"{name}.py") for name in MODULES))
    assert found == set(READERS)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_does_not_wait_for_a_gpu(kind, shards, tmp_path, monkeypatch):  # noqa: F811
    fields = {"steps": 8, "log_every": 8, "checkpoint.every_steps": 8, "data.workers": 1}
    fields |= KINDS[kind]
    backward, update = Stepper.backward, Run.update_weights
    done = itertools.count(1)

    def strict(real):
        def call(*args):
            # The first steps compile, allocate and agree on sizes.
            torch.cuda.set_sync_debug_mode("error" if next(done) > 4 else "default")
            try:
                return real(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    monkeypatch.setattr(Stepper, "backward", strict(backward))
    monkeypatch.setattr(Run, "update_weights", strict(update))
    assert train(recipe(shards, **fields), tmp_path / "run", device="cuda").step == 8


# A step whose loss or gradient is not finite


def snapshot(run):
    average = run.average.state if run.average is not None else {}
    parts = {f"weight {name}": value for name, value in run.model.named_parameters()}
    parts |= {f"average {name}": value for name, value in average.items()}
    for number, state in enumerate(run.optimizer.state.values()):
        parts |= {f"moment {number} {name}": value for name, value in state.items()}
    return {name: value.detach().clone() for name, value in parts.items()}


@pytest.fixture
def poisoned(monkeypatch):
    """Return a list of what each step left; the seventh step is not finite."""
    backward, update = Stepper.backward, Run.update_weights
    steps, after = itertools.count(1), []

    def poisons(self, batches):
        step = next(steps)
        if step == 1 and self.scaler.is_enabled():  # a scale that no good step overflows
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": 4.0})
        terms = backward(self, batches)
        if step == 7:
            # In float16 a gradient may overflow; a loss may not.
            if self.scaler.is_enabled():
                terms = {name: term * math.nan for name, term in terms.items()}
            next(self.model.image.parameters()).grad[0] = math.nan
        return terms

    def notes(self, terms):
        update(self, terms)
        after.append(snapshot(self))

    monkeypatch.setattr(Stepper, "backward", poisons)
    monkeypatch.setattr(Run, "update_weights", notes)
    return after


@pytest.mark.parametrize(
    ("precision", "more"),
    [
        ("float32", {}),
        ("bfloat16", {"loss.kind": "siglip", "loss.teacher_biases": [-5.0, -6.0]}),
        ("float16", {}),
    ],
)
@pytest.mark.parametrize("kernels", [None, "fused"])
def test_a_step_that_diverged_changes_nothing_and_ends_the_run(
    request,
    poisoned,
    shards,  # noqa: F811
    tmp_path,
    precision,
    more,
    kernels,
):
    if kernels:
        request.getfixturevalue("fused")
    fields = {"steps": 60, "log_every": 50, "checkpoint.every_steps": 5, "ema": 0.9, **more}
    value = "contrastive_loss|loss" if precision == "float16" else "grad_norm"
    with pytest.raises(DivergedError, match=rf"({value}) is nan at step 7; .*step-00000005\. Res"):
        train(recipe(shards, precision=precision, **fields), tmp_path / "run", device="cpu")
    assert len(poisoned) == 10  # noticed before the second checkpoint
    good, *later = poisoned[5:]
    assert any(name.startswith("moment") for name in good)
    for state in later:
        assert all(torch.equal(value, state[name]) for name, value in good.items())
    assert not torch.equal(good["weight logit_scale"], poisoned[4]["weight logit_scale"])
    assert [path.name for path in checkpoints.find(tmp_path / "run")] == ["step-00000005"]
    assert read(tmp_path / "run" / "log.jsonl") == []


def test_it_is_noticed_before_a_record_and_at_the_end(poisoned, shards, tmp_path):  # noqa: F811
    settings = recipe(shards, steps=9, log_every=4, **{"checkpoint.every_steps": 100})
    with pytest.raises(DivergedError, match="grad_norm is nan at step 7; there is no checkpoint"):
        train(settings, tmp_path / "run", device="cpu")
    assert len(poisoned) == 8
    assert [record["step"] for record in read(tmp_path / "run" / "log.jsonl")] == [4]
    assert not (tmp_path / "run" / "model").exists()


def test_means_leave_out_what_is_not_finite():
    values = StepValues(torch.device("cpu"), overflows=True)
    one, two = torch.tensor(0.25), torch.tensor(2.0)
    assert not values.add({"a": one, "b": two}, torch.tensor(3.0), 1)
    assert not values.add({"a": two, "b": two}, torch.tensor(math.inf), 2)
    means, diverged = values.read()
    assert means == {"loss": 3.125, "a": 1.125, "b": 2.0, "grad_norm": 3.0}
    assert diverged is None
    values.restart()
    assert values.add({"a": two, "b": -two / 0}, torch.tensor(math.inf), 3)
    assert values.add({"a": two * math.nan, "b": two}, torch.tensor(1.0), 4)
    means, diverged = values.read()
    assert means == {"loss": 0.0, "a": 2.0, "b": 2.0, "grad_norm": 1.0}
    assert (diverged.step, diverged.name, diverged.value) == (3, "loss", -math.inf)
    with pytest.raises(ValueError, match="those before"):
        values.add({"a": two}, two, 5)


# Sizes


def test_ranks_assert_the_sizes_that_they_agreed_on():
    model = random_model("vit-b16", seed=0, **VIT).train()
    engine = stepper(model, gathered=True, weights=(0.5, 0.5))
    whole = batch(model, 6)
    for _ in range(2):
        engine.backward([whole])
    with pytest.raises(ConfigError, match=r"has batches of \[\(4, .* the first one had \[\(6, "):
        engine.backward([rows(whole, 0, 4)])


# Compiled graphs


def _graphs(model, batches):
    """Return how many graphs the forward pass of a stepper compiles over batches."""
    graphs = []

    def backend(module, _inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    engine = stepper(model, weights=(1.0, 0.0), text_multiple=8)
    engine.wrapped = torch.compile(model, backend=backend)
    for one in batches:
        engine.backward([one])
    return len(graphs)


@pytest.mark.slow
def test_texts_of_other_lengths_compile_few_graphs():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 4)
    batches = []
    for length in range(9, 78):
        one = rows(whole, 0, 4)
        one.text_length = length
        batches.append(one)
    assert _graphs(model, batches[:8]) == 1  # 9 to 16
    # Then one for any number of columns, and one for all.
    assert _graphs(model, batches) == 3


@pytest.mark.parametrize("name", [pytest.param("tiny", marks=pytest.mark.slow), "vit-b16"])
def test_the_compiler_finds_one_whole_graph(name):
    model = random_model(name, seed=0, **(VIT if name == "vit-b16" else {})).train()
    side = model.config.image_size
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(
        torch.rand(2, 3, side, side), torch.randint(1, 49407, (2, model.config.text.context_length))
    )
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
