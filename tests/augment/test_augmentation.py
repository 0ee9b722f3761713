from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from augment_pictures import noisy_ramp
from pocketclip.augment import Augmentation, Params, pixel_ops, rng_for
from pocketclip.augment.magnitudes import op_magnitude
from pocketclip.errors import AugmentationError

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
SOURCE = Path(__file__).parents[2] / "src"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
# Made with torchvision 0.28 on Pillow 13: its functional operations on `noisy_ramp`.
FROZEN = json.loads((GOLDEN / "torchvision.json").read_text("utf-8"))

CROP = {"random_resized_crop": {"size": 32}}
PUBLISHED = {
    "random_resized_crop": {"interpolation": "bicubic", "size": 224},
    "rand_augment": {"enable": True, "p": 1.0},
    "to_tensor": {"enable": True},
}
EVERYTHING = {
    "to_rgb": {"enable": True},
    "resize": {"size": 40},
    "center_crop": {"size": [36, 50]},
    "random_resized_crop": {"size": [24, 32], "interpolation": "bicubic"},
    "range_augment": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "noise": [0, 0.2]},
    "random_horizontal_flip": {},
    "rand_augment": {"p": 0.8, "magnitude": 15},
    "to_tensor": {},
    "random_erase": {},
    "normalize": {"mean": [0, 0, 0], "std": [1, 1, 1]},
}
MORE = {
    "random_crop": {"size": [30, 44], "padding": 3, "pad_if_needed": True, "fill": [9, 8, 7]},
    "auto_augment": {"policy": "svhn"},
    "trivial_augment_wide": {},
}


def _sha256(pixels: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


# --- golden values


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_replays_the_published_bytes(case: dict[str, Any]) -> None:
    augmentation = Augmentation.from_config(case["config"])
    params = augmentation.unpack(case["param_aug"])
    with Image.open(GOLDEN / case["photo"]) as photo, Image.open(GOLDEN / f"{case['id']}.png") as g:
        pixels = augmentation.apply(photo, params)
        assert np.array_equal(pixels, np.asarray(g))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert augmentation.pack(params) == case["param_aug"]
    assert augmentation.unpack(json.dumps(case["param_aug"])) == params


@pytest.mark.parametrize("op", range(14), ids=pixel_ops.OP_NAMES[:14])
def test_operations_equal_torchvision(op: int) -> None:
    # Every level of 31 and both signs, and what lies beyond.
    frozen = [case for case in FROZEN["ops"] if case[1] == op]
    assert frozen
    for size, _, magnitude, expected in frozen:
        out = pixel_ops.apply_op(noisy_ramp(*size, 3), op, magnitude)
        assert out.size == tuple(size)
        assert _sha256(np.asarray(out)).startswith(expected), (size, magnitude)


@pytest.mark.parametrize("case", FROZEN["whole"], ids=lambda case: str(case["picture"]))
def test_whole_augmentations_equal_torchvision(case: dict[str, Any]) -> None:
    augmentation = Augmentation.from_config(case["config"])
    params = augmentation.unpack(case["packed"])
    pixels = augmentation.apply(noisy_ramp(*case["size"], case["picture"]), params)
    assert _sha256(pixels) == case["sha256"]
    if augmentation.output_size is not None:
        assert pixels.shape == (*augmentation.output_size[::-1], 3)


@pytest.mark.parametrize("side", FROZEN["magnitudes"])
def test_magnitudes_are_the_published_ones(side: str) -> None:
    size = int(side), int(side)
    ours = [op_magnitude(op, 9, 31, size) for op in range(14)]
    assert ours == FROZEN["magnitudes"][side]


@pytest.mark.skipif(not PIL.__version__.startswith("13."), reason="the order of Pillow 13")
@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 90)] * 4), st.sampled_from(sorted(Image.Resampling)))
def test_resize_is_that_of_pillow_13(sides: tuple[int, ...], way: Image.Resampling) -> None:
    image, way = noisy_ramp(*sides[:2], 0), Image.Resampling(way)
    ours = pixel_ops.resize(image, sides[2:], way)  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(ours), np.asarray(image.resize(sides[2:], way)))  # type: ignore[arg-type]


