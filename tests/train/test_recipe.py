"""Recipes: the published settings, fields on top, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from pocketclip import zoo
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.errors import ConfigError
from pocketclip.train.recipe import VOCABULARY, differences, dump, load_recipe, names
from pocketclip.train.sections import MoESection

# From the papers: steps, batch, weights, teacher scales.
PUBLISHED = {
    "mobileclip-b-datacompdr12m": (30_000, 8_192, (0.0, 1.0), (100.0, 100.0)),
    "vit-b16-datacompdr12m": (30_000, 8_192, (0.0, 1.0), (100.0, 100.0)),
    "vit-b16-datacomp12m": (30_000, 8_192, (1.0, 0.0), None),
    "mobileclip-datacompdr1b": (200_000, 65_536, (0.0, 1.0), (100.0, 100.0)),
    "mobileclip-b-lt": (600_000, 65_536, (0.25, 0.75), (100.0, 100.0)),
    "mobileclip2-dfndr2b": (200_000, 65_536, (0.0, 1.0), (70.0, 60.0)),
    "mobileclip2-dfndr12m": (30_000, 8_192, (0.0, 1.0), (70.0, 60.0)),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_settings(name):
    recipe = load_recipe(name)
    steps, batch, weights, scales = PUBLISHED[name]
    assert (recipe.steps, recipe.batch_size) == (steps, batch)
    assert recipe.loss.weights == weights
    assert recipe.loss.teacher_scales == scales
    optimizer = recipe.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1e-3, 0.2)
    assert (optimizer.beta2, optimizer.clip_norm) == (0.95, 1.0)
    if name != "mobileclip2-dfndr2b":  # see BY_MODEL
        assert (recipe.schedule.warmup, recipe.schedule.min_lr) == (1000, 0.0)


# By model: warm-up, lowest rate, batch, steps, weights. Of MobileCLIP2's, only B's warm-up and the
# batches and steps of S0, S2 and B are in the released script; the rest is known from reviews of
# the paper's appendix.
BY_MODEL = {
    ("mobileclip2-dfndr2b", "mobileclip2-s0"): (10_000, 1e-6, 65_536, 200_000, (0.0, 1.0)),
    ("mobileclip2-dfndr2b", "mobileclip2-s2"): (10_000, 1e-6, 65_536, 200_000, (0.0, 1.0)),
    ("mobileclip2-dfndr2b", "mobileclip2-b"): (1_000, 1e-6, 65_536, 200_000, (0.0, 1.0)),
    ("mobileclip2-dfndr2b", "mobileclip2-s3"): (2_000, 0.0, 114_688, 114_286, (0.0, 1.0)),
    ("mobileclip2-dfndr2b", "mobileclip2-s4"): (2_000, 0.0, 114_688, 114_286, (0.0, 1.0)),
    ("mobileclip2-dfndr2b", "mobileclip2-l14"): (2_000, 0.0, 65_536, 200_000, (0.0, 1.0)),
    ("mobileclip-datacompdr1b", "mobileclip-s1"): (1_000, 0.0, 65_536, 200_000, (0.0, 1.0)),
    ("mobileclip-datacompdr1b", "mobileclip-b"): (1_000, 0.0, 65_536, 200_000, (0.25, 0.75)),
    ("mobileclip-datacompdr1b", "vit-b16"): (1_000, 0.0, 65_536, 200_000, (0.25, 0.75)),
}


@pytest.mark.parametrize(("name", "model"), list(BY_MODEL))
def test_published_settings_by_model(name, model):
    recipe = load_recipe(name, [f"model.name={model}"])
    warmup, floor, batch, steps, weights = BY_MODEL[name, model]
    assert (recipe.schedule.warmup, recipe.schedule.min_lr) == (warmup, floor)
    assert (recipe.batch_size, recipe.steps) == (batch, steps)
    assert recipe.loss.weights == weights
    # 13 billion samples are seen, whatever the batch.
    assert recipe.batch_size * recipe.steps == pytest.approx(200_000 * 65_536, rel=1e-5)
    assert round(recipe.batch_size * recipe.steps / 1e9) == 13


def test_captioners():
    weights = {}
    for name, samples in (("coca-pretrain", 200_000 * 65_536), ("coca-finetune", 12_000_000)):
        recipe = load_recipe(name)
        assert recipe.steps * recipe.batch_size == samples
        weights[name] = (recipe.loss.weights, recipe.loss.captioning_weight)
    assert weights["coca-pretrain"] == weights["coca-finetune"] == ((1.0, 0.0), 2.0)
    # Fine-tuning starts from published weights that fit, never from noise without a word.
    assert load_recipe("coca-pretrain").model.init is None
    settings = load_recipe("coca-finetune").model
    assert settings.init == "coca-dfn2b-context77"
    start = resolve_model(settings.init)
    assert start.repos == ("apple/mobileclip2_coca_dfn2b_s13b_context77",)
    assert zoo.entry(settings.init).config == settings.config()
    # Today's form, as the recipe's comment and the documentation have it.
    alone = ["loss.weights=[0,0]", "loss.captioning_weight=1", "steps=4600"]
    recipe = load_recipe("coca-finetune", alone)
    assert (recipe.loss.weights, recipe.loss.captioning_weight) == ((0.0, 0.0), 1.0)


def test_the_weights_go_with_the_model():
    name = "mobileclip-datacompdr1b"
    assert load_recipe(name, ["model.name=MobileCLIP-B"]).loss.weights == (0.25, 0.75)
    assert load_recipe(name, ["model.name=mobileclip-s2"]).loss.weights == (0.0, 1.0)
    chosen = load_recipe(name, ["model.name=mobileclip-b", "loss.weights=[0.5, 0.5]"])
    assert chosen.loss.weights == (0.5, 0.5)


def test_longer_training_stays_at_its_rate_for_half():
    recipe = load_recipe("mobileclip-b-lt")
    assert (recipe.schedule.kind, recipe.schedule.constant) == ("cosine", 300_000)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_losses_know_nothing_of_equal_texts(name):
    loss = load_recipe(name).loss
    assert loss.same_text == "negative"
    assert (loss.contrastive_captions, loss.distill_captions) == ("all", "all")


def test_each_term_may_have_its_own_caption():
    own = ["loss.contrastive_captions=truth", "loss.distill_captions=synthetic"]
    recipe = load_recipe("scenes-tiny", ["loss.weights=[1, 1]", *own])
    assert recipe.data.captions == "both"
    # A term of weight 0 asks for nothing.
    load_recipe("scenes-tiny", ["data.captions=truth", "loss.contrastive_captions=synthetic"])


def test_captions_of_dfndr():
    for name in ("mobileclip2-dfndr2b", "mobileclip2-dfndr12m"):
        assert load_recipe(name).data.caption_pattern == "^syn_text_dfn_mscoco38k$"


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_whole(name):
    recipe = load_recipe(name)
    assert recipe.about
    assert load_recipe(yaml.safe_load(dump(recipe))) == recipe


@pytest.mark.parametrize(
    ("name", "dense"),
    [
        ("clip-up-b16-datacompdr12m", "vit-b16-datacompdr12m"),
        ("clip-up-b16", "vit-b16-datacomp12m"),
    ],
)
def test_sparse_recipes_follow_their_dense_ones(name, dense):
    sparse, before = load_recipe(name), load_recipe(dense)
    assert sparse.model.config() == zoo.sparse_config(before.model.config())
    assert sparse.optimizer.lr == pytest.approx(before.optimizer.lr / 10)
    assert sparse.moe == MoESection()
    assert dense in sparse.model.init
    assert "our settings" in sparse.about
    assert {key.split(".")[0] for key in differences(before, sparse)} == {
        "about", "model", "moe", "optimizer", "steps",
    }  # fmt: skip


def test_the_named_ones_are_there():
    expected = {*PUBLISHED, "coca-finetune", "grocery-small", "scenes-tiny"}
    assert expected <= set(names())


def test_settings_come_last(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {name: tiny}\nsteps: 5\nbatch_size: 8\noptimizer: {lr: 5e-4}\n")
    recipe = load_recipe(file, ["steps=7", "model.overrides.text.layers=3", "optimizer.eps=1e-8"])
    assert (recipe.steps, recipe.optimizer.lr, recipe.optimizer.eps) == (7, 5e-4, 1e-8)
    assert recipe.model.config().text.layers == 3
    assert differences(load_recipe(file), recipe).keys() == {
        "steps", "optimizer.eps", "model.overrides.text.layers",
    }  # fmt: skip


SMALL = {"model": {"name": "tiny"}, "steps": 5, "batch_size": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimzer.lr=1"], "optimzer: unknown field; did you mean 'optimizer'"),
        (["optimizer.learning_rate=1"], "unknown field .*there are lr, weight_decay"),
        (["lr"], "is not key=value"),
        (["steps=[1"], "--set 'steps=\\[1'"),
        (["steps=0"], "steps: .* greater than or equal to 1"),
        (["steps.x=1"], "steps has no fields"),
        (["model.name=mobileclip3"], "unknown model 'mobileclip3'"),
        (["model.overrides.text.layerz=3"], "did you mean 'layers'"),
        (["loss.kind=captioning"], "tiny is not a captioner"),
        (["model.name=coca-tiny"], "coca-tiny is a captioner"),
        (["loss.weights=[0, 0]"], "nothing would be learnt"),
        (["loss.weights=[-1, 1]"], "not be negative"),
        (["loss.weights=[0, 1]", "data.reinforced=false"], "needs `data.reinforced: true`"),
        (["teachers=[tiny]"], "live teachers are used only if the second of loss.weights"),
        (["teachers=[tiny]", "loss.weights=[0, 1]"], "use one or the other"),
        (["accumulate=3"], "8 samples does not divide"),
        (["schedule.constant=5"], "schedule.constant: .* for 5 steps of 5"),
        (["schedule.warmup=5"], "schedule.warmup: 5 steps of warm-up .* set schedule.warmup=0"),
        (["schedule.warmup=6"], "schedule.warmup: 6 steps"),
        (["schedule.min_lr=2e-3"], "schedule.min_lr: 0.002 is above .* optimizer.lr 0.001"),
        (["schedule.min_lr=1e-6", "schedule.kind=constant"], "schedule.min_lr: .* never falls"),
        (["model.name=coca-tiny", "loss.kind=captioning"], "data.captions: .* to truth, synth"),
        (
            [
                "model.name=coca-tiny",
                "loss.kind=captioning",
                "loss.captioning_weight=0",
                "loss.weights=[0, 0]",
                "data.captions=mix",
            ],
            "nothing would be learnt",
        ),
        (["loss.same_text=maybe"], "loss.same_text: .*'negative' or 'positive'"),
        (
            ["loss.contrastive_captions=synthetic"],
            "captions: .* not use the truth .* synthetic",
        ),
        (
            ["loss.contrastive_captions=truth", "data.captions=mix"],
            "captions: .data.captions: mix. gives no truth captions of their own; .* both or truth",
        ),
        (
            ["loss.weights=[1, 1]", "loss.distill_captions=synthetic", "data.captions=truth"],
            "loss.distill_captions: .* set data.captions to both or synthetic",
        ),
        (["batch_size=1"], "batch_size: .* must be 2 or more"),
        (["optimizer.lr=1e300"], "optimizer.lr: 1e\\+300 is too large"),
        (["loss.weights=[1, 1e200]"], "loss.weights: 1e\\+200 is too large"),
        (
            ["loss.weights=[0, 1]", "loss.teacher_dims=[0, 12]"],
            "a dimension must be 1 or more, not 0",
        ),
        (["loss.weights=[0, 1]", "loss.teacher_scales=[-1, 3]"], "a scale must be above 0, not -1"),
        (
            ["loss.weights=[0, 1]", "loss.teacher_dims=[8, 4]", "loss.teacher_scales=[1]"],
            "one number per teacher; they have 1 and 2",
        ),
        (
            ["loss.weights=[0, 1]", "loss.teacher_dims=[8, 4]", "loss.teacher_weights=[1]"],
            "one number per teacher; they have 1 and 2",
        ),
        (
            ["loss.weights=[0, 1]", "loss.teacher_weights=[0, 0]"],
            "teacher_weights: .* above 0",
        ),
        (["loss.weights=[0, 1]", "loss.teacher_weights=[2, -1]"], "loss.teacher_weights: .* 0 or"),
        (["model.freeze_image=0", "model.freeze_text=0"], "nothing would be learnt"),
        (["model.freeze_image=tail"], "a number of blocks from 0 to 4,096, or `head`, not 'tail'"),
        (["model.lora.rank=0"], "model.lora.rank: .* greater than or equal to 1"),
        (["model.lora.alpha=0"], "model.lora.alpha: .* greater than 0"),
        (["model.lora.towers=[]"], "model.lora.towers: should name `image`, `text` or both"),
        (["model.lora.ranks=4"], "model.lora.ranks: unknown field; did you mean 'rank'"),
        (["model.lora=8"], "model.lora: should hold fields such as `rank:`"),
        (["model.lora={}", "model.freeze_text=2"], "model.freeze_text: model.lora adapts the text"),
        (["optimizer.layer_decay=0"], "optimizer.layer_decay"),
        (["optimizer.layer_decay=1.1"], "optimizer.layer_decay"),
        (["model.freeze_text=-1"], "model.freeze_text: should be a number of blocks"),
        (["model.overrides.text.context_length=2"], "text.context_length must be 3 or more"),
        (["model.overrides.text.vocab_size=10"], "text.vocab_size must be the tokenizer's, 49,408"),
        (["model.overrides.drop_path=1.0"], "image.drop_path must be at least 0"),
        (["model.overrides.preprocess.std=[1, 0, 1]"], "preprocess.std cannot be"),
        (["model.overrides.preprocess.mean=[.nan, 0, 0]"], "nan is not a finite number"),
        (["data.where.split=train"], "data.where: it is for raw pairs"),
        (["data.caption_columns=title"], "data.caption_columns: it is for raw pairs"),
        (["data.image_augmentation={resize: {size: 8}}"], "data.image_augmentation: it is for"),
        (["data.source=['']"], "one of the sources is empty"),
        (["evaluation.data= "], "evaluation.data: "),
        (["evaluation.data=x", "evaluation.tasks=['']"], "the name of a task is empty"),
        (["data.image_augmentation={blur: {}}"], "data.image_augmentation"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(SMALL, settings)


@pytest.mark.parametrize(
    ("settings", "warmup"),
    [
        (["steps=5"], 0), (["steps=500"], 50), (["steps=1000"], 100), (["steps=1001"], 1000),
        (["steps=500", "schedule.constant=300"], 50), (["steps=500", "schedule.warmup=499"], 499),
    ],
)  # fmt: skip
def test_a_short_run_has_a_warm_up_that_fits(settings, warmup):
    recipe = load_recipe(SMALL, settings)
    assert recipe.schedule.warmup == warmup
    assert load_recipe(yaml.safe_load(dump(recipe))) == recipe


def test_the_vocabulary_is_the_tokenizers():
    from pocketclip.tokenizer import Tokenizer

    assert Tokenizer().vocab_size == VOCABULARY


def test_unknown_recipe_and_bad_files(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'grocery-small'"):
        load_recipe("grocery-smal")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold fields"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "cut.yaml").write_text("model: {name: tiny\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_recipe(tmp_path / "cut.yaml")
    (tmp_path / "code.yaml").write_text("about: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not usable YAML: the tag"):
        load_recipe(tmp_path / "code.yaml")


def test_recipes_are_read_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pocketclip.train.recipe import load_recipe\nload_recipe('grocery-small')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


BASE = {"model": {"name": "tiny"}, "steps": 5000, "batch_size": 8, "data": {"source": "x"}}


def hostile(change):
    """Return a recipe with a field, by its dotted name, of another value."""
    raw = json.loads(json.dumps(BASE))
    key, value = change
    *sections, last = key.split(".")
    inner = raw
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return raw


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("model", "tiny"), "model: should hold fields such as `name:`, not the text 'tiny'"),
        (("model", ["tiny"]), "model: should hold fields such as `name:`, not a list"),
        (("model", 3), "model: should hold fields such as `name:`, not the number 3"),
        (("data", "x"), "data: should hold fields such as `source:`, not the text 'x'"),
        (("optimizer", 3), "optimizer: should hold fields such as `lr:`"),
        (("model.name", True), "model.name: should be text, not true; put it in quotes"),
        (("model.name", 3), "model.name: should be text, not the number 3"),
        (("by_model", {"tiny": 3}), "by_model must hold fields"),
        (("by_model", [1]), "by_model must hold fields"),
        (("optimizer.lr", float("inf")), "optimizer.lr: Input should be a finite number"),
        (("optimizer.lr", float("nan")), "optimizer.lr: "),
        (("optimizer.weight_decay", float("inf")), "optimizer.weight_decay: "),
        (("optimizer.eps", float("inf")), "optimizer.eps: "),
        (("loss.weights", [float("nan"), 1]), "loss.weights"),
        (("loss.teacher_scales", [float("inf")]), "loss.teacher_scales"),
        (("max_logit_scale", float("inf")), "max_logit_scale: "),
        (("data.workers", 10**9), "data.workers: Input should be less than or equal to 1024"),
        (("steps", 10**18), "steps: "),
        (("steps", 10**5000), "steps: "),
        (("batch_size", 10**12), "batch_size: "),
        (("accumulate", 10**12), "accumulate: "),
        (("loss.chunk", 10**12), "loss.chunk: "),
        (("checkpoint.keep_last", 10**30), "checkpoint.keep_last: "),
        (("model.overrides", {"image_size": 10**9}), "preprocess.size cannot be 1000000000"),
        (("model.overrides", {"text.width": 10**9}), "text.width cannot be 1000000000"),
        (("model.overrides", {"text.layers": 10**6}), "text.layers cannot be 1000000"),
        (("model.overrides", {"image.widths": [10**9] * 5}), "image.widths cannot be"),
        (("model.overrides", {"drop_path": float("nan")}), "cannot be nan"),
        (("data.image_augmentation", {"random_resized_crop": {"size": 10**9}}), "pixels"),
        (("data.where", {"split": [1]}), "data.where.split: should be text, not a list"),
        (("about", [[]]), "about: should be text"),
    ],
)
def test_fields_that_no_recipe_has(change, reason):
    with pytest.raises(ConfigError) as caught:
        load_recipe(hostile(change))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: tiny\n", "model: should hold fields"),
        ("optimizer: {lr: .inf}\n", "finite"),
        ("steps: 1\nsteps: 2\n", "twice"),
        ("a: " + "[" * 10_000, "levels"),
        ("a: &a [*a]\n", "levels"),
        ("5: a\n", "not text"),
        ("x", "must hold fields such as `model:`, not the text 'x'"),
        ("", "must hold fields such as `model:`, not null"),
        (b"about: caf\xe9", "not UTF-8"),
        (b"about: a\0b", "not YAML"),
        ("a" * 300_000, "larger than"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, text, reason):
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("model=tiny", "model: should hold fields"),
        ("optimizer.lr=.inf", "finite"),
        ("optimizer.lr=1e999", "finite"),
        ("x=" + "[" * 5_000, "levels"),
        ("a" + ".a" * 5_000 + "=1", "not the name of a field"),
        ("data=3", "data: should hold fields"),
        ("data.where=3", "data.where"),
        ("model.overrides.a=1", "unknown field 'a'"),
        ("x={a: 1, a: 2}", "twice"),
        ("steps=!!python/name:os.system", "tag"),
        ("steps=" + "9" * 6_000, "number"),
    ],
)
def test_settings_that_make_no_sense(setting, reason):
    with pytest.raises(ConfigError) as caught:
        load_recipe(BASE, [setting])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_below_what_is_no_section():
    for key in ("data.where.split", "model.overrides.text.width"):
        with pytest.raises(ConfigError, match="has no fields"):
            load_recipe({**BASE, key.partition(".")[0]: {key.split(".")[1]: 3}}, {key: "x"})
    deep = inner = {}
    for _ in range(5_000):
        inner["a"] = inner = {}
    with pytest.raises(ConfigError, match="levels"):
        load_recipe({**BASE, "about": deep})
    with pytest.raises(ConfigError, match="neither a file"):
        load_recipe("a" * 5_000)


def test_names_that_yaml_takes_for_something_else(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {name: tiny}\nsteps: 5_000\nbatch_size: 8\nabout: 2020-01-01\ncompile: on\n"
        "data: {source: NO, reinforced: false, where: {country: NO, year: 2020, "
        "day: 2020-01-01, good: true}}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.about, recipe.compile, recipe.steps) == ("2020-01-01", True, 5000)
    assert recipe.data.source == "NO"
    assert recipe.data.where == {
        "country": "NO",
        "year": "2020",
        "day": "2020-01-01",
        "good": "true",
    }
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe
