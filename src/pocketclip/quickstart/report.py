"""The report of a quickstart: one HTML page that holds everything, pictures too.

Every figure comes from `QuickstartRun.result` or is computed here from the run's files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip import checkpoint
from pocketclip.errors import ImageError
from pocketclip.images import open_image
from pocketclip.infer.encoder import Encoder
from pocketclip.pages.render import data_uri, render
from pocketclip.pages.svg import NARROW, WIDE, Chart, Drawing, Mark, Series
from pocketclip.quickstart.advice import commands, data_lines, teacher_lines
from pocketclip.quickstart.captions import names_in
from pocketclip.quickstart.collection import PAIRS, TESTS, read_rows
from pocketclip.quickstart.quickstart_run import DATA, MODEL, REPORT, RUNS, SHARDS, QuickstartRun
from pocketclip.quickstart.students import choice_lines
from pocketclip.quickstart.text_variants import COLUMNS
from pocketclip.shards import read

_CARDS, _QUERIES, _PICTURES = 8, 4, 400
_TASKS = {
    "unseen": "zero-shot top-1, pairs of colour and shape that nobody learnt",
    "labels": "zero-shot top-1, the test pairs' labels",
    "texts": "zero-shot top-1, the right one of all distinct texts",
    "retrieval": "retrieval, mean recall at 1",
}
_AXES = {
    "unseen": "zero-shot top-1, validation",
    "labels": "zero-shot top-1, validation",
    "texts": "right text, validation",
    "retrieval": "mean recall at 1, validation",
}


def report_page(run: QuickstartRun) -> str:
    """Return the page; with scenes, adds the shares of correct captions to the result."""
    result = run.result
    scenes = run.settings["mode"] == "scenes"
    if scenes:
        result["captions"] = _correct_captions(run)
    chances = {task: run.chance(task) for task in result["arms"]["plain"]["metrics"]}
    arms = list(result["arms"])
    rows = [_score_row(f"{arm} student", facts, chances) for arm, facts in result["arms"].items()]
    if scenes:
        teachers = result["teachers"].items()
        rows += [_score_row(name, {"metrics": m}, chances) for name, m in teachers]
    return render(
        "quickstart.html",
        "pocketclip.quickstart",
        title="pocketclip quickstart" + ("" if scenes else " with your pairs"),
        scenes=scenes,
        settings=run.settings,
        result=result,
        arms=arms,
        chosen=result["choice"]["chosen"],
        choice=choice_lines(result),
        about_data=data_lines(result),
        about_teachers=teacher_lines(result),
        chances=chances,
        colours_alone=_colours_alone(run) if scenes else None,
        score_head=["", "validation", *(_TASKS[name] for name in chances)],
        score_rows=[
            *rows,
            ["guessing", "", *(f"{100 * chance:.1f}" for chance in chances.values())],
        ],
        curve=_curve(run, *next(iter(chances.items()))),
        training=_training_cards(run),
        test=_rankings(run),
        data_uri=data_uri,
        commands=commands(run),
        model=run.out / MODEL,
        report=run.out / REPORT,
    )  # fmt: skip


def _score_row(name: str, facts: Mapping[str, Any], chances: Mapping[str, float]) -> list[str]:
    validation = f"{100 * facts['validation']:.1f}" if "validation" in facts else ""
    scores = (facts["metrics"][task]["main_metric"] for task in chances)
    return [name, validation, *(f"{100 * score:.1f}" for score in scores)]


def _colours_alone(run: QuickstartRun) -> float:
    """Return the accuracy of knowing the colours and guessing among the shapes they come in."""
    rows = read_rows(run.out / DATA / "tests" / "unseen" / "test.csv")
    labels = {row["label"] for row in rows}
    return len({label.split()[1] for label in labels}) / len(labels)


def _curve(run: QuickstartRun, task: str, chance: float) -> list[Drawing]:
    """Return the validation scores against samples seen, in both sizes."""
    marks = []
    arms = run.result["arms"]
    colours: tuple[Series, ...] = ("v2", "v1")
    for arm, series in zip(arms, colours, strict=False):
        # A student that went on from another one continues its curve.
        before = arms["plain"]["samples"] if arms[arm]["init"] else 0
        points = arms[arm]["curve"]
        for number, point in enumerate(points, 1):
            samples, score = before + point["samples"], 100 * point["score"]
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
    guess = f"guessing: {100 * chance:.1f} %"
    guessing = Mark(name="guessing", x=None, y=100 * chance, label=guess, tooltip=guess)
    chart = Chart(
        name="curve",
        title="Validation score against samples seen",
        description="; ".join(mark.tooltip for mark in marks),
        x_label="samples seen",
        y_label=f"{_AXES[task]}, %",
        x_scale="from zero",
        y_scale="from zero",
        marks=[*marks, guessing],
        joined=colours,
    )
    return [Drawing(chart, size) for size in (WIDE, NARROW)]


def _correct_captions(run: QuickstartRun) -> dict[str, float]:
    """Return the shares of alt-texts and synthetic captions that name exactly what is shown."""
    rows = read_rows(run.out / DATA / PAIRS)
    correct: dict[str, list[bool]] = {"alt_texts": [], "synthetic": []}
    for sample in read(str(run.out / SHARDS)):
        truth = names_in(rows[int(sample.uid)]["truth"])
        correct["alt_texts"].append(names_in(sample.captions["text"][0]) == truth)
        correct["synthetic"] += [names_in(t) == truth for t in sample.captions["syn_text_scenes"]]
    return {name: round(sum(flags) / max(len(flags), 1), 4) for name, flags in correct.items()}


def _training_cards(run: QuickstartRun) -> list[dict[str, Any]]:
    """Return some training pairs, of scenes at most two per kind of alt-text."""
    rows = read_rows(run.out / DATA / PAIRS)
    if run.settings["mode"] == "pairs":
        return [
            {
                "image": (run.out / DATA / row["image"]).read_bytes(),
                "kind": "",
                "found": row["caption"],
                "written": dict.fromkeys(row[name] for name in COLUMNS[1:]),
            }
            for row in rows[:_CARDS]
        ]
    cards = []
    count: Counter[str] = Counter()
    for sample in read(str(run.out / SHARDS)):
        kind = rows[int(sample.uid)]["kind"]
        if count[kind] < 2 and count.total() < _CARDS:
            count[kind] += 1
            written = [texts for key, texts in sample.captions.items() if key != "text"]
            cards.append(
                {
                    "image": sample.image,
                    "kind": kind,
                    "found": sample.captions["text"][0],
                    "written": dict.fromkeys(chain(*written)),
                }
            )
    return cards


def _rankings(run: QuickstartRun) -> dict[str, Any]:
    """Return what each student ranks first in the retrieval set, both ways, for some of it."""
    partners = [
        task for task in ("retrieval", "texts") if task in run.result["arms"]["plain"]["metrics"]
    ]
    pictures, captions = _readable(run.out / DATA / TESTS / partners[0])
    count, texts, images = len(pictures), {}, {}
    for arm in run.result["arms"] if pictures else ():
        encoder = Encoder(checkpoint.load(run.out / RUNS / arm / MODEL, fuse=True))
        distinct = list(dict.fromkeys(captions))
        scores = encoder.encode_image(pictures) @ encoder.encode_text(distinct).T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :3]
        texts[arm] = [[distinct[column] for column in row] for row in best.tolist()]
        columns = [distinct.index(caption) for caption in captions]
        images[arm] = np.argsort(-scores.T[columns], axis=1, kind="stable")[:, :6].tolist()
    cards, queries = max(1, count // _CARDS), max(1, count // _QUERIES)
    return {
        "pictures": pictures,
        "captions": captions,
        "texts": texts,
        "images": images,
        "cards": range(0, count, cards)[:_CARDS],
        "queries": range(queries // 2, count, queries)[:_QUERIES],
    }


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
        captions.append(row.get("caption") or row["label"])
    return pictures, captions