# --- literal values that must never change: stored parameters depend on them


PINNED = [
    [
        [37, 308, 204, 171],
        [1.0576744405988694, 1.0507877125314287, 0.00245172387708425, 9796576],
        True,
        [[1, 0.09000000357627869], [11, 178.5]],
        [37, 34, 184, 74],
    ],
    [
        [23, 35, 451, 493],
        [1.0316271670320114, 1.156364052036348, 0.019075116008180133, 468308536],
        True,
        [[13, 0.0], [12, 0.0]],
        [19, 13, 93, 154],
    ],
    [
        [14, 128, 388, 488],
        [0.9189537136245314, 0.8280020025650452, 0.029858158571335683, 3471947358],
        False,
        [[1, -0.09000000357627869], [5, 9.0]],
        [43, 82, 150, 88],
    ],
]


def test_the_draw_is_pinned() -> None:
    names = ("range_augment", "random_horizontal_flip", "rand_augment", "random_erase")
    augmentation = Augmentation.from_config(
        {"random_resized_crop": {"size": 224}, **{name: {} for name in names}}
    )
    for index, expected in enumerate(PINNED):
        params = augmentation.draw(rng_for(0, "00000042", index), (640, 480))
        assert augmentation.pack(params) == expected
    assert rng_for(0, "00000042", 3).random() == rng_for(0, "00000042", 3).random()
    others = [(1, "00000042", 3), (0, "00000043", 3), (0, "00000042", 4)]
    assert len({rng_for(*other).random() for other in [*others, (0, "00000042", 3)]}) == 4
    assert rng_for(-1, "a\udc80\0é", 0).random() < 1  # any uid will do


def test_the_noise_is_pinned() -> None:
    noise = pixel_ops.gaussian_noise(5, (224, 224, 3))
    first = [-1.65380859375, -0.81689453125, 0.755126953125, 0.624267578125]
    assert noise.ravel()[:4].tolist() == first
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert _sha256(noise.astype("<f4")) == (
        "28692c29110a2169af57ab7503fc990241f991133dead3f333431379d1a24d03"
    )


# --- properties


def _configs() -> st.SearchStrategy[dict[str, Any]]:
    known = {**EVERYTHING, **MORE}
    names = [name for name in known if name not in ("to_rgb", "to_tensor", "normalize")]
    return st.lists(st.sampled_from(names), unique=True).map(
        lambda chosen: {name: known[name] for name in chosen}
    )


_SIDES = st.integers(1, 80)


@settings(deadline=None)
@given(_configs(), _SIDES, _SIDES, st.integers(0, 1 << 40))
def test_drawn_parameters_survive_packing(
    config: dict[str, Any], width: int, height: int, seed: int
) -> None:
    augmentation = Augmentation.from_config(config)
    params = augmentation.draw(rng_for(seed, "x", 0), (width, height))
    packed = json.loads(json.dumps(augmentation.pack(params)))
    assert augmentation.unpack(packed) == params
    assert augmentation.unpack(json.dumps(packed)) == params
    image = noisy_ramp(width, height, 1)
    pixels = augmentation.apply(image, params)
    assert pixels.flags.c_contiguous
    assert pixels.dtype == np.uint8
    again = augmentation.apply(image, augmentation.unpack(packed))
    assert np.array_equal(pixels, again)
    if augmentation.output_size is not None:
        assert pixels.shape == (*augmentation.output_size[::-1], 3)


_REPLAY = """
import io, json, sys, hashlib
from PIL import Image
from pocketclip.augment import Augmentation
for line in sys.stdin:
    config, packed, png = json.loads(line)
    augmentation = Augmentation.from_config(config)
    image = Image.open(io.BytesIO(bytes.fromhex(png)))
    print(hashlib.sha256(augmentation.apply(image, augmentation.unpack(packed))).hexdigest())
"""


