"""Where a text is found: the right object, in pixels of the photograph, and as a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import pocketclip
from pocketclip.attribution.explain import MAX_TEXTS, Explanation, FoundText, explain_image
from pocketclip.attribution.picture import draw
from pocketclip.errors import ConfigError, ImageError, MissingDependencyError
from pocketclip.infer.encoder import Encoder
from pocketclip.preprocess import Preprocess
from pocketclip.quickstart.captions import class_name
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import draw_scene
from pocketclip.zoo import PreprocessConfig
from tests.bundles import model
from tests.cli import inside


@pytest.fixture(scope="module")
def encoder():
    return Encoder(model("teacher-a"))


def scene(index: int):
    """Return pixels of a scene, and the names and boxes of its things; None for other kinds."""
    about = draw_scene("test", seed=5, index=index)
    if about.kind not in ("two", "three"):
        return None
    pixels = render(about, side=64, rng=ReplayRNG(5, index))
    things = [
        (class_name(t.colour, t.shape), (t.x - t.radius, t.y - t.radius, t.x + t.radius,
                                         t.y + t.radius))
        for t in about.things
    ]  # fmt: skip
    return pixels, things


def test_the_hottest_point_is_in_the_right_object(encoder):
    hits, area = [], []
    for found in filter(None, map(scene, range(30))):
        pixels, things = found
        explained = explain_image(encoder, Image.fromarray(pixels), [name for name, _ in things])
        for one, (_, (left, top, right, bottom)) in zip(explained, things, strict=True):
            x, y = (value / 64 for value in one.peak)
            hits.append(left <= x <= right and top <= y <= bottom)
            area.append((right - left) * (bottom - top))
    assert len(hits) >= 20
    assert np.mean(area) < 0.2  # what chance finds
    assert np.mean(hits) > 0.75


def test_a_map_lies_in_pixels_of_the_upright_photograph(encoder, tmp_path):
    pixels, things = scene(next(i for i in range(30) if scene(i)))
    (name, box), *_ = things
    # Wide, with the scene in the middle; stored sideways.
    wide = np.full((64, 104, 3), 128, np.uint8)
    wide[:, 20:84] = pixels
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(wide)).save(tmp_path / "a.png", exif=exif)
    found = pocketclip.explain(tmp_path / "a.png", name, encoder)
    alone = explain_image(encoder, Image.fromarray(pixels), [name])
    assert found.photo.size == found[0].size == (104, 64)
    assert found[0].box == (20, 0, 84, 64)
    np.testing.assert_allclose(found[0].grid, alone[0].grid, atol=1e-6)
    assert np.isnan(found.map[:, :20]).all()
    assert np.isnan(found.map[:, 84:]).all()
    assert np.isfinite(found.map[:, 20:84]).all()
    assert found.peak == pytest.approx((alone.peak[0] + 20, alone.peak[1]))
    row, column = np.unravel_index(np.nanargmax(found.map), found.map.shape)
    assert np.hypot(column + 0.5 - found.peak[0], row + 0.5 - found.peak[1]) < 3
    assert box[0] * 64 + 20 <= found.peak[0] <= box[2] * 64 + 20


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (100, 100), (7, 300)])
def test_what_the_model_sees_is_what_the_transform_crops(size):
    preprocess = Preprocess(PreprocessConfig(size=32, mean=(0, 0, 0), std=(1, 1, 1)))
    left, top, right, bottom = preprocess.seen(size)
    ramp = np.zeros((size[1], size[0], 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, size[0])
    ramp[..., 1] = np.linspace(0, 255, size[1])[:, None]
    seen = preprocess.to_uint8(Image.fromarray(ramp)).astype(float).mean((0, 1))
    assert seen[0] == pytest.approx((left + right) / 2 / size[0] * 255, abs=2.5)
    assert seen[1] == pytest.approx((top + bottom) / 2 / size[1] * 255, abs=2.5)


def test_what_the_model_sees_of_a_squashed_photograph_is_all_of_it():
    preprocess = Preprocess(
        PreprocessConfig(size=32, mean=(0, 0, 0), std=(1, 1, 1), resize="squash")
    )
    assert preprocess.seen((300, 100)) == (0, 0, 300, 100)


@pytest.mark.parametrize("size", [(300, 1), (1, 300), (1, 1)])
def test_a_line_of_pixels(encoder, size):
    found = explain_image(encoder, Image.new("RGB", size, (200, 30, 40)), ["a red circle"])
    assert found.map.shape == size[::-1]
    assert np.isfinite(found.map).sum() >= 1
    assert found.picture(side=64).height > 64


@pytest.mark.parametrize("name", ["tiny", "mobileclip-s3", "mobileclip-b"])
def test_every_kind_of_tower(name):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8))
    found = pocketclip.explain(photo, ["a dog", "a cat"], Encoder(model(name)))
    assert len(found) == 2
    assert min(found[0].grid.shape) >= 8
    assert found[0].grid.std() > 0
    assert not np.array_equal(found[0].grid, found[1].grid)
    assert all(p.grad is None for p in model(name).parameters())


def explanation(count: int = 2) -> Explanation:
    grid = np.zeros((4, 4), np.float32)
    grid[1, 2] = 1
    photo = Image.new("RGB", (120, 80), (90, 120, 200))
    found = tuple(
        FoundText(text=f"text {i}" + " of many words" * 9 * i, similarity=0.2, background=0.1,
                  grid=grid, box=(20, 0, 100, 80), size=(120, 80))
        for i in range(count)
    )  # fmt: skip
    return Explanation(photo=photo, found=found, model="tiny")


def test_the_picture(tmp_path):
    one = explanation()
    for name in ("a.png", "a.jpg", "a.webp"):
        one.save(tmp_path / name, side=120)
        with Image.open(tmp_path / name) as picture:
            assert picture.size == one.picture(side=120).size
    page = np.asarray(one.picture(side=120).convert("RGB"), float)
    panel = page[12:92, 12 + 242 + 55 : 12 + 242 + 55 + 120]  # the second cell, centred in 230
    hot, cold, unseen = panel[30, 70], panel[70, 30], panel[40, 5]
    assert hot[0] > 200  # yellow
    assert hot[0] > hot[2] + 60
    assert np.ptp(cold) < 6  # the grey photograph
    assert unseen.min() > 200  # faint
    flat = draw(one.photo, [("nothing", "", np.zeros((4, 4), np.float32))], (0, 0, 120, 80),
                side=120, alpha=1)  # fmt: skip
    assert np.isfinite(np.asarray(flat)).all()
    assert explanation(5).picture(side=64).height > explanation(3).picture(side=64).height
    for wrong in ({"side": 10}, {"side": 5000}, {"alpha": 1.5}):
        with pytest.raises(ConfigError):
            one.picture(**wrong)
    with pytest.raises(ConfigError, match="ends in"):
        one.save(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("texts", "says"),
    [([], "there is no text"), (["a dog", " "], "is empty"), (["a", "a"], "given twice"),
     ([str(i) for i in range(MAX_TEXTS + 1)], "too many")],
)  # fmt: skip
def test_bad_texts(encoder, texts, says):
    with pytest.raises(ConfigError, match=says):
        pocketclip.explain("absent.jpg", texts, encoder)


def test_what_cannot_be_explained(encoder, tmp_path, monkeypatch, exported):
    (tmp_path / "a.jpg").write_text("not a photograph")
    with pytest.raises(ImageError):
        pocketclip.explain(tmp_path / "a.jpg", "a dog", encoder)
    photo = Image.new("RGB", (64, 64))
    for bundle in (Encoder(exported()), exported()):
        with pytest.raises(ConfigError, match="is a bundle, which computes no gradients"):
            pocketclip.explain(photo, "a dog", bundle)
    monkeypatch.setattr("pocketclip.attribution.explain.has_torch", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"needs torch, for gradients: pip install"):
        pocketclip.explain(photo, "a dog", encoder)


def test_the_verb(tmp_path):
    photo = tmp_path / "a.png"
    Image.new("RGB", (80, 64), (200, 30, 40)).save(photo)
    place = f"{pocketclip.__path__[0]}/data/quickstart/teacher-a"
    command = ["explain", photo, "-t", "a red circle", "-t", "a blue moon", "--model", place]
    done = inside.run(*command, "--out", tmp_path / "b.png", "--json")
    facts = json.loads(done.stdout)
    assert [t["text"] for t in facts["texts"]] == ["a red circle", "a blue moon"]
    assert facts["seen"] == [8, 0, 72, 64]
    unlike = [t["text"] for t in facts["texts"] if t["similarity"] <= t["background"]]
    assert all((f"{text!r} fits no better" in done.stderr) for text in unlike)
    assert (tmp_path / "b.png").is_file()
    done = inside.run(*command, "--out", tmp_path / "c.jpg")
    assert done.returncode == 0
    assert "c.jpg: 2 texts" in done.stdout
    for wrong, says in (
        (command, "--out where.png, or --json"),
        ([*command, "--out", tmp_path / "c.gif"], "ends in"),
        ([*command, "--out", photo], "is the input itself"),
        (["explain", photo, "--model", place, "--json"], "there is no text"),
        ([*command, "--json", "--size", "9"], "64 to 2048"),
    ):
        done = inside.run(*wrong)
        assert done.returncode == 2
        assert says in done.stderr
