"""A module's tests are in the file of its name, in the folder of its name."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {"lit_distill": "tests", "callbacks": "tests/callbacks", "datamodules": "tests/datamodules"}

# Parts of another module, which its tests go through: the module and the test file.
TESTED_IN = {
    "lit_distill/_early.py": "tests/cli/test_stopping.py",
    "lit_distill/_lazy.py": "tests/test_imports.py",
    "lit_distill/agreement.py": "tests/test_module.py",
    "lit_distill/files.py": "tests/test_checkpoint.py",
    "lit_distill/cli/audit_sheet.py": "tests/cli/test_audit.py",
    "lit_distill/cli/audit_table.py": "tests/cli/test_audit.py",
    "lit_distill/cli/csv_table.py": "tests/cli/test_predictions.py",
    "lit_distill/cli/photos.py": "tests/cli/test_served.py",
    "lit_distill/cli/plan.py": "tests/cli/test_distill.py",
    "lit_distill/cli/progress.py": "tests/cli/test_checkpoints.py",
    "lit_distill/cli/report.py": "tests/cli/test_distill.py",
    "lit_distill/cli/study_stage.py": "tests/cli/test_study.py",
    "lit_distill/models/sources.py": "tests/models/test_teacher.py",
    "lit_distill/models/timm_net.py": "tests/models/test_timm_student.py",
    "callbacks/criterion.py": "tests/callbacks/test_soft_labels.py",
}

# What only several modules together do.
ACROSS = {
    "tests/cli/test_bad_input.py",
    "tests/cli/test_divergence.py",
    "tests/cli/test_served.py",
    "tests/cli/test_trust.py",
    "tests/losses/test_label_smoothing.py",
    "tests/test_before_seam.py",
    "tests/test_changed_folder.py",
    "tests/test_ddp.py",
    "tests/test_doctests.py",
    "tests/test_examples.py",
    "tests/test_house.py",
    "tests/test_imports.py",
    "tests/test_loop.py",
    "tests/test_packaging.py",
    "tests/test_readme.py",
    "tests/test_recipes.py",
    "tests/test_resume.py",
    "tests/test_teacher_sources.py",
}


def expected_files() -> dict[str, str]:
    """Return for each module the test file that its name asks for."""
    expected = {}
    for room, tests in ROOMS.items():
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.stem not in ("__init__", "__main__"):
                folder = Path(tests) / path.relative_to(ROOT / room).parent
                module = path.relative_to(ROOT).as_posix()
                expected[module] = (folder / f"test_{path.stem.lstrip('_')}.py").as_posix()
    return expected


def test_every_module_has_a_test_file() -> None:
    untested = {module: file for module, file in expected_files().items() if not (ROOT / file).exists()}
    assert {module: file for module, file in untested.items() if module not in TESTED_IN} == {}
    assert set(TESTED_IN) <= set(untested), "these have a file of their own, or are gone: take them out of TESTED_IN"
    assert [file for file in TESTED_IN.values() if not (ROOT / file).exists()] == []


def test_every_test_file_has_a_module() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert found - set(expected_files().values()) - ACROSS == set()
    assert found >= ACROSS, "these are gone: take them out of ACROSS"
