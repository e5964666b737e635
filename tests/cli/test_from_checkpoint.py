"""What a command takes from the run that its checkpoint is from."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distill.cli.from_checkpoint import from_checkpoint
from lit_distill.cli.run_config import KEY, SIGNATURE
from lit_distill.models.signature import sign

LOGGER = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs", "version": "mine"}}
CONFIG = {
    "seed_everything": 7,
    "model": {"teacher": {"class_path": "lit_distill.DigitsCNN"}, "alpha": 0.3},
    "data": {"class_path": "lit_distill.datamodules.DigitsDataModule"},
    "trainer": {"max_epochs": 3, "devices": 2, "default_root_dir": "/their/runs", "logger": LOGGER},
}
GONE = {**CONFIG, "model": {"teacher": {"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": "gone.pt"}}}}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def checkpoint(config: Mapping[str, Any] = CONFIG, signature: str | None = None) -> str:
    """Save what a checkpoint has of its run's configuration, signed by this user unless a signature is given."""
    state = {"state_dict": {}, KEY: config, SIGNATURE: sign(config) if signature is None else signature}
    torch.save(state, "run.ckpt")
    return "run.ckpt"


def taken(*args: str) -> dict[str, Any]:
    """Return the configuration that is put before the other arguments."""
    origin, (command, option, config, *others) = from_checkpoint(args)
    assert [command, option, *others] == [args[0], "--config", *args[1:]]
    assert json.loads(config) == origin.config
    return origin.config


@pytest.mark.parametrize("args", [[], ["fit"], ["fit", "--ckpt_path=last"], ["test", "--ckpt_path", "best"]], ids=str)
def test_without_a_file_the_arguments_stay_as_they_are(args: list[str]) -> None:
    assert from_checkpoint(args) == (({}, None), args)


def test_a_resumed_run_takes_all_but_the_folder_and_a_test_takes_model_and_data() -> None:
    resumed = taken("fit", "--ckpt_path", checkpoint(), "--trainer.max_epochs=4")
    assert resumed["trainer"].pop("logger")["init_args"] == {"save_dir": "logs"}  # the next free version
    assert resumed == {**CONFIG, "trainer": {name: CONFIG["trainer"][name] for name in resumed["trainer"]}}
    assert taken("test", "--ckpt_path=run.ckpt") == {key: CONFIG[key] for key in ("seed_everything", "model", "data")}


def test_a_teacher_is_left_out_when_it_is_gone_or_not_asked(capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(GONE)
    assert taken("test", "--ckpt_path", path)["model"]["teacher"] is None
    note = "note: going on without the teacher, its accuracy and agreement: no checkpoint file at gone.pt\n"
    assert capsys.readouterr().out == note
    assert taken("predict", "--ckpt_path", path)["model"]["teacher"] is None
    given = ("--model.teacher.weights=here.pt",)
    assert taken("test", "--ckpt_path", path, *given)["model"]["teacher"] == GONE["model"]["teacher"]
    assert taken("fit", "--ckpt_path", path)["model"]["teacher"] == GONE["model"]["teacher"]
    assert capsys.readouterr().out == ""


def test_somebody_elses_run_chooses_no_machine_and_no_folder_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    logger = {**LOGGER, "init_args": {"save_dir": "../../theirs"}}
    foreign = {**CONFIG, "trust": ["os"], "trainer": {**CONFIG["trainer"], "logger": logger}}
    config = taken("fit", "--ckpt_path", checkpoint(foreign, "a forged signature"))
    assert set(config["trainer"]) == {"max_epochs", "logger"}
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "theirs"
    assert "trust" not in config
    assert "note: using theirs, not ../../theirs: the checkpoint is from elsewhere" in capsys.readouterr().err
    assert from_checkpoint(["fit", "--ckpt_path=run.ckpt"])[0].foreign == Path("run.ckpt")
    refused = {**CONFIG, "model": {"student": {"class_path": "os.system"}}}
    with pytest.raises(ValueError, match=r"refused run.ckpt: it names os.system"):
        from_checkpoint(["test", "--ckpt_path", checkpoint(refused, "")])


def test_a_file_without_a_configuration_gives_none_and_another_file_is_refused() -> None:
    torch.save({"state_dict": {}}, "python.ckpt")
    assert taken("test", "--ckpt_path=python.ckpt") == {}
    torch.save({"weights": {}}, "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt is no Lightning checkpoint: it has no state_dict"):
        from_checkpoint(["test", "--ckpt_path=other.ckpt"])


@pytest.mark.parametrize("signature", [None, "a forged signature"])
def test_a_teacher_of_groups_goes_on_summing_them_if_it_began_before_there_were_priors(signature: str | None) -> None:
    def priors(**arguments: object) -> object:
        teacher = {"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": "t.pt", **arguments}}
        path = checkpoint({**CONFIG, "model": {"teacher": teacher}}, signature)
        return taken("fit", "--ckpt_path", path)["model"]["teacher"]["init_args"].get("target_prior", "as it is now")

    assert priors(classes={"cat": [0], "dog": [1, 2]}) == "teacher"
    assert priors(classes={"cat": [0], "dog": [1, 2]}, target_prior="uniform") == "uniform"
    assert priors(classes=None) == priors() == "as it is now"
