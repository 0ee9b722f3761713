"""Results files as people have them: damaged, of other types, with lines of other kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate.results import read_results

GOOD: dict[str, Any] = {"key": "a", "dataset": "A", "metrics": {"main_metric": 0.5}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": None}, '"key" should be text, not null'),
        ({"key": 3}, '"key" should be text'),
        ({"key": ["a"]}, '"key" should be text, not a list'),
        ({"metrics": None}, '"metrics" should be an object'),
        ({"metrics": []}, '"metrics" should be an object, not a list'),
        ({"metrics": {"acc1": "0.5"}}, "acc1 should be a number"),
        ({"metrics": {"acc1": True}}, "acc1 should be a number, not true"),
        ({"metrics": {"acc1": [0.5]}}, "acc1 should be a number, not a list"),
        ({"metrics": {"acc1": 10**400}}, "too large"),
        ({"metrics": {"acc1": float("inf")}}, "acc1 should be a number, not inf"),
        ({"dataset": 5}, '"dataset" should be text'),
        ({"pocketclip": []}, '"pocketclip" should be an object'),
        ({"pocketclip": {"space_id": []}}, '"space_id" should be text, not a list'),
        ({"pocketclip": {"space_id": {"a": 1}}}, '"space_id" should be text, not an object'),
        ({"pocketclip": {"kind": []}}, '"kind" should be text'),
        ({"pocketclip": {"metric": {}}}, '"metric" should be text'),
        ({"pocketclip": {"skipped": "many"}}, '"skipped" should be a whole number'),
        ({"pocketclip": {"identity": [1]}}, '"identity" should be text'),
    ],
)
def test_fields_of_other_types(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(GOOD | {"key": "b"}) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(DataError) as error:
        read_results(path)
    assert reason in str(error.value)
    assert str(error.value).startswith(f"{path} line 2")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[1]", "3", "null", "[" * 100_000, '{"key": "a", "key": "b"}', "{", "x"]
)
def test_lines_that_are_no_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(DataError, match=r"results\.jsonl line 1.*is this a results file\?"):
        read_results(path)


def test_lines_end_at_newlines(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = json.dumps(GOOD | {"dataset": "A\u2028B\x85C"}, ensure_ascii=False)
    path.write_text(f"\ufeff{line}\r\n\r\n", "utf-8", newline="")
    [result] = read_results(path)
    assert result.dataset == "A\u2028B\x85C"


def test_nan_is_a_value_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(GOOD | {"metrics": {"main_metric": 1, "acc5": float("nan")}}))
    [result] = read_results(path)
    assert result.metrics == {"main_metric": 1.0, "acc5": None}
