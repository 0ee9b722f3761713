"""A trained model on the Hugging Face hub: with open_clip's form, a model card and its licence.

    from pocketclip import publish

    with publish.prepare("runs/small", "me/small", license="mit") as plan:
        print(plan.card)              # what will be uploaded: plan.files, plan.visibility, ...
        print(publish.upload(plan))   # the address of the commit

    publish.push("runs/small", "me/small", license="mit")  # the same in one call

| module | holds |
|---|---|
| `facts` | what is known of a run: data, recipe, teachers, results, licences |
| `terms` | under which licence a model may be published |
| `card` | the model card |
| `open_clip_form` | the configuration that open_clip reads |
| `hub_side` | what the hub is asked, and what its refusals mean |
| `uploading` | `prepare`, `upload`, `push` |
"""

from __future__ import annotations

from pocketclip.publish.uploading import Plan, prepare, push, upload

__all__ = ["Plan", "prepare", "push", "upload"]
