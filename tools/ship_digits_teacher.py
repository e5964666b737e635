"""Write the embedded teacher's weights into the package from a run of configs/digits_teacher.yaml.

python train.py fit --config configs/digits_teacher.yaml
python tools/ship_digits_teacher.py logs/digits_teacher/version_0/checkpoints/last.ckpt
"""

import sys

from safetensors.torch import save_file

from lit_distill import LitDistiller
from lit_distill.models.digits_cnn import WEIGHTS

if __name__ == "__main__":
    student = LitDistiller.load_from_checkpoint(sys.argv[1], map_location="cpu").student
    save_file(student.state_dict(), WEIGHTS)
    print(f"wrote {WEIGHTS}, {WEIGHTS.stat().st_size:,} bytes")