def test_another_process_replays_the_same_bytes() -> None:
    lines, expected = [], []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_configs(), _SIDES, _SIDES, st.integers(0, 1 << 40))
    def collect(config: dict[str, Any], width: int, height: int, seed: int) -> None:
        augmentation = Augmentation.from_config(config)
        image = noisy_ramp(width, height, seed % 1000)
        params = augmentation.draw(rng_for(seed, "uid", 7), image.size)
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=1)
        packed = augmentation.pack(params)
        lines.append(json.dumps([augmentation.config, packed, stream.getvalue().hex()]))
        expected.append(_sha256(augmentation.apply(image, params)))

    collect()
    result = subprocess.run(
        [sys.executable, "-c", _REPLAY],
        input="\n".join(lines),
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == expected


# --- drawing


def test_draws_are_distributed_as_configured() -> None:
    augmentation = Augmentation.from_config(
        {**EVERYTHING, "resize": {"enable": False}, "center_crop": {"enable": False}}
    )
    drawn = [augmentation.draw(rng_for(1, str(uid), 0), (500, 400)) for uid in range(2000)]
    crops = np.array([params.crop for params in drawn])
    area = crops[:, 2] * crops[:, 3] / (500 * 400)
    aspect = crops[:, 3] / crops[:, 2]
    assert 0.078 < area.min() < 0.1
    assert 0.95 < area.max() <= 1
    assert 0.73 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.36
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, 0] + crops[:, 2] <= 400).all()
    assert (crops[:, 1] + crops[:, 3] <= 500).all()
    assert 0.45 < np.mean([params.flip for params in drawn]) < 0.55
    applied = [params.ops for params in drawn if params.ops is not None]
    assert 0.76 < len(applied) / 2000 < 0.84
    operations, magnitudes = np.array(applied).reshape(-1, 2).T
    assert np.bincount(operations.astype(int), minlength=14).min() > 150
    signed = magnitudes[(operations >= 1) & (operations <= 9)]
    assert 0.45 < np.mean(signed < 0) < 0.55
    erased = np.array([params.erase for params in drawn if params.erase is not None])
    assert 0.45 < len(erased) / 2000 < 0.55
    share = erased[:, 2] * erased[:, 3] / (24 * 32)
    assert 0.01 < share.min() < 0.03
    assert 0.28 < share.max() < 0.36
    tones = np.array([params.tone for params in drawn])
    assert (tones[:, :2] >= 0.5).all()
    assert (tones[:, :2] <= 1.5).all()
    assert 0.19 < tones[:, 2].max() <= 0.2
    assert len(set(tones[:, 3])) == 2000


def test_a_crop_that_never_fits_is_the_middle() -> None:
    augmentation = Augmentation.from_config(
        {"random_resized_crop": {"size": 8, "scale": [1, 1], "ratio": [0.75, 1.25]}}
    )
    assert augmentation.draw(rng_for(0, "a", 0), (300, 100)).crop == (0, 87, 100, 125)
    assert augmentation.draw(rng_for(0, "a", 0), (75, 300)).crop == (100, 0, 100, 75)


def test_probabilities_of_nought_and_one() -> None:
    always = {name: {"p": 1} for name in ("random_horizontal_flip", "random_erase", "rand_augment")}
    never = {name: {"p": 0} for name in always}
    for config, expected in ((always, True), (never, False)):
        augmentation = Augmentation.from_config({**CROP, **config})
        for index in range(50):
            params = augmentation.draw(rng_for(0, "a", index), (64, 64))
            assert params.flip is expected
            assert (params.ops is not None) is expected
            assert (params.erase is not None) is expected


def test_draw_takes_the_sizes_of_numpy() -> None:
    augmentation = Augmentation.from_config(EVERYTHING)
    plain = augmentation.pack(augmentation.draw(rng_for(0, "a", 0), (451, 300)))
    for size in ([451, 300], np.array([451, 300], np.int16), (np.int64(451), np.uint16(300))):
        drawn = augmentation.draw(rng_for(0, "a", 0), size)
        assert json.dumps(augmentation.pack(drawn)) == json.dumps(plain)


@pytest.mark.parametrize("size", [(0, 4), (4,), (4.0, 4), (4, 4, 3), 4, "44", (True, 4)])
def test_draw_refuses_what_is_no_size(size: Any) -> None:
    with pytest.raises(AugmentationError, match="width, height"):
        Augmentation.from_config(CROP).draw(rng_for(0, "a", 0), size)


# --- applying


