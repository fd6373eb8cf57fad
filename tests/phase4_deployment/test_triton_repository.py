"""The repository for Triton: its configuration against the published schema, its client against the
session itself. No server runs here.

ModelConfig's fields, their types and numbers are those of Triton's model_config.proto, as far as
config.pbtxt uses them; protobuf's own parser refuses every other name and type. Where tritonclient
is installed, its complete schema reads the file as well.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from common import artifacts
from common.onnx_detector import OnnxDetector
from phase4_deployment import triton_client, triton_repository
from phase4_deployment.package.file_check import INFO
from phase4_deployment.triton_repository import Batching, batching_of
from tests.exported_detector import exported_once
from tests.random_detectors import random_scene
from tests.training_runs import error_of

Field = descriptor_pb2.FieldDescriptorProto
STRING, INT32, INT64, UINT64 = (
    Field.TYPE_STRING, Field.TYPE_INT32, Field.TYPE_INT64, Field.TYPE_UINT64,
)  # fmt: skip
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_INT64": 9, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
# message -> field -> number, type (or the message or enum it has), whether it is repeated
SCHEMA: dict[str, dict[str, tuple]] = {
    "Reshape": {"shape": (1, INT64, True)},
    "Input": {
        "name": (1, STRING, False), "data_type": (2, "DataType", False),
        "dims": (4, INT64, True), "reshape": (5, "Reshape", False),
    },
    "Output": {
        "name": (1, STRING, False), "data_type": (2, "DataType", False),
        "dims": (3, INT64, True), "reshape": (5, "Reshape", False),
    },
    "DynamicBatching": {
        "preferred_batch_size": (1, INT32, True),
        "max_queue_delay_microseconds": (2, UINT64, False),
    },
    "InstanceGroup": {"kind": (4, "Kind", False), "count": (2, INT32, False)},
    "Accelerator": {"name": (1, STRING, False), "parameters": (2, "map STRING", True)},
    "Accelerators": {"gpu_execution_accelerator": (1, "Accelerator", True)},
    "Optimization": {"execution_accelerators": (4, "Accelerators", False)},
    "Parameter": {"string_value": (1, STRING, False)},
    "ModelConfig": {
        "name": (1, STRING, False), "backend": (17, STRING, False),
        "max_batch_size": (4, INT32, False), "input": (5, "Input", True),
        "output": (6, "Output", True), "dynamic_batching": (11, "DynamicBatching", False),
        "instance_group": (7, "InstanceGroup", True),
        "optimization": (12, "Optimization", False), "parameters": (14, "map Parameter", True),
    },
}  # fmt: skip


def model_config() -> type:
    """The class of ModelConfig that SCHEMA describes."""
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, is_repeated) in fields.items():
            label = Field.LABEL_REPEATED if is_repeated else Field.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str) and kind.startswith("map "):
                kind = _map_entry(message, field, kind.removeprefix("map "), name)
            if isinstance(kind, int):
                made.type = kind
            else:
                made.type = Field.TYPE_ENUM if kind in ENUMS else Field.TYPE_MESSAGE
                made.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


def _map_entry(message, field: str, value: str, owner: str) -> str:
    entry = message.nested_type.add(name=f"{field.title()}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=Field.LABEL_OPTIONAL, type=STRING)
    made = entry.field.add(name="value", number=2, label=Field.LABEL_OPTIONAL, type=STRING)
    if value != "STRING":
        made.type, made.type_name = Field.TYPE_MESSAGE, f".t.{value}"
    return f"{owner}.{entry.name}"


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """As much of a package as the repository is made of."""
    folder = tmp_path_factory.mktemp("triton") / "package"
    folder.mkdir()
    exported = exported_once(tmp_path_factory)
    shutil.copy(exported.onnx_path, folder / "model.onnx")
    model = folder / "model.onnx"
    files = {"model.onnx": {"bytes": model.stat().st_size, "sha256": artifacts.sha256(model)}}
    artifacts.write_json(folder / INFO, {**measured(), "files": files})
    return folder


def measured(size: int | None = 4, p90_ms: float = 60.0, budget_ms: float = 100.0) -> dict:
    row = {"batch_size": size or 1, "latency_ms": {"p50": 1.0, "p90": p90_ms}}
    other = {"batch_size": 99, "latency_ms": {"p50": 1.0, "p90": 1.0}}
    return {
        "latency_budget_ms": budget_ms,
        "batch_sizes": {"model.onnx": {"throughput": 99, "latency": size}},
        "formats": [
            {"file": "model.onnx", "batches": [other, row]},
            {"file": None, "batches": [other]},  # TensorRT's, which runs the same file
            {"file": "model_int8.onnx", "batches": [other]},
        ],
    }


def written(package: Path, output: Path, *more: object) -> Path:
    words = ["--package", package, "--output", output, *more]
    assert triton_repository.main([str(word) for word in words]) == 0
    return output / "model_repository" / "detector" / "config.pbtxt"


# --- the configuration ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "p90_ms", "budget_ms", "delay_us"),
    [
        (4, 60, 100, 40_000),  # what the budget leaves
        (4, 20, 100, 20_000),  # no longer than the batch itself
        (1, 20, 100, 0),  # no company is wanted
        (None, 120, 100, 0),  # a single picture is over the budget already
    ],
)
def test_a_picture_waits_for_what_the_budget_leaves(size, p90_ms, budget_ms, delay_us):
    info = measured(size, p90_ms, budget_ms)
    assert batching_of(info, Path(INFO)) == Batching(size or 1, delay_us)


@pytest.mark.slow
def test_the_configuration_has_the_published_fields_and_the_values_of_the_file(package, tmp_path):
    path = written(package, tmp_path / "out", "--device", "cuda", "--instances", 2)
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config()())
    assert (config.name, config.backend, config.max_batch_size) == ("detector", "onnxruntime", 4)
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [4]
    assert batching.max_queue_delay_microseconds == 40_000
    (group,) = config.instance_group
    assert (group.kind, group.count) == (ENUMS["Kind"]["KIND_GPU"], 2)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert accelerator.parameters["use_tf32"] == "0"
    names = json.loads(config.parameters["class_names"].string_value)
    assert names == ["car", "Fußgänger", "traffic light"]
    graph = onnx.load(package / "model.onnx").graph
    for entries, tensors in ((config.input, graph.input), (config.output, graph.output)):
        assert [entry.name for entry in entries] == [tensor.name for tensor in tensors]
        for entry, tensor in zip(entries, tensors, strict=True):
            shape = [dim.dim_value or -1 for dim in tensor.type.tensor_type.shape.dim]
            dims = entry.reshape.shape if entry.HasField("reshape") else entry.dims
            assert [-1, *dims] == shape
            kind = onnx.TensorProto.DataType.Name(tensor.type.tensor_type.elem_type)
            name = {v: k for k, v in ENUMS["DataType"].items()}[entry.data_type]
            assert name == {"FLOAT": "TYPE_FP32"}.get(kind, f"TYPE_{kind}")
    assert list(config.input[0].dims) == [-1, -1, 3]  # any height and width
    assert list(config.output[-1].dims) == [1]


@pytest.mark.slow
def test_on_a_cpu_there_is_no_option_of_a_gpu(package, tmp_path):
    text = written(package, tmp_path / "out", "--device", "cpu").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config()())
    assert config.instance_group[0].kind == ENUMS["Kind"]["KIND_CPU"]
    assert not config.HasField("optimization")


@pytest.mark.parametrize("wrong", ["prefered_batch_size: 4", 'name: "a" name: "b"', "name: 3"])
def test_the_schema_is_strict(wrong):
    with pytest.raises(text_format.ParseError):
        text_format.Parse(wrong, model_config()())


def published() -> Path | None:
    """model_config_pb2.py of an installed tritonclient; its folder imports grpc, it does not."""
    found = importlib.util.find_spec("tritonclient")
    folders = list(found.submodule_search_locations or ()) if found else []
    paths = [Path(folder) / "grpc" / "model_config_pb2.py" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


@pytest.mark.skipif(not published(), reason="pip install tritonclient brings the whole schema")
@pytest.mark.slow
def test_the_whole_published_schema_reads_it_alike(package, tmp_path):
    spec = importlib.util.spec_from_file_location("model_config_pb2", published())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = written(package, tmp_path / "out").read_text(encoding="utf-8")
    theirs = text_format.Parse(text, module.ModelConfig())
    ours = text_format.Parse(text, model_config()())
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


# --- the folder -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_folder_is_as_triton_wants_it_and_can_be_written_again(package, tmp_path):
    output = tmp_path / "out"
    for _ in range(2):
        written(package, output)
        files = sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())
        folder = "model_repository/detector"
        assert files == ["client.py", f"{folder}/1/model.onnx", f"{folder}/config.pbtxt"]
    copied = output / folder / "1" / "model.onnx"
    assert copied.read_bytes() == (package / "model.onnx").read_bytes()
    (output / folder / "config.pbtxt").unlink()  # as a killed process leaves it
    written(package, output)


@pytest.mark.slow
def test_what_is_no_whole_measured_package_is_one_line(package, tmp_path, capsys):
    def refused(folder: Path, *more: str, output: Path = tmp_path / "out") -> str:
        words = ["--package", str(folder), "--output", str(output), *more]
        assert triton_repository.main(words) == 2
        return error_of(capsys)

    assert "is no package" in refused(tmp_path / "none")
    assert "--device mps: is no kind of instance" in refused(package, "--device", "mps")
    full = tmp_path / "full"
    full.mkdir()
    (full / "novel.txt").touch()
    for output in (full, full / "novel.txt"):
        assert "holds something else" in refused(package, output=output)
    for name, change in (
        ("other", lambda info: info.pop("batch_sizes")),
        ("unmeasured", lambda info: info["formats"].pop(0)),
    ):
        copied = Path(shutil.copytree(package, tmp_path / name))
        info = artifacts.read_json(copied / INFO)
        change(info)
        artifacts.write_json(copied / INFO, info)
        assert "does not tell the latencies of model.onnx" in refused(copied)
    (copied / "model.onnx").write_bytes(b"damaged")
    assert "model.onnx: differs from its sha256" in refused(copied)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in full.iterdir()] == ["novel.txt"]


# --- the client -------------------------------------------------------------------------------


class FakeInput:
    """Refuses what tritonclient's InferInput refuses."""

    def __init__(self, name: str, shape: list[int], datatype: str):
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, array: np.ndarray) -> None:
        assert self.datatype == "UINT8"
        assert array.dtype == np.uint8
        assert list(array.shape) == self.shape
        self.array = array


