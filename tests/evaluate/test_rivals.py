"""Models of others: their table, their names, and what the README says of them."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path

import pytest

from pocketclip import zoo
from pocketclip.checkpoint.operations import measure
from pocketclip.errors import UnknownModelError
from pocketclip.evaluate import average_38, published_results
from pocketclip.evaluate.rivals import SHOWN, find_rival, rivals, similar_rivals, zoo_name
from pocketclip.evaluate.tasks import DATACOMP38

SHARED = Path(__file__).parents[3] / "shared" / "data" / "published" / "rivals.csv"


def test_the_table_is_whole():
    assert len(rivals()) == 121
    for rival in rivals().values():
        assert tuple(rival.results) == DATACOMP38
        assert all(0 <= value <= 1 for value in rival.results.values())
        assert 100 < rival.params_million < 5100
        assert 14 < rival.gflop < 2400
    means = [math.fsum(rival.results.values()) for rival in rivals().values()]
    assert means == sorted(means, reverse=True)
    families = Counter(rival.family for rival in rivals().values())
    assert families == {"other": 82, "openai": 12, "siglip": 9, "datacomp": 7, "metaclip": 7,
                        "dfn": 4}  # fmt: skip
    assert {rivals()[name].family for name in SHOWN} == {*families} - {"other"}


def test_the_table_is_the_published_one():
    if not SHARED.is_file():
        pytest.skip("../shared/data/published/rivals.csv is not here")
    with SHARED.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 121 * 38
    for row in rows:
        rival = rivals()[row["model"]]
        assert rival.results[row["task"]] == float(row["main_metric"])
        assert (rival.params_million, rival.gflop) == (
            float(row["params_million"]), float(row["gflops"]),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("siglip-so400m-14", "ViT-SO400M-14-SigLIP/webli"),
        ("SigLIP SO400M/14@384", "ViT-SO400M-14-SigLIP-384/webli"),
        ("vit-so400m-14-siglip", "ViT-SO400M-14-SigLIP/webli"),
        ("google/siglip-so400m-patch14-384", "ViT-SO400M-14-SigLIP-384/webli"),
        ("openai/clip-vit-base-patch16", "ViT-B-16/openai"),
        ("OpenAI ViT-L/14@336px", "ViT-L-14-336/openai"),
        ("dfn-vit-l-14", "ViT-L-14-quickgelu/dfn2b"),
        ("vitb16-datacomp-xl", "ViT-B-16/datacomp_xl_s13b_b90k"),
        ("laion vit-h-14", "ViT-H-14/laion2b_s32b_b79k"),
        ("metaclip-h14", "ViT-H-14-quickgelu/metaclip_fullcc"),
        ("vit_b_16/openai", "ViT-B-16/openai"),
        ("vit-b16", "ViT-B-16/datacomp_xl_s13b_b90k"),
        ("apple/DFN5B-CLIP-ViT-H-14", "ViT-H-14-quickgelu/dfn5b"),
        ("coca-vit-l14", None),  # the zoo's has other weights than open_clip's
        ("mobileclip2-s9", None),
        ("runs/small", None),
        ("small", None),
        ("", None),
    ],
)
def test_names(given, meant):
    found = find_rival(given)
    assert (found and found.name) == meant


def test_every_name_means_itself():
    for name, rival in rivals().items():
        assert find_rival(name) is rival


def test_names_that_are_not_enough():
    with pytest.raises(
        UnknownModelError, match=r"'datacomp-vit-b-16' may mean ViT-B-16/datacomp_xl"
    ):
        find_rival("datacomp-vit-b-16")

    assert similar_rivals("ViT-B-16-openia")[0] == "ViT-B-16/openai"
    assert similar_rivals("siglip2-so400m-14")[0].startswith("ViT-SO400M-14-SigLIP")
    assert similar_rivals("nonsense") == []


def test_rivals_that_are_in_the_zoo():
    of_zoo = {name: zoo_name(rival) for name, rival in rivals().items() if zoo_name(rival)}
    assert of_zoo["ViT-L-14-quickgelu/dfn2b"] == "vit-l14-quickgelu"
    assert all(find_rival(entry).name == name for name, entry in of_zoo.items())


def test_our_count_of_parameters_and_operations_is_open_clips():
    compared = 0
    for rival in rivals().values():
        name = zoo_name(rival)
        if name is not None and not zoo.entry(name).config.is_captioner:
            size = measure(zoo.entry(name).config)
            assert (round(size.params_million, 2), round(size.gflop, 2)) == (
                rival.params_million, rival.gflop,
            ), name  # fmt: skip
            compared += 1
    assert compared >= 4


# What the README of MobileCLIP says, recomputed from the tables. Each line: the metric, our model
# with its generation and value, the rival and its value, in percent, and how many times more
# parameters the rival has, where that is part of the statement.
STATEMENTS = [
    ("imagenet1k", "mobileclip2-s4", 81.9, "ViT-SO400M-14-SigLIP/webli", 82.0, 2.0),
    ("imagenet1k", "mobileclip-b-lt", 77.2, "ViT-L-14-336/openai", 76.6, None),
    ("imagenet1k", "mobileclip-b-lt", 77.2, "ViT-B-16/dfn2b", 76.2, None),
    ("imagenet1k", "mobileclip-b-lt", 77.2, "ViT-B-16-SigLIP/webli", 76.0, None),
    ("imagenet1k", "mobileclip2-s4", 81.9, "ViT-L-14-quickgelu/dfn2b", 81.4, None),
    ("38 tasks", "mobileclip2-s4", 67.5, "ViT-L-14-quickgelu/dfn2b", 66.9, None),
    ("38 tasks", "mobileclip2-s4", 67.5, "ViT-SO400M-14-SigLIP/webli", 68.1, None),
    ("38 tasks", "mobileclip-s2", 63.7, "ViT-B-16-SigLIP/webli", 62.3, 2.1),
    ("38 tasks", "mobileclip-s0", 58.1, "ViT-B-16/openai", 56.3, 2.8),
    ("38 tasks", "mobileclip-b", 65.2, "ViT-B-16-SigLIP/webli", 62.3, None),
]


def value(results, metric):
    return results["imagenet1k"] if metric == "imagenet1k" else average_38(dict(results))


@pytest.mark.parametrize(("metric", "ours", "percent", "theirs", "other", "times"), STATEMENTS)
def test_the_statements_of_the_readme(metric, ours, percent, theirs, other, times):
    published = {key: m.get("main_metric") for key, m in published_results()[ours].items()}
    assert round(100 * value(published, metric), 1) == pytest.approx(percent, abs=0.051)
    assert round(100 * value(rivals()[theirs].results, metric), 1) == other
    if times is not None:
        facts = zoo.entry(ours).published
        size = facts.image_params_million + facts.text_params_million
        assert rivals()[theirs].params_million / size == pytest.approx(times, abs=0.051)


def test_what_the_readme_says_of_its_own_models():
    top1 = {name: round(100 * m["imagenet1k"]["main_metric"], 1)
            for name, m in published_results().items()}  # fmt: skip
    assert top1["mobileclip2-b"] - top1["mobileclip-b-lt"] == pytest.approx(2.2)
    assert top1["mobileclip2-b"] - top1["mobileclip-b"] == pytest.approx(2.6)


def test_what_the_readme_does_not_say():
    """On ImageNet, S2 is below SigLIP's ViT-B/16 and S0 below OpenAI's: the averages are higher."""
    for ours, theirs, least in (("mobileclip-s2", "ViT-B-16-SigLIP/webli", 0.01),
                                ("mobileclip-s0", "ViT-B-16/openai", 0.003)):  # fmt: skip
        own = published_results()[ours]["imagenet1k"]["main_metric"]
        assert own < rivals()[theirs].results["imagenet1k"] - least


def test_latency_of_others_is_derived():
    known = {name: rival.derived_latency for name, rival in rivals().items()
             if rival.derived_latency}  # fmt: skip
    assert {name: round(ms, 2) for name, (ms, _) in known.items()} == {
        "ViT-B-16/openai": 14.88, "ViT-B-16-SigLIP/webli": 15.87, "ViT-L-14-quickgelu/dfn2b": 65.5,
    }  # fmt: skip
    assert all(how.startswith("derived: published as ") for _, how in known.values())