def test_range_augment_by_hand() -> None:
    pixels = np.array([[[10, 10, 10], [100, 100, 100], [200, 200, 200]]], np.uint8)
    image = Image.fromarray(pixels)
    augmentation = Augmentation.from_config({"range_augment": {}})
    bright = augmentation.apply(image, augmentation.unpack([[1.5, 1, 0, 0]]))
    assert bright[0, :, 0].tolist() == [15, 150, 255]
    flat = augmentation.apply(image, augmentation.unpack([[1, 0.5, 0, 0]]))
    assert flat[0, :, 0].tolist() == [57, 102, 152]  # around 103.33
    noisy = augmentation.apply(image, augmentation.unpack([[1, 1, 0.1, 5]]))
    expected = np.rint(pixels + pixel_ops.gaussian_noise(5, (1, 3, 3)) * 25.5).clip(0, 255)
    assert np.array_equal(noisy, expected)
    assert augmentation.pack(Params(tone=(1.0, 1.0, 0.1, 5))) == [[1.0, 1.0, 0.1, 5]]


def test_range_augment_stands_after_the_crop() -> None:
    augmentation = Augmentation.from_config(EVERYTHING)
    packed = augmentation.pack(augmentation.draw(rng_for(0, "a", 0), (60, 60)))
    assert packed[0] == 40
    assert [len(packed[1]), len(packed[2])] == [4, 4]
    assert isinstance(packed[2][3], int)
    assert isinstance(packed[3], bool)
    assert augmentation.unpack(packed[1:]) == augmentation.unpack(packed)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = noisy_ramp(60, 40, 0).convert(mode)
    augmentation = Augmentation.from_config(PUBLISHED)
    params = augmentation.draw(rng_for(0, "a", 0), image.size)
    assert np.array_equal(
        augmentation.apply(image, params), augmentation.apply(image.convert("RGB"), params)
    )


