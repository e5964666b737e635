from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_foreign_module_is_better_for_the_callback() -> None:
    spec = spec_from_file_location("add_to_your_project", ROOT / "examples" / "add_to_your_project.py")
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    without, with_it = example.run(retrospection=False), example.run(retrospection=True)
    assert with_it["accuracy"] > without["accuracy"] > 0.85
