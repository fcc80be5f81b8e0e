"""The models that the book ships, by name: from the command line and from Python."""

import pytest
import torch

from ddpm_lib.__main__ import main
from ddpm_lib.runs import shipped
from ddpm_lib.runs.model import load


def test_every_model_that_the_book_ships_can_be_loaded_by_its_name_is_small_and_in_half_precision():
    assert "digits" in shipped.shipped()
    for name, path in shipped.shipped().items():
        model = load(name, device=torch.device("cpu"))
        assert model.recipe.classes == 10 and path.stat().st_size <= 8_000_000
        assert all(torch.equal(p, p.half().float()) for p in model.network.parameters()), name


def test_a_run_of_the_same_name_comes_before_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.located("digits") == shipped.shipped()["digits"]
    (tmp_path / "digits").mkdir()
    assert str(shipped.located("digits")) == "digits"


def test_an_unknown_name_is_refused_and_the_names_are_listed(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no digit \(did you mean digits\?\); the book ships: digits"):
        load("digit")
    with pytest.raises(FileNotFoundError, match="there is no data/digits"):
        load("data/digits")
    monkeypatch.setattr(shipped, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="no models of the book are at hand"):
        load("digits")


def test_a_shipped_model_is_sampled_from_the_shell(tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert main(["sample", "digits", "--labels", "3", "--steps", "2", "--out", str(out), "--device", "cpu"]) == 0
    assert out.is_file() and f"wrote {out}" in capsys.readouterr().out
