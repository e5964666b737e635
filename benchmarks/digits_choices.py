"""Two choices of the digits recipe: layer norm around the patch embedding, and the spread of the position embedding.

    python benchmarks/digits_choices.py --seeds 0 1

Cross-entropy alone, 20 epochs, everything else as in configs/digits.yaml; prints the last epoch's held-out accuracy of
each seed. These choices were made by looking at the held-out split, which is all that there is.
"""

import argparse
from pathlib import Path
import tempfile

from measure import Report, options_of, quiet, scaled
import torch

from lit_distill.cli import main


def accuracy(flags: list[str], seed: int, epochs: int) -> float:
    """Return the last epoch's held-out accuracy of the class head in a run without a teacher and LWR, in 0..1."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        alone = ["--retrospection=null", "--model.distillation=null"]
        silent = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        own = [f"--trainer.logger.save_dir={folder}", f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"]
        main(["fit", "--config", "digits", *flags, *alone, *silent, *own])
        checkpoint = torch.load(next(Path(folder).rglob("last.ckpt")), weights_only=True)
    return float(checkpoint["callbacks"]["RunSummary"]["last"]["val/accuracy_class"])


def compare() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
        parser.add_argument("--patches", type=int, nargs="+", default=[2, 4])

    options = options_of(__doc__, add)
    report = Report(__file__, options, "patch (pixels), layer norm, position std")
    stds = (0.02, 0.1, 0.5, 1.0)
    choices = [(patch, norm, std) for patch in options.patches for norm in ("true", "false") for std in stds]
    epochs = scaled(20, options)
    for patch, norm, std in choices[: scaled(len(choices), options, 2)]:
        student = {"patch_size": patch, "patch_norm": norm, "position_std": std}
        flags = [f"--model.student.{name}={value}" for name, value in student.items()]

        def accuracies(flags: list[str] = flags) -> dict[str, float]:
            return {f"seed {seed} (%)": 100 * accuracy(flags, seed, epochs) for seed in options.seeds}

        report.once(f"accuracy after {epochs} epochs", f"{patch}, {norm}, {std}", accuracies)
    report.finish()


if __name__ == "__main__":
    compare()
