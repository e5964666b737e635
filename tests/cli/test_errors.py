import pytest

from lit_distill.cli.errors import one_line
from lit_distill.files import DiskFullError

UNION = """Parser key "model.distillation":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'torch.nn.modules.module.Module'>, <class 'NoneType'>]
  Errors:
    - temperature must be > 0, got -1.0
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._namespace.Namespace'>
  Given value: Namespace(class_path='lit_distill.SoftDistillation')"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(UNION), "model.distillation: temperature must be > 0, got -1.0"),
        (ValueError("one\n  two"), "one two"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(""), "ValueError:"),
        (RuntimeError("Error(s) in loading state_dict for M:\n\tsize mismatch for a\n\tsize mismatch for b"),
         "the checkpoint does not fit the model: size mismatch for a (and 1 more)"),
        (RuntimeError('Error(s) in loading state_dict for M:\n\tUnexpected key(s) in state_dict: "b.2.w", "b.3.w".'),
         "the checkpoint does not fit the model: b has 4 blocks in the weights, 2 in the network; "
         'Unexpected key(s) in state_dict: "b.2.w", "b.3.w".'),
        (OSError(28, "No space left on device"), "no space left on the disk: free some and run the same command again"),
        (OSError(28, "No space left on device", "logs/metrics.csv"),
         "no space left on the disk for logs/metrics.csv: free some and run the same command again"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
         "no space left on the disk: free some and run the same command again"),
        (OSError(27, "File too large"),
         "the largest size of a file is too small: raise ulimit -f, which shared memory obeys too"),
        (DiskFullError(28, "No space: a.ckpt was not written"), "No space: a.ckpt was not written"),
        (DiskFullError(27, "File too large: a.ckpt was not written"), "File too large: a.ckpt was not written"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
         "worker 7 of the data loader was killed: out of memory? Fewer --data.num_workers or a smaller "
         "--data.batch_size need less"),
        (ValueError("could not get timm's pretrained weights of deit; give a local file as weights (offline)"),
         "could not get timm's pretrained weights of deit; give a local file as weights, or, for a student, "
         "--model.student.pretrained=false (offline)"),
    ],
)  # fmt: skip
def test_an_error_is_its_innermost_message(error: Exception, line: str) -> None:
    assert one_line(error).strip() == line


def test_a_folder_that_cannot_be_written_is_named_with_the_mend() -> None:
    line = one_line(PermissionError(13, "Permission denied", "/logs"))
    assert line.startswith("cannot use /logs: Permission denied; choose another folder; for logs with")


@pytest.mark.parametrize("kind", [FileExistsError, NotADirectoryError])
def test_a_file_in_the_place_of_a_folder_is_named(kind: type[OSError]) -> None:
    mend = "a file is where a folder is needed: choose another folder"
    assert one_line(kind(1, "No", "out.txt")) == f"cannot use out.txt: No; {mend}"
