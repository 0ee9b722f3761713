"""`pocketclip models`: the models and their published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip import zoo
from pocketclip.checkpoint.operations import measure
from pocketclip.cli._options import Json
from pocketclip.cli.output import (
    Column,
    figure_text,
    print_json,
    print_table,
    say,
    say_paragraph,
)

if TYPE_CHECKING:
    from pocketclip.infer.bundle import Bundle


def models(
    rivals: Annotated[
        bool,
        typer.Option(
            "--rivals",
            help="List models of others instead, with the published results that `pocketclip "
            "compare` knows.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """List the models with their published size, speed and accuracy, and what is ready here.

    Parameters are in millions after fusing, latencies in milliseconds on an iPhone 12 Pro Max,
    accuracies zero-shot and in percent; all as published. Parameters that are not published, and
    operations, are counted; a sparse model's active parameters are those that one token uses.
    Weights are on the hub, in the local
    cache, or converted and ready to use without torch, see `pocketclip pull`. Captioners that share
    an architecture are listed below the table, by the set that they were fine-tuned on and the
    length of their context in tokens.

    \b
    pocketclip models
    pocketclip models --json
    pocketclip models --rivals
    """
    if rivals:
        _list_rivals(json)
        return
    ready = _ready_bundles()
    rows = [_row(name, entry, ready) for name, entry in zoo.entries()]
    rows += [_row_of_bundle(bundle) for bundle in ready.values()]
    if json:
        print_json(rows)
        return
    _print_table(rows)


def _ready_bundles() -> dict[Path, Bundle]:
    """Return the converted models in the user's cache, by folder."""
    from pocketclip.storage.user_cache import user_cache

    folder = user_cache("models")
    if folder is None or not folder.is_dir():
        return {}  # what reads bundles takes time to import
    from pocketclip.infer.model_cache import list_ready

    return {bundle.folder: bundle for bundle in list_ready()}


def _row(name: str, entry: zoo.Entry, ready: dict[Path, Bundle]) -> dict[str, Any]:
    """Return the facts of a model of the zoo; its bundle is removed from `ready`."""
    from pocketclip.checkpoint import hub

    facts = entry.published
    row: dict[str, Any] = {
        "name": name,
        "image_size": entry.config.image_size,
        "embed_dim": entry.config.embed_dim,
        "captioner": entry.config.is_captioner,
        **_size_facts(entry.config),
    }
    for key in zoo.PUBLISHED_FIELDS:
        row[key] = None if facts is None else getattr(facts, key)
    row["hub"] = list(entry.hub)
    row["cached"] = any(hub.cached(repo) is not None for repo in entry.hub)
    row["ready"] = None
    if ready and entry.hub:
        from pocketclip.checkpoint.resolve import published_model
        from pocketclip.infer.model_cache import find

        found = find(published_model(name), name)
        if found is not None:
            row["ready"] = _ready_facts(ready.pop(found.folder, found))
    row["license"] = entry.license
    row["note"] = entry.note
    return row


def _row_of_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return the facts of a converted model that is not in the zoo, or another revision of one."""
    from pocketclip.infer.license import license_of_bundle

    repo, config = bundle.source.get("repo"), bundle.config
    revision = bundle.source.get("revision")
    return {
        "name": str(bundle.folder) if repo is None else f"{repo}@{revision}",
        "image_size": config.image_size,
        "embed_dim": config.embed_dim,
        "captioner": config.is_captioner,
        **_size_facts(config),
        **dict.fromkeys(zoo.PUBLISHED_FIELDS),
        "hub": [] if repo is None else [repo],
        "cached": False,
        "ready": _ready_facts(bundle),
        "license": license_of_bundle(bundle, with_text=False).name,
        "note": f"{zoo.describe(config)}, converted from {bundle.source['file']}",
    }


def _size_facts(config: zoo.ModelConfig) -> dict[str, Any]:
    """Return what is counted from a model's configuration; the published figures stand beside."""
    size = measure(config)
    return {
        "sparse": zoo.is_sparse(config),
        "params_million": round(size.params_million, 3),
        "active_params_million": round(size.active_params_million, 3),
        "gflop": round(size.gflop, 3),
    }


def _size_text(row: dict[str, Any]) -> str:
    """Return the size of a model that is not in the table."""
    active = f", {figure_text(row['active_params_million'])} active" if row["sparse"] else ""
    return (
        f"{figure_text(row['params_million'])} million parameters{active}, "
        f"{figure_text(row['gflop'])} GFLOP"
    )


