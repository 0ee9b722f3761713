"""Many tasks: planned, resumed, written; the published averages."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from pocketclip import zoo
from pocketclip.errors import ConfigError, DataError, MissingDependencyError, StorageError
from pocketclip.evaluate import (
    DATACOMP38,
    TASKS,
    DataOptions,
    Failure,
    RunOptions,
    Task,
    average_38,
    find,
    find_task,
    own_task,
    plan,
    published_results,
    read_results,
    run,
    run_probe,
)
from pocketclip.evaluate.report.page import confusion_page, write_page
from tests.evaluate.dummy import COLOURS, ColourEncoder
from tests.evaluate.sets import captioned, colour_photo, labelled, write_folder, write_wds

NAMES = list(COLOURS)
OPTIONS = RunOptions(cache=None)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "sets"
    examples = [labelled(colour_photo(COLOURS[NAMES[i]]), i if i != 2 else 0) for i in range(6)]
    write_wds(folder, "cifar10", examples, NAMES, ["{c}"])
    write_wds(folder, "vtab/dtd", examples[:2], NAMES, ["a {c} wall"])
    pairs = [captioned(colour_photo(rgb), [name]) for name, rgb in COLOURS.items()]
    write_wds(folder, "longclip/urban1k", pairs)
    return folder


@pytest.mark.parametrize("model", sorted(published_results()))
def test_published_averages(model):
    """The 38 main metrics average to the published figure, which is rounded to 0.1."""
    values = {key: m.get("main_metric") for key, m in published_results()[model].items()}
    published = zoo.entry(model).published
    assert 100 * average_38(values) == pytest.approx(published.average38, abs=0.06)
    assert 100 * values["imagenet1k"] == pytest.approx(published.imagenet1k, abs=0.06)


def test_the_published_averages_are_those_of_the_papers():
    averages = {
        name: average_38({k: m.get("main_metric") for k, m in published_results()[name].items()})
        for name in ("mobileclip-s0", "mobileclip2-s4")
    }
    assert 100 * averages["mobileclip-s0"] == pytest.approx(58.1, abs=0.06)
    assert 100 * averages["mobileclip2-s4"] == pytest.approx(67.5, abs=0.06)


def test_the_table_of_tasks():
    assert (len(TASKS), len(DATACOMP38)) == (50, 38)
    for model, tasks in published_results().items():
        for key, metrics in tasks.items():
            main = TASKS[key].main_metric
            if main is None:
                assert "main_metric" not in metrics
            else:
                assert metrics[main] == pytest.approx(metrics["main_metric"], abs=2e-6), (
                    model,
                    key,
                )


def test_37_tasks_have_no_average():
    values = dict.fromkeys(DATACOMP38, 0.5)
    assert average_38(values) == 0.5
    assert average_38(values | {"mnist": None}) is None
    del values["mnist"]
    assert average_38(values) is None


def test_tasks_are_found_by_several_names():
    assert find_task("cifar100") is find_task(" VTAB/cifar100") is TASKS["vtab/cifar100"]
    assert find_task("mscoco").main_metric == "mean_recall@1"
    with pytest.raises(ConfigError, match=r"'cifra10'.*near it: cifar10"):
        find_task("cifra10")


def test_results_stand_in_the_published_form(root, tmp_path):
    out = tmp_path / "results.jsonl"
    planned = plan(["cifar10", "urban1k", "dtd"], str(root))
    assert not planned.missing
    results = list(run(ColourEncoder(), planned.ready, out=str(out), about={"model": "x"},
                       options=OPTIONS))  # fmt: skip
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["cifar10", "longclip/urban1k", "vtab/dtd"]
    assert [line["dataset"] for line in lines] == ["CIFAR-10", "urban1k", "Describable Textures"]
    assert lines[0]["metrics"] == {
        "acc1": 5 / 6, "acc5": lines[0]["metrics"]["acc5"],
        "mean_per_class_recall": pytest.approx((1 / 2 + 4) / 5), "main_metric": 5 / 6,
    }  # fmt: skip
    assert lines[0]["pocketclip"]["space_id"] == "space-colours"
    assert read_results(out) == results


def test_a_run_goes_on_where_it_was_interrupted(root, tmp_path):
    out = str(tmp_path / "deep" / "results.jsonl")
    planned = plan(["cifar10", "urban1k", "dtd"], str(root))
    first = run(ColourEncoder(), planned.ready, out=out, options=OPTIONS)
    next(first)
    next(first)
    first.close()  # Ctrl-C
    assert [result.key for result in read_results(out)] == ["cifar10", "longclip/urban1k"]
    encoder = ColourEncoder()
    done = list(run(encoder, planned.ready, out=out, options=OPTIONS))
    assert encoder.images == 2  # those of dtd alone
    fresh = list(run(ColourEncoder(), planned.ready, options=OPTIONS))
    assert [r.metrics for r in done] == [r.metrics for r in fresh]
    assert len(read_results(out)) == 3


def test_other_data_or_prompts_are_evaluated_anew(root, tmp_path):
    out = str(tmp_path / "results.jsonl")
    list(run(ColourEncoder(), plan(["cifar10"], str(root)).ready, out=out, options=OPTIONS))
    prompts = DataOptions(templates=("some {}",))
    encoder = ColourEncoder()
    list(run(encoder, plan(["cifar10"], str(root), prompts).ready, out=out, options=OPTIONS))
    assert encoder.images == 6
    assert len(read_results(out)) == 1


def test_another_space_is_refused_naming_file_and_line(root, tmp_path):
    out = str(tmp_path / "results.jsonl")
    ready = plan(["cifar10", "dtd"], str(root)).ready
    list(run(ColourEncoder(), ready, out=out, options=OPTIONS))
    before = read_results(out)
    with pytest.raises(DataError, match=r"results.jsonl line 1 \(cifar10\) is of embedding space "
                                        r"space-colours, this model of other"):  # fmt: skip
        list(run(ColourEncoder(space_id="other"), ready, out=out, options=OPTIONS))
    assert read_results(out) == before


def test_a_task_that_fails_does_not_stop_the_others(root, tmp_path):
    broken = root / "wds_vtab-dtd_test" / "test" / "0.tar"
    broken.write_bytes(broken.read_bytes()[:700])
    out = str(tmp_path / "results.jsonl")
    results = list(run(ColourEncoder(), plan(["dtd", "cifar10"], str(root)).ready, out=out,
                     options=OPTIONS))  # fmt: skip
    assert isinstance(results[0], Failure)
    assert "0.tar" in results[0].reason
    assert results[1].key == "cifar10"
    assert [result.key for result in read_results(out)] == ["cifar10"]


def test_a_file_that_is_gone_fails_its_task_only(root, tmp_path):
    ready = plan(["dtd", "cifar10"], str(root)).ready
    (root / "wds_vtab-dtd_test" / "test" / "0.tar").unlink()
    results = list(run(ColourEncoder(), ready, out=str(tmp_path / "r.jsonl"), options=OPTIONS))
    assert isinstance(results[0], Failure)
    assert "0.tar" in results[0].reason
    assert results[1].key == "cifar10"


def test_what_is_missing_is_named_with_where_it_was_looked_for(root):
    planned = plan(["cifar10", "mnist", "my-shelf", "imagnet1k"], str(root))
    assert [task.key for task, _ in planned.ready] == ["cifar10"]
    assert f"{root}/wds_mnist_test" in planned.missing["mnist"]
    assert f"{root}/my-shelf.csv" in planned.missing["my-shelf"]
    assert "near it: imagenet1k" in planned.missing["imagnet1k"]
    assert "published tables" not in planned.missing["my-shelf"]  # nothing is near it
    with pytest.raises(ConfigError, match="given twice"):
        plan(["cifar100", "vtab/cifar100"], str(root))


def test_a_set_that_is_there_but_damaged_is_not_taken_for_a_misspelt_task(tmp_path):
    (tmp_path / "cifra10.csv").write_text("image,label\na.jpg,0\n")
    (reason,) = plan(["cifra10"], str(tmp_path)).missing.values()
    assert "are numbers" in reason
    assert "published tables" not in reason


def test_a_name_that_is_near_is_given_once():
    with pytest.raises(ConfigError, match=r"near it: ") as caught:
        find_task("pairs")
    near = str(caught.value).partition("near it: ")[2].split(", ")
    assert len(near) == len(set(near))


def test_results_that_cannot_be_written_are_known_before_any_work(root, tmp_path):
    (tmp_path / "file").write_text("x")

    class Unused(ColourEncoder):
        def encode_image(self, _images):
            raise AssertionError("nothing is encoded")

    ready = plan(["cifar10"], str(root)).ready
    for out in (tmp_path / "file" / "results.jsonl", tmp_path):
        with pytest.raises(StorageError):
            next(run(Unused(), ready, out=str(out), options=OPTIONS))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", r"line 1 is not JSON"),
        ("[1]", r"line 1 should be an object with 'key', not a list"),
        ('{"key": "a"}', r"line 1 \(a\).*metrics"),
        (
            '{"key": "a", "metrics": {"acc1": "high"}}',
            r"line 1 \(a\): acc1 should be a number, not the text 'high'",
        ),
        ('{"key": "a", "metrics": {"acc1": Infinity}}', r"acc1 should be a number, not inf"),
        (
            '{"key": "a", "metrics": {}}\n\n{"key": "a", "metrics": {}}',
            r"line 3: a is already in line 1",
        ),
        ("\n", "holds no results"),
        (
            '{"key": "a", "metrics": {}, "pocketclip": {"space_id": "s"}}\n'
            '{"key": "b", "metrics": {}, "pocketclip": {"space_id": "t"}}',
            r"line 2 \(b\) is of embedding space t, and line 1 of s",
        ),
    ],
    ids=["json", "list", "no-metrics", "text", "infinite", "twice", "empty", "spaces"],
)
def test_files_that_are_no_results(tmp_path, text, why):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=why):
        read_results(path)


def test_published_files_are_read(tmp_path):
    path = tmp_path / "published.jsonl"
    metrics = {"acc1": 0.5, "acc5": None, "acc_slide:0": math.nan, "main_metric": 0.5}
    path.write_text(json.dumps({"key": "a", "dataset": "A", "metrics": metrics}))
    (result,) = read_results(path)
    assert result.metrics == {"acc1": 0.5, "acc5": None, "acc_slide:0": None, "main_metric": 0.5}
    assert result.about == {}
    ready = [(Task(key="b", dataset="b"), None)]
    with pytest.raises(DataError, match="of an unknown embedding space"):
        list(run(ColourEncoder(), ready, out=str(path)))


def test_probes_learn_what_the_classes_are(tmp_path):
    rng = np.random.default_rng(0)

    def shots(count):
        shade = lambda rgb: np.clip(np.array(rgb) + rng.integers(-40, 40, 3), 0, 255).tolist()  # noqa: E731
        return {f"class-{n}": [colour_photo(shade(rgb)) for _ in range(count)]
                for n, rgb in COLOURS.items()}  # fmt: skip

    write_folder(tmp_path, "shelf", shots(8), "train")
    write_folder(tmp_path, "shelf", {k: v for k, v in shots(3).items() if "red" not in k}, "test")
    task = Task(key="shelf", dataset="shelf")
    options = DataOptions()
    test = find(task, str(tmp_path), options)
    train = find(task, str(tmp_path), replace(options, split="train"))
    metrics, samples = run_probe(ColourEncoder(), test, train, ["knn"], OPTIONS)
    assert samples == 48
    assert metrics["knn_acc1"] == 1  # though the classes of the two splits are numbered otherwise
    with pytest.raises(ConfigError, match="no probe 'svm'"):
        run_probe(ColourEncoder(), test, train, ["svm"], OPTIONS)


def test_classes_of_one_name_are_two_classes_for_a_probe(tmp_path):
    """ImageNet has two cranes: what is learnt of one is not said of the other."""
    rgb = {0: COLOURS["red"], 1: COLOURS["green"]}
    for split in ("train", "test"):
        shots = [labelled(colour_photo(rgb[i % 2]), i % 2) for i in range(6)]
        shots[0] = labelled(colour_photo(rgb[0]), 1) if split == "test" else shots[0]
        write_wds(tmp_path, "own", shots, ["crane", "crane"], split=split)
    task = Task(key="own", dataset="own")
    test, train = (find(task, str(tmp_path), DataOptions(split=s)) for s in ("test", "train"))
    metrics, _ = run_probe(ColourEncoder(), test, train, ["knn"], OPTIONS)
    assert metrics["knn_acc1"] == 5 / 6  # as one class it would be 1
    other = replace(train, classes=["crane", "machine"])
    with pytest.raises(DataError, match="two classes are called 'crane', and the lists"):
        run_probe(ColourEncoder(), test, other, ["knn"], OPTIONS)
    with pytest.raises(DataError, match="have no class name in common"):
        run_probe(ColourEncoder(), replace(test, classes=["a", "b"]), other, ["knn"], OPTIONS)


def test_another_own_dataset_does_not_replace_a_result(tmp_path):
    out = str(tmp_path / "r.jsonl")
    for shelf in ("a", "b"):
        for number, folder in enumerate(("shelf", "cifar10")):
            shots = {n: [colour_photo(rgb)] * (1 + number) for n, rgb in COLOURS.items()}
            write_folder(tmp_path / shelf, folder, shots | {shelf: [colour_photo((9, 9, 9))]})

    def evaluated(shelf, name=None):
        root = str(tmp_path / shelf)
        ready = plan([name or own_task(root)], root).ready
        return list(run(ColourEncoder(), ready, out=out, options=OPTIONS))

    (first,) = evaluated("a/shelf")
    (refused,) = evaluated("b/shelf")
    assert isinstance(refused, Failure)
    assert f"r.jsonl holds the result of another set with this name, {tmp_path}/a/shelf/test" in (
        refused.reason
    )
    assert read_results(out) == [first]
    (named,) = evaluated("b/shelf", "other shelf")
    assert [r.key for r in read_results(out)] == ["shelf", "other shelf"]
    (tmp_path / "a" / "shelf" / "test" / "red" / "9.png").write_bytes(colour_photo((250, 9, 9)))
    (changed,) = evaluated("a/shelf")  # the same set, which has changed
    assert changed.about["samples"] == first.about["samples"] + 1
    (own,) = evaluated("a/cifar10")
    (published,) = evaluated("a", "cifar10")
    assert [own.key, published.key] == ["own/cifar10", "cifar10"]
    assert read_results(out) == [changed, named, own, published]


def test_results_that_another_process_adds_are_kept(root, tmp_path):
    out = str(tmp_path / "r.jsonl")
    one = run(ColourEncoder(), plan(["cifar10", "dtd"], str(root)).ready, out=out, options=OPTIONS)
    next(one)
    list(run(ColourEncoder(), plan(["urban1k"], str(root)).ready, out=out, options=OPTIONS))
    list(one)
    assert {r.key for r in read_results(out)} == {"cifar10", "longclip/urban1k", "vtab/dtd"}


def test_whatever_a_task_fails_by_the_others_go_on(root):
    class Limited(ColourEncoder):
        def encode_text(self, texts):
            if any("wall" in text for text in texts):
                raise MissingDependencyError("this tower needs more")
            return super().encode_text(texts)

    ready = plan(["dtd", "cifar10"], str(root)).ready
    failed, done = run(Limited(), ready, options=OPTIONS)
    assert (failed.key, failed.reason) == ("vtab/dtd", "this tower needs more")
    assert done.key == "cifar10"


def test_names_that_are_not_utf_8_in_results(tmp_path):
    root = tmp_path / "caf\udce9"
    write_folder(root, "", {"red \udcff": [colour_photo(COLOURS["red"])]})
    out = str(root / "r.jsonl")
    ready = plan([own_task(str(root))], str(root)).ready
    (result,) = run(ColourEncoder(), ready, out=out, about={"source": "m\udce9"}, options=OPTIONS)
    assert read_results(out) == [result]
    line = json.loads((root / "r.jsonl").read_bytes())
    assert json.dumps(line, ensure_ascii=False).encode()  # also for parsers that are strict
    assert line["key"] == "caf\\udce9"
    (again,) = run(ColourEncoder(), ready, out=out, options=OPTIONS)
    assert again == result  # found again
    page = confusion_page(np.eye(1, dtype=np.int64), ready[0][1].classes, str(root))
    write_page(root / "page.html", page)
    assert "red" in (root / "page.html").read_text("utf-8")


def test_results_of_another_export_are_not_gone_on_with(root, tmp_path):
    """A quantised form has its model's space, but results of its own."""
    out = str(tmp_path / "results.jsonl")
    model, small, other = ColourEncoder(), ColourEncoder(), ColourEncoder()
    small.variant, other.variant = "onnx int8 01234567", "onnx int8 89abcdef"
    ready = plan(["cifar10"], str(root)).ready
    (result,) = run(small, ready, out=out, options=OPTIONS)
    assert result.about["form"] == small.variant
    (again,) = run(small, ready, out=out, options=OPTIONS)
    assert again == read_results(out)[0]
    for encoder, name in ((model, "the model itself"), (other, "its export onnx int8 89abcdef")):
        with pytest.raises(DataError, match=f"export onnx int8 01234567, and this is {name}"):
            list(run(encoder, ready, out=out, options=OPTIONS))
    (plain,) = run(model, ready, out=str(tmp_path / "model.jsonl"), options=OPTIONS)
    assert "form" not in plain.about
