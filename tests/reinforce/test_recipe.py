from __future__ import annotations

import pytest

from pocketclip import zoo
from pocketclip.errors import ConfigError
from pocketclip.reinforce import specs
from pocketclip.reinforce.recipe import DATACOMPDR, digest, load_recipe, names
from pocketclip.reinforce.sampling import Sampling, caption_key


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
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
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


def test_published_sets_have_recipes_by_name():
    views = {"datacompdr-12m": 30, "datacompdr-1b": 10, "dfndr-12m": 30, "dfndr-2b": 2}
    assert names() == sorted(views)
    for name, count in views.items():
        recipe = load_recipe(name)
        assert (recipe.augmentations, recipe.captions) == (count, 5)
        assert recipe.image_augmentation == DATACOMPDR
        sampling = Sampling.from_dict(recipe.sampling)
        assert sampling == Sampling(top_p=0.9, max_length=30, first_sentence=True)
        teachers = [specs.parse(spec) for spec in recipe.teachers]
        assert [zoo.entry(t.model).config.embed_dim for t in teachers] == [768, 768]
        (captioner,) = [specs.parse(spec) for spec in recipe.captioners]
        assert zoo.entry(captioner.model).config.text.context_length == 76
        if name.startswith("datacompdr"):
            key, layout, repos = "syn_text", "v1", [
                "timm/vit_large_patch14_clip_224.openai",
                "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
            ]  # fmt: skip
        else:
            key, layout, repos = "syn_text_dfn_mscoco38k", "named", [
                "apple/DFN2B-CLIP-ViT-L-14", "apple/DFN2B-CLIP-ViT-L-14-39B",
            ]  # fmt: skip
        assert [t.repos[0] for t in teachers] == repos
        assert (caption_key(captioner.label), recipe.layout) == (key, layout)
    assert load_recipe("dfndr-2b", augmentations=3, images=False).augmentations == 3


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dfndr-2b").write_text("teachers: [tiny]\n")
    assert load_recipe("dfndr-2b").teachers == ("tiny",)
    (tmp_path / "datacompdr-1b").mkdir()  # a folder of that name is no recipe
    assert load_recipe("datacompdr-1b").augmentations == 10
    (tmp_path / "mine.json").write_text('{"teachers": ["small"]}')
    assert load_recipe("mine.json").teachers == ("small",)


@pytest.mark.parametrize(
    ("name", "says"),
    [("datacompdr-12", "did you mean 'datacompdr-12m'"), ("DFNDR-2B", "did you mean 'dfndr-2b'"),
     ("zzz", r"neither a file nor a recipe \(recipes: datacompdr-12m"),
     ("missing.yaml", "no such file")],
)  # fmt: skip
def test_an_unknown_recipe_answers_with_the_nearest(name, says):
    with pytest.raises(ConfigError, match=says):
        load_recipe(name)
