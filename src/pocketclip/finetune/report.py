"""The report of a fine-tuning: one HTML page that holds everything, thumbnails too.

    page = finetune_page(result)                       # `result.json`, as described below
    result["classes"] = class_scores(before, after, truth, classes, counts)
    result["doubts"] = doubts(probabilities, truth, classes, names, images)
    result["confusions"] = confusions(after, truth, classes)

Scores are shares from 0 to 1. Fields of `result`; those with a star are needed:

| field | holds |
|---|---|
| `model` *, `data` *, `out` * | the start, the images and the folder, as the user named them |
| `task` * | `labels`, `captions` or `none` |
| `metric` * | name of the validation score |
| `retention` * | `name` of the retention score, and the `least` that must be kept |
| `candidates` * | what was compared: `name`, `validation`, `retention`, `chosen`, `test`, `note` |
| `line` | points between start and end: `a`, `validation`, `retention` |
| `chosen` | `a` of the point that became `model/` |
| `verdict` | one sentence: what `model/` is, and why |
| `warnings` | sentences |
| `counts` | `train`, `validation`, `classes`, `left_out`, ...: whole numbers |
| `classes` | per class `name`, `train`, `count` (validated), `before`, `after` (None: none) |
| `doubts` | `name`, `label`, `says`, `probability`, `label_probability`, `thumbnail` |
| `confusions` | `label`, `taken_for`, `count`, `share` of the label's images |
| `training` | plain values by name; without it `settings` is shown |
| `seconds` | by step |
| `next` | commands |

Shapes: N images, L classes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ImageError
from pocketclip.evaluate.metrics.counts import most_confused
from pocketclip.images import open_image
from pocketclip.pages.render import data_uri, element, render
from pocketclip.pages.svg import NARROW, WIDE, Chart, Drawing, Mark, Series

_DOUBTS, _CONFUSIONS = 12, 10
_THUMBNAIL = 160  # pixels of the longer side
_LONG = 200  # characters of a name on the page


def finetune_page(result: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        result: see the module; fields that the page does not know are ignored.
    """
    settings = result.get("training") or result.get("settings", {})
    return render(
        "finetune.html",
        "pocketclip.finetune",
        title=f"pocketclip finetune: {result['model']} on {result['data']}",
        result=result,
        verdict=result.get("verdict", ""),
        warnings=result.get("warnings", ()),
        counts={name: value for name, value in result.get("counts", {}).items()
                if name in ("train", "validation") or (value and name != "rows")},
        candidates=_candidates(result),
        curve=_curve(result),
        classes=_classes(result.get("classes", ())),
        doubts=[_card(doubt) for doubt in result.get("doubts", ())[:_DOUBTS]],
        confusions=[
            [_cut(row["label"]), _cut(row["taken_for"]), row["count"], _percent(row["share"])]
            for row in result.get("confusions", ())
        ],
        settings=[[name, _value(value)] for name, value in settings.items()],
        seconds=[[name, f"{value:,.1f}"] for name, value in result.get("seconds", {}).items()],
        commands=result.get("next", ()),
    )  # fmt: skip


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _kept(share: float) -> str:
    # Rounded down: what is shown as enough is enough.
    return f"{math.floor(1000 * share + 1e-6) / 10:.1f}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = [_tried(one) if isinstance(one, Mapping) else one for one in value]
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _tried(trial: Mapping[str, Any]) -> str:
    """Return what a trial of a learning rate came to; see `rates.Trial`."""
    if trial["validation"] is None:
        return f"{trial['rate']:g}: diverged"
    return (
        f"{trial['rate']:g}: {_percent(trial['validation'])} % ({_kept(trial['retention'])} % kept)"
    )


