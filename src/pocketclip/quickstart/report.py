"""The report of a quickstart: one HTML page that holds everything, pictures too.

Every figure comes from `QuickstartRun.result` or is computed here from the run's files.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import checkpoint
from pocketclip.errors import ImageError
from pocketclip.evaluate.report.render import render
from pocketclip.evaluate.report.svg import NARROW, WIDE, Chart, Drawing, Level, Mark, Series
from pocketclip.images import open_image
from pocketclip.infer.encoder import Encoder
from pocketclip.quickstart.captions import names_in
from pocketclip.quickstart.collection import PAIRS, read_rows
from pocketclip.quickstart.quickstart_run import ARMS, DATA, MODEL, REPORT, SHARDS, QuickstartRun
from pocketclip.shards import read

_CARDS, _QUERIES, _PICTURES = 8, 4, 400
_TASKS = {
    "unseen": "zero-shot top-1, pairs of colour and shape that nobody learnt",
    "labels": "zero-shot top-1, the held-out pairs' labels",
    "retrieval": "retrieval, mean recall at 1",
}


def commands(run: QuickstartRun) -> list[str]:
    """Return three commands to go on with."""
    out, model = shlex.quote(str(run.out)), shlex.quote(str(run.out / MODEL))
    tests = run.out / DATA / "tests"
    if run.settings["mode"] == "scenes":
        first = read_rows(tests / "unseen" / "test.csv")[0]["image"]
        picture = shlex.quote(str(tests / "unseen" / first))
        labels = '"a black circle,a blue circle,a yellow star,a red house"'
        return [
            f"pocketclip classify {picture} --labels {labels} --model {model}",
            "pocketclip quickstart --pairs my.csv --out mine",
            "pocketclip reinforce my.csv --out dr --teacher mobileclip2-s4 "
            "--captioner coca-vit-l14",
        ]
    recipe = shlex.quote(str(run.out / "runs" / "reinforced" / "recipe.yaml"))
    return [
        f"pocketclip eval {model} --data {shlex.quote(str(tests))} --tasks retrieval",
        f"pocketclip train {recipe} --set steps=2000 --out longer",
        f"pocketclip reinforce {out}/{DATA}/{PAIRS} --out dr --teacher mobileclip2-s4",
    ]


def report_page(run: QuickstartRun) -> str:
    """Return the page; with scenes, adds the shares of correct captions to the result."""
    result, settings = run.result, run.settings
    scenes = settings["mode"] == "scenes"
    task, metric = ("unseen", "acc1") if scenes else ("retrieval", "mean_recall@1")
    chances = _chances(run)
    if scenes:
        result["captions"] = _correct_captions(run)
    arms = {arm: result["arms"][arm]["metrics"] for arm in ARMS}
    scored = {f"{arm} student": arms[arm] for arm in ARMS} | result.get("teachers", {})
    page = render(
        "quickstart.html",
        "pocketclip.quickstart",
        title="pocketclip quickstart" + ("" if scenes else " with your pairs"),
        settings=settings,
        arms=ARMS,
        scores={arm: 100 * metrics[task][metric] for arm, metrics in arms.items()},
        chances=chances,
        colours_alone=_colours_alone(run) if scenes else None,
        views=result["arms"][ARMS[0]]["samples"],
        reinforced=result["reinforced"],
        captions=result.get("captions"),
        pairs=result.get("pairs"),
        own_teacher=not settings.get("teachers"),
        score_head=["", *(_TASKS[name] for name in chances)],
        score_rows=[
            *([name, *(f"{100 * metrics[t]['main_metric']:.1f}" for t in chances)]
              for name, metrics in scored.items()),
            ["guessing", *(f"{100 * chance:.1f}" for chance in chances.values())],
        ],
        curve=_curve(run, *next(iter(chances.items()))),
        training=list(_training_cards(run)),
        **_matches(run),
        commands=commands(run),
        model=run.out / MODEL,
        report=run.out / REPORT,
        seconds=result["seconds"],
    )  # fmt: skip
    if not scenes:
        result["reinforced"].setdefault("augmentations", 0)
    return page


def _chances(run: QuickstartRun) -> dict[str, float]:
    """Return the accuracy of guessing, by task."""
    tests = run.out / DATA / "tests"
    out = {}
    for name in run.result["arms"]["plain"]["metrics"]:
        rows = read_rows(tests / name / "test.csv")
        out[name] = 1 / max(len({row.get("label", row["image"]) for row in rows}), 1)
    return out


def _colours_alone(run: QuickstartRun) -> float:
    """Return the accuracy of knowing the colours and guessing among the shapes they come in."""
    rows = read_rows(run.out / DATA / "tests" / "unseen" / "test.csv")
    labels = {row["label"] for row in rows}
    return len({label.split()[1] for label in labels}) / len(labels)


def _curve(run: QuickstartRun, task: str, chance: float) -> list[Drawing]:
    """Return the scores against samples seen, in both sizes."""
    marks = []
    colours: tuple[Series, ...] = ("v2", "v1")
    for arm, series in zip(ARMS, colours, strict=True):
        points = run.result["arms"][arm]["curve"]
        for number, point in enumerate(points, 1):
            samples, score = point["samples"], 100 * point["score"]
            marks.append(
                Mark(
                    name=arm,
                    x=samples,
                    y=score,
                    series=series,
                    label=f"{arm} {score:.1f} %" if number == len(points) else "",
                    tooltip=f"{arm}: {score:.1f} % after {samples:,} samples",
                )
            )
    if not marks:
        return []
    chart = Chart(
        name="curve",
        title=f"{_TASKS[task]} against samples seen",
        description="; ".join(mark.tooltip for mark in marks),
        x_label="samples seen",
        y_label=f"{_TASKS[task]}, %",
        x_scale="from zero",
        y_scale="from zero",
        marks=marks,
        levels=[Level(name="guessing", y=100 * chance, remark="chance")],
        joined=colours,
    )
    return [Drawing(chart, size) for size in (WIDE, NARROW)]


def _data_uri(data: bytes) -> str:
    kind = "png" if data[:4] == b"\x89PNG" else "webp" if data[:4] == b"RIFF" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _correct_captions(run: QuickstartRun) -> dict[str, float]:
    """Return the shares of alt-texts and synthetic captions that name exactly what is shown."""
    rows = read_rows(run.out / DATA / PAIRS)
    correct: dict[str, list[bool]] = {"alt_texts": [], "synthetic": []}
    for sample in read(str(run.out / SHARDS)):
        truth = names_in(rows[int(sample.uid)]["truth"])
        correct["alt_texts"].append(names_in(sample.captions["text"][0]) == truth)
        correct["synthetic"] += [names_in(t) == truth for t in sample.captions["syn_text_scenes"]]
    return {name: round(sum(flags) / max(len(flags), 1), 4) for name, flags in correct.items()}


def _training_cards(run: QuickstartRun) -> Iterator[dict[str, Any]]:
    """Yield some samples, of scenes at most two per kind of alt-text."""
    rows = read_rows(run.out / DATA / PAIRS)
    count: dict[str, int] = {}
    for sample in read(str(run.out / SHARDS)):
        kind = rows[int(sample.uid)].get("kind", "")
        if count.get(kind, 0) < (2 if kind else _CARDS) and sum(count.values()) < _CARDS:
            count[kind] = count.get(kind, 0) + 1
            assert sample.image is not None
            written = [texts for key, texts in sample.captions.items() if key != "text"]
            yield {
                "image": _data_uri(sample.image),
                "kind": kind,
                "found": sample.captions["text"][0][:200],
                "synthetic": [text[:200] for text in dict.fromkeys(chain(*written))],
            }


def _matches(run: QuickstartRun) -> dict[str, list[dict[str, Any]]]:
    """Return each student's best matches both ways, in the retrieval set."""
    pictures, captions = _readable(run.out / DATA / "tests" / "retrieval")
    if not pictures:
        return {"matches": [], "queries": []}
    scores = {}
    for arm in ARMS:
        encoder = Encoder(checkpoint.load(run.out / "runs" / arm / MODEL, fuse=True))
        scores[arm] = encoder.encode_image(pictures) @ encoder.encode_text(captions).T

    def best(row: NDArray[np.float32], true: str, most: int) -> list[tuple[int, bool]]:
        order = np.argsort(-row, kind="stable")[:most].tolist()
        return [(j, captions[j] == true) for j in order]

    count = len(pictures)
    cards, queries = max(1, count // _CARDS), max(1, count // _QUERIES)
    return {
        "matches": [
            {
                "image": _data_uri(pictures[i]),
                "caption": captions[i][:200],
                "answers": {
                    arm: [(captions[j][:120], right)
                          for j, right in best(matrix[i], captions[i], 3)]
                    for arm, matrix in scores.items()
                },
            }
            for i in range(0, cards * min(_CARDS, count), cards)
        ],
        "queries": [
            {
                "caption": captions[i][:160],
                "answers": {
                    arm: [(_data_uri(pictures[j]), right)
                          for j, right in best(matrix[:, i], captions[i], 6)]
                    for arm, matrix in scores.items()
                },
            }
            for i in range(queries // 2, count, queries)[:_QUERIES]
        ],
    }  # fmt: skip


def _readable(folder: Path) -> tuple[list[bytes], list[str]]:
    """Return the pictures that can be decoded, and their captions."""
    pictures, captions = [], []
    for row in read_rows(folder / "test.csv")[:_PICTURES]:
        data = (folder / row["image"]).read_bytes()
        try:
            open_image(data)
        except ImageError:
            continue
        pictures.append(data)
        captions.append(row["caption"])
    return pictures, captions
