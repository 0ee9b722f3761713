"""Plans: figures computed by hand, a real set against its prediction, and what is not known."""

from __future__ import annotations

import json

import pytest
import yaml

from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.pairs import open_pairs
from pocketclip.plan import (
    Prices,
    Rates,
    Scale,
    load_recipes,
    make_plan,
    parse_count,
    parse_number,
    parse_rate,
    read_rates,
)
from pocketclip.plan.numbers import show_bytes
from pocketclip.reinforce.job import run
from pocketclip.reinforce.recipe import load_recipe
from tests.cli.inside import run as command
from tests.reinforce.conftest import table  # noqa: F401

PAIRS = 12_000_000
NPZ = 2_000  # bytes at most of an npz beside its numbers: a zip of three members


@pytest.mark.parametrize(
    ("text", "number"),
    [("12M", 12_000_000), ("1.3B", 1_300_000_000), ("12_000_000", 12_000_000), ("35k", 35_000),
     ("1,000", 1000), (" 2 T ", 2 * 10**12)],
)  # fmt: skip
def test_numbers(text, number):
    assert parse_count(text, "--pairs") == number


@pytest.mark.parametrize(
    "text", ["", "M", "twelve", "-3", "0", "1.2.3M", "nan", "inf", "12X", "1e99"]
)
def test_what_is_no_number_is_one_line(text):
    with pytest.raises(ConfigError, match="--pairs") as error:
        parse_number(text, "--pairs")
    assert "\n" not in str(error.value)


def test_a_count_is_whole():
    with pytest.raises(ConfigError, match="not a whole number"):
        parse_count("1.5", "--pairs")
    assert parse_count("1.28B", "--pairs") == 1_280_000_000


def test_bytes_have_three_digits():
    shown = [show_bytes(n) for n in (0.5, 999, 1000, 138_752, 1.78e14, 99_950)]
    assert shown == ["0.500 B", "999 B", "1.00 kB", "139 kB", "178 TB", "100.0 kB"]


def recipe_file(tmp_path, **fields):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def planned(source, *rates, scale=None, prices=None):
    known = Rates([parse_rate(text) for text in rates])
    return make_plan(load_recipes(source), scale or Scale(pairs=PAIRS), known, prices)


def by_name(plan):
    return {line.name: line for line in plan.lines}


@pytest.mark.parametrize(("dtype", "per_number"), [("float32", 4), ("float16", 2)])
def test_embeddings_are_rows_times_width_times_their_bytes(tmp_path, dtype, per_number):
    path = recipe_file(
        tmp_path, teachers=["vit-l14", "vit-b16"], captioners=["coca-vit-l14"], augmentations=10,
        captions=5, dtype=dtype, images=False,
    )  # fmt: skip
    lines = by_name(planned(path))
    rows, width = 10 + 1 + 5, 768 + 512
    raw = rows * width * per_number * PAIRS
    assert raw < lines["embeddings"].amount < raw + NPZ * PAIRS
    assert "image" not in lines


def test_images_are_as_large_as_said(tmp_path):
    path = recipe_file(tmp_path, teachers=["vit-b16"], augmentations=1, dtype="float16")
    lines = by_name(planned(path, scale=Scale(pairs=1000, image_bytes=80_000)))
    assert lines["image"].amount == 80_000 * 1000
    assert "--image-bytes" in lines["image"].assumption
    assert "assumed" in by_name(planned(path))["image"].assumption


@pytest.mark.parametrize(
    "options",
    [{"image_bytes": 1}, {"image_bytes": 10**12}, {"teacher_dims": (10**12,)},
     {"teacher_dims": (0,)}, {"days": float("nan")}, {"days": float("inf")}, {"days": 0}],
)  # fmt: skip
def test_sizes_that_cannot_be_measured_and_deadlines_that_are_none_are_refused(options):
    with pytest.raises(ConfigError, match="not "):
        Scale(pairs=1000, **options)


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1])
def test_prices_are_finite(price):
    with pytest.raises(ConfigError, match="finite"):
        Prices(gpu_hour=price)


