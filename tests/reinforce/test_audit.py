"""An audit that embeds again what the teachers embedded."""

from __future__ import annotations

import types

import numpy as np
import pytest

from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError, EmbeddingError
from pocketclip.images import open_image
from pocketclip.reinforce import audit as module
from pocketclip.shards import Index
from tests.shards.making import CONFIG, TEACHERS, failure, folder, sample


def fake_teacher(spec, *, device, offline):
    assert (device, offline) == ("cpu", True)
    width = {"one": 8, "two": 4}[spec]

    def encode(squares):
        return squares.reshape(len(squares), -1)[:, :width].astype(np.float32)

    return types.SimpleNamespace(
        name=spec,
        space_id={"one": "a", "two": "b"}[spec],
        transform=types.SimpleNamespace(square=lambda image: image + 1),
        encode_squares=encode,
    )


def test_teachers_embed_replayed_augmentations(monkeypatch):
    monkeypatch.setattr(module, "load_teacher", fake_teacher)
    index = Index(teachers=TEACHERS, augmentation=CONFIG)
    function = module.embed_replayed(["one", "two"], index, device="cpu", offline=True)
    samples = [sample(1), sample(2)]
    rows = function(samples, [0, 1])
    assert rows.shape == (2, 12)
    augmentation = Augmentation.from_config(CONFIG)
    params = augmentation.unpack(samples[1].param_aug[1])
    image = augmentation.apply(open_image(samples[1].image), params) + 1
    assert rows[1, :8].tolist() == image.ravel()[:8].tolist()
    for specs, reason in (
        (["one"], "teachers of the set: 2, given: 1"),
        (["two", "one"], "embedding space b"),
    ):
        message = failure(module.embed_replayed, specs, index, device="cpu", offline=True)
        assert reason in message
    message = failure(module.embed_replayed, ["one"], Index(), device="cpu", offline=True)
    assert "nothing can be replayed" in message


def test_a_useless_embedding_is_named_by_its_sample(monkeypatch):
    def useless(_squares):
        raise EmbeddingError("image 1", "its embedding is not finite; ...", 1)

    teacher = fake_teacher("one", device="cpu", offline=True)
    teacher.encode_squares = useless
    monkeypatch.setattr(module, "load_teacher", lambda *_args, **_options: teacher)
    index = Index(teachers=TEACHERS[:1], augmentation=CONFIG)
    function = module.embed_replayed(["one"], index, device="cpu", offline=True)
    samples = [sample(1), sample(2)]
    with pytest.raises(EmbeddingError, match=rf"^image '{samples[1].uid}', augmentation 1: its"):
        function(samples, [0, 1])


def test_python_audits_with_teachers_in_one_call(monkeypatch, tmp_path):
    """What `pocketclip audit --recompute --teacher` does, without the command line."""
    monkeypatch.setattr(module, "load_teacher", fake_teacher)
    dataset = folder(tmp_path, [[sample(i) for i in range(4)]])
    options = {"device": "cpu", "offline": True}
    report = module.audit(str(dataset), recompute=3, teachers=["one", "two"], **options)
    assert [drift.compared for drift in report.drift] == [3, 3]
    assert report.counts["drift"] == 3  # these teachers made other embeddings
    assert module.audit(str(dataset)).drift == []
    for wrong in ({"recompute": 3}, {"teachers": ["one"]}, {"recompute": -1}):
        with pytest.raises(ConfigError, match="recompute"):
            module.audit(str(dataset), **wrong)
