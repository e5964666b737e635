"""How a user's own runs are known: each checkpoint carries a signature of its configuration."""

from collections.abc import Mapping
from contextlib import suppress
import hashlib
import hmac
import json
import os
from pathlib import Path
import secrets


def sign(content: object) -> str:
    """Return this user's signature of plain containers on this machine; empty without a place for the key.

    The key lies in ``$XDG_STATE_HOME/lit_distill``, by default ``~/.local/state/lit_distill``, readable for the user
    alone.
    """
    key = _key()
    text = json.dumps(_with_text_keys(content), sort_keys=True, default=str)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() if key else ""


def is_own(content: object, signature: object) -> bool:
    """Tell whether ``signature`` is this user's of ``content``."""
    expected = sign(content)
    return bool(expected) and isinstance(signature, str) and hmac.compare_digest(expected.encode(), signature.encode())


def _with_text_keys(content: object) -> object:
    """Return the content with keys of one type, which JSON needs to sort them."""
    if isinstance(content, Mapping):
        return {str(key): _with_text_keys(value) for key, value in content.items()}
    return [_with_text_keys(value) for value in content] if isinstance(content, (list, tuple)) else content


def _key() -> bytes:
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lit_distill"
        path = folder / "key"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = folder / f".key.{os.getpid()}.{secrets.token_hex(4)}"
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            with suppress(FileExistsError):
                os.link(part, path)  # unlike a rename, keeps the key that another process has made meanwhile
            part.unlink()
        return path.read_bytes()
    except (OSError, RuntimeError):  # no home, or not writable
        return b""
