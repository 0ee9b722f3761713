"""The captioners of one architecture, `coca-vit-l14`, each by the set that it was fine-tuned on.

MobileCLIP2 (arXiv 2508.20691, section 3.2) trained a CoCa on DFN2B and fine-tuned it on ten sets
of captions, some with longer contexts; the names of the repositories are those that the README of
`ml-mobileclip` lists. LAION's two are older; the fine-tuned one wrote DataCompDR's captions.

A name has the set and the context: coca-dfn2b-docci-context128 is
apple/mobileclip2_coca_dfn2b_s13b_docci_s12m_context128.
"""

from __future__ import annotations

from dataclasses import replace

from pocketclip.zoo.entries import APPLE_AMLR, ZOO, Entry

_APPLE = "apple/mobileclip2_coca_dfn2b_s13b_"
# What follows in the repository's name -> the contexts.
_FINE_TUNED = {
    "dci-complete_s12m": (77, 128, 256),
    "dci-extended_s12m": (77, 128, 256),
    "dci-short_s12m": (77, 128, 256),
    "docci_s12m": (77, 128, 256),
    "recap-coco-30k_s12m": (77, 128, 256),
    "mscoco38k_s12m": (77,),
    "gbc1m-short": (77,),
    "gbc1m-long": (256,),
    "gbc10m-long": (256,),
    "gbc10m-short-relation": (256,),
}
_NOTES = {
    "mscoco38k": "the one that MobileCLIP2 recommends, and DFNDR's",
}


def _entry(repo: str, context: int, note: str, license: str) -> Entry:
    base = ZOO["coca-vit-l14"].config
    # The class token takes the last position: open_clip counts the others.
    text = replace(base.text, context_length=context - 1)
    return Entry(
        config=replace(base, text=text), hub=(repo,), note=f"captioner; {note}", license=license
    )


def _apples() -> dict[str, Entry]:
    base = "trained on DFN2B, for further fine-tuning"
    found = {"coca-dfn2b-context77": _entry(f"{_APPLE}context77", 77, base, APPLE_AMLR)}
    for part, contexts in _FINE_TUNED.items():
        name = part.removesuffix("_s12m")
        note = "; ".join(filter(None, [f"fine-tuned on {name}", _NOTES.get(name)]))
        for context in contexts:
            long = "; tends to repeat itself" if context == 256 else ""
            found[f"coca-dfn2b-{name}-context{context}"] = _entry(
                f"{_APPLE}{part}_context{context}", context, note + long, APPLE_AMLR
            )
    return found


CAPTIONERS: dict[str, Entry] = {
    **_apples(),
    "coca-laion2b-context77": _entry(
        "laion/CoCa-ViT-L-14-laion2B-s13B-b90k", 77, "trained on LAION-2B", "mit"
    ),
    "coca-laion2b-mscoco-context77": _entry(
        "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", 77,
        "fine-tuned on MSCOCO; DataCompDR's", "mit",
    ),
}  # fmt: skip
"""The captioners by name. Their configurations are those of `coca-vit-l14`, whose name they bear,
with a context of their own."""
