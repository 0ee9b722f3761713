"""The report of a quickstart: one HTML page with everything in it, pictures too.

Every figure comes from `Course.result` or is computed here from the files of the course.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip import checkpoint
from pocketclip.evaluate.report.markup import document, table, text
from pocketclip.infer.encoder import Encoder
from pocketclip.quickstart.captions import names_in
from pocketclip.quickstart.collection import PAIRS, read_rows
from pocketclip.quickstart.course import ARMS, DATA, MODEL, REPORT, SHARDS, Course
from pocketclip.quickstart.curves import curves
from pocketclip.shards import read
from pocketclip.types import Sample

_STYLE = """<style>
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--rule); border-radius: 8px; padding: .7rem; font-size: .85rem;
  overflow-wrap: anywhere; }
.card img { width: 100%; max-width: 192px; display: block; margin: 0 auto .5rem;
  border-radius: 4px; image-rendering: auto; }
.card p { margin: .2rem 0; } .card b { font-weight: 600; } .dim { color: var(--dim); }
.row { display: flex; gap: .5rem; flex-wrap: wrap; margin: .3rem 0 1rem; }
.row img { width: 112px; border-radius: 4px; border: 3px solid transparent; }
.row img.right { border-color: var(--v1); }
pre { background: var(--faint); padding: .8rem; border-radius: 8px; overflow-x: auto;
  font-size: .85rem; }