def test_the_image_is_turned_upright_first() -> None:
    upright = noisy_ramp(60, 40, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    augmentation = Augmentation.from_config(PUBLISHED)
    params = augmentation.draw(rng_for(0, "a", 0), upright.size)
    assert np.array_equal(
        augmentation.apply(Image.open(stream), params), augmentation.apply(upright, params)
    )


def test_the_image_is_left_alone() -> None:
    image = noisy_ramp(32, 32, 0)
    before = image.tobytes()
    augmentation = Augmentation.from_config({"random_erase": {}, "rand_augment": {}})
    pixels = augmentation.apply(image, augmentation.unpack([None, [0, 0, 99, 99]]))
    assert not pixels.any()
    assert image.tobytes() == before


def test_a_crop_of_another_image_is_refused() -> None:
    augmentation = Augmentation.from_config(CROP)
    with pytest.raises(AugmentationError, match="60 x 40: the parameters belong to another"):
        augmentation.apply(noisy_ramp(60, 40, 0), augmentation.unpack([[10, 0, 31, 60]]))
    with pytest.raises(AugmentationError, match="have no crop"):
        augmentation.apply(noisy_ramp(60, 40, 0), Params())


def test_the_packed_form_is_applied_too() -> None:
    augmentation, image = Augmentation.from_config(EVERYTHING), noisy_ramp(60, 40, 0)
    params = augmentation.draw(rng_for(0, "a", 0), image.size)
    packed = augmentation.pack(params)
    for form in (packed, tuple(packed), json.dumps(packed), json.dumps(packed).encode()):
        assert np.array_equal(augmentation.apply(image, form), augmentation.apply(image, params))
    with pytest.raises(AugmentationError, match="is not JSON"):
        augmentation.apply(image, "crop")


@given(
    st.integers(1, 9),
    st.floats(-1e6, 1e6) | st.floats(-3, 3),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_no_magnitude_breaks_an_operation(
    op: int, magnitude: float, width: int, height: int
) -> None:
    augmentation = Augmentation.from_config({"rand_augment": {"num_ops": 1}})
    params = augmentation.unpack([[[op, magnitude]]])
    assert augmentation.apply(noisy_ramp(width, height, 0), params).shape == (height, width, 3)


# --- configurations


def test_configurations_are_normalised() -> None:
    whole = {
        "model_name": "a,b",
        "teacher_logit_scale": [1, 2],
        "reinforce": {"image_augmentation": PUBLISHED},
    }
    augmentation = Augmentation.from_config(whole)
    assert augmentation == Augmentation.from_config(PUBLISHED)
    assert hash(augmentation) == hash(Augmentation.from_config(PUBLISHED))
    assert augmentation == Augmentation.from_config({"image_augmentation": PUBLISHED})
    assert augmentation != Augmentation.from_config(CROP)
    assert augmentation.config == {
        "random_resized_crop": {
            "size": 224,
            "scale": [0.08, 1.0],
            "ratio": [0.75, 4 / 3],
            "interpolation": "bicubic",
        },
        "rand_augment": {"p": 1.0, "num_ops": 2, "magnitude": 9, "num_magnitude_bins": 31},
        "to_tensor": {},
    }
    for config in (PUBLISHED, EVERYTHING, {}):
        first = Augmentation.from_config(config)
        assert Augmentation.from_config(json.loads(json.dumps(first.config))) == first
        assert pickle.loads(pickle.dumps(first)) == first
        assert eval(repr(first)) == first
    assert pickle.loads(pickle.dumps(Params(flip=True))) == Params(flip=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CROP, (32, 32)),
        ({"random_resized_crop": {"size": [24, 32]}}, (32, 24)),
        ({"resize": {"size": 32}}, None),
        ({"resize": {"size": [24, 32]}}, (32, 24)),
        ({"resize": {"size": 50}, "center_crop": {"size": 40}}, (40, 40)),
        ({}, None),
    ],
)
def test_output_size(config: dict[str, Any], expected: tuple[int, int] | None) -> None:
    augmentation = Augmentation.from_config(config)
    assert augmentation.output_size == expected
    params = augmentation.draw(rng_for(0, "a", 0), (70, 90))
    pixels = augmentation.apply(noisy_ramp(70, 90, 0), params)
    assert expected is None or pixels.shape == (expected[1], expected[0], 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "is a dict, not list"),
        ({"reinforce": None}, "is a dict, not NoneType"),
        ({"random_resize_crop": {}}, "did you mean 'random_resized_crop'"),
        ({"xyzzy": {}}, "unknown transform 'xyzzy'; known: to_rgb"),
        ({"rand_augment": True}, 'rand_augment must be a dict, as {"enable": false}, not bool'),
        ({"rand_augment": {"enable": "no"}}, "rand_augment.enable must be true or false"),
        ({"rand_augment": {"num_op": 2}}, "unknown rand_augment setting 'num_op'; did you mean"),
        ({"to_rgb": {"x": 1}}, "unknown to_rgb setting 'x'; known: none"),
        ({"rand_augment": {"magnitude": 31}}, "magnitude must be below num_magnitude_bins"),
        ({"rand_augment": {"interpolation": "bicubic"}}, "nearest, other values"),
        ({"rand_augment": {"fill": 128}}, "None or 0, other values cannot be replayed; got 128"),
        ({"rand_augment": {"fill": [0, 0, 9]}}, "None or 0, other values cannot be replayed"),
        ({"rand_augment": {"fill": []}}, "None or 0, other values cannot be replayed"),
        ({"rand_augment": {"p": 2}}, "rand_augment.p must be a number from 0 to 1; got 2"),
        ({"rand_augment": {"num_ops": 1.5}}, "num_ops must be a whole number from 1"),
        ({"random_resized_crop": {}}, "random_resized_crop needs the setting size"),
        ({"random_resized_crop": {"size": 0}}, "size must be a whole number of pixels"),
        ({"random_resized_crop": {"size": [1, 2, 3]}}, "size must be a whole number of pixels"),
        ({"random_resized_crop": {"size": 8, "scale": [1, 0.5]}}, "two rising numbers"),
        ({"random_resized_crop": {"size": 8, "ratio": "wide"}}, "two rising numbers"),
        ({"random_resized_crop": {"size": 8, "interpolation": "cubic"}}, "one of nearest"),
        ({"random_resized_crop": {"size": 224.5}}, "size must be a whole number of pixels"),
        ({"random_resized_crop": {"size": float("inf")}}, "size must be a whole number of pixels"),
        ({"random_resized_crop": {"size": True}}, "size must be a whole number of pixels"),
        ({"random_resized_crop": {"size": 8, "antialias": "no"}}, "antialias must be true, false"),
        ({"random_erase": {"value": 255}}, "random_erase.value must be random or 0"),
        ({"range_augment": {"noise": [0, float("nan")]}}, "range_augment.noise must be two"),
        ({"normalize": {"mean": [0, 0]}}, "normalize.mean must be three numbers"),
        ({"range_augment": {"noise_std": [0.2, 0.1]}}, "range_augment.noise_std must be two"),
        ({"range_augment": {"noise_std": [0, 1], "noise": [0, 1]}}, "give only one"),
        (
            {"mixup": {"alpha": 0.1}},
            "mixup has no meaning for image-text pairs: the published code",
        ),
        ({"cutmix": {}}, "embedding of a mixed image; remove it or set enable: false"),
        ({"timm_resize_crop_norm": {"name": "vit"}}, "write them as resize, random_crop"),
        ({"random_resized_crop": None}, "random_resized_crop must be a dict"),
        ("{", "configuration is not valid JSON"),
        ("[]", "is a dict, not list"),
    ],
)
def test_bad_configurations(config: Any, message: str) -> None:
    with pytest.raises(AugmentationError) as caught:
        Augmentation.from_config(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (CROP | {"to_rgb": True, "to_tensor": None}, CROP | {"to_rgb": {}, "to_tensor": {}}),
        (CROP | {"to_rgb": False}, CROP),
        ({"random_resized_crop": {"size": 32.0}}, CROP),
        ({"random_resized_crop": {"size": [32, 32.0]}}, CROP),
        ({"rand_augment": {"fill": [0, 0, 0], "num_ops": 2.0}}, {"rand_augment": {}}),
        ({"rand_augment": {"fill": None}}, {"rand_augment": {"fill": 0}}),
        ({"random_erase": {"value": "random"}}, {"random_erase": {}}),
        ({"random_erase": {"value": [0.0, 0, 0]}}, {"random_erase": {"value": 0}}),
        ({"range_augment": {"noise_std": [0, 0.1]}}, {"range_augment": {"noise": [0, 0.1]}}),
        (json.dumps({"reinforce": {"image_augmentation": PUBLISHED}}), PUBLISHED),
        *[({"resize": {"size": 9, "antialias": way}}, {"resize": {"size": 9}})
          for way in (None, "warn", True, False)],
        *[({"random_resized_crop": {"size": 32, "antialias": way}}, CROP)
          for way in (None, "warn", True, False)],
    ],
)  # fmt: skip
def test_other_forms_of_the_same_configuration(config: Any, plain: dict[str, Any]) -> None:
    augmentation = Augmentation.from_config(config)
    assert augmentation == Augmentation.from_config(plain)
    assert json.dumps(augmentation.config) == json.dumps(Augmentation.from_config(plain).config)


