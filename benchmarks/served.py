"""One answer everywhere: a student's decisions on real photos, by every way in which it can be asked.

    python benchmarks/served.py FOLDER [--photos 300] [--epochs 3]

FOLDER is an image folder of small photos, ``train/<class>/*``, such as CIFAR-10. The script makes two sets from it:
the photos as they are; and large ones of 500 to 3000 px, each a mosaic of enlarged photos of one class, as JPEG, PNG,
palette and turned by EXIF. On each, ``lit-distill distill`` trains without distillation and with each head. Then
every photo of the validation set is asked of: the table that ``distill`` prints, the CSV file of ``predict``,
``student.predict`` of the export and of the checkpoint, and ONNX Runtime with Pillow and the metadata of the file
alone. A row has the accuracies of table and CSV file, and how many decisions differ from the CSV file's.
"""

import argparse
import csv
from functools import partial
import json
from pathlib import Path
import random
import re
import subprocess
import sys
import tempfile
from typing import Any

from measure import Report, options_of, scaled
import numpy as np
from PIL import Image, ImageOps

from lit_distill import load_student

HEADS = ("class", "distill", "mean_logits", "mean_probs")


def small(source: Path, target: Path, photos: int, classes: list[str]) -> None:
    for name in classes:
        files = sorted((source / name).iterdir())[: photos // len(classes)]
        (target / name).mkdir(parents=True)
        for file in files:
            (target / name / file.name).write_bytes(file.read_bytes())


def large(source: Path, target: Path, photos: int, classes: list[str], draws: random.Random) -> None:
    for name in classes:
        files = sorted((source / name).iterdir())
        (target / name).mkdir(parents=True)
        for number in range(photos // len(classes)):
            width, height = draws.randint(500, 3000), draws.randint(500, 3000)
            mosaic = Image.new("RGB", (96, 96))
            for place in range(9):
                with Image.open(draws.choice(files)) as image:
                    mosaic.paste(image.convert("RGB"), (place % 3 * 32, place // 3 * 32))
            image = mosaic.resize((width, height), Image.Resampling.BICUBIC)
            grain = np.random.default_rng(number).integers(-12, 13, (height, width, 1))
            image = Image.fromarray((np.asarray(image).astype(int) + grain).clip(0, 255).astype(np.uint8))
            exif = Image.Exif()
            exif[274] = 6
            kinds: list[tuple[str, dict[str, Any]]] = [("jpg", {"quality": 90}), ("jpg", {"exif": exif}), ("png", {})]
            suffix, how = kinds[number % 3]
            (image.quantize(64) if number % 9 == 2 else image).save(target / name / f"{number:04}.{suffix}", **how)


def onnx_decisions(path: Path, photos: list[Path]) -> list[str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    steps = about["preprocessing"]
    classes = []
    for photo in photos:
        image = ImageOps.exif_transpose(Image.open(photo)).convert(steps["color"])
        width, height = image.size
        longer = int(steps["resize"] * max(image.size) / min(image.size))
        size = (steps["resize"], longer) if width <= height else (longer, steps["resize"])
        image = image.resize(size, Image.Resampling[steps["interpolation"].upper()])
        top, left = (round((side - crop) / 2) for side, crop in zip(image.size[::-1], steps["crop"], strict=True))
        image = image.crop((left, top, left + steps["crop"][1], top + steps["crop"][0]))
        pixels = (np.asarray(image, dtype=np.float32) / np.float32(255)).transpose(2, 0, 1)
        (probabilities,) = session.run(["probabilities"], {"image": pixels[None]})
        classes.append(about["class_names"][int(probabilities.argmax())])
    return classes


def run(*args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "lit_distill.cli", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(args)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def ask(folder: Path, output: Path, epochs: int, flags: list[str]) -> dict[str, Any]:
    quiet = ["--trainer.enable_progress_bar=false", "--num_threads=1", "--trainer.accelerator=cpu"]
    common = [f"--data.root={folder}", "--data.val_fraction=0.5", f"--output={output}"]
    out = run("distill", *common, f"--epochs={epochs}", "--teacher_epochs=2", "--onnx=true", *quiet, *flags)
    (exported,) = re.findall(r"^student +(\S+/exported)$", out, re.MULTILINE)
    (checkpoint,) = re.findall(r"^checkpoint +(\S+)$", out, re.MULTILINE)
    table = re.findall(r"^student +([\d.]+)%", out, re.MULTILINE)[-1]
    predictions = Path(checkpoint).with_name("predictions.csv")
    predictions.unlink(missing_ok=True)
    run("predict", "--ckpt_path", checkpoint, *quiet[:1], *quiet[2:])
    rows = list(csv.DictReader(predictions.read_text().splitlines()))
    photos, measured = [folder / row["file"] for row in rows], [row["class"] for row in rows]
    right = sum(row["class"] == Path(row["file"]).parent.name for row in rows)
    answers = {
        "export": load_student(exported).predict(photos).classes,
        "checkpoint": load_student(checkpoint).predict(photos).classes,
        "ONNX": onnx_decisions(Path(exported, "student.onnx"), photos),
    }
    differ = {name: sum(a != b for a, b in zip(got, measured, strict=True)) for name, got in answers.items()}
    counts = {f"{name} differs": count for name, count in differ.items()}
    return {"table": f"{table} %", "CSV file": f"{100 * right / len(rows):.2f} %", "photos asked": len(rows), **counts}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--photos", type=int, default=300)
        parser.add_argument("--classes", type=int, default=4)
        parser.add_argument("--epochs", type=int, default=3)

    options = options_of(__doc__, add)
    report = Report(__file__, options, "run")
    source = options.folder / "train"
    classes = sorted(path.name for path in source.iterdir())[: options.classes]
    photos = scaled(options.photos, options, 4 * len(classes))
    heads = HEADS if options.length == 1 else ()
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("32 px", "500 to 3000 px"):
            folder = Path(temporary, kind.replace(" ", "_"))
            if kind == "32 px":
                small(source, folder, photos, classes)
            else:
                large(source, folder, photos, classes, random.Random(options.seed))
            size = [] if kind == "32 px" else ["--data.image_size=96", "--model.student.depth=4"]
            for flags in (["--model.distillation=null"], *([f"--model.head={head}"] for head in heads)):
                name = "no distillation" if "null" in flags[0] else f"head {flags[0].partition('=')[2]}"
                epochs = scaled(options.epochs, options)
                work = partial(ask, folder, Path(temporary, "runs"), epochs, [*flags, *size])
                report.once("answers", f"{kind}, {name}", work)
    report.finish()


if __name__ == "__main__":
    main()