class FakeClient:
    """Answers as Triton would with this repository: the session, and `num` with a dimension."""

    def __init__(self, url: str, model: Path = Path()):
        self.session = OnnxDetector(model, "cpu").session if model.is_file() else None

    def infer(self, name: str, inputs: list[FakeInput]) -> SimpleNamespace:
        assert name == triton_repository.NAME
        (images,) = inputs
        values = self.session.run(None, {images.name: images.array})
        named = dict(zip(("boxes", "scores", "labels"), values, strict=False))
        named["num"] = values[3].reshape(-1, 1)
        return SimpleNamespace(as_numpy=named.__getitem__)


@pytest.mark.slow
def test_the_client_finds_what_the_session_finds(package, monkeypatch):
    http = ModuleType("tritonclient.http")
    http.InferInput = FakeInput
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    image = random_scene(np.random.default_rng(3), 120, 160)
    found = triton_client.detect(FakeClient("", package / "model.onnx"), image)
    (expected,) = OnnxDetector(package / "model.onnx", "cpu")([image])
    assert len(expected.scores)
    np.testing.assert_array_equal(found["boxes"], expected.boxes_xyxy)
    np.testing.assert_array_equal(found["scores"], expected.scores)
    np.testing.assert_array_equal(found["labels"], expected.labels)


@pytest.mark.parametrize("value", ["nan", "-0.1", "1.5", "x"])
def test_the_client_refuses_a_confidence_that_is_none(value, capsys):
    with pytest.raises(SystemExit) as raised:
        triton_client.main(["street.jpg", f"--confidence={value}"])
    assert raised.value.code == 2
    assert "--confidence" in capsys.readouterr().err


def test_the_client_names_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    with pytest.raises(SystemExit) as ended:
        triton_client.main(["street.jpg"])
    assert ended.value.code == 2
    assert "run: pip install tritonclient[http]" in capsys.readouterr().err
