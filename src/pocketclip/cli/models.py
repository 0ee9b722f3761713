"""`pocketclip models`: the models and their published figures."""

from __future__ import annotations

import textwrap
from typing import Any

from pocketclip import zoo
from pocketclip.cli._options import Json
from pocketclip.cli.output import USUAL_WIDTH, Column, print_json, print_table, say


def models(
    json: Json = False,
) -> None:
    """List the models with their published size, speed and accuracy.

    Parameters are in millions after fusing, latencies in milliseconds on an iPhone 12 Pro Max,
    accuracies zero-shot and in percent; all as published.

    \b
    pocketclip models
    pocketclip models --json
    """
    rows = [_row(name, entry) for name, entry in zoo.ZOO.items()]
    if json:
        print_json(rows)
        return
    _print_table(rows)


def _row(name: str, entry: zoo.Entry) -> dict[str, Any]:
    from pocketclip.checkpoint import hub

    facts = entry.published
    row: dict[str, Any] = {
        "name": name,
        "image_size": entry.config.image_size,
        "embed_dim": entry.config.embed_dim,
        "captioner": entry.config.is_captioner,
    }
    for key in zoo.PUBLISHED_FIELDS:
        row[key] = None if facts is None else getattr(facts, key)
    row["hub"] = list(entry.hub)
    row["cached"] = any(hub.cached(repo) is not None for repo in entry.hub)
    row["note"] = entry.note
    return row


def _print_table(rows: list[dict[str, Any]]) -> None:
    figures = ("pixels", "img M", "txt M", "img ms", "txt ms", "IN-1k", "avg 38")
    columns = [Column("model"), *(Column(name, right=True) for name in figures), Column("weights")]
    lines = []
    keys = ("image_params_million", "text_params_million", "image_latency_ms", "text_latency_ms",
            "imagenet1k", "average38")  # fmt: skip
    for row in rows:
        facts = ["" if row[key] is None else f"{row[key]:.1f}" for key in keys]
        weights = "cached" if row["cached"] else "hub" if row["hub"] else "-"
        name = row["name"] + (" *" if row["captioner"] else "")
        lines.append((name, str(row["image_size"]), *facts, weights))
    print_table(columns, lines)
    say()
    text = (
        "Published figures: millions of parameters after fusing, milliseconds on an iPhone 12 "
        "Pro Max, zero-shot top-1 on ImageNet-1k and the average over 38 tasks in percent. "
        "Weights: in the local cache, on the hub, or not published. * captioner: also writes "
        "captions. Apple's weights are under Apple's own licence."
    )
    for line in textwrap.wrap(text, USUAL_WIDTH):
        say(line, dim=True)
