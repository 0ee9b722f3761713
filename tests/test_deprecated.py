"""Old names of modules, arguments and attributes work for one release, with a warning."""

import importlib
import re
import subprocess
import sys

import pytest

from pocketclip._deprecated import MOVED, renamed_arguments
from pocketclip.evaluate import TaskData
from pocketclip.infer.bundle import Bundle
from pocketclip.infer.encoder import Encoder


def test_every_old_path_is_the_module_at_the_new_one(monkeypatch):
    for old, new in MOVED.items():
        monkeypatch.delitem(sys.modules, f"pocketclip.{old}", raising=False)  # it warns once
        with pytest.warns(DeprecationWarning, match=re.escape(f"is now pocketclip.{new}")):
            module = importlib.import_module(f"pocketclip.{old}")
        assert module is importlib.import_module(f"pocketclip.{new}"), old
        assert module.__spec__.name == f"pocketclip.{new}", old
        del sys.modules[f"pocketclip.{old}"]


def test_old_names_are_imported_and_said():
    with pytest.warns(
        DeprecationWarning, match=r"pocketclip\.locks is now pocketclip\.storage\.locks"
    ):
        from pocketclip.locks import acquire
    from pocketclip.storage import locks

    assert acquire is locks.acquire
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pocketclip.never_was")
    assert "never_was" not in MOVED


def test_old_modules_are_attributes_of_the_package():
    code = (
        "import warnings, pocketclip\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    module = pocketclip.naming\n"
        "assert 'pocketclip.naming is now pocketclip.checkpoint.names' in str(caught[0].message)\n"
        "assert module.__name__ == 'pocketclip.checkpoint.names'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_old_arguments():
    @renamed_arguments(old="new")
    def double(*, new=1):
        """Double."""
        return 2 * new

    assert double(new=3) == 6
    assert double.__doc__ == "Double."
    with pytest.warns(DeprecationWarning, match=r"double\(\): old= is now new="):
        assert double(old=4) == 8
    with pytest.raises(TypeError, match="old= is the old name of new="):
        double(old=1, new=2)


def test_the_old_path_of_an_evaluation_set():
    with pytest.warns(DeprecationWarning, match="place= is now path="):
        data = TaskData(place="mine", kind="retrieval", samples=lambda: iter(()), identity="x")
    with pytest.warns(DeprecationWarning, match=r"TaskData\.place is now TaskData\.path"):
        assert data.place == data.path == "mine"


@pytest.mark.parametrize("kind", [Encoder, Bundle])
def test_the_old_name_of_an_export_variant(kind):
    item = object.__new__(type("Stub", (kind,), {"variant": "onnx fp32 0123abcd"}))
    with pytest.warns(DeprecationWarning, match=r"Stub\.form is now Stub\.variant"):
        assert item.form == "onnx fp32 0123abcd"
