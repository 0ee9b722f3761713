"""The model card: `README.md` with the hub's facts in YAML, and what people need to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pocketclip import zoo
from pocketclip.checkpoint.hub_files import LIBRARY
from pocketclip.checkpoint.operations import measure
from pocketclip.errors import one_line
from pocketclip.formats.yaml_text import dump_yaml
from pocketclip.license import FILE, License
from pocketclip.publish.facts import Facts
from pocketclip.publish.hub_side import HUB
from pocketclip.publish.terms import KNOWN, Origin


def model_card(
    facts: Facts,
    repo: str,
    license: License,
    *,
    config: zoo.ModelConfig,
    parameters: int,
    space_id: str,
    open_clip: bool,
) -> str:
    """Return the text of `README.md`.

    Args:
        facts: what is known of the model.
        repo: the repository that it goes to.
        license: under which it is published.
        config: of the model.
        parameters: the number of its weights.
        space_id: of its embeddings.
        open_clip: whether its form for open_clip is beside it.
    """
    parts = [
        _front_matter(facts, license, config, open_clip=open_clip),
        f"# {repo.partition('/')[2]}\n",
        _about(config, parameters, space_id),
        _use(repo, config, open_clip=open_clip),
        _made(facts),
        _scores(facts),
        _licences(license, facts.origins),
    ]
    return "\n".join(filter(None, parts))


def front_license(license: License) -> dict[str, str]:
    """Return how a card names a licence: by the hub's name, or as `other` with its own."""
    name = (license.name or "own-terms").lower()
    if name in KNOWN:
        return {"license": name}
    link = {"license_link": FILE if license.text is not None else license.url or ""}
    return {"license": "other", "license_name": name, **{k: v for k, v in link.items() if v}}


def _front_matter(
    facts: Facts, license: License, config: zoo.ModelConfig, *, open_clip: bool
) -> str:
    tags = [LIBRARY, "clip", *(["open_clip"] if open_clip else [])]
    head: dict[str, Any] = {
        **front_license(license),
        "library_name": LIBRARY,
        "pipeline_tag": "image-to-text" if config.is_captioner
        else "zero-shot-image-classification",
        "tags": tags,
    }  # fmt: skip
    bases = [one.repo for one in facts.origins if one.role == "start" and one.repo]
    data = [one.repo for one in facts.origins if one.role == "data" and one.repo]
    if bases:
        head["base_model"] = bases
    if data:
        head["datasets"] = list(dict.fromkeys(data))
    return f"---\n{dump_yaml(head)}---\n"


def _about(config: zoo.ModelConfig, parameters: int, space_id: str) -> str:
    what = "writes captions for images" if config.is_captioner else (
        "compares images and texts: it embeds both into one space, in which it classifies without "
        "training, finds, and ranks"
    )  # fmt: skip
    rows = {
        "architecture": f"`{config.name}` of pocketclip",
        **_mixtures(config),
        "parameters": f"{parameters / 1e6:,.1f} million{_active(config)}",
        "images": f"{config.preprocess.size} x {config.preprocess.size} pixels",
        "texts": f"up to {config.text.context_length} tokens of CLIP's byte pairs",
        "embeddings": f"{config.embed_dim} dimensions, space `{space_id}`",
    }
    return f"This model {what}.\n\n{_table(('', ''), rows.items())}"


def _mixtures(config: zoo.ModelConfig) -> dict[str, str]:
    """Return the rows that say what makes a model sparse."""
    return {
        f"{tower} tower, mixtures of experts": f"{moe.experts} experts, {moe.top_k} per token, in "
        f"the blocks {', '.join(map(str, moe.blocks))} (from 0) in place of the MLP"
        for tower, moe in zoo.mixtures(config).items()
        if moe is not None
    }


def _active(config: zoo.ModelConfig) -> str:
    """Return how many parameters of a sparse model's towers one token uses."""
    if not zoo.is_sparse(config):
        return ""
    return f", {measure(config).active_params_million:,.1f} million of the towers active per token"


