import errno
import os
import resource

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pocketclip.errors import ExportError
from pocketclip.graph import proto

ONNX_NAMES = {"Dimension": "TensorShapeProto.Dimension", "TensorType": "TypeProto.Tensor"}


@pytest.mark.parametrize("name", sorted(proto._SCHEMA))
def test_fields_are_those_of_onnx(name):
    theirs = onnx
    for part in ONNX_NAMES.get(name, name).split("."):
        theirs = getattr(theirs, part)
    known = theirs.DESCRIPTOR.fields_by_name
    for field in getattr(proto.messages(), name).DESCRIPTOR.fields:
        reference = known[field.name]
        type_ = field.TYPE_INT32 if reference.type == field.TYPE_ENUM else reference.type
        assert (field.number, field.type) == (reference.number, type_)
        assert field.is_repeated == reference.is_repeated
        if field.type == field.TYPE_MESSAGE:
            assert (
                field.message_type.name
                in ONNX_NAMES.get(field.message_type.name, reference.message_type.name)
                or field.message_type.name.removesuffix("Type") == reference.message_type.name
            )


def test_a_model_is_the_same_to_the_byte_as_by_onnx(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    ours = proto.make_model(
        "g",
        nodes=[
            proto.make_node("MatMul", ["x", "w"], ["y"], "m"),
            proto.make_node(
                "Dummy", ["y"], ["z"], "d", a=1, b=0.5, c="text", d=[1, 2], e=[0.5], f=["x"]
            ),
        ],
        inputs=[proto.make_value("x", np.float32, ["batch", 2])],
        outputs=[proto.make_value("z", np.float32, [])],
        initializers=[proto.tensor_from_array(weight, "w")],
        opset=18,
        ir_version=10,
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
        helper.make_node(
            "Dummy", ["y"], ["z"], "d", a=1, b=0.5, c="text", d=[1, 2], e=[0.5], f=["x"]
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["batch", 2])],
        [helper.make_tensor_value_info("z", 1, [])],
        [numpy_helper.from_array(weight, "w")],
    )
    theirs = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
        producer_name="pocketclip",
    )
    proto.write_model(ours, tmp_path / "ours.onnx")
    assert (tmp_path / "ours.onnx").read_bytes() == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize("dtype", sorted(proto._CODES))
def test_arrays_survive_in_every_form(dtype):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    code = proto.dtype_code(dtype)
    assert code == helper.np_dtype_to_tensor_dtype(array.dtype)
    assert proto.code_dtype(code) == array.dtype
    listed = helper.make_tensor("t", code, array.shape, array.flatten())
    assert not listed.raw_data
    tensor = proto.messages().TensorProto.FromString(listed.SerializeToString())
    for ours in (
        proto.array_from_tensor(tensor),
        proto.array_from_tensor(proto.tensor_from_array(array)),
    ):
        assert ours.dtype == array.dtype
        np.testing.assert_array_equal(ours, array)
    theirs = onnx.TensorProto.FromString(proto.tensor_from_array(array, "t").SerializeToString())
    np.testing.assert_array_equal(numpy_helper.to_array(theirs), array)


def test_unknown_dtypes_are_named():
    with pytest.raises(ExportError, match="complex64"):
        proto.tensor_from_array(np.zeros(1, np.complex64))
    with pytest.raises(ExportError, match="type 16"):
        proto.code_dtype(16)


def _external(folder, location="m.onnx.data"):
    weight = np.arange(300, dtype=np.float32)
    (folder / "m.onnx.data").write_bytes(b"\0" * 64 + weight.tobytes())
    model = proto.make_model(
        "g",
        nodes=[proto.make_node("Add", ["x", "w"], ["y"], "n")],
        inputs=[proto.make_value("x", np.float32, [300])],
        outputs=[proto.make_value("y", np.float32, [300])],
        initializers=[proto.external_tensor(weight, "w", location, 64)],
        opset=18,
        ir_version=10,
    )
    proto.write_model(model, folder / "m.onnx")
    return weight


def test_weights_beside_the_model_are_read_in(tmp_path):
    weight = _external(tmp_path)
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    model = proto.read_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(proto.array_from_tensor(model.graph.initializer[0]), weight)


def test_a_full_disk_has_its_errno(tmp_path):
    # Users are told what to do by it.
    limits, values = resource.getrlimit(resource.RLIMIT_FSIZE), np.zeros((100, 100), np.float32)
    with (tmp_path / "x").open("wb") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                proto.append_tensor(file, values, "x")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_unreadable_models_are_refused(tmp_path):
    weight = _external(tmp_path)
    (tmp_path / "m.onnx.data").write_bytes(weight.tobytes())  # 64 bytes short
    with pytest.raises(ExportError, match="too short: w is missing"):
        proto.read_model(tmp_path / "m.onnx")
    _external(tmp_path, "../m.onnx.data")
    with pytest.raises(ExportError, match="outside"):
        proto.read_model(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="not an ONNX model"):
        proto.read_model(tmp_path / "m.onnx")


def test_what_the_schema_here_lacks_survives(tmp_path):
    model = onnx.ModelProto(ir_version=10, functions=[onnx.FunctionProto(name="f")])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert proto.read_model(tmp_path / "m.onnx").SerializeToString() == model.SerializeToString()
