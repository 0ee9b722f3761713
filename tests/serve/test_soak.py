"""Mixed requests, and what may go wrong meanwhile: `benchmarks/serve_soak.py`, small."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import serve_soak
from tests.search.conftest import draw_photo

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform != "linux", reason="the soak reads /proc")
def test_no_answer_is_lost_or_wrong(bundle: Path, tmp_path: Path) -> None:
    photos = [draw_photo(tmp_path / "drawn" / f"{seed}.jpg", seed) for seed in range(16)]
    setting = serve_soak.prepare(bundle, photos, tmp_path)
    parts = ["mixed", "languages", "gone", "full", "sighup", "sigterm"]
    results = serve_soak.measure(setting, tmp_path, parts, requests=400, load=1.0)
    assert {part: result["wrong"] for part, result in results.items()} == {p: [] for p in parts}
    assert results["mixed"]["compared_with_the_library"] > 300