</style>"""
_CARDS, _QUERIES = 8, 4
_TASKS = {
    "unseen": "zero-shot top-1, pairs of colour and shape that nobody learnt",
    "labels": "zero-shot top-1, the held-out pairs' labels",
    "retrieval": "retrieval, mean recall at 1",
}


def commands(course: Course) -> list[str]:
    """Return the three commands that a user would want next."""
    out, model = shlex.quote(str(course.out)), shlex.quote(str(course.out / MODEL))
    tests = course.out / DATA / "tests"
    if course.settings["mode"] == "scenes":
        first = read_rows(tests / "unseen" / "test.csv")[0]["image"]
        picture = shlex.quote(str(tests / "unseen" / first))
        labels = '"a black circle,a blue circle,a yellow star,a red house"'
        return [
            f"pocketclip classify {picture} --labels {labels} --model {model}",
            "pocketclip quickstart --pairs my.csv --out mine",
            "pocketclip reinforce my.csv --out dr --teacher mobileclip2-s4 "
            "--captioner coca-vit-l14",
        ]
    recipe = shlex.quote(str(course.out / "runs" / "reinforced" / "recipe.yaml"))
    return [
        f"pocketclip eval {model} --data {shlex.quote(str(tests))} --tasks retrieval",
        f"pocketclip train {recipe} --set steps=2000 --out longer",
        f"pocketclip reinforce {out}/{DATA}/{PAIRS} --out dr --teacher mobileclip2-s4",
    ]


def scenes_page(course: Course) -> str:
    """Return the page of `quickstart_scenes`; adds what alt-texts and captions are worth."""
    result = course.result
    chances = _chances(course)
    arms, data = result["arms"], result["reinforced"]
    plain, strong = (100 * arms[a]["metrics"]["unseen"]["acc1"] for a in ARMS)
    worth = result["captions"] = _worth(course)
    intro = (
        f"<p>A small student learnt from {data['samples']:,} drawn scenes and texts as the web has "
        f"them. It names {plain:.1f} % of the pictures of pairs of colour and shape that were in "
        f"no picture it saw; the same student, reinforced, names {strong:.1f} %. Guessing gives "
        f"{100 * chances['unseen']:.1f} %, knowing every colour and no shape "
        f"{100 * _colours_alone(course):.1f} %.</p>"
    )
    about = (
        "<p>Both students begin with the same weights and see the same views of the same pictures, "
        f"{arms['plain']['samples']:,} in all. The plain one learns from the alt-texts with CLIP's "
        "loss. The reinforced one learns from what was stored once beside the pictures: "
        f"{data['captions']} synthetic captions of each and the embeddings of "
        f"{len(data['teachers'])} teachers ({data['bytes_per_sample']:,} bytes per sample with the "
        "picture). "
        f"{_share(worth['alt_texts'])} of the alt-texts name exactly what is to be seen, and "
        f"{_share(worth['synthetic'])} of the synthetic captions. {data['left_out']} pictures "
        "without an alt-text were left out.</p>"
    )
    limits = (
        "<p>What this shows: that the whole way works on this machine, and that a student gains "
        "from teachers that know more than its texts. What it does not show: how much would be "
        "gained on photographs. The scenes are simple, and the teachers and the captioner, which "
        "ship with the package, learnt from right captions of such scenes (other scenes, and "
        "without the pairs that are asked for here). The shares of bad alt-texts are our guess at "
        "a bad web page.</p>"
    )
    parts = [
        intro, about, _scores(course, chances), _curve(course, chances),
        "<h2>What the students were given</h2>", _training_cards(course),
        "<h2>What the students see in new scenes</h2>", _matches(course),
        "<h2>What this shows and what not</h2>", limits, _end(course),
    ]  # fmt: skip
    return document("pocketclip quickstart", "\n".join([_STYLE, *parts]))


def pairs_page(course: Course, *, own_teacher: bool) -> str:
    """Return the page of `quickstart_pairs`."""
    result = course.result
    arms, data, pairs = result["arms"], result["reinforced"], result["pairs"]
    chances = _chances(course)
    plain, strong = (100 * arms[a]["metrics"]["retrieval"]["mean_recall@1"] for a in ARMS)
    intro = (
        f"<p>{pairs['train']:,} of your pairs to learn from, {pairs['held_out']:,} held out, "
        f"{pairs['unreadable']:,} that could not be read. On the held-out ones the plain student "
        f"finds the right partner for {plain:.1f} %, the reinforced one for {strong:.1f} % (mean "
        "of both directions; pairs that share a text count as different).</p>"
    )
    if own_teacher:
        limits = (
            "<p>No teacher was given, so one was trained on these pairs first. It cannot know more "
            "than its data: what a reinforced student gains from it is a smoother target, which "
            "may help where texts are noisy and may not. It cannot correct wrong texts or bring "
            "knowledge of the world, which is what reinforced training is for. Give a strong "
            "teacher to see that: <code>--teacher mobileclip2-s4</code>.</p>"
        )
    else:
        limits = (
            "<p>The students are tiny and saw small pictures for some minutes: the difference "
            "between them says more than their level. If the teacher learnt from some of these "
            "pairs itself, the held-out ones are not new to it.</p>"
        )
    parts = [
        intro, _scores(course, chances), _curve(course, chances),
        "<h2>What the students were given</h2>", _training_cards(course),
        "<h2>What the students see in the held-out pairs</h2>", _matches(course),
        "<h2>What this shows and what not</h2>", limits, _end(course),
    ]  # fmt: skip
    data.setdefault("augmentations", 0)
    return document("pocketclip quickstart with your pairs", "\n".join([_STYLE, *parts]))


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _chances(course: Course) -> dict[str, float]:
    """Return what guessing gives, by task."""
    tests = course.out / DATA / "tests"
    out = {}
    for name in course.result["arms"]["plain"]["metrics"]:
        rows = read_rows(tests / name / "test.csv")
        out[name] = 1 / max(len({row.get("label", row["image"]) for row in rows}), 1)
    return out


def _colours_alone(course: Course) -> float:
    """Return the accuracy of who knows the colours and guesses among the shapes they come in."""
    rows = read_rows(course.out / DATA / "tests" / "unseen" / "test.csv")
    labels = {row["label"] for row in rows}
    return len({label.split()[1] for label in labels}) / len(labels)


def _scores(course: Course, chances: dict[str, float]) -> str:
    tasks = list(chances)
    rows = []
    known = {f"{arm} student": course.result["arms"][arm]["metrics"] for arm in ARMS}
    for name, metrics in {**known, **course.result.get("teachers", {})}.items():
        rows.append([text(name), *(f"{100 * metrics[t]['main_metric']:.1f}" for t in tasks)])
    rows.append(["guessing", *(f"{100 * chances[t]:.1f}" for t in tasks)])
    return table("Scores in per cent", ["", *(_TASKS[t] for t in tasks)], rows)


def _curve(course: Course, chances: dict[str, float]) -> str:
    task = next(iter(chances))
    lines = {
        arm: [(p["samples"], p["score"]) for p in course.result["arms"][arm]["curve"]]
        for arm in ARMS
    }
    drawing = curves(
        f"{_TASKS[task]} against samples seen", lines,
        x_label="samples seen", y_label=_TASKS[task], level=chances[task],
    )  # fmt: skip
    return f"<figure>{drawing}</figure>"


def _data_uri(data: bytes) -> str:
    kind = "png" if data[:4] == b"\x89PNG" else "webp" if data[:4] == b"RIFF" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _worth(course: Course) -> dict[str, float]:
    """Return the shares of alt-texts and synthetic captions that name exactly what is there."""
    rows = read_rows(course.out / DATA / PAIRS)
    right: dict[str, list[bool]] = {"alt_texts": [], "synthetic": []}
    for sample in read(str(course.out / SHARDS)):
        truth = names_in(rows[int(sample.uid)]["truth"])
        right["alt_texts"].append(names_in(sample.captions["text"][0]) == truth)
        right["synthetic"] += [names_in(t) == truth for t in sample.captions["syn_text_scenes"]]
    return {name: round(sum(found) / max(len(found), 1), 4) for name, found in right.items()}


def _training_cards(course: Course) -> str:
    """Return some samples: picture, text as found, synthetic captions."""
    rows = read_rows(course.out / DATA / PAIRS)
    chosen: list[tuple[Sample, str]] = []
    count: dict[str, int] = {}
    for sample in read(str(course.out / SHARDS)):
        kind = rows[int(sample.uid)].get("kind", "")
        if count.get(kind, 0) < (2 if kind else _CARDS) and len(chosen) < _CARDS:
            count[kind] = count.get(kind, 0) + 1
            chosen.append((sample, kind))
    cards = []
    for sample, kind in chosen:
        assert sample.image is not None
        synthetic = [t for key, texts in sample.captions.items() if key != "text" for t in texts]
        remark = f' <span class="dim">({text(kind)})</span>' if kind else ""
        found = text(sample.captions["text"][0][:200])
        lines = [f"<p><b>found</b> {found}{remark}</p>"]
        lines += [f"<p><b>written</b> {text(t[:200])}</p>" for t in dict.fromkeys(synthetic)]
        cards.append(f'<div class="card"><img alt="" src="{_data_uri(sample.image)}">'
                     + "".join(lines) + "</div>")  # fmt: skip
    return f'<div class="cards">{"".join(cards)}</div>'


def _matches(course: Course) -> str:
    """Return top matches both ways, of each student, in the retrieval set."""
    folder = course.out / DATA / "tests" / "retrieval"
    pictures, captions = _readable(folder)
    if not pictures:
        return "<p>None of the held-out pictures could be read.</p>"
    scores = {}
    for arm in ARMS:
        encoder = Encoder(checkpoint.load(course.out / "runs" / arm / MODEL, fuse=True))
        scores[arm] = encoder.encode_image(pictures) @ encoder.encode_text(captions).T
    step = max(1, len(pictures) // _CARDS)
    cards = []
    for number in range(0, step * min(_CARDS, len(pictures)), step):
        lines = [f"<p><b>true</b> {text(captions[number][:200])}</p>"]
        for arm in ARMS:
            best = np.argsort(-scores[arm][number], kind="stable")[:3]
            found = "<br>".join(("✓ " if captions[j] == captions[number] else "")
                                + text(captions[j][:120]) for j in best)  # fmt: skip
            lines.append(f"<p><b>{arm}</b><br>{found}</p>")
        cards.append(f'<div class="card"><img alt="" src="{_data_uri(pictures[number])}">'
                     + "".join(lines) + "</div>")  # fmt: skip
    return f'<div class="cards">{"".join(cards)}</div>' + _queries(pictures, captions, scores)


def _readable(folder: Path, most: int = 400) -> tuple[list[bytes], list[str]]:
    """Return the pictures that can be decoded, and their captions."""
    from pocketclip.errors import ImageError
    from pocketclip.images import open_image

    pictures, captions = [], []
    for row in read_rows(folder / "test.csv")[:most]:
        data = (folder / row["image"]).read_bytes()
        try:
            open_image(data)
        except ImageError:
            continue
        pictures.append(data)
        captions.append(row["caption"])
    return pictures, captions


def _queries(pictures: Sequence[bytes], captions: Sequence[str], scores: dict[str, Any]) -> str:
    step = max(1, len(captions) // _QUERIES)
    out = []
    for number in range(step // 2, len(captions), step)[:_QUERIES]:
        out.append(f"<h3>“{text(captions[number][:160])}”</h3>")
        for arm in ARMS:
            best = np.argsort(-scores[arm][:, number], kind="stable")[:6]
            images = "".join(
                f'<img class="{"right" if captions[j] == captions[number] else ""}" alt="" '
                f'src="{_data_uri(pictures[j])}">' for j in best)  # fmt: skip
            out.append(f'<p class="dim">{arm}</p><div class="row">{images}</div>')
    return "\n".join(out)


def _end(course: Course) -> str:
    seconds = course.result["seconds"]
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    shown = "\n".join(text(command) for command in commands(course))
    return (
        f"<h2>What next</h2><pre>{shown}</pre>"
        f'<p class="dim">The model is in {text(course.out / MODEL)}; this page is '
        f"{text(course.out / REPORT)}. It took: {text(took)}.</p>"
    )