def _use(repo: str, config: zoo.ModelConfig, *, open_clip: bool) -> str:
    if config.is_captioner:
        return (
            f"## Use\n\n```sh\npocketclip caption photo.jpg --model {repo}\n"
            f"pocketclip reinforce PAIRS --captioner {repo} --out OUT\n```\n"
        )
    text = f"""## Use

With pocketclip:

```sh
pocketclip classify photo.jpg --model {repo} --labels "a cat,a dog"
pocketclip index ~/Pictures --model {repo}
```

```python
import pocketclip

model = pocketclip.load("{repo}")
images, texts = model.encode_image(["photo.jpg"]), model.encode_text(["a cat", "a dog"])
print(images @ texts.T)
```
"""
    if open_clip:
        text += f"""
With open_clip:

```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("hf-hub:{repo}")
tokenizer = open_clip.get_tokenizer("hf-hub:{repo}")
```
"""
    return text


def _made(facts: Facts) -> str:
    lines = []
    for one in facts.origins:
        where = f"[{_cell(one.name)}]({_page(one)})" if one.repo else f"`{_code(one.name)}`"
        lines.append(f"- {one.role}: {where}, licence: {one.license.name or 'not known'}")
    text = "## How it was made\n\n"
    text += "\n".join(lines) + "\n" if lines else "Not recorded.\n"
    if facts.training:
        text += f"\n{_table(('', ''), facts.training.items())}"
    if facts.recipe:
        text += (
            "\n<details><summary>The train recipe</summary>\n\n```yaml\n"
            f"{dump_yaml(facts.recipe)}```\n\n</details>\n"
        )
    return text


def _page(origin: Origin) -> str:
    folder = "datasets/" if origin.role == "data" else ""
    return f"{HUB}/{folder}{origin.repo}"


def _scores(facts: Facts) -> str:
    out = ""
    if facts.results:
        rows = []
        for result in facts.results:
            metric = str(result.about.get("metric") or "main metric")
            value = result.main_metric
            shown = "-" if value is None else f"{value:.4f}"
            rows.append((result.dataset, metric, shown, str(result.about.get("samples", ""))))
        head = ("data", "metric", "value", "samples")
        out += f"\nBy `pocketclip eval`:\n\n{_table(head, rows)}"
    if facts.selection is not None:
        scored = [s for s in facts.selection["scores"] if isinstance(s, Mapping)]
        chosen = next((s for s in scored if s.get("step") == facts.selection.get("chosen")), None)
        if chosen is not None and isinstance(chosen.get("main_metric"), float):
            out += (
                f"\nOf {len(scored)} scored checkpoints, that of step {chosen['step']} was chosen "
                f"by its validation score, {chosen['main_metric']:.4f}: a validation, not a test.\n"
            )
    if facts.finetuned is not None:
        models = [
            (str(c.get("name")), _share(c.get("validation")), _share(c.get("retention")))
            for c in facts.finetuned["candidates"]
        ]
        names = ("model", f"{facts.finetuned.get('metric')}, %", "of the start's knowledge kept, %")
        out += f"\nOn the validation images of the fine-tuning:\n\n{_table(names, models)}"
    return f"## Results\n{out}" if out else "## Results\n\nNot measured.\n"


def _share(value: object) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "-"


def _licences(license: License, origins: Iterable[Origin]) -> str:
    name = license.name or "own terms"
    text = f"## Licence\n\nThe weights: {name}"
    if license.text is not None:
        text += f", see [{FILE}]({FILE})"
    elif license.url is not None:
        text += f", see {license.url}"
    text += ".\n"
    others = [one for one in origins if one.license.name and one.license.name != license.name]
    if others:
        listed = "; ".join(f"{one.role} {_cell(one.name)}: {one.license.name}" for one in others)
        text += f"\nWhat it was made from has licences of its own: {listed}.\n"
    unknown = [one for one in origins if not one.license.is_known]
    if unknown:
        listed = ", ".join(f"{one.role} {_cell(one.name)}" for one in unknown)
        text += f"\nNot known here: the licences of {listed}.\n"
    return text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(c) for c in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Return a text that is one cell of a table, and no markup of its own."""
    out = one_line(str(text), 300) if text else ""
    for char in "\\|<>[]":
        out = out.replace(char, f"\\{char}")
    return out


def _code(text: str) -> str:
    return one_line(text, 300).replace("`", "'")
