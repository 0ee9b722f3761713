"""Two processes that train together against one with the joined batch."""

from __future__ import annotations

import math
import multiprocessing
import os
import socket

import pytest
import torch
import torch.multiprocessing
from torch import nn

from pocketclip import checkpoint
from pocketclip.errors import ConfigError
from pocketclip.nn.build import create_model, random_model
from pocketclip.nn.reparam import fuse
from pocketclip.nn.transformer import preserve_batch_norm_statistics
from pocketclip.train import distributed
from pocketclip.train.distributed import World
from pocketclip.train.sync_batch_norm import (
    CudaSyncBatchNorm,
    SyncBatchNorm,
    convert_sync_batch_norm,
)
from tests.train import ranks

pytestmark = pytest.mark.xdist_group("ranks")  # one pair of processes for all
_EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes computed; they run once for all tests of this file."""
    folder = tmp_path_factory.mktemp("ranks")
    _start(ranks.run, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks.SIZE)]


def _start(work, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["tests.train.ranks"])  # torch is loaded once
    torch.multiprocessing.start_processes(
        work, (port, str(folder)), nprocs=ranks.SIZE, start_method="forkserver"
    )


def _of_all(parts, key):
    return [part[key] for part in parts]


# Figures and objects


def test_each_process_knows_its_rank(results):
    for rank, part in enumerate(_of_all(results, "figures")):
        assert part["world"] == (rank, 2, rank, "cpu", rank == 0)
        assert part["functions"] == (rank, 2, rank == 0)
        assert part["again"]
        assert part["object"] == {"from": 1}
    assert _of_all(results, "after") == [(1, True)] * 2


def test_figures_are_averaged_by_name(results):
    first, second = (part["average"] for part in _of_all(results, "figures"))
    assert list(first) == ["b", "a", "c"]
    assert list(second) == ["c", "a", "b"]
    for average in (first, second):
        assert average["b"] == 1.5
        assert average["a"] == 0.05
        assert math.isnan(average["c"])
    assert _of_all(results, "figures")[0]["empty"] == {}


def test_what_differs_between_ranks_is_a_clear_error_on_each(results):
    for messages in _of_all(results, "messages"):
        for name in ("rows", "loss"):
            assert "differ between ranks: [[2, " in messages[name]
            assert "same batch size" in messages[name]
        assert "rows to gather" in messages["dtype"]
        assert "rows to gather" in messages["dimensions"]
        assert "values to average" in messages["names"]
        assert "values to average" in messages["number"]


# Rows and losses


def test_rows_come_in_the_order_of_ranks(results):
    for part in _of_all(results, "gathered"):
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            once = torch.arange(6).reshape(3, 2)
            expected = torch.cat([once.to(dtype), (once + 10).to(dtype)])
            assert part[str(dtype)].dtype == dtype
            assert torch.equal(part[str(dtype)], expected)
        once = torch.arange(6).reshape(2, 3).T
        assert torch.equal(part["strided"], torch.cat([once, once + 10]))


def test_gradients_are_summed_over_what_all_ranks_ask(results):
    for rank, part in enumerate(_of_all(results, "gathered")):
        # Rank 0 asks 0, 1, 2, 3 of the four rows, rank 1 twice that.
        expected = torch.tensor([[0.0, 3.0], [6.0, 9.0]])[rank][:, None].expand(2, 3)
        assert part["gradient"].dtype == torch.bfloat16
        assert torch.equal(part["gradient"].float(), expected)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", ranks.LOSSES)
def test_losses_and_gradients_are_those_of_the_joined_batch(results, name, chunk):
    expected = ranks.embeddings(name, slice(None))
    parts = [part["embeddings"][name, chunk] for part in results]
    assert all(part.keys() == expected.keys() for part in parts)
    assert {"loss", "image", "text", "scale"} <= expected.keys()
    for key, value in expected.items():
        if key in ("image", "text", "synthetic"):
            # Each rank differentiated its own mean; averaging over ranks halves it.
            joined = torch.cat([part[key] for part in parts]) / ranks.SIZE
        else:
            joined = torch.stack([part[key] for part in parts]).mean(0)
        torch.testing.assert_close(joined, value, **_EXACT, msg=key)
    assert parts[0]["loss"] != parts[1]["loss"]  # each of its own rows


def test_captions_of_unequal_length_weigh_as_in_the_joined_batch(results):
    expected = ranks.captioning(slice(None), gathered=False)
    parts = _of_all(results, "captioning")
    assert parts[1]["loss"] == 0  # all padding there
    joined = torch.cat([part["gradient"] for part in parts]) / ranks.SIZE
    torch.testing.assert_close(joined, expected["gradient"], **_EXACT)
    torch.testing.assert_close(sum(part["loss"] for part in parts) / 2, expected["loss"], **_EXACT)


# BatchNorm and whole models


@pytest.mark.parametrize("kind", ranks.NORMS)
def test_batch_norm_is_that_of_the_joined_batch(results, kind):
    expected = ranks.batch_norm(slice(None), synchronised=False, **ranks.NORMS[kind])
    parts = [part["batch_norm"][kind] for part in results]
    tolerance = {"half precision": (0.02, 0.02), "single precision": (1e-5, 1e-5)}
    rtol, atol = tolerance.get(kind.removesuffix(", on CUDA"), (1e-9, 1e-11))
    assert {"rows", "rows_gradient", "running_mean", "running_var"} <= expected.keys()
    for key, value in expected.items():
        if key.startswith("rows"):
            joined = torch.cat([part[key] for part in parts])
        elif key.endswith("gradient"):
            joined = sum(part[key] for part in parts)
        else:
            assert torch.equal(parts[0][key], parts[1][key])
            joined = parts[0][key]
        assert joined.dtype == value.dtype
        torch.testing.assert_close(joined, value, rtol=rtol, atol=atol, msg=key)


@pytest.mark.parametrize("kind", ranks.MODELS)
def test_a_whole_models_step_is_that_of_the_joined_batch(results, kind):
    expected = ranks.model_step(kind, slice(None), synchronised=False)
    parts = [part["models"][kind] for part in results]
    fewest = 30 if kind == "lora" else 50
    assert sum(key.startswith("gradient image.") for key in expected) > fewest
    assert sum(key.endswith("running_var") for key in expected) > 10
    for key, value in expected.items():
        if key == "loss":
            joined = torch.stack([part[key] for part in parts]).mean(0)
        else:
            assert torch.equal(parts[0][key], parts[1][key]), key
            joined = parts[0][key]
        torch.testing.assert_close(joined, value, rtol=1e-6, atol=1e-9, msg=key)
    before = random_model("tiny", seed=0)
    moved = any(
        not torch.equal(expected[f"buffer {n}"].float(), b.float())
        for n, b in before.named_buffers()
    )
    assert moved == (kind in ("plain", "recomputed"))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_sparse_models_step_is_that_of_the_joined_batch(results, recompute):
    expected, record = ranks.sparse_step(slice(None), synchronised=False, recompute=recompute)
    (first, first_record), (second, second_record) = (part["sparse"][recompute] for part in results)
    assert {"image_balance_loss", "text_z_loss", "text_local_entropy_loss"} < expected.keys()
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        joined = (first[key] + second[key]) / 2 if key == "loss" else first[key]
        assert key == "loss" or torch.equal(first[key], second[key]), key
        torch.testing.assert_close(joined, value, rtol=1e-9, atol=1e-12, msg=key)
    # An expert without tokens neither stops the processes nor moves.
    assert record[ranks.UNUSED]["dead"] == 1
    weights = expected[f"gradient {ranks.UNUSED}.fc1.weight"]
    assert not weights[3].any()
    assert weights[:3].flatten(1).any(1).all()
    assert (first_record, second_record) == (record, {})


SYNCHRONISED = {"cpu": SyncBatchNorm, "cuda": CudaSyncBatchNorm}


@pytest.mark.parametrize("device_type", SYNCHRONISED)
def test_conversion_changes_neither_names_nor_marks(device_type):
    model = create_model("tiny")
    model.freeze("image", train_last=1)
    model.train()
    names = list(model.state_dict())
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    frozen = {n for n, m in norms.items() if not m.training}
    assert frozen
    assert frozen < norms.keys()
    assert convert_sync_batch_norm(model, device_type) is model
    assert list(model.state_dict()) == names
    for name, norm in norms.items():
        assert model.get_submodule(name) is norm
        assert type(norm) is SYNCHRONISED[device_type]
    model.eval().train()
    assert {n for n, m in norms.items() if not m.training} == frozen
    model.unfreeze()
    assert all(m.training for m in norms.values())
    model.freeze_batch_norm_statistics()
    assert not any(m.training for m in norms.values())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("device_type", SYNCHRONISED)
def test_alone_a_converted_model_is_the_plain_one(device_type, frozen):
    pixels, ids = torch.rand(4, 3, 64, 64), torch.randint(1, 49407, (4, 8))
    plain, shared = random_model("tiny", seed=0), random_model("tiny", seed=0)
    convert_sync_batch_norm(shared, device_type)
    for model in (plain, shared):
        model.train()
        if frozen:
            model.freeze_batch_norm_statistics()
        with torch.no_grad(), preserve_batch_norm_statistics(model):
            model(pixels[:3], ids[:3])
    for one, other in zip(plain(pixels, ids), shared(pixels, ids), strict=True):
        assert torch.equal(one, other)
    for (name, one), other in zip(plain.named_buffers(), shared.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("device_type", SYNCHRONISED)
def test_a_converted_model_is_fused_saved_and_loaded(tmp_path, device_type):
    pixels = torch.rand(2, 3, 64, 64)
    plain, shared = random_model("tiny", seed=0), random_model("tiny", seed=0)
    for model in (plain, shared):  # statistics that are not those of the start
        with torch.no_grad():
            model.train().encode_image(torch.rand(4, 3, 64, 64, generator=torch.manual_seed(0)))
        model.eval()
    convert_sync_batch_norm(shared, device_type)
    fused = fuse(shared)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    assert shared.space_id == plain.space_id
    with torch.no_grad():
        assert torch.equal(fused.encode_image(pixels), fuse(plain).encode_image(pixels))
        checkpoint.save(shared, tmp_path / "saved")
        again = checkpoint.load(tmp_path / "saved")
        assert torch.equal(again.encode_image(pixels), plain.encode_image(pixels))
        assert torch.equal(shared.encode_image(pixels), plain.encode_image(pixels))
        torch.testing.assert_close(fused.encode_image(pixels), shared.encode_image(pixels))


@pytest.mark.slow
def test_compiled_and_eager_steps_are_equal(tmp_path):
    _start(ranks.run_compiled, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for accumulate in (1, 2):
        eager, compiled = (first[compiled, accumulate] for compiled in (False, True))
        assert len(eager) > 30
        assert eager.keys() == compiled.keys()
        for name, value in eager.items():
            torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5, msg=name)
            for kind in (False, True):  # averaged over the processes
                assert name == "loss" or torch.equal(
                    first[kind, accumulate][name], second[kind, accumulate][name]
                )


# Starting


@pytest.fixture
def environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_the_world_is_one_process(environment):
    assert distributed.start("cpu") == World(0, 1, 0, torch.device("cpu"))
    distributed.barrier()
    assert distributed.is_main()
    assert distributed.broadcast_object([1]) == [1]
    assert distributed.on_main(lambda: [2]) == [2]
    assert distributed.average({"loss": 2.0}) == {"loss": 2.0}
    rows = torch.ones(2, 3)
    assert distributed.gather_rows(rows) is rows
    distributed.stop()
    for name, value in _settings(WORLD_SIZE="1").items():
        environment.setenv(name, value)
    assert distributed.start("cpu") == World(0, 1, 0, torch.device("cpu"))


def _settings(**changed):
    usual = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29512"}
    return usual | {"MASTER_ADDR": "127.0.0.1"} | changed


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "cpu", "not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (_settings(RANK="one"), "cpu", "must be integers"),
        (_settings(RANK="2"), "cpu", "RANK 2 .* does not fit WORLD_SIZE 2"),
        (_settings(WORLD_SIZE="0"), "cpu", "does not fit WORLD_SIZE 0"),
        (_settings(MASTER_PORT="port"), "cpu", "cannot reach the others through 127.0.0.1:port"),
        (_settings(), "meta", "`cpu` or `cuda`, not on 'meta'"),
        ({}, "cpv", "no device 'cpv'"),
    ],
)
def test_bad_settings_of_torchrun_are_refused(environment, settings, device, message):
    for name, value in settings.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distributed.start(device)
    assert os.environ.get("RANK") == settings.get("RANK")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.usefixtures("environment")
def test_a_missing_gpu_is_reported():
    with pytest.raises(ConfigError, match="no CUDA device; use `cpu`"):
        distributed.start("cuda")
