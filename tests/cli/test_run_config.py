"""What a run's checkpoints say of its configuration."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distill.cli import main, run_config
from lit_distill.models.trust import is_own

SHORT = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SHORT += ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2"]


def test_the_configuration_is_dumped_and_signed_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    signed: list[Any] = []

    def sign(config: Any) -> str:
        signed.append(config)
        return sign_before(config)

    sign_before = run_config.sign
    monkeypatch.setattr(run_config, "sign", sign)
    main(["fit", "--config", "digits", *SHORT])
    assert len(signed) == 1
    (last,), (best,) = (list(tmp_path.rglob(name)) for name in ("last.ckpt", "best*.ckpt"))
    for path in (last, best):
        saved = torch.load(path, weights_only=True)
        assert saved[run_config.KEY] == signed[0]
        assert is_own(saved[run_config.KEY], saved[run_config.SIGNATURE])
    assert signed[0]["trainer"]["max_epochs"] == 3
    main(["fit", "--ckpt_path", str(last), *SHORT[:2], "--trainer.max_epochs=4"])
    assert len(signed) == 2
    assert signed[1]["trainer"]["max_epochs"] == 4