def test_hours_actors_and_costs_by_hand():
    plan = planned(
        "datacompdr-12m",
        "teacher_views:vit-l14=2000", "teacher_texts:vit-l14=10000",
        "captioner_tokens:coca-vit-l14=5000",
        scale=Scale(pairs=PAIRS, days=2), prices=Prices(gpu_hour=2.5, storage=0.02),
    )  # fmt: skip
    lines = by_name(plan)
    captions = PAIRS * 5 * 30 / 5000 / 3600
    views = PAIRS * 30 / 2000 / 3600
    texts = PAIRS * 6 / 10_000 / 3600
    total = captions + 2 * views + 2 * texts
    assert lines["views by vit-l14 (teacher 2)"].amount == pytest.approx(views)
    assert lines["reinforcement, all"].amount == pytest.approx(total)
    assert lines["actors for 2 days"].amount == -(-total // 48)
    costs = [line for line in plan.lines if line.topic == "cost"]
    assert costs[0].amount == pytest.approx(total * 2.5)
    assert costs[1].amount == pytest.approx(lines["all shards"].amount / 1e9 * 0.02)
    assert plan.missing == []
    assert any("--egress-price" in text for text in plan.left_out)
    assert all(line.assumption for line in plan.lines)


def test_training_by_hand():
    plan = planned(
        "vit-b16-datacompdr12m", "train_samples:vit-b16=1000", "loader_samples=200",
        scale=Scale(pairs=PAIRS, gpus=16), prices=Prices(egress=0.05),
    )  # fmt: skip
    lines = by_name(plan)
    seen = 30_000 * 8192
    assert lines["samples seen"].amount == seen
    assert lines["training, all"].amount == pytest.approx(seen / 1000 / 3600)
    assert lines["days on 16 GPUs"].amount == pytest.approx(seen / 1000 / 3600 / 16 / 24)
    assert lines["cores to load for 16 GPUs"].amount == pytest.approx(16 * 1000 / 200)
    sample = lines["all shards"].amount / PAIRS
    assert lines["for 16 GPUs"].amount == pytest.approx(16_000 * sample)
    assert lines["read in the run"].amount == pytest.approx(seen * sample)
    assert lines["scan files, per machine"].amount == 8 * PAIRS
    # 149.6 million parameters of ViT-B/16: weights and two moments, four checkpoints.
    assert lines["checkpoints"].amount == pytest.approx(149.6e6 * 12 * 4, rel=1e-3)
    assert "reinforcement, all" in lines  # of the set that data.source names
    (cost,) = [line for line in plan.lines if line.topic == "cost"]
    assert cost.amount == pytest.approx(seen * sample / 1e9 * 0.05)


def test_missing_rates_are_listed_and_their_lines_empty():
    plan = planned("mobileclip-datacompdr1b", "teacher_views:vit-l14=2000")
    lines = by_name(plan)
    assert lines["reinforcement, all"].amount is None
    assert lines["training of mobileclip-s0"].amount is None
    assert "train_samples:mobileclip-s0" in plan.missing
    assert "loader_samples" in plan.missing
    assert lines["for 8 GPUs"].amount is None


def test_a_rate_holds_for_the_same_shapes_only():
    rates = Rates([parse_rate("teacher_views:vit-l14=7")])
    assert rates.find("teacher_views", "vit-l14-quickgelu").per_second == 7
    assert rates.find("teacher_views", "vit-b16") is None
    assert rates.find("teacher_texts", "vit-l14") is None


@pytest.mark.parametrize(
    "text",
    ["teacher_views", "views:vit-l14=3", "teacher_views=3", "loader_samples:vit-l14=3",
     "teacher_views:vit-l14=0", "teacher_views:vit-l14=fast"],
)  # fmt: skip
def test_bad_rates_are_refused(text):
    with pytest.raises(ConfigError, match="--rate"):
        parse_rate(text)


def test_rates_that_nothing_asks_for_are_known():
    rates = Rates([parse_rate("teacher_views:nosuch=5"), parse_rate("teacher_views:vit-l14=5")])
    assert rates.find("teacher_views", "vit-l14") is not None
    assert [one.model for one in rates.unused()] == ["nosuch"]


def test_rates_of_the_gpu_benchmark(tmp_path):
    def variants(**speeds):
        return {name: {"samples_per_s": speed} for name, speed in speeds.items()}

    rows = {
        "train/s0/eager": {"model": "mobileclip2-s0", "variants": variants(reinforced=900.0)},
        "train/s0/compiled": {"model": "mobileclip2-s0", "variants": variants(reinforced=1500.0)},
        "train/b/eager": {"model": "mobileclip-b", "variants": variants(plain=700.0)},
        "train/b/compiled": {"skipped": "the compiler cannot run"},
        "teacher": {"teacher": "random:vit-l14", "variants": variants(teacher=2300.0)},
        "captioner": {"captioner": "coca-vit-l14", "variants": variants(captioner=9000.0)},
        "feed/exact": {"loader_samples_per_s_and_core": 210.0},
        "feed/device": {"loader_samples_per_s_and_core": 800.0},
        "inference/l14/eager": {
            "model": "vit-l14",
            "batches": [{"batch": 256, "variants": variants(image=1.0, text=7000.0)}],
        },
    }
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"benchmark": "gpu", "device": "NVIDIA H100", "rows": rows}))
    rates = Rates(read_rates(path))
    found = {
        (rate.kind, rate.model): rates.find(rate.kind, rate.model).per_second
        for rate in rates.known
    }
    assert found == {
        ("train_samples", "mobileclip2-s0"): 1500.0,
        ("teacher_views", "vit-l14"): 2300.0,
        ("teacher_texts", "vit-l14"): 7000.0,
        ("captioner_tokens", "coca-vit-l14"): 9000.0,
        ("loader_samples", ""): 210.0,
        ("loader_samples_device", ""): 800.0,
    }
    assert "NVIDIA H100" in rates.known[0].source


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "{}", '{"rates": [{}]}', '{"benchmark": "gpu"}',
     '{"rates": [{"kind": "x", "model": "vit-l14", "per_second": 1, "source": "s"}]}',
     '{"rates": [{"kind": "teacher_views", "model": "vit-l14", "per_second": -1, "source": "s"}]}'],
)  # fmt: skip
def test_files_of_something_else_are_refused(tmp_path, content):
    (tmp_path / "rates.json").write_text(content)
    with pytest.raises(ConfigError, match=r"rates\.json") as error:
        read_rates(tmp_path / "rates.json")
    assert "\n" not in str(error.value)


