"""The pages: parsed as HTML, with the points where the data say they are."""

from __future__ import annotations

import itertools
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pocketclip.errors import DataError, PocketclipError
from pocketclip.evaluate.report.comparison import compare
from pocketclip.evaluate.report.latency import published_ms, read_latency
from pocketclip.evaluate.report.page import comparison_page, confusion_page, write_page
from pocketclip.evaluate.report.runs import PUBLISHED, gather
from pocketclip.evaluate.rivals import SHOWN, rivals
from pocketclip.evaluate.tasks import DATACOMP38
from pocketclip.pages.svg import linear_ticks, log_ticks
from tests.evaluate.test_report import timing, write, write_latency

VOID = {"meta", "wbr"}
DERIVED = {"ViT-B-16/openai", "ViT-B-16-SigLIP/webli", "ViT-L-14-quickgelu/dfn2b"}
"""The models of others with a latency on that phone."""
EVIL = "<script>alert('1')</script>"


class Page(HTMLParser):
    """The elements of a page, each with its tag, attributes, ancestors and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text = [], [], text
        self.feed(text)
        self.close()
        assert not self.open, "unclosed elements"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "up": list(self.open), **dict(attrs)}
        assert len(attrs) == len(dict(attrs)), "an attribute twice"
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def find(self, tag, **attributes):
        attributes = {key.rstrip("_"): value for key, value in attributes.items()}
        return [e for e in self.elements if e["tag"] == tag
                and all(e.get(key) == value for key, value in attributes.items())]  # fmt: skip

    def inside(self, above, tag):
        return [e for e in self.elements if e["tag"] == tag and any(u is above for u in e["up"])]


def drawing(page, identity, kind="wide"):
    (chart,) = [svg for svg in page.find("svg", class_=f"chart {kind}")
                if svg["aria-labelledby"].startswith(f"{identity}-")]  # fmt: skip
    return chart


def spots(page, svg):
    """Return the middle of each marker by model, with its data."""
    points = {}
    for group in page.inside(svg, "g"):
        if group.get("class") == "point":
            (mark,) = [e for e in page.elements if group in e["up"] and e["tag"] == "path"]
            x, y = map(float, re.fullmatch(r"translate\((\S+) (\S+)\)", mark["transform"]).groups())
            points[group["data-name"]] = (x, y, float(group["data-x"]), float(group["data-y"]))
    return points


def boxes(page, svg):
    """Return the box of each label by its text and number: two families have a B/16."""
    labels = [e for e in page.inside(svg, "text") if "label " in e.get("class", "")]
    return {f"{e['text']} #{at}": tuple(map(float, e["data-box"].split()))
            for at, e in enumerate(labels)}  # fmt: skip


def check_labels(page, svg, count):
    rectangles = boxes(page, svg)
    assert len(rectangles) == count
    for one, other in itertools.combinations(rectangles, 2):
        a, b = rectangles[one], rectangles[other]
        apart = a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
        assert apart, (one, other)
    _, _, width, height = map(float, svg["viewbox"].split())
    for left, top, right, bottom in rectangles.values():
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height


def check_axes(points):
    """Check that x is linear in the logarithm of the time, and y in the value."""
    xs, ys, ms, values = np.array(list(points.values())).T
    slope, start = np.polyfit(np.log(ms), xs, 1)
    assert slope > 0
    np.testing.assert_allclose(slope * np.log(ms) + start, xs, atol=0.1)
    slope, start = np.polyfit(values, ys, 1)
    assert slope < 0
    np.testing.assert_allclose(slope * values + start, ys, atol=0.1)


@pytest.fixture
def own(tmp_path):
    """Two models of the user's with all 38 tasks, one poor, one of a published architecture."""
    poor = write(tmp_path / "poor" / "results.jsonl", dict.fromkeys(DATACOMP38, 0.2), model="small")
    good = write(tmp_path / "good" / "results.jsonl", dict.fromkeys(DATACOMP38, 0.61),
                 model="mobileclip2-s0")  # fmt: skip
    return [poor, good]