def _ready_facts(bundle: Bundle) -> dict[str, Any]:
    return {
        "bundle": str(bundle.folder), "precision": bundle.precision, "bytes": bundle.bytes,
    }  # fmt: skip


def _weights(row: dict[str, Any]) -> str:
    """Return where the weights of a row's model are."""
    if row["ready"] is not None:
        return f"ready, {row['ready']['precision']}"
    return "cached" if row["cached"] else "hub" if row["hub"] else "-"


def _captioner_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each set of captions: the name without its context, and the contexts."""
    contexts: dict[str, list[str]] = {}
    for row in rows:
        name, _, context = row["name"].rpartition("-context")
        here = _weights(row)
        contexts.setdefault(name, []).append(context if here == "hub" else f"{context} ({here})")
    width = max(map(len, contexts), default=0)
    return [f"  {name:<{width}}  -context {', '.join(found)}" for name, found in contexts.items()]


def _print_table(rows: list[dict[str, Any]]) -> None:
    # Other models than the zoo's come after the table: their names would make it wide.
    known = {name for name, _ in zoo.entries()}
    others = [row for row in rows if row["name"] not in known]
    captioners = [row for row in rows if row["name"] in zoo.CAPTIONERS]
    rows = [row for row in rows if row["name"] in zoo.ZOO]
    names = ("px", "img\nM", "txt\nM", "GFLOP", "img\nms", "txt\nms", "IN\n1k", "avg\n38")
    columns = [Column("model"), *(Column(name, right=True) for name in names), Column("weights")]
    lines = []
    published = ("image_latency_ms", "text_latency_ms", "imagenet1k", "average38")
    for row in rows:
        sizes = (*_tower_params(row), row["gflop"])
        facts = ["" if row[key] is None else f"{row[key]:.1f}" for key in published]
        name = row["name"] + (" *" if row["captioner"] else "")
        lines.append(
            (name, str(row["image_size"]), *map(figure_text, sizes), *facts, _weights(row))
        )
    print_table(columns, lines)
    for row in others:
        ready = f"ready, {row['ready']['precision']}"
        say(f"{ready}: {row['name']} ({row['note']}; {_size_text(row)})")
    say()
    say("Captioners of coca-vit-l14's architecture, such as coca-dfn2b-docci-context128:")
    for line in _captioner_lines(captioners):
        say(line)
    say()
    text = (
        "M: millions of parameters after fusing, as published, else counted. GFLOP: billions of "
        "operations for one image and one text, counted. Published figures: milliseconds on an "
        "iPhone 12 Pro Max, zero-shot top-1 on ImageNet-1k and the average over 38 tasks in "
        "percent. Weights: converted and ready without torch (pocketclip pull), in the local "
        "cache, on the hub, or not published. * captioner: also writes captions. Apple's weights "
        "are for research only."
    )
    say_paragraph(text)


def _tower_params(row: dict[str, Any]) -> tuple[float, float]:
    """Return the parameters of a zoo model's towers in millions: as published, else counted."""
    image, text = row["image_params_million"], row["text_params_million"]
    if image is not None and text is not None:
        return image, text
    size = measure(zoo.entry(row["name"]).config)
    return size.image_params / 1e6, size.text_params / 1e6


def _list_rivals(json: bool) -> None:
    from pocketclip.evaluate.results import average_38
    from pocketclip.evaluate.rivals import FAMILIES, rivals

    rows: list[dict[str, Any]] = []
    for rival in rivals().values():
        mean = average_38(dict(rival.results))
        assert mean is not None
        ms, how = rival.derived_latency or (None, None)
        rows.append({
            "name": rival.name, "family": FAMILIES[rival.family],
            "params_million": rival.params_million, "gflop": rival.gflop,
            "imagenet1k": round(100 * rival.results["imagenet1k"], 2),
            "average38": round(100 * mean, 2),
            "derived_ms": None if ms is None else round(ms, 2), "derived_ms_how": how,
        })  # fmt: skip
    if json:
        print_json(rows)
        return
    keys = ("params_million", "gflop", "imagenet1k", "average38")
    titles = ("params M", "GFLOP", "IN-1k", "avg 38")
    columns = [Column("model"), Column("family"), *(Column(name, right=True) for name in titles)]
    print_table(columns, [
        (row["name"], row["family"], *(f"{row[key]:.1f}" for key in keys)) for row in rows
    ])  # fmt: skip
    say()
    text = (
        "Published in open_clip's table of results: millions of parameters, GFLOP for one image "
        "and one text, zero-shot top-1 on ImageNet-1k and the average over 38 tasks in percent. "
        "`pocketclip compare` takes these names and the like, such as siglip-so400m-14."
    )
    say_paragraph(text)
