"""One syntax of templates, wherever they are taken."""

from __future__ import annotations

import pytest

from pocketclip.errors import DataError
from pocketclip.prompts import fill_templates


def test_both_placeholders_and_any_name():
    assert fill_templates(["a {} b", "", "{c}"], ["one {c}.", "{} {x} {c}"]) == [
        *("one a {} b.", "a {} b {x} a {} b", "one .", " {x} "),
        *("one {c}.", "{c} {x} {c}"),
    ]


@pytest.mark.parametrize("template", ["a photo", "", "{label}", "{0}", "{ }", "{C}", "} {"])
def test_a_template_without_a_placeholder(template):
    with pytest.raises(DataError, match=r"has no \{c\} or \{\} for the class"):
        fill_templates(["a"], [template])


def test_nothing():
    for names, templates in (([], ["{}"]), (["a"], [])):
        with pytest.raises(DataError, match="needs class names and prompts"):
            fill_templates(names, templates)
