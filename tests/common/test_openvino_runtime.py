"""What other libraries may say in the terminal while the runtime is made ready."""

import logging
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from common import openvino_runtime
from common.openvino_runtime import without_chatter


def test_chatter_is_kept_out_and_errors_are_not(capsys, caplog):
    other = logging.getLogger("a.library")
    with without_chatter():
        other.warning("No CUDA runtime is found")
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        print("Statistics collection 100%")
        other.error("a file is damaged")
    assert [record.getMessage() for record in caplog.records] == ["a file is damaged"]
    assert capsys.readouterr() == ("", "")


def test_what_is_raised_gets_out_and_all_is_as_before():
    before = logging.root.manager.disable
    with pytest.raises(RuntimeError, match="no such operator"), without_chatter():
        raise RuntimeError("no such operator")
    assert logging.root.manager.disable == before
    with pytest.warns(FutureWarning):
        warnings.warn("this will change", FutureWarning, stacklevel=1)


def test_int8_is_made_without_chatter(monkeypatch, tmp_path, capsys, caplog):
    """OpenVINO and NNCF are stood in for; what NNCF says on a CPU is a line of PyTorch's log."""

    def quantised(model, calibration):
        logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found")
        print("Statistics collection 100%")
        return model

    saved = []
    core = SimpleNamespace(read_model=lambda file: file)
    openvino = SimpleNamespace(Core=lambda: core, save_model=lambda *what: saved.append(what))
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    monkeypatch.setattr(openvino_runtime, "_quantised", quantised)
    source, target = tmp_path / "model.onnx", tmp_path / "int8.xml"
    openvino_runtime.quantise(source, target, [np.zeros((4, 6, 3), np.uint8)])
    assert saved == [(str(source), str(target))]
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
