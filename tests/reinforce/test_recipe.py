from __future__ import annotations

import pytest

from pocketclip.errors import ConfigError
from pocketclip.reinforce.recipe import DATACOMPDR, digest, load_recipe


def test_defaults_are_the_published_ones():
    recipe = load_recipe(teachers=["vit-b16"])
    assert recipe.augmentations == 10
    assert recipe.captions == 5
    assert recipe.dtype == "bfloat16"
    assert recipe.image_augmentation == DATACOMPDR


def test_a_file_is_read_and_options_win(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("teachers: [tiny, small]\naugmentations: 3\nseed: 7\n")
    recipe = load_recipe(path, augmentations=2, captions=None)
    assert recipe.teachers == ("tiny", "small")
    assert (recipe.augmentations, recipe.seed, recipe.captions) == (2, 7, 5)


def test_one_teacher_needs_no_list_and_the_file_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("teachers: tiny\naugmentations: -2\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: augmentations"):
        load_recipe(path, augmentations=None)
    with pytest.raises(ConfigError, match=r"^augmentations"):
        load_recipe(path, augmentations=-1)
    assert load_recipe(path, augmentations=1).teachers == ("tiny",)


def test_the_published_nesting_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "reinforce:\n  image_augmentation:\n    random_resized_crop: {size: 64}\nteachers: [tiny]\n"
    )
    assert load_recipe(path).image_augmentation == {"random_resized_crop": {"size": 64}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("teachers: [tiny]\naugmentation: 3\n", "augmentation: unknown field"),
        ("teachers: [tiny]\naugmentations: many\n", "augmentations: "),
        ("teachers: [tiny]\naugmentations: -1\n", "augmentations: "),
        ("teachers: [tiny]\nimage_augmentation: {random_crop: {}}\n", "random_crop"),
        ("teachers: [tiny]\ndtype: int3\n", "int3"),
        ("teachers: [tiny]\nsampling: {metod: greedy}\n", "metod"),
        ("captions: 3\n", "no teacher"),
        ("- a\n- b\n", "must hold fields"),
        ("a: [", "is not YAML"),
        ("reinforce: 3\nteachers: [tiny]\n", "'reinforce' must hold fields"),
        ("teachers: [tiny]\nteachers: [small]\n", "twice"),
        ("teachers: [tiny]\nx: " + "[" * 10_000, "levels"),
        ("teachers: &a [*a]\n", "levels"),
        ("teachers: [tiny]\nbatch_size: 1000000000000\n", "batch_size"),
        ("teachers: [tiny]\nsampling: {top_p: .nan}\n", "finite"),
        ("teachers: !!python/name:os.system\n", "tag"),
        ("teachers: {a: b}\n", "teachers"),
        ("5\n", "must hold fields"),
    ],
)
def test_bad_recipes_say_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_the_digest_does_not_depend_on_the_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_json_is_read_as_json(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text('{"teachers":\n\t["tiny"], "captions": 2}')
    assert load_recipe(path).captions == 2
    path.write_text('{"teachers": ["tiny"], "captions": 1e999}')
    with pytest.raises(ConfigError, match="too large"):
        load_recipe(path)