@pytest.fixture
def measured(tmp_path):
    models = {"small": 3.0, "mobileclip2-s0": 20.0, "mobileclip-b": 120.0, "mobileclip-s0": 18.0}
    rows = [timing(model, tower, eager=2 * ms, compiled=ms)
            for model, ms in models.items() for tower in ("image", "text")]  # fmt: skip
    return read_latency(write_latency(tmp_path / "encode.log", rows))


def test_the_published_models_alone():
    page = Page(comparison_page(compare(gather(PUBLISHED))))
    assert "mobileclip-s4 is the best with 68.1 %" in page.find("p")[0]["text"]
    for kind in ("wide", "narrow"):
        svg = drawing(page, "published", kind)
        points = spots(page, svg)
        assert set(points) == {*PUBLISHED, *DERIVED}
        for name, (_, _, ms, value) in points.items():
            if name not in DERIVED:
                assert ms == pytest.approx(published_ms(name))
            assert 55 < value < 70
        check_axes(points)
        check_labels(page, svg, 17)
        assert len(page.inside(svg, "polyline")) == 2
        for line in page.inside(svg, "polyline"):
            corners = [tuple(map(float, c.split(","))) for c in line["points"].split()]
            assert corners == sorted(corners, key=lambda c: (c[0], -c[1]))
            assert len(corners) == {"v1": 8, "v2": 6}[line["class"]]
    assert "38-task average, %" in page.text
    assert "measured here" not in page.text


def test_a_model_of_ones_own_has_no_published_latency(own):
    page = Page(comparison_page(compare(gather([*own, "mobileclip-s0"]))))
    for kind in ("wide", "narrow"):
        svg = drawing(page, "published", kind)
        points = spots(page, svg)
        assert set(points) == {*PUBLISHED, *DERIVED}
        levels = [g for g in page.inside(svg, "g") if g.get("class") == "level"]
        names = ["small", "mobileclip2-s0 (good)"]
        assert [level["data-name"] for level in levels] == names
        slope, start = np.polyfit(
            [s[3] for s in points.values()], [s[1] for s in points.values()], 1
        )
        area = [e for e in page.inside(svg, "line") if e["up"][-1] is svg]
        left = min(float(e["x1"]) for e in area)
        for level, value in zip(levels, (20, 61), strict=True):
            (line,) = [e for e in page.elements if level in e["up"] and e["tag"] == "line"]
            assert line["y1"] == line["y2"]
            assert float(line["y1"]) == pytest.approx(slope * value + start, abs=0.2)
            assert line["class"] == "dash"
            assert float(line["x1"]) == left  # the whole width: it has no place on the x axis
        assert len([b for b in boxes(page, svg) if "no latency on that device" in b]) == 2
        check_labels(page, svg, 19)


def test_what_is_compared_is_filled(own):
    page = Page(comparison_page(compare(gather([own[0], "mobileclip-s0"]))))
    svg = drawing(page, "published")
    filled = []
    for group in (g for g in page.inside(svg, "g") if g.get("class") == "point"):
        (mark,) = [e for e in page.elements if group in e["up"] and e["tag"] != "title"]
        filled += [group["data-name"]] * ("hollow" not in mark["class"])
    assert filled == ["mobileclip-s0"]


