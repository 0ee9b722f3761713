"""What the pages and the search have in common."""

from __future__ import annotations

import json
from importlib import resources

from pocketclip.search.background import NEUTRAL_TEXTS


def test_pages_have_the_background_prompts_of_the_search():
    file = resources.files("pocketclip") / "web" / "app" / "labels" / "presets.json"
    assert json.loads(file.read_text("utf-8"))["background"] == list(NEUTRAL_TEXTS)