def _candidates(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return head and rows of the table of what was compared."""
    rows = result["candidates"]
    scores = {"validation": "validation, %", "test": "test, %", "retention": "kept, %"}
    if all(row.get("test") is None for row in rows):
        del scores["test"]
    noted = any(row.get("note") for row in rows)
    out = []
    for row in rows:
        name = element("b", row["name"]) if row.get("chosen") else row["name"]
        note = [row.get("note", "")] if noted else []
        shown = [
            _kept(row[key]) if key == "retention" else _percent(row.get(key)) for key in scores
        ]
        out.append([name, *shown, *note])
    return ["", *scores.values(), *([""] if noted else [])], out


def _curve(result: Mapping[str, Any]) -> list[Drawing]:
    """Return both scores along the line, in both sizes; nothing without a line."""
    points = result.get("line", ())
    if len(points) < 2:
        return []
    least, best = result["retention"]["least"], result.get("chosen", {}).get("a")
    marks = []
    for point in points:
        at = 100 * point["a"]
        is_chosen = best is not None and abs(point["a"] - best) < 1e-9
        for key, name in (("validation", result["metric"]), ("retention", "kept")):
            series: Series = "v1" if key == "validation" else "v2"
            score = 100 * point[key]
            label = f"chosen: {score:.1f} %" if is_chosen and key == "validation" else ""
            marks.append(
                Mark(
                    name=f"{key} {at:g}", x=at, y=score, series=series, label=label,
                    tooltip=f"{name} {score:.1f} % at {at:g} % of the way",
                    filled=is_chosen,
                )
            )  # fmt: skip
    limit = f"to be kept: {100 * least:.4g} %"
    marks.append(Mark(name="limit", x=None, y=100 * least, label=limit, tooltip=limit))
    chart = Chart(
        name="line",
        title="Scores of the models between start and end",
        description="; ".join(mark.tooltip for mark in marks),
        x_label="% of the way from start to end",
        y_label="%",
        x_scale="linear",
        marks=marks,
        joined=("v1", "v2"),
        legend={"v1": result["metric"], "v2": "kept of what the start knew"},
        hollow="not chosen",
    )
    return [Drawing(chart, size) for size in (WIDE, NARROW)]


def _classes(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the classes' table, the lowest first, those without images last."""
    ordered = sorted(rows, key=lambda row: 2.0 if row["after"] is None else row["after"])
    out = []
    for row in ordered:
        before, after = row["before"], row["after"]
        change = "-" if before is None or after is None else f"{100 * (after - before):+.1f}"
        counts = [f"{row['train']:,}", f"{row['count']:,}"]
        out.append([_cut(row["name"]), *counts, _percent(before), _percent(after), change])
    return out


def _card(doubt: Mapping[str, Any]) -> dict[str, Any]:
    thumbnail = doubt.get("thumbnail") or ""
    return {
        "name": _cut(doubt["name"]),
        "label": _cut(doubt["label"]),
        "says": _cut(doubt["says"]),
        "probability": _percent(doubt["probability"]),
        "label_probability": _percent(doubt["label_probability"]),
        # Nothing but a picture: the page must not fetch anything.
        "thumbnail": thumbnail if thumbnail.startswith("data:image/") else "",
    }


def class_scores(
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    truth: NDArray[np.int64],
    classes: Sequence[str],
    train_counts: Sequence[int],
) -> list[dict[str, Any]]:
    """Return the accuracy per class of two models, in the order of `classes`.

    Args:
        before: (N,) classes that the start predicts for the validation images.
        after: (N,) classes that the chosen model predicts.
        truth: (N,) classes that they have.
        classes: L names.
        train_counts: training images per class (L,).
    """
    out = []
    for number, name in enumerate(classes):
        own = truth == number
        count = int(own.sum())
        scores = [float((p[own] == number).mean()) if count else None for p in (before, after)]
        train = int(train_counts[number])
        if count or train:
            out.append({"name": name, "train": train, "count": count, "before": scores[0],
                        "after": scores[1]})  # fmt: skip
    return out


def confusions(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the up to ten most frequent wrong predictions.

    Args:
        predicted: (N,) classes.
        truth: (N,) classes.
        classes: L names.
    """
    sizes = np.bincount(truth, minlength=len(classes))
    return [
        {"label": classes[t], "taken_for": classes[p], "count": count,
         "share": float(count / sizes[t])}
        for t, p, count in most_confused(truth, predicted, _CONFUSIONS)
    ]  # fmt: skip


def doubts(
    probabilities: NDArray[Any],
    truth: NDArray[np.int64],
    classes: Sequence[str],
    names: Sequence[str],
    images: Sequence[bytes | str],
) -> list[dict[str, Any]]:
    """Return the up to twelve images whose label the model doubts most, with thumbnails.

    The doubt is the probability of the class that the model says minus that of the label (the
    normalised margin of confident learning, arXiv 1911.00068, section 3.2); images whose label it
    agrees with are left out.

    Args:
        probabilities: (N, L), of each class.
        truth: (N,) classes of the labels.
        classes: L names.
        names: N names of the images.
        images: N encoded files or paths; one that cannot be read has no thumbnail.
    """
    rows = np.arange(len(truth))
    said = np.argmax(probabilities, axis=1) if len(truth) else rows
    margin = probabilities[rows, said] - probabilities[rows, truth]
    order = [i for i in np.argsort(-margin, kind="stable").tolist() if said[i] != truth[i]]
    return [
        {"name": names[i], "label": classes[truth[i]], "says": classes[said[i]],
         "probability": float(probabilities[i, said[i]]),
         "label_probability": float(probabilities[i, truth[i]]),
         "thumbnail": _thumbnail(images[i])}
        for i in order[:_DOUBTS]
    ]  # fmt: skip


def _thumbnail(image: bytes | str) -> str:
    try:
        picture = open_image(image)
    except ImageError:
        return ""
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return data_uri(data.getvalue())