def test_models_of_others_stand_beside_mobileclip(own):
    """Parameters and operations: all that is shown, the compared ones filled, nothing covered."""
    names = ["mobileclip2-s4", "siglip-so400m-14", "RN50/openai"]
    page = Page(comparison_page(compare(gather([*names, own[0]]))))
    for against, column in (("parameters", "params_million"), ("operations", "gflop")):
        svg = drawing(page, against)
        points = spots(page, svg)
        assert set(points) == {*PUBLISHED, *SHOWN, "RN50/openai"}
        for name in (*SHOWN, "RN50/openai"):
            assert points[name][2] == pytest.approx(getattr(rivals()[name], column))
            mean = math.fsum(rivals()[name].results.values()) / 38
            assert points[name][3] == pytest.approx(100 * mean, rel=1e-5)
        check_axes(points)
        check_labels(page, svg, len(PUBLISHED) + len(SHOWN) + 2)
        (level,) = [g for g in page.inside(svg, "g") if g.get("class") == "level"]
        assert level["data-name"] == "small"
        hollow = [e for e in page.inside(svg, "path") if "hollow" in e["class"]
                  and e["up"][-1].get("class") == "point"]  # fmt: skip
        assert len(hollow) == len(points) - 3
        assert "size not recorded" in svg["text"]
    captions = [e["text"] for e in page.find("figcaption")]
    assert "because none is published: ViT-SO400M-14-SigLIP/webli, RN50/openai" in captions[0]
    assert not any("Not drawn" in text for text in captions[1:])


def test_measured_latency_has_a_plot_of_its_own(own, measured):
    page = Page(comparison_page(compare(gather([*own, "mobileclip-b"])), measured))
    svg = drawing(page, "measured")
    points = spots(page, svg)
    times = {name: ms for name, (_, _, ms, _) in points.items()}
    assert times == {"small": 6.0, "mobileclip2-s0 (good)": 40.0, "mobileclip-b": 240.0,
                     "mobileclip-s0": 36.0, "mobileclip2-s0": 40.0}  # fmt: skip
    check_axes(points)
    check_labels(page, svg, 5)
    words = svg["text"]
    assert "compiled, 2 threads" in words
    assert "iPhone" not in words
    published = drawing(page, "published")
    assert all(ms == pytest.approx(published_ms(name))
               for name, (_, _, ms, _) in spots(page, published).items()
               if name not in DERIVED)  # fmt: skip
    assert "measured" not in published["text"]


def test_sets_of_ones_own(tmp_path, measured):
    path = write(tmp_path / "r.jsonl", {"shelf": 0.5}, model="small")
    page = Page(comparison_page(compare(gather([path])), measured))
    assert "have no task in common" in page.text
    assert list(spots(page, drawing(page, "measured"))) == ["small"]
    with pytest.raises(DataError, match="measured there"):
        comparison_page(compare(gather(["mobileclip2-l14"])), measured)


def test_what_a_partial_set_is_plotted_by(tmp_path):
    part = write(tmp_path / "p.jsonl", {"cars": 0.5, "imagenet1k": 0.3, "shelf": 1.0})
    page = Page(comparison_page(compare(gather([part, "mobileclip-s0"]))))
    assert "ImageNet top-1, %" in drawing(page, "published")["text"]
    foot = [[e["text"] for e in page.elements if row in e["up"] and e["tag"] in ("th", "td")]
            for row in page.inside(page.find("tfoot")[0], "tr")]  # fmt: skip
    assert foot[1] == ["38-task average", "", "-", "58.1", "-"]
    few = write(tmp_path / "f.jsonl", {"cars": 0.5, "cifar10": 0.3})
    page = Page(comparison_page(compare(gather([few]))))
    svg = drawing(page, "published")
    assert "average over the 2 tasks that all have, %" in svg["text"]
    (level,) = [g for g in page.inside(svg, "g") if g.get("class") == "level"]
    assert float(level["data-y"]) == pytest.approx(40)
    assert "38-task average" not in svg["text"]
    assert "38-task average" not in page.find("tfoot")[0]["text"]


def test_many_models_within_a_point(tmp_path):
    paths = [write(tmp_path / f"run-{i}.jsonl", dict.fromkeys(DATACOMP38, 0.6 + i / 1000))
             for i in range(8)]  # fmt: skip
    page = Page(comparison_page(compare(gather([*paths, *PUBLISHED]))))
    check_labels(page, drawing(page, "published"), 25)
    # On a phone some labels find no room; those that are there still cover nothing.
    narrow = drawing(page, "published", "narrow")
    check_labels(page, narrow, len(boxes(page, narrow)))


