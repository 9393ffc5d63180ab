"""The checkpoint."""

from pathlib import Path

import pytest
import torch

from service.errors import ModelError
from service.training import checkpoint


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"of": "me", "weights": {"a": torch.ones(3)}, "place": (1, 2.5)})
    found = checkpoint.load(path, of="me")
    assert found is not None
    assert torch.equal(found["weights"]["a"], torch.ones(3))
    assert found["place"] == (1, 2.5)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_none_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "checkpoint.pt", of="me") is None


def test_one_of_another_training_is_told(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"of": "another"})
    with pytest.raises(ModelError, match="with other options or images; delete it to start from"):
        checkpoint.load(path, of="me")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more"])
def test_a_damaged_one_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged; delete it to start from"):
        checkpoint.load(path, of="me")


def test_one_that_lacks_what_it_is_of_is_told(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"weights": {}})
    with pytest.raises(ModelError, match="is damaged"):
        checkpoint.load(path, of="me")


def test_one_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"of": "me", "step": 1})

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, {"of": "me", "step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path, of="me") == {"of": "me", "step": 1}