def test_erasing_with_a_random_value_is_black() -> None:
    augmentation = Augmentation.from_config({"random_erase": {"value": "random"}})
    assert not augmentation.apply(noisy_ramp(8, 8, 0), [[0, 0, 8, 8]]).any()


def test_what_is_disabled_is_not_there() -> None:
    config = {**CROP, "mixup": {"enable": False}, "rand_augment": {"enable": False, "p": 1}}
    assert Augmentation.from_config(config) == Augmentation.from_config(CROP)
    assert Augmentation.from_config(config).pack(Params(crop=(0, 0, 4, 4))) == [[0, 0, 4, 4]]


# --- packed forms


def test_published_lists_are_read() -> None:
    # As they stand in published shards, and what may be null.
    augmentation = Augmentation.from_config(PUBLISHED)
    packed = [[49, 152, 333, 355], [[2, 0.09000000357627869], [8, -0.26999998092651367]]]
    params = augmentation.unpack(packed)
    assert params.crop == (49, 152, 333, 355)
    assert params.ops == ((2, 0.09000000357627869), (8, -0.26999998092651367))
    assert augmentation.apply(noisy_ramp(512, 400, 0), params).shape == (224, 224, 3)
    skipped = augmentation.unpack("[[0, 0, 5, 5], null]")
    assert skipped.ops is None
    assert augmentation.pack(skipped) == [[0, 0, 5, 5], None]
    erasing = Augmentation.from_config({"random_erase": {}})
    assert erasing.unpack([[-1, 0, 0, 0]]) == erasing.unpack([None]) == Params()
    assert erasing.unpack([[0, 0, 900, 900]]).erase == (0, 0, 900, 900)