def test_a_teacher_of_unknown_width(tmp_path):
    path = recipe_file(tmp_path, teachers=["transformers:google/siglip"], dtype="float16")
    with pytest.raises(ConfigError, match="--teacher-dims"):
        planned(path)
    scale = Scale(pairs=1000, teacher_dims=(768,))
    assert by_name(planned(path, scale=scale))["embeddings"].amount > 11 * 768 * 2 * 1000
    with pytest.raises(ConfigError, match="2 numbers for 1"):
        planned(path, scale=Scale(pairs=1000, teacher_dims=(768, 2)))


def test_a_real_set_is_as_large_as_planned(table, tmp_path):  # noqa: F811
    """What `reinforce` writes, against the plan of its recipe: each part within a few per cent.

    The views of these images, of 100 pixels, are written with fewer digits than those of
    photographs. A shard ends with at most 10,240 bytes of zeros.
    """
    path = recipe_file(tmp_path, teachers=["random:tiny"], augmentations=4, dtype="float16", seed=3)
    pairs = table(24)
    made = run(open_pairs(str(pairs)), load_recipe(path, device="cpu"), str(tmp_path / "dr")).index
    image = made.parts["image"] // made.samples
    scale = Scale(pairs=made.samples, shard_size=1000, image_bytes=image)
    lines = by_name(planned(path, scale=scale))
    for part, slack in (("embeddings", 0.01), ("augmentations", 0.15), ("image", 0.01)):
        assert lines[part].amount == pytest.approx(made.parts[part], rel=slack), part
    size = (tmp_path / "dr" / made.shards[0].name).stat().st_size
    assert abs(size - lines["all shards"].amount) < 10_240 + 0.05 * size
    like = by_name(planned(path, scale=Scale(pairs=made.samples, like=str(tmp_path / "dr"))))
    assert like["all shards"].amount == pytest.approx(size)
    assert "measured" in like["image"].assumption
    (tmp_path / "dr" / "index.json").unlink()
    again = by_name(planned(path, scale=Scale(pairs=made.samples, like=str(tmp_path / "dr"))))
    assert again["all shards"].amount == pytest.approx(size)
    assert again["embeddings"].amount == like["embeddings"].amount


def test_the_command_line(tmp_path):
    rates = "teacher_views:vit-l14=2000"
    done = command("plan", "datacompdr-12m", "--pairs", "12M", "--rate", rates, "--json")
    assert done.returncode == 0
    content = json.loads(done.stdout)
    assert content["pairs"] == PAIRS
    assert content["missing"]
    done = command("plan", "datacompdr-12m", "--pairs", "12M", "--rate", rates)
    assert done.returncode == 0
    assert "not known" in done.stdout
    assert "captioner_tokens" in done.stderr
    for bad in (
        ("plan", "datacompdr-12m", "--pairs", "many"),
        ("plan", "datacompdr", "--pairs", "12M"),
        ("plan", "datacompdr-12m", "--pairs", "12M", "--rates", str(tmp_path / "absent.json")),
        ("plan", "datacompdr-12m", "--pairs", "12M", "--reinforce", "dfndr-12m"),
    ):
        done = command(*bad)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_a_recipe_is_found_by_what_it_holds(tmp_path):
    path = recipe_file(tmp_path, model={"name": "tiny"}, steps=10, batch_size=4,
                       data={"source": "own"})  # fmt: skip
    recipes = load_recipes(path)
    assert recipes.train is not None
    assert recipes.reinforce is None
    plan = make_plan(recipes, Scale(pairs=100), Rates())
    assert any("--reinforce" in text for text in plan.left_out)
    with pytest.raises(PocketclipError, match="neither a file nor a recipe"):
        load_recipes("nothing-like-it")
