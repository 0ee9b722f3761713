"""What a quickstart can give, and the commands to go on with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pocketclip.errors import count_of
from pocketclip.pairs import PairOptions
from pocketclip.quickstart.collection import PAIRS, TESTS, read_rows
from pocketclip.quickstart.quickstart_run import DATA, MODEL, QuickstartRun
from pocketclip.quickstart.students import go_on

START = "mobileclip2-s0"
"""The published model that is advised to start from."""


MEASURED = (
    "after 61,568 samples of groceries 82 % of new photographs got the right one of ten kinds; on "
    "more kinds, or fewer photographs, expect less"
)
"""What the default gave, for the first line; see the page on the quickstart."""


def expectation(pairs: Sequence[str], options: PairOptions, label_column: str | None) -> list[str]:
    """Return what training from nothing can give, and how to get better.

    Args:
        pairs: the user's sources.
        options: how they are read.
        label_column: the user's column of labels.
    """
    return [
        "ten minutes from nothing make a small student that knows these pictures and words only "
        f"({MEASURED}); to get better, start from a published model:",
        *(f"  {command}" for command in published_commands(pairs, options, label_column)),
    ]


def published_commands(pairs: Sequence[str], options: PairOptions, label: str | None) -> list[str]:
    """Return the commands that start from a published model, with the user's own arguments."""
    image, captions = options.image_column, options.caption_columns
    columns = [
        *(["--image-column", image] if image else []),
        *(["--label-column", label] if label else []),
    ]
    rows = [
        word for name, value in options.where.items() for word in ("--where", f"{name}={value}")
    ]
    data = list(pairs)
    caption = ["--caption-column", captions[0]] if captions and not label else []
    finetune = ["pocketclip", "finetune", START, "--data", data[0]]
    commands = [shlex.join([*finetune, *columns, *caption, *rows, "--out", "finetuned"])]
    if label:
        fit = ["pocketclip", "fit", data[0], "--model", START]
        commands.append(shlex.join([*fit, *columns, *rows, "--out", "labels.json"]))
    return commands


def data_lines(result: Mapping[str, Any]) -> list[str]:
    """Return in plain sentences which of the user's pairs were not used, and what they lack."""
    facts = result.get("pairs")
    if facts is None:
        return []
    column = result["settings"]["label_column"]
    lines = []
    if facts["unreadable"]:
        pairs = count_of(facts["unreadable"], "pair")
        lines.append(f"{pairs} could not be used; the first: {facts['reasons'][0]}.")
    if facts["left_out"]:
        pairs = count_of(facts["left_out"], "pair")
        lines.append(f"{pairs} left out: more than the time allows to learn.")
    if facts["copies"]:
        pairs = count_of(facts["copies"], "pair")
        lines.append(f"{pairs} left out: copies, under other names, of held-out photographs.")
    if facts["several_labels"]:
        photographs = count_of(facts["several_labels"], "photograph")
        lines.append(f"{photographs} not scored by labels: several in column {column!r}.")
    if facts["unlabelled"] and column:
        pairs = count_of(facts["unlabelled"], "pair")
        lines.append(
            f"{pairs} without a label in column {column!r}: learnt from, not scored by it."
        )
    if unnamed := facts["unnamed"]:
        shown = ", ".join(map(repr, unnamed[:5])) + ", ..." * (len(unnamed) > 5)
        lines.append(
            f"The texts hardly ever name {len(unnamed):,} of the {facts['labels']:,} labels "
            f"({shown}): a student that learns from the texts alone cannot know these words. "
            "Give texts that hold them with --caption-column, or use pocketclip fit or finetune, "
            "which learn from the labels."
        )
    return lines


def teacher_lines(result: Mapping[str, Any]) -> list[str]:
    """Return in plain sentences what each teacher scored, and whether it was used."""
    found = result.get("teachers", {})
    if "checked" not in found:  # drawn scenes, or no teacher
        return []
    lines = []
    for teacher in found["checked"]:
        if teacher["spec"] in found["used"]:
            said = "clearly better than the plain student, so it was used"
        elif teacher["better"]:
            said = "left out, as together the teachers know less than the best one alone"
        elif not teacher["above_chance"]:
            said = "no better than chance, so it was left out"
        else:
            said = "not clearly better than the plain student, so it was left out"
        lines.append(f"Teacher {teacher['line']}: {said}.")
    if found["ensemble"]:
        lines.append(f"The better teachers together: {found['ensemble']}.")
    return lines


def commands(run: QuickstartRun) -> list[str]:
    """Return the commands to go on with after a finished quickstart."""
    model, tests = str(run.out / MODEL), run.out / DATA / TESTS
    more = [go_on(run)] if run.result["choice"]["rising"] else []
    if run.settings["mode"] == "scenes":
        first = read_rows(tests / "unseen" / "test.csv")[0]["image"]
        labels = "a black circle,a blue circle,a yellow star,a red house"
        return [
            f"pocketclip classify {shlex.quote(str(tests / 'unseen' / first))} "
            f'--labels "{labels}" --model {shlex.quote(model)}',
            "pocketclip quickstart --pairs my.csv --out mine",
            "pocketclip reinforce my.csv --out dr --teacher mobileclip2-s4 "
            "--captioner coca-vit-l14",
            *more,
        ]
    task = run.result["choice"]["task"]
    image, captions, _, where = json.loads(run.settings["options"])[:4]
    options = PairOptions(image_column=image, caption_columns=tuple(captions), where=where)
    evaluate = ["pocketclip", "eval", model, "--data", str(tests), "--tasks", task]
    reinforce = ["pocketclip", "reinforce", str(run.out / DATA / PAIRS), "--out", "dr"]
    return [
        *more,
        shlex.join(evaluate),
        *published_commands(run.settings["pairs"], options, run.settings["label_column"]),
        shlex.join([*reinforce, "--caption-column", "caption", "--teacher", "mobileclip2-s4"]),
    ]