def test_numbers_of_other_kinds_are_read_and_become_plain() -> None:
    names = ("range_augment", "random_horizontal_flip", "rand_augment", "random_erase")
    augmentation = Augmentation.from_config({**CROP, **{name: {} for name in names}})
    plain = [[1, 2, 3, 4], [1.0, 0.5, 0.25, 7], True, [[0, 0.0], [12, 0.5]], [0, 0, 3, 3]]
    others: list[list[Any]] = [
        [[1.0, 2.0, 3.0, 4.0], [1, 0.5, 0.25, 7.0], 1, [[0.0, 0], [12.0, 0.5]], [0.0, 0, 3, 3]],
        [
            np.array([1, 2, 3, 4]),
            np.array([1, 0.5, 0.25, 7], np.float32),
            np.int64(1),
            np.array([[0, 0], [12, 0.5]]),
            tuple(np.array([0, 0, 3, 3], np.uint8)),
        ],
        [[np.int64(i) for i in (1, 2, 3, 4)], plain[1], np.True_, plain[3], plain[4]],
        [plain[0], plain[1], 1.0, [[np.int8(0), np.float32(0)], [np.float64(12), 0.5]], plain[4]],
    ]
    for other in others:
        params = augmentation.unpack(other)
        assert params == augmentation.unpack(plain)
        assert json.dumps(augmentation.pack(params)) == json.dumps(plain)
    assert not augmentation.unpack([*plain[:2], 0, *plain[3:]]).flip
    loose = Params(crop=(np.int64(1), 2, 3, 4.0), tone=(1, 0.5, 0.25, 7), flip=np.True_)  # type: ignore[arg-type]
    assert json.dumps(augmentation.pack(loose)) == json.dumps([*plain[:3], None, None])


@pytest.mark.parametrize("resize", [{}, {"resize": {"size": 40}}, {"resize": {"size": [40, 50]}}])
def test_a_list_may_end_before_what_was_not_applied(resize: dict[str, Any]) -> None:
    names = ("random_horizontal_flip", "rand_augment", "random_erase")
    augmentation = Augmentation.from_config({**resize, **CROP, **{name: {} for name in names}})
    sizes = [settings["size"] for settings in resize.values()]
    packed = [[0, 0, 5, 5], True, [[1, 0.1], [12, 0.0]], [0, 0, 3, 3]]
    for count in (1, 2, 3, 4):
        filled = [*packed[:count], False, None, None][: max(count, 2)]
        filled += [None] * (4 - len(filled))
        expected = Params(
            crop=(0, 0, 5, 5),
            flip=count > 1,
            ops=((1, 0.1), (12, 0.0)) if count > 2 else None,
            erase=(0, 0, 3, 3) if count > 3 else None,
        )
        for form in (packed[:count], [*sizes, *packed[:count]], filled):
            assert augmentation.unpack(form) == expected
    for form in ([*sizes], [*sizes, *packed, None]):
        with pytest.raises(AugmentationError, match="must have 4 entries"):
            augmentation.unpack(form)
    toned = Augmentation.from_config({**CROP, "range_augment": {}, "random_erase": {}})
    with pytest.raises(AugmentationError, match="must have 3 entries"):
        toned.unpack([[0, 0, 5, 5]])