def test_tables():
    page = Page(comparison_page(compare(gather(["mobileclip-s0", "mobileclip2-s0"]))))
    assert all(th["scope"] in ("col", "row") for th in page.find("th"))
    tasks = page.find("table")[0]
    head = [th["text"] for th in page.inside(tasks, "th") if th["scope"] == "col"]
    assert head == ["task", "metric", "mobileclip-s0", "mobileclip2-s0", "difference"]
    rows = [[e["text"] for e in page.elements if row in e["up"] and e["tag"] in ("th", "td")]
            for row in page.inside(tasks, "tr")]  # fmt: skip
    assert ["ImageNet 1k", "acc1", "67.8", "71.5", "+3.7"] in rows
    assert ["Camelyon17", "acc1", "73.6", "56.8", "-16.7"] in rows
    assert ["38-task average", "", "58.1", "59.7", "+1.6"] in rows
    bold = {e["text"] for e in page.find("strong")}
    assert "71.5" in bold
    assert "67.8" not in bold


def test_a_page_is_whole_in_itself_and_inert(tmp_path, measured):
    evil = write(tmp_path / "e.jsonl", {"cars": 0.5, '"><img src=x onerror=alert(1)>': 0.5},
                 model=EVIL, about={"identity": "1", "skipped": 2})  # fmt: skip
    measured.times.update({(EVIL, tower): {"compiled": 5.0} for tower in ("image", "text")})
    text = comparison_page(compare(gather([evil, "mobileclip-s0"])), measured)
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "image", "use"} & {
        e["tag"] for e in page.elements
    }
    assert EVIL in page.find("title")[0]["text"]
    assert not any(name.startswith("on") for e in page.elements for name in e)
    assert not any({"href", "src", "xlink:href"} & set(e) for e in page.elements)
    assert not re.search(r"url\(|@import|https?://", text)
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    for svg in page.find("svg", role="img"):
        assert all(name in ids for name in svg["aria-labelledby"].split())
    assert "prefers-color-scheme: dark" in text
    assert page.find("meta", name="viewport")


def test_ticks():
    assert log_ticks(2.2, 97) == [5, 10, 20, 50]
    assert log_ticks(9, 14) == [9, 10]
    assert log_ticks(1, 2000) == [1, 10, 100, 1000]
    for low, high in ((0.2, 0.5), (3, 9), (0.01, 5000), (40, 44)):
        ticks = log_ticks(low, high)
        assert 1 <= len(ticks) <= 11
        assert all(low <= tick <= high for tick in ticks)
        assert ticks == sorted(set(ticks))
    assert linear_ticks(57, 69) == [58, 60, 62, 64, 66, 68]
    assert linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    for low in (0.0, 19.7, 64.2):
        for span in (0.9, 2.0, 13.0, 80.0):
            assert 4 <= len(linear_ticks(low, low + span)) <= 10


def test_one_point(tmp_path):
    path = write(tmp_path / "r.jsonl", {"shelf": 0.0}, model="small")
    rows = [timing("small", tower, eager=1.0) for tower in ("image", "text")]
    latency = read_latency(write_latency(tmp_path / "encode.log", rows))
    page = Page(comparison_page(compare(gather([path])), latency))
    ((x, y, ms, value),) = spots(page, drawing(page, "measured")).values()
    assert (ms, value) == (2.0, 0.0)
    assert math.isfinite(x + y)


def cells(page):
    svg = page.find("svg")[0]
    return {e["text"]: float(e["fill-opacity"]) for e in page.inside(svg, "rect")
            if e.get("class") == "heat"}  # fmt: skip


