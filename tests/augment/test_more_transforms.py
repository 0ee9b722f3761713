"""RandomCrop, AutoAugment and TrivialAugmentWide: as torchvision makes them, and as stored lists.

`scripts/make_augment_golden.py` made the numbers.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from augment_pictures import noisy_ramp
from pocketclip.augment import Augmentation, Params, pixel_ops, rng_for
from pocketclip.augment.fast_ops import Canvas, apply_op
from pocketclip.augment.magnitudes import has_levels, op_magnitude, trivial_magnitude
from pocketclip.augment.policies import POLICIES
from pocketclip.errors import AugmentationError
from pocketclip.reinforce.prepare import Plan, Prepared, prepare
from pocketclip.train.replay import AugmentationReplay
from pocketclip.types import Bad

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
FROZEN = json.loads((GOLDEN / "auto_trivial_crop.json").read_text("utf-8"))
NAMES = pixel_ops.OP_NAMES
CROP = {"random_resized_crop": {"size": 32}}


def _hash(image: Image.Image | np.ndarray[Any, Any], length: int = 12) -> str:
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:length]


# --- golden values


def test_policies_are_the_published_ones() -> None:
    assert {
        name: [
            [[NAMES[op], chance, level if has_levels(op) else None] for op, chance, level in pair]
            for pair in policy
        ]
        for name, policy in POLICIES.items()
    } == FROZEN["policies"]


@pytest.mark.parametrize("bins", [2, 7, 10, 31])
def test_magnitudes_are_the_published_ones(bins: int) -> None:
    spaces = FROZEN["magnitudes"][str(bins)]
    assert list(spaces["trivial"]) == list(NAMES[:14])
    assert set(spaces["auto"]) == {*NAMES} - {"Identity"}
    for space, ops in spaces.items():
        for name, (magnitudes, signed) in ops.items():
            op = NAMES.index(name)
            assert signed == (op in pixel_ops.SIGNED_OPS)
            assert has_levels(op) == isinstance(magnitudes, list)
            for level, magnitude in enumerate(magnitudes if has_levels(op) else [magnitudes]):
                ours = (
                    op_magnitude(op, level, bins, (224, 160))
                    if space == "auto"
                    else trivial_magnitude(op, level, bins)
                )
                # The last bit of torch's depends on the processor.
                assert abs(ours - magnitude) <= np.spacing(np.float32(magnitude)), (name, level)


@pytest.mark.parametrize("op", range(15), ids=NAMES)
def test_operations_equal_torchvision(op: int) -> None:
    # Every magnitude of both transforms and both signs, in both implementations.
    frozen = [case for case in FROZEN["ops"] if case[1] == op]
    assert frozen
    images = {size: noisy_ramp(*size, 3) for size in ((48, 48), (37, 61))}
    for size, _, magnitude, expected in frozen:
        image = images[tuple(size)]
        assert _hash(pixel_ops.apply_op(image, op, magnitude)) == expected, (size, magnitude)
        assert _hash(apply_op(Canvas(image=image), op, magnitude).array) == expected, magnitude


@pytest.mark.parametrize("case", FROZEN["crops"], ids=lambda case: case["config"]["padding_mode"])
def test_random_crops_equal_torchvision(case: dict[str, Any]) -> None:
    augmentation = Augmentation.from_config({"random_crop": case["config"]})
    image = noisy_ramp(*case["size"], case["picture"])
    for corner, expected in case["windows"]:
        assert _hash(augmentation.apply(image, [corner])) == expected, corner
    # The last corner is the furthest: the border has the same width.
    bottom, right = case["windows"][3][0]
    for beyond in ([bottom + 1, right], [bottom, right + 1]):
        with pytest.raises(AugmentationError, match="with its border: the parameters belong to"):
            augmentation.apply(image, [beyond])


@pytest.mark.parametrize("case", FROZEN["whole"], ids=lambda case: case["photo"])
def test_whole_augmentations_equal_torchvision(case: dict[str, Any]) -> None:
    augmentation = Augmentation.from_config(case["config"])
    params = augmentation.unpack(case["packed"])
    assert augmentation.pack(params) == case["packed"]
    with Image.open(GOLDEN / case["photo"]) as photo:
        pixels = augmentation.apply(photo, params)
    assert _hash(pixels, 64) == case["hash"]
    assert augmentation.output_size == pixels.shape[1::-1]


# --- drawing


def _drawn(config: dict[str, Any], count: int, size: tuple[int, int] = (60, 40)) -> list[Params]:
    augmentation, rng = Augmentation.from_config(config), rng_for(5, "x", 0)
    return [augmentation.draw(rng, size) for _ in range(count)]


PINNED = [
    [[14, 108], True, [[7, 0.7999999523162842], [11, 56.66666793823242]], [[0, 0.0]]],
    [[277, 363], False, [], [[5, -13.5]]],
    [[379, 262], False, [[14, 0.0], [13, 0.0]], [[4, 2.133333444595337]]],
    [[347, 58], False, [[7, 0.19999998807907104]], [[12, 0.0]]],
]


def test_literal_draws_that_must_never_change() -> None:
    config = {
        "random_crop": {"size": 100, "padding": 8},
        "random_horizontal_flip": {},
        "auto_augment": {},
        "trivial_augment_wide": {},
    }
    augmentation = Augmentation.from_config(config)
    drawn = [augmentation.draw(rng_for(0, "00000042", index), (640, 480)) for index in range(4)]
    assert [augmentation.pack(params) for params in drawn] == PINNED


@pytest.mark.parametrize("name", POLICIES)
def test_sub_policies_are_drawn_as_often_as_published(name: str) -> None:
    count = 4000
    drawn = [params.auto_ops for params in _drawn({"auto_augment": {"policy": name}}, count)]
    # How often each operation applies, expected from the published table.
    expected: Counter[int] = Counter()
    for op, chance, _ in itertools.chain.from_iterable(POLICIES[name]):
        expected[op] += chance / 25
    applied = Counter(op for ops in drawn for op, _ in ops or ())
    for op, share in expected.items():
        assert abs(applied[op] / count - share) < 0.04, NAMES[op]
    assert applied.keys() <= expected.keys()
    signed = [magnitude for ops in drawn for op, magnitude in ops or () if 1 <= op <= 9]
    assert 0.45 < np.mean(np.signbit(signed)) < 0.55
    # Each operation has the level of the table, at this size.
    allowed = {
        (op, op_magnitude(op, level, 10, (60, 40)))
        for op, _, level in itertools.chain.from_iterable(POLICIES[name])
    }
    assert {(op, abs(magnitude)) for ops in drawn for op, magnitude in ops or ()} <= allowed
    assert {len(ops or ()) for ops in drawn} == {0, 1, 2}


def test_trivial_augment_draws_every_operation_and_level() -> None:
    drawn = [params.trivial_ops for params in _drawn({"trivial_augment_wide": {}}, 4000)]
    assert all(ops is not None and len(ops) == 1 for ops in drawn)
    ops, magnitudes = np.array([ops[0] for ops in drawn if ops]).T
    counts = np.bincount(ops.astype(int), minlength=14)
    assert len(counts) == 14
    assert counts.min() > 220  # 286 expected
    signed = magnitudes[(ops >= 1) & (ops <= 9)]
    assert 0.46 < np.mean(np.signbit(signed)) < 0.54
    rotations = {trivial_magnitude(5, level, 31) for level in range(31)}
    assert set(np.abs(magnitudes[ops == 5])) == rotations
    assert np.bincount(magnitudes[ops == 10].astype(int)).nonzero()[0].tolist() == [*range(2, 9)]


def test_windows_are_drawn_all_over_the_border() -> None:
    corners = np.array([p.corner for p in _drawn({"random_crop": {"size": 38, "padding": 2}}, 500)])
    assert corners.min(axis=0).tolist() == [0, 0]
    assert corners.max(axis=0).tolist() == [40 + 4 - 38, 60 + 4 - 38]
    assert abs(corners.mean(axis=0) - [3, 13]).max() < 0.6
    exact = Augmentation.from_config({"random_crop": {"size": [40, 60]}})
    assert exact.draw(rng_for(0, "a", 0), (60, 40)).corner == (0, 0)


@pytest.mark.parametrize("size", [(60, 39), (39, 60)])
def test_a_window_larger_than_the_image_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(AugmentationError, match=r"40 x 40 pixels do not fit.*pad_if_needed"):
        _drawn({"random_crop": {"size": 40}}, 1, size)
    wide = Augmentation.from_config({"random_crop": {"size": 40, "pad_if_needed": True}})
    image = noisy_ramp(*size, 0)
    params = wide.draw(rng_for(0, "a", 0), size)
    assert wide.apply(image, params).shape == (40, 40, 3)
    with pytest.raises(AugmentationError, match="have no corner"):
        wide.apply(image, Params())


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.lists(st.integers(0, 50), min_size=4, max_size=4),
    st.integers(1, 40),
    st.sampled_from(["constant", "edge", "reflect", "symmetric"]),
    st.integers(0, 1000),
)
def test_any_window_is_that_of_numpy(
    size: tuple[int, int], padding: list[int], side: int, mode: str, seed: int
) -> None:
    image = noisy_ramp(*size, 0)
    config = {"size": side, "padding": padding, "padding_mode": mode, "pad_if_needed": True}
    augmentation = Augmentation.from_config({"random_crop": config})
    params = augmentation.draw(rng_for(seed, "x", 0), size)
    left, top, right, bottom = padding
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode)  # type: ignore[call-overload]
    for axis in (1, 0):
        lack = max(0, side - pixels.shape[axis])
        width = [(0, 0)] * 3
        width[axis] = lack, lack
        pixels = np.pad(pixels, width, mode)  # type: ignore[call-overload]
    row, column = params.corner or (0, 0)
    expected = pixels[row : row + side, column : column + side]
    assert np.array_equal(augmentation.apply(image, params), expected)


def test_an_image_that_is_too_small_is_a_bad_pair() -> None:
    plan = Plan(
        augmentation=Augmentation.from_config({"random_crop": {"size": 40}}),
        augmentations=1, seed=0, teachers=(), captioners=(),
    )  # fmt: skip
    for width, kind in ((60, Prepared), (39, Bad)):
        stream = io.BytesIO()
        noisy_ramp(width, 40, 0).save(stream, "PNG")
        result = prepare("a", stream.getvalue(), plan)
        assert isinstance(result, kind)
    assert isinstance(result, Bad)
    assert "40 x 40 pixels do not fit into an image of 39 x 40" in result.reason


# --- stored lists

STACK: dict[str, Any] = {
    "random_crop": {"size": 30},
    "random_horizontal_flip": {},
    "rand_augment": {"num_ops": 1},
    "auto_augment": {},
    "trivial_augment_wide": {},
    "random_erase": {},
}


def test_published_lists_have_no_entries_for_what_the_generator_leaves_out() -> None:
    augmentation = Augmentation.from_config(STACK)
    expected = Params(corner=(1, 2), flip=True, ops=((12, 0.0),), erase=(3, 4, 5, 6))
    assert augmentation.unpack([[1, 2], True, [[12, 0.0]], [3, 4, 5, 6]]) == expected
    nothing = augmentation.unpack([[1, 2], False, None, None])
    assert nothing == augmentation.unpack([[1, 2]]) == Params(corner=(1, 2))
    # The published training configuration, with one more transform enabled.
    published = Augmentation.from_config({**CROP, "rand_augment": {}, "auto_augment": {}})
    assert published.unpack([[0, 0, 5, 5], [[1, 0.1], [12, 0.0]]]).auto_ops is None
    # A full list is read as it stands.
    full = [[1, 2], True, [[12, 0.0]], [], [[5, 90.0]], None]
    params = augmentation.unpack(full)
    assert params.auto_ops == ()
    assert params.trivial_ops == ((5, 90.0),)
    assert params.all_ops == ((12, 0.0), (5, 90.0))
    assert augmentation.pack(params) == full


@pytest.mark.parametrize("size", [40, [40, 50]])
def test_a_corner_is_not_taken_for_the_size_of_resize(size: Any) -> None:
    augmentation = Augmentation.from_config({"resize": {"size": size}, **STACK})
    rest = [True, [[12, 0.0]], [[14, 0.0]], [[0, 0.0]], None]
    for count in range(len(rest) + 1):
        params = augmentation.unpack([size, [40, 50], *rest[:count]])
        assert params == augmentation.unpack([[40, 50], *rest[:count]])
        assert params.corner == (40, 50)
    assert augmentation.pack(params)[:2] == [size, [40, 50]]


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (0, None, "random_crop: expected [top, left] in whole pixels, none negative; got None"),
        (0, [1], "random_crop: expected [top, left]"),
        (0, [1, 2, 3, 4], "random_crop: expected [top, left]"),
        (0, [1, -2], "none negative"),
        (0, [1, 2.5], "in whole pixels"),
        (0, [True, 2], "in whole pixels"),
        (0, [1, 1 << 40], "in whole pixels"),
        (0, [1, float("nan")], "in whole pixels"),
        (0, "12", "random_crop: expected [top, left]"),
        (2, [[14, 0.0]], "rand_augment: operations go from 0 to 13"),
        (3, [[1, 0.1]] * 3, "auto_augment: expected at most 2 operations"),
        (3, [[15, 0.0]], "auto_augment: operations go from 0 to 14"),
        (3, [[10, 0.0]], "auto_augment: Posterize keeps 1 to 8 bits"),
        (3, [[5, float("inf")]], "auto_augment: expected numbers"),
        (3, {"op": 1}, "auto_augment: expected [[operation, magnitude], ...] or null"),
        (3, [5, 9.0], "auto_augment: expected [operation, magnitude] pairs"),
        (4, [], "trivial_augment_wide: expected 1 operation"),
        (4, [[1, 0.1], [2, 0.1]], "trivial_augment_wide: expected 1 operation"),
        (4, [[14, 0.0]], "trivial_augment_wide: operations go from 0 to 13"),
        (4, [[5, "9"]], "trivial_augment_wide: expected numbers"),
    ],
)
def test_bad_entries(entry: int, value: Any, message: str) -> None:
    augmentation = Augmentation.from_config(STACK)
    packed: list[Any] = [[1, 2], True, [[12, 0.0]], [[14, 0.0]], [[5, 90.0]], None]
    augmentation.unpack(packed)
    packed[entry] = value
    with pytest.raises(AugmentationError) as caught:
        augmentation.unpack(packed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("random_crop", {}, "random_crop needs the setting size"),
        ("random_crop", {"size": 8, "padding": -1}, "random_crop.padding must be 1, 2 (left and"),
        ("random_crop", {"size": 8, "padding": [1, 2, 3]}, "padding must be 1, 2"),
        ("random_crop", {"size": 8, "padding": []}, "padding must be 1, 2"),
        ("random_crop", {"size": 8, "padding": [1, None]}, "padding must be 1, 2"),
        ("random_crop", {"size": 8, "padding": 1 << 40}, "padding must be 1, 2"),
        ("random_crop", {"size": 8, "padding": "4"}, "padding must be 1, 2"),
        ("random_crop", {"size": 8, "pad_if_needed": 1}, "pad_if_needed must be true or false"),
        ("random_crop", {"size": 8, "fill": 256}, "fill must be 1 or 3 numbers from 0 to 255"),
        ("random_crop", {"size": 8, "fill": [1, 2]}, "fill must be 1 or 3 numbers"),
        ("random_crop", {"size": 8, "fill": "red"}, "fill must be 1 or 3 numbers"),
        ("random_crop", {"size": 8, "fill": 10**400}, "fill must be 1 or 3 numbers"),
        ("random_crop", {"size": 8, "padding_mode": "wrap"}, "one of constant, edge, reflect"),
        ("random_crop", {"size": 8, "padding_mode": ["edge"]}, "one of constant, edge, reflect"),
        ("random_crop", {"size": 1 << 15}, "random_crop.size must be a whole number of pixels"),
        ("random_crop", {"size": 16384}, "random_crop.size must be at most 178,956,970 pixels"),
        ("auto_augment", {"policy": "coco"}, "policy must be one of imagenet, cifar10, svhn"),
        ("auto_augment", {"policy": None}, "policy must be one of imagenet, cifar10, svhn"),
        ("auto_augment", {"interpolation": "bilinear"}, "nearest, other values"),
        ("auto_augment", {"fill": 128}, "None or 0, other values cannot be replayed"),
        ("auto_augment", {"magnitude": 9}, "unknown auto_augment setting 'magnitude'"),
        ("trivial_augment_wide", {"num_magnitude_bins": 1}, "a whole number from 2 to 1000"),
        ("trivial_augment_wide", {"interpolation": "bilinear"}, "nearest, other values"),
        ("rand_augment", {"p": 10**400}, "rand_augment.p must be a number from 0 to 1"),
    ],
)
def test_bad_configurations(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(AugmentationError) as caught:
        Augmentation.from_config({name: config})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "plain"),
    [
        ("random_crop", {"size": 9, "padding": None, "fill": None}, {"size": 9}),
        ("random_crop", {"size": [9, 9], "padding": [4, 4]}, {"size": 9, "padding": 4}),
        ("random_crop", {"size": 9, "padding": [1, 2]}, {"size": 9, "padding": [1, 2, 1, 2]}),
        ("random_crop", {"size": 9, "fill": [7.9]}, {"size": 9, "fill": [7, 7, 7]}),
        ("auto_augment", {"policy": "CIFAR10", "fill": None}, {"policy": "cifar"}),
        ("auto_augment", {"interpolation": "nearest"}, {}),
        ("trivial_augment_wide", {"num_magnitude_bins": 31.0, "fill": 0}, {}),
    ],
)
def test_other_forms_of_the_same_configuration(
    name: str, config: dict[str, Any], plain: dict[str, Any]
) -> None:
    first = Augmentation.from_config({name: config})
    assert first == Augmentation.from_config({name: plain})
    assert Augmentation.from_config(json.loads(json.dumps(first.config))) == first


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5), _ANYTHING)
def test_any_entry_is_applied_or_refused(place: int, value: Any) -> None:
    augmentation, image = Augmentation.from_config(STACK), noisy_ramp(40, 33, 0)
    packed: list[Any] = [[1, 2], True, [[12, 0.0]], [[14, 0.0]], [[5, 90.0]], None]
    packed[place] = value
    try:
        params = augmentation.unpack(packed)
        pixels = augmentation.apply(image, params)
    except AugmentationError:
        return  # and nothing else
    assert pixels.shape == (30, 30, 3)
    assert augmentation.unpack(augmentation.pack(params)) == params


# --- training


def test_views_equal_the_augmentation_where_sizes_agree() -> None:
    data = (GOLDEN / "chelsea.jpg").read_bytes()
    rest = {name: STACK[name] for name in ("auto_augment", "trivial_augment_wide", "random_erase")}
    window = {"random_crop": {"size": [200, 220], "padding": 9, "padding_mode": "reflect"}}
    crop = {"random_resized_crop": {"size": 64, "interpolation": "bicubic"}}
    square = {"random_crop": {"size": 64, "padding": 4}}
    with Image.open(GOLDEN / "chelsea.jpg") as image:
        for config in (square | rest, window | crop | rest, crop | rest):
            augmentation = Augmentation.from_config(config)
            exact, fast = (AugmentationReplay(augmentation, 64, fast=f) for f in (False, True))
            for index in range(4):
                params = augmentation.draw(rng_for(0, "c", index), image.size)
                right = augmentation.apply(image, params)
                assert np.array_equal(exact(data, augmentation.pack(params)), right)
                assert fast(data, augmentation.pack(params)).shape == right.shape
                if "random_crop" in config:  # there is no faster way to it
                    assert np.array_equal(fast(data, augmentation.pack(params)), right)


def test_views_at_another_size_scale_translations() -> None:
    config = {**CROP, "auto_augment": {}, "trivial_augment_wide": {}}
    data = (GOLDEN / "coffee.jpg").read_bytes()
    stored = Augmentation.from_config(config)
    student = Augmentation.from_config({**config, "random_resized_crop": {"size": 64}})
    packed = [[10, 20, 200, 300], [[3, 9.0], [5, 3.0]], [[4, -7.5]]]
    doubled = [[10, 20, 200, 300], [[3, 18.0], [5, 3.0]], [[4, -15.0]]]
    with Image.open(GOLDEN / "coffee.jpg") as image:
        right = student.apply(image, doubled)
    assert np.array_equal(AugmentationReplay(stored, 64)(data, packed), right)
    # A window has pixels of the source: it is made at its own size, and then resized.
    window = Augmentation.from_config({"random_crop": {"size": 32}})
    assert AugmentationReplay(window, 64)(data, [[5, 5]]).shape == (64, 64, 3)
