"""What the README shows as an example does what it says."""

from collections.abc import Iterator
import json
from pathlib import Path
import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from toys import Foreign, toy_loader, trainer, weights

from lit_distill.cli.study_plan import read_plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()
EPOCHS = 5


def by_hand() -> Foreign:
    """Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", Algorithm 2, with weight 1."""
    module = Foreign()
    optimizer, loader = module.configure_optimizers(), toy_loader()
    totals = torch.zeros(30, 4)
    for epoch in range(1, EPOCHS + 1):
        loader.sampler.set_epoch(epoch - 1)
        now, targets = torch.zeros(30, 4), totals / (1 - 0.6 ** max(epoch - 1, 1))
        for x, y, index in loader:
            z = module.net(x)
            p = torch.softmax(z, dim=1)
            loss = F.cross_entropy(z, y) + (F.mse_loss(p, targets[index]) if epoch > 1 else 0.0)
            now[index] = p.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        totals = 0.6 * totals + 0.4 * now
    return module


def test_the_variant_of_the_readme_runs_and_equals_the_loop_written_by_hand() -> None:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "TemporalEnsembling" in block
    )
    names: dict[str, Any] = {}
    exec(code, names)
    module = Foreign()
    run = trainer(max_epochs=EPOCHS, callbacks=names["TemporalEnsembling"](dtype="float32"))
    run.fit(module, toy_loader())
    torch.testing.assert_close(weights(module), weights(by_hand()), rtol=1e-5, atol=1e-5)
    assert run.callback_metrics["soft_labels/distance"] > 0


def test_the_export_of_the_readme_answers_as_its_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "export_student(" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    image = torch.rand(2, 1, 8, 8)
    for ours, theirs in zip(names["student"].eval()(image)[:2], names["again"](image)[:2], strict=True):
        assert torch.equal(ours, theirs)
    assert names["again"].card["class_names"] == list("0123456789")


def test_the_study_of_the_readme_can_be_read(tmp_path: Path) -> None:
    (text,) = (block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "lit-distill study" in block)
    (tmp_path / "temperatures.yaml").write_text(text)
    plan = read_plan(tmp_path / "temperatures.yaml", {})
    assert [*plan.rows] == ["cross-entropy", "soft", "soft, T = 8"]
    assert plan.rows["soft, T = 8"].flags[-1] == "--model.distillation.temperature=8"


def numbers(content: Any) -> Iterator[float]:
    """Yield the numbers of a JSON file; a share as percent too."""
    if isinstance(content, dict):
        for value in content.values():
            yield from numbers(value)
    elif isinstance(content, int | float):
        yield from (content, 100 * content)


@pytest.mark.parametrize("text", [README, RESULTS], ids=["README", "RESULTS"])
def test_each_figure_of_a_study_is_one_that_the_study_wrote(text: str) -> None:
    marked = re.findall(r"<!-- lit-distill study (\w+) -->\n\|.*\n\|.*\n((?:\|.*\n)+)", text)
    assert marked
    for study, table in marked:
        rows = json.loads((ROOT / "benchmarks" / "studies" / study / "table.json").read_text())["rows"]
        for line in table.splitlines():
            _, _, cells = line.removeprefix("|").partition("|")
            figures = re.findall(r"[+-]?\d*\.\d+", cells)
            wrong = {
                name: [
                    figure
                    for figure in figures
                    if all(abs(float(figure) - n) > 0.5001 * 0.1 ** len(figure.split(".")[1]) for n in numbers(row))
                ]
                for name, row in rows.items()
            }
            closest = min(wrong, key=lambda name: len(wrong[name]))
            assert not wrong[closest], f"{study}: {line}: not in row {closest!r}: {wrong[closest]}"
