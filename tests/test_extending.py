"""docs/EXTENDING.md is true: its files, saved under the names it gives, do what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from engine.errors import InvalidRequest
from engine.evaluation.contestants import Shape, build, num_parameters
from engine.evaluation.examples import mark
from engine.evaluation.fitting import FitPlan, fit
from engine.evaluation.study import Results, Study, by_model, run_study
from engine.from_file import function_of
from engine.model.hope import Hope
from engine.training.optimizers import make_optimizer
from server.cli import main
from tests.engine.evaluation.copying import Copying

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "EXTENDING.md").read_text("utf-8")
SHAPE = Shape(Copying.vocab_size, width=32, num_layers=2, num_heads=2, chunk=8)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves every Python fence under the name that the text before it gives, and stands in that folder."""
    fences = re.findall(r"`(\w+\.py)`(?:(?!```).)*?```python\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in fences] == ["my_model.py", "more_levels.py", "my_optimizer.py"]
    for name, text in fences:
        (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text((REPOSITORY / "README.md").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)


def test_a_model_of_ones_own_is_built_at_the_size_of_the_others_and_reads_in_pieces() -> None:
    torch.manual_seed(0)
    model = build("my_model.py", SHAPE)
    assert num_parameters(model) == pytest.approx(num_parameters(build("hope", SHAPE)), rel=0.01)
    examples = Copying().validation(0)
    whole, cut = mark(model, examples), mark(model, examples, piece=5)  # type: ignore[arg-type]
    assert cut.loss == pytest.approx(whole.loss, rel=1e-4)


def test_a_model_of_ones_own_stands_in_a_table(tmp_path: Path) -> None:
    makers = [(name, lambda name=name: build(name, SHAPE)) for name in ("hope", "my_model.py", "more_levels.py")]
    study = Study("copying", Copying(), makers, FitPlan(2, (1e-2,)), num_seeds=1)
    runs = run_study(study, Results(tmp_path / "copying.jsonl"), show_progress=False)
    assert [name for name, _ in by_model(runs)] == ["hope", "my_model.py", "more_levels.py"]


def test_another_level_is_one_more_block_with_a_memory_of_its_own() -> None:
    model = build("more_levels.py", SHAPE)
    assert isinstance(model, Hope)
    assert [level.name for level in model.config.levels] == ["cms.fast", "cms.between", "cms.medium", "cms.slow"]
    assert "cms.between.0.w2.momentum" in model.initial_memory(1)
    fitted = fit(lambda: build("more_levels.py", SHAPE), Copying(), FitPlan(60, (1e-2,)), 1e-2, 0)
    assert fitted.validation.accuracy > 0.5


def test_an_optimizer_of_ones_own_trains() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    optimizer = make_optimizer("my_optimizer.py", layer, 0.1)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.allclose(before - layer.weight, torch.full((4, 4), 0.1))


@pytest.mark.parametrize("command", re.findall(r"^hope (eval (?:mqar|optimizers) .*)$", PAGE, re.MULTILINE))
def test_the_commands_are_real(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "1", "--rates", "0.001", "--results", "results"]
    assert main([*command.split(), *small]) == 0
    own = [word for word in re.split(r"[ ,]", command) if word.endswith(".py")]
    table = capsys.readouterr().out
    for name in own:
        assert Path(name).stem in table


@pytest.mark.parametrize(("name", "complaint"), [("nowhere.py", "no file"), ("README.py", "no function 'build'")])
def test_a_file_that_will_not_do_is_named(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "README.py").write_text("x = 1\n")
    with pytest.raises(InvalidRequest, match=complaint):
        function_of(name, "build")
