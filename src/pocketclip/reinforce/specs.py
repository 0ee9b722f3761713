"""Specs of teachers and captioners, which are MODEL arguments: see `pocketclip.checkpoint.resolve`.

mobileclip2-s0                        a zoo name, a checkpoint folder, a file or a hub id
vit-l14-quickgelu=openai.pt           a bare weight file, and the zoo model it belongs to
random:tiny:3                         random weights from seed 3, for tests
transformers:google/siglip-base-patch16-224
open_clip:ViT-L-14/datacomp_xl_s13b_b90k
python:acme.models:teacher            what teacher() of acme/models.py returns: your own code
datacomp=open_clip:ViT-L-14/datacomp_xl_s13b_b90k        any of these with its own name
"""

from __future__ import annotations

from pocketclip.checkpoint.resolve import ModelSource, resolve_model


def parse(text: str) -> ModelSource:
    """Return the model source of a spec; the module's docstring lists the forms.

    Raises:
        PocketclipError: see `pocketclip.checkpoint.resolve.resolve_model`.
    """
    return resolve_model(text, labels=True)
