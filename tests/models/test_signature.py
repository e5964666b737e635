"""A signature is of one user and one content."""

import pytest

from lit_distill.models.signature import is_own, sign


def test_a_signature_is_of_one_user_and_one_content(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"a": (1, 2.5, None), "b": {"c": "d", 3: True}}
    signature = sign(content)
    assert is_own({"b": {3: True, "c": "d"}, "a": [1, 2.5, None]}, signature)
    assert not is_own({**content, "a": [1, 2.5, 0]}, signature)
    for other in (None, "", 3, signature[:-1], signature.upper()):
        assert not is_own(content, other)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert not is_own(content, signature)
    assert (tmp_path / "lit_distill" / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert sign(content) == ""
    assert not is_own(content, "")
