"""The report of a quickstart: one HTML page that holds everything, pictures too.

Every figure comes from `QuickstartRun.result` or is computed here from the run's files.
"""

from __future__ import annotations

import base64
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip import checkpoint
from pocketclip.errors import ImageError
from pocketclip.evaluate.report.render import render
from pocketclip.evaluate.report.svg import NARROW, WIDE, Chart, Drawing, Mark, Series
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
    result = run.result
    scenes = run.settings["mode"] == "scenes"
    if scenes:
        result["captions"] = _correct_captions(run)
    chances = _chances(run)
    metrics = {f"{arm} student": result["arms"][arm]["metrics"] for arm in ARMS}
    metrics |= result.get("teachers", {})
    return render(
        "quickstart.html",
        "pocketclip.quickstart",
        title="pocketclip quickstart" + ("" if scenes else " with your pairs"),
        scenes=scenes,
        settings=run.settings,
        result=result,
        arms=ARMS,
        chances=chances,
        colours_alone=_colours_alone(run) if scenes else None,
        score_head=["", *(_TASKS[name] for name in chances)],
        score_rows=[
            *([name, *(f"{100 * m[t]['main_metric']:.1f}" for t in chances)]
              for name, m in metrics.items()),
            ["guessing", *(f"{100 * chance:.1f}" for chance in chances.values())],
        ],
        curve=_curve(run, *next(iter(chances.items()))),
        training=list(_training_cards(run)),
        test=_rankings(run),
        data_uri=_data_uri,
        commands=commands(run),
        model=run.out / MODEL,
        report=run.out / REPORT,
    )  # fmt: skip


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
    guess = f"guessing: {100 * chance:.1f} %"
    guessing = Mark(name="guessing", x=None, y=100 * chance, label=guess, tooltip=guess)
    chart = Chart(
        name="curve",
        title=f"{_TASKS[task]} against samples seen",
        description="; ".join(mark.tooltip for mark in marks),
        x_label="samples seen",
        y_label=f"{_TASKS[task]}, %",
        x_scale="from zero",
        y_scale="from zero",
        marks=[*marks, guessing],
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
    count: Counter[str] = Counter()
    for sample in read(str(run.out / SHARDS)):
        kind = rows[int(sample.uid)].get("kind", "")
        if count[kind] < (2 if kind else _CARDS) and count.total() < _CARDS:
            count[kind] += 1
            written = [texts for key, texts in sample.captions.items() if key != "text"]
            yield {
                "image": sample.image,
                "kind": kind,
                "found": sample.captions["text"][0],
                "written": dict.fromkeys(chain(*written)),
            }


def _rankings(run: QuickstartRun) -> dict[str, Any]:
    """Return what each student ranks first in the retrieval set, both ways, for some of it."""
    pictures, captions = _readable(run.out / DATA / "tests" / "retrieval")
    count, texts, images = len(pictures), {}, {}
    for arm in ARMS if pictures else ():
        encoder = Encoder(checkpoint.load(run.out / "runs" / arm / MODEL, fuse=True))
        scores = encoder.encode_image(pictures) @ encoder.encode_text(captions).T
        texts[arm] = np.argsort(-scores, axis=1, kind="stable")[:, :3].tolist()
        images[arm] = np.argsort(-scores.T, axis=1, kind="stable")[:, :6].tolist()
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
        captions.append(row["caption"])
    return pictures, captions
