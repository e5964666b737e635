"""How well a pretrained network knows the classes of a folder untrained: by sums, and by Bayes' rule.

    pip install -e ".[teacher]"
    python benchmarks/group_prior.py FOLDER --images 500

FOLDER has a folder of photos for each class that `imagenet_groups` knows, such as `cat` and `dog`; others are left out.
The first images of each class by name are asked, at the network's own size.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image

from lit_distill import FrozenTeacher
from lit_distill.models import ClassGroups
from lit_distill.models.imagenet import imagenet_groups

RULES = {"sums": "teacher", "Bayes' rule": "uniform"}


def ask(teacher: FrozenTeacher, folder: Path, count: int) -> Tensor:
    """Return the teacher's logits of the first images in a folder, ``(count, M)``."""
    images = [decode_image(str(file), ImageReadMode.RGB) for file in sorted(folder.iterdir())[:count]]
    return torch.cat([teacher(image[None]) for image in images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500, help="of each class")
    parser.add_argument("--teacher", default="tf_efficientnet_lite0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = sorted(path.name for path in args.folder.iterdir() if path.is_dir() and imagenet_groups([path.name]))
    groups = imagenet_groups(names)
    if groups is None:
        parser.error(f"{args.folder} has no folder of a class that imagenet_groups knows")
    answers = [ask(FrozenTeacher(args.teacher), args.folder / name, args.images) for name in names]
    logits, target = (
        torch.cat(answers),
        torch.arange(len(names)).repeat_interleave(torch.tensor(list(map(len, answers)))),
    )
    print(f"{len(target)} images of {', '.join(names)}; {args.teacher}, untrained\n")
    print(f"| rule | accuracy | NLL | said {' / '.join(names)} |\n|---|---|---|---|")
    for rule, prior in RULES.items():
        grouped = ClassGroups(groups, logits.shape[1], target_prior=prior)(logits)
        answers = grouped.argmax(dim=1)
        shares = " / ".join(f"{float(share):.1%}" for share in answers.bincount(minlength=len(names)) / len(answers))
        accuracy = float(answers.eq(target).float().mean())
        print(f"| {rule} | {accuracy:.1%} | {float(F.cross_entropy(grouped, target)):.3f} | {shares} |")


if __name__ == "__main__":
    main()