def test_a_confusion_plot():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 3, 4]])
    page = Page(confusion_page(matrix, ["apple", "milk & cream", EVIL], "small on <b>three</b>"))
    assert page.find("h1")[0]["text"] == "small on <b>three</b>"
    assert "12 of 18 samples in 3 classes were right: 66.7 %. 1 class has" in page.text
    shown = cells(page)
    assert set(shown) == {
        "apple, taken for apple: 8 (80%)", "apple, taken for milk & cream: 2 (20%)",
        f"{EVIL}, taken for apple: 1 (12%)", f"{EVIL}, taken for milk & cream: 3 (38%)",
        f"{EVIL}, taken for {EVIL}: 4 (50%)",
    }  # fmt: skip
    by_share = sorted(shown, key=lambda name: int(re.search(r"\((\d+)%", name)[1]))
    assert [shown[name] for name in by_share] == sorted(shown.values())
    confusions, recalls = page.find("table")
    rows = [[e["text"] for e in page.elements if row in e["up"] and e["tag"] in ("th", "td")]
            for row in page.inside(recalls, "tr")]  # fmt: skip
    assert rows[1:] == [[EVIL, "8", "4", "50.0"], ["apple", "10", "8", "80.0"],
                        ["milk & cream", "0", "0", "-"]]  # fmt: skip
    rows = [[e["text"] for e in page.elements if row in e["up"] and e["tag"] in ("th", "td")]
            for row in page.inside(confusions, "tr")]  # fmt: skip
    assert rows[1] == [EVIL, "milk & cream", "3", "37.5"]
    assert len(rows) == 4
    assert not page.find("script")


@pytest.mark.parametrize("count", [3, 30, 42, pytest.param(81, marks=pytest.mark.slow), 150])
def test_confusion_plots_of_any_size(count):
    rng = np.random.default_rng(count)
    matrix = rng.integers(0, 3, (count, count)) + np.diag(np.full(count, 9))
    matrix[1] = 0
    page = Page(confusion_page(matrix, [f"class {i}" for i in range(count)], "many"))
    svg = page.find("svg")[0]
    drawn = [e for e in page.inside(svg, "rect") if e.get("class") == "heat"]
    assert len(drawn) == np.count_nonzero(matrix)
    words = [e["text"] for e in page.inside(svg, "text")]
    assert words.count("class 2") == (2 if count <= 120 else 0)
    numbers = sum(word.isdecimal() for word in words)
    assert numbers == (np.count_nonzero(matrix) if count <= 30 else 0)
    _, _, width, height = map(float, svg["viewbox"].split())
    assert all(float(e["x"]) + float(e["width"]) <= width for e in drawn)
    assert all(float(e["y"]) + float(e["height"]) <= height for e in drawn)
    assert "1 class has no sample" in page.text
    wrong = np.count_nonzero(matrix) - np.count_nonzero(np.diag(matrix))
    assert len(page.inside(page.find("table")[0], "tr")) == 1 + min(10, wrong)


def test_confusion_plots_without_anything_to_show():
    page = Page(confusion_page(np.zeros((2, 2), np.int64), ["a", "b"], "none"))
    assert "There is no sample" in page.text
    assert "There are none" in page.text
    with pytest.raises(DataError, match=r"\(2, 3\) does not fit 2 classes"):
        confusion_page(np.zeros((2, 3), np.int64), ["a", "b"], "x")
    with pytest.raises(DataError, match="whole numbers"):
        confusion_page(np.eye(2), ["a", "b"], "x")


def test_pages_are_written_whole(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, "<p>\u00e9</p>")
    assert path.read_text("utf-8") == "<p>\u00e9</p>"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(PocketclipError, match="there is no folder"):
        write_page(tmp_path / "no" / "page.html", "")


def test_a_compared_model_is_drawn_over_a_published_one_at_the_same_point():
    page = Page(comparison_page(compare(gather(["mobileclip-s0", "mobileclip2-b"])), None))
    svg = drawing(page, "published")
    order = list(spots(page, svg))
    assert order.index("mobileclip2-b") > order.index("mobileclip-b-lt")  # 65.8 % and 13.7 ms, both
    assert order[-2:] == ["mobileclip-s0", "mobileclip2-b"]
