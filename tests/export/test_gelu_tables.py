"""GELUs as tables: the numbers of the int8 graph that they are made of."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pocketclip.export import qdq
from pocketclip.export.gelu_tables import with_tables
from pocketclip.export.sensitivity import cosines
from pocketclip.graph import proto as onnx
from pocketclip.infer import bundle as bundles
from pocketclip.infer.backends import onnx_session


def _operators(proto):
    return Counter(node.op_type for node in proto.graph.node)


@pytest.fixture(scope="module")
def tower(bundle):
    """A trained image tower, ranges of its activations, and a batch of pixels."""
    opened = bundles.read(bundle)
    proto = onnx.read_model(opened.path("image"))
    side = opened.config.image_size
    pixels = np.random.RandomState(0).uniform(0, 1, (2, 3, side, side)).astype(np.float32)
    return proto, qdq.calibrate(proto, lambda model: onnx_session(model, 1), [pixels]), pixels


def _run(proto, pixels):
    session = onnx_session(proto.SerializeToString(), 1)
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def test_tables_give_the_numbers_of_the_gelus(tower):
    proto, ranges, pixels = tower
    before = qdq.quantised(proto, ranges)
    expected = _run(before, pixels)
    after = with_tables(qdq.quantised(proto, ranges))
    found = _run(after, pixels)
    # Where a result is between two levels, ONNX Runtime's approximation may take the other one.
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    counts = _operators(after)
    assert counts["GatherElements"] == _operators(before)["Erf"] - counts["Erf"] > 3
    assert _run(after, pixels[:1]).shape == (1, expected.shape[1])


def test_a_gelu_of_a_layer_in_float_stays(tower):
    proto, ranges, pixels = tower
    layers = [layer.name for layer in qdq.layers(proto)]
    kept = [name for name in layers if name.endswith("mlp.fc1")]
    after = with_tables(qdq.quantised(proto, ranges, kept))
    all_tables = _operators(with_tables(qdq.quantised(proto, ranges)))["GatherElements"]
    assert 0 < len(kept) == all_tables - _operators(after)["GatherElements"]
    assert cosines(_run(after, pixels), _run(proto, pixels)).min() > 0.98


def test_a_model_without_such_gelus_is_not_changed(tower):
    proto, _, _ = tower
    copy = type(proto)()
    copy.CopyFrom(proto)
    assert with_tables(copy).SerializeToString() == proto.SerializeToString()