_GOOD = [[0, 0, 5, 5], [1.0, 1.0, 0.1, 7], True, [[1, 0.1], [12, 0.0]], [0, 0, 3, 3]]


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (0, None, "random_resized_crop: expected [top, left, height, width] in whole pixels"),
        (0, [0, 0, 5], "random_resized_crop: expected [top, left, height, width]"),
        (0, [0, 0, 5, 0], "of at least one pixel"),
        (0, [-1, 0, 5, 5], "of at least one pixel"),
        (0, [0.5, 0, 5, 5], "in whole pixels; got [0.5, 0, 5, 5]"),
        (0, [True, 0, 5, 5], "in whole pixels"),
        (0, [0, 0, 5, 1 << 40], "in whole pixels"),
        (0, [0, 0, 5, float("nan")], "in whole pixels"),
        (0, [0, 0, 5, float("inf")], "in whole pixels"),
        (0, np.array([0, 0, 5, np.nan]), "in whole pixels; got [0.0, 0.0, 5.0, nan]"),
        (0, np.array([1, 1, 1, 1], bool), "in whole pixels"),
        (0, ["0", 0, 5, 5], "in whole pixels"),
        (1, [1, 1, 0.1], "range_augment: expected [brightness"),
        (1, [1, 1, -0.1, 3], "range_augment: expected [brightness"),
        (1, [1, 1, 0.1, 3.5], "range_augment: expected [brightness"),
        (1, [1, 1, 0.1, float("inf")], "range_augment: expected [brightness"),
        (1, [1, 1, 0.1, True], "range_augment: expected [brightness"),
        (1, [1, 1, "a", 3], "range_augment: expected numbers"),
        (1, np.array([1, 1, np.nan, 3]), "range_augment: expected numbers"),
        (2, 2, "random_horizontal_flip: expected true or false; got 2"),
        (2, 0.5, "random_horizontal_flip: expected true or false"),
        (2, float("nan"), "random_horizontal_flip: expected true or false"),
        (2, [True], "random_horizontal_flip: expected true or false"),
        (3, [[1, 0.1]], "rand_augment: expected 2 operations"),
        (3, [[1, 0.1], [14, 0.0]], "operations go from 0 to 13"),
        (3, [[1, 0.1], [10, 9.0]], "Posterize keeps 1 to 8 bits"),
        (3, [[1.5, 0.1], [2, 0.0]], "expected [operation, magnitude] pairs"),
        (3, [[True, 0.1], [2, 0.0]], "expected [operation, magnitude] pairs"),
        (3, [[1, 0.1], ["ShearX", 0.0]], "expected [operation, magnitude] pairs"),
        (3, [[1, 0.1], [2, float("inf")]], "expected numbers"),
        (3, [[1, 0.1], [2, float("nan")]], "expected numbers"),
        (3, "x" * 500, "rand_augment: expected [[operation, magnitude], ...] or null"),
        (4, [0, -1, 3, 3], "random_erase: expected [top, left, height, width], none negative"),
    ],
)
def test_bad_entries(entry: int, value: Any, message: str) -> None:
    names = [name for name in EVERYTHING if name not in ("resize", "center_crop")]
    augmentation = Augmentation.from_config({name: EVERYTHING[name] for name in names})
    augmentation.unpack(_GOOD)
    packed = [*_GOOD[:entry], value, *_GOOD[entry + 1 :]]
    with pytest.raises(AugmentationError) as caught:
        augmentation.unpack(packed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (None, "must be a list (random_resized_crop, rand_augment), not None"),
        ({}, "must be a list"),
        ("[[0,0,", "is not JSON: [[0,0,"),
        ("[" * 100_000, "is not JSON"),
        ("null", "must be a list"),
        ([], "must have 2 entries (random_resized_crop, rand_augment), not 0"),
        ("[" * 900 + "]" * 900, "not JSON: [[["),
        ([[0, 0, 5, 5], None, None], "must have 2 entries"),
        ([[0, 0, 5, 5], True, None, None], "must have 2 entries"),
    ],
)
def test_bad_lists(packed: Any, message: str) -> None:
    with pytest.raises(AugmentationError) as caught:
        Augmentation.from_config(PUBLISHED).unpack(packed)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "params", [Params(), Params(crop=(0, 0, 4, 4), flip=True), Params(crop=(0, 0, 0, 4))]
)
def test_pack_refuses_the_parameters_of_another_configuration(params: Params) -> None:
    with pytest.raises(AugmentationError):
        Augmentation.from_config(CROP).pack(params)
