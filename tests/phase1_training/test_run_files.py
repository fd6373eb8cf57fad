"""What a training can be continued from."""

from types import SimpleNamespace

import pytest

from common import artifacts
from common.cli import UserError
from phase1_training.run_files import checkpoint_to_continue


@pytest.mark.parametrize(("keep_zeros", "is_same"), [(False, True), (True, False)])
def test_a_run_from_before_keep_zeros_had_none(tmp_path, keep_zeros, is_same):
    content = {"settings": {"seed": 0}, "state": {}, "history": [], "model_state_dict": {}}
    artifacts.save_checkpoint(tmp_path / "last.pth", content, {})
    run, settings = SimpleNamespace(output=tmp_path), {"seed": 0, "keep_zeros": keep_zeros}
    if is_same:
        assert checkpoint_to_continue(run, settings)["settings"] == {"seed": 0}
    else:
        with pytest.raises(UserError, match="was trained with keep_zeros False, not True"):
            checkpoint_to_continue(run, settings)
