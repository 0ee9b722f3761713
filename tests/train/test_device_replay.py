"""`data.replay: device`: the workers crop, the device does the rest for a whole batch."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from pocketclip.augment import Augmentation, rng_for
from pocketclip.augment.magnitudes import op_magnitude
from pocketclip.augment.pixel_ops import OP_NAMES
from pocketclip.errors import AugmentationError, ConfigError, ImageError, TrainingError
from pocketclip.images import open_image
from pocketclip.train.device_views import Views
from pocketclip.train.loop import train
from pocketclip.train.recipe import load_recipe
from pocketclip.train.replay import AugmentationReplay
from tests.train.making_shards import AUGMENTATION, photo, sample, write_shards
from tests.train.test_loader import PHOTOS, take
from tests.train.test_loop import recipe

BOUNDS = {"AutoContrast": 3, "Equalize": 3, "Solarize": 3}
"""The mean difference of larger crops, in levels, where it is not 2."""
WHOLE = {
    "random_resized_crop": {"size": 96, "interpolation": "bicubic"},
    "random_horizontal_flip": {},
    "rand_augment": {"p": 1.0},
    "auto_augment": {},
    "trivial_augment_wide": {},
    "random_erase": {},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dr")
    return write_shards(folder, [[sample(i) for i in range(s, s + 9)] for s in (0, 9)])


def photos():
    return [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]


def both(config, size, count=12, encoded=None):
    """Yield the crop, the exact pixels and those of a device, for views of photographs."""
    replay = AugmentationReplay(Augmentation.from_config(config), size)
    for data in encoded or photos():
        drawn = [
            replay.stored.draw(rng_for(size, "u", i), open_image(data).size) for i in range(count)
        ]
        views = [replay.view(data, params) for params in drawn]
        assert max(max(view.pixels.shape[:2]) for view in views) <= 2 * size
        out = Views.pack(
            views, size=size, interpolation=replay.interpolation or "bilinear"
        ).images()
        for params, image in zip(drawn, out.permute(0, 2, 3, 1).numpy(), strict=True):
            yield params.crop, replay.apply(data, params), image


@pytest.mark.parametrize("size", [160, 224])
def test_views_of_at_most_twice_the_size_have_the_exact_bytes(size):
    found = 0
    for crop, exact, device in both(WHOLE, size):
        if max(crop[2:]) <= 2 * size:
            assert np.array_equal(exact, device)
            found += 1
    assert found >= 8


@pytest.mark.parametrize("op", range(15), ids=OP_NAMES)
def test_larger_crops_differ_by_a_few_levels(op):
    # docs/how-to/training.md has the figures; fur, decoded at a half, differs most.
    size, magnitude = 64, op_magnitude(op, 9, 31, (64, 64))
    crop = {"random_resized_crop": {"size": size, "interpolation": "bicubic", "scale": [0.4, 1]}}
    replay = AugmentationReplay(Augmentation.from_config(crop), size)
    views, exact = [], []
    for data in photos():
        for index in range(4):
            drawn = replay.stored.draw(rng_for(0, "u", index), open_image(data).size)
            assert max(drawn.crop[2:]) > 2 * size
            params = replace(drawn, ops=((op, magnitude),))
            views.append(replay.view(data, params))
            exact.append(replay.apply(data, params).astype(int))
    images = Views.pack(views, size=size, interpolation="bicubic").images()
    found = np.abs(images.permute(0, 2, 3, 1).numpy() - np.stack(exact))
    assert 0 < found.mean() < BOUNDS.get(OP_NAMES[op], 2)
    assert found.mean((1, 2, 3)).max() < 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_large_images_of_all_kinds_are_reduced(kind):
    ramp = np.linspace(0, 255, 500)[None, :, None] * np.ones((700, 1, 3))
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(buffer, kind, quality=95)
    config = {"random_resized_crop": {"size": 32, "interpolation": "bicubic", "ratio": [0.2, 5]}}
    for _, exact, device in both(config, 32, encoded=[buffer.getvalue()]):
        assert np.abs(exact - device.astype(int)).max() <= 3  # nothing is shifted


@pytest.mark.parametrize(
    "config",
    [
        {"random_crop": {"size": 48, "padding": 4}, "rand_augment": {}},
        {"resize": {"size": 64}, "center_crop": {"size": 48}},
        {"random_resized_crop": {"size": 48, "interpolation": "lanczos"}, "rand_augment": {}},
        {"random_resized_crop": {"size": 48, "interpolation": "nearest"}},
        {"random_resized_crop": {"size": 48}, "range_augment": {}},
    ],
    ids=["window", "centre", "lanczos", "nearest", "tones"],
)
def test_views_that_the_device_cannot_make_are_finished_by_the_worker(config):
    assert AugmentationReplay(Augmentation.from_config(config), 32).interpolation is None
    for _, exact, device in both(config, 32, count=3):
        assert np.array_equal(exact, device)


def test_a_crop_that_does_not_fit_and_a_damaged_image_are_named():
    replay = AugmentationReplay(AUGMENTATION, 16)
    params = replay.stored.unpack([[0, 0, 300, 300], None])
    for kind in ("JPEG", "PNG"):
        with pytest.raises(AugmentationError, match="belong to another image"):
            replay.view(photo(1, kind=kind), params)
    fitting = replay.stored.unpack([[2, 3, 20, 22], None])
    with pytest.raises(ImageError):
        replay.view(photo(1)[:200], fitting)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_number_of_calls_does_not_depend_on_the_batch(shards):
    counted = []
    for size in (2, 16):
        [batch] = take(1, shards, batch_size=size, replay="device")
        with Calls() as calls:
            assert batch.to("cpu").images.shape[0] == size
        assert not [name for name in calls.names if "_local_scalar_dense" in name]
        assert not [name for name in calls.names if "nonzero" in name]
        counted.append(calls.names)
    assert counted[0] == counted[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_exact_replay(shards, workers):
    exact = take(3, shards, batch_size=6)
    for one, other in zip(
        exact, take(3, shards, batch_size=6, replay="device", workers=workers), strict=True
    ):
        assert other.images.shape == one.images.shape
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            other.images.sum().item()  # nothing is silently empty
        made = other.to("cpu")
        assert made.views is None
        assert made.to("cpu") is made
        # Crops of 40 x 32 pixels at 16: some are reduced.
        assert (made.images.int() - one.images).abs().float().mean() < 3
        assert made.uids == one.uids
        assert made.images.stride() == one.images.stride()


def test_raw_pairs_are_replayed_alike(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number, (24, 20)))
    rows = [f"{number}.jpg,caption {number}\n" for number in range(6)]
    (tmp_path / "pairs.csv").write_text("".join(["filepath,caption\n", *rows]))
    exact, device = (
        take(2, str(tmp_path / "pairs.csv"), reinforced=False, captions="truth", replay=replay)
        for replay in ("exact", "device")
    )
    for one, other in zip(exact, device, strict=True):
        assert torch.equal(one.images, other.to("cpu").images)


def test_batches_are_pinned_and_moved_whole(shards):
    [batch] = take(1, shards, replay="device")
    changed = batch.with_tensors(lambda tensor: tensor.clone())
    assert changed.views.pixels is not batch.views.pixels
    assert torch.equal(changed.to("cpu").images, batch.to("cpu").images)


def test_other_devices_are_refused(shards, monkeypatch):
    [batch] = take(1, shards, replay="device")

    class OnApple:
        device = torch.device("mps")

    monkeypatch.setattr(Views, "with_tensors", lambda views, _: views)
    views = batch.views.with_tensors(None)
    object.__setattr__(views, "pixels", OnApple())
    with pytest.raises(ConfigError, match=r"data.replay.*not mps; set data.replay=exact"):
        views.images()


# --- recipes and runs


def test_fast_is_an_earlier_name_of_a_replay():
    base = {"model": {"name": "tiny"}, "steps": 5, "batch_size": 8}
    for data in ({"fast": True}, {"replay": "fast"}, {"replay": "fast", "fast": True}):
        one = load_recipe({**base, "data": data})
        assert (one.data.fast, one.data.replay) == (True, "fast")
        again = load_recipe({**base, "data": one.data.model_dump()})
        assert again == one
    plain = load_recipe(base)
    assert (plain.data.fast, plain.data.replay) == (False, "exact")
    assert load_recipe({**base, "data": plain.data.model_dump()}, ["data.replay=fast"]).data.fast
    # Neither is overruled in silence.
    for data, setting in (
        ({"fast": True}, "data.replay=device"), ({"fast": True}, "data.replay=exact"),
        ({"replay": "exact"}, "data.fast=true"), ({"replay": "fast"}, "data.fast=false"),
    ):  # fmt: skip
        with pytest.raises(
            ConfigError, match=r"an earlier name of `replay: fast`.*leave `fast` out"
        ):
            load_recipe({**base, "data": data}, [setting])
    with pytest.raises(ConfigError, match=r"data.replay: .*'exact', 'fast' or 'device'"):
        load_recipe({**base, "data": {"replay": "gpu"}})


def test_a_run_resumes_with_the_same_replay_only(shards, tmp_path):
    whole = train(recipe(shards, **{"data.replay": "device"}), tmp_path / "whole", device="cpu")
    part = recipe(shards, **{"data.replay": "device"})
    stopped = tmp_path / "part"

    class Stop(Exception):
        pass

    def on_log(record):
        if record["step"] == 5:
            raise Stop

    with pytest.raises(Stop):
        train(part, stopped, device="cpu", on_log=on_log)
    for other in ("exact", "fast"):
        with pytest.raises(TrainingError, match=rf"data.replay was device, is {other}"):
            train(recipe(shards, **{"data.replay": other}), stopped, device="cpu")
    done = train(part, stopped, device="cpu")
    assert done.step == whole.step
    files = [sorted((tmp_path / run / "model").rglob("*.safetensors")) for run in ("whole", "part")]
    assert files[0]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_run_saved_before_there_was_a_choice_resumes(shards, tmp_path):
    for fast in (False, True):
        run = tmp_path / str(fast)
        settings = {"data.fast": True} if fast else {}
        train(recipe(shards, **settings), run, device="cpu")
        saved = (run / "recipe.yaml").read_text()
        assert saved.count("  replay: ") == 1
        assert "  fast: " not in saved
        mode = "fast" if fast else "exact"
        (run / "recipe.yaml").write_text(
            saved.replace(f"  replay: {mode}\n", f"  fast: {str(fast).lower()}\n")
        )
        assert train(recipe(shards, **settings), run, device="cpu").step == 6
