"""How a user's own runs are known: each checkpoint carries a signature of its configuration."""

from collections.abc import Mapping
import hashlib
import hmac
import json
import os
from pathlib import Path
import secrets
from typing import Any


def sign(content: Any) -> str:
    """Return what shows that this user has written ``content`` on this machine; empty without a place for the key.

    The key lies in ``$XDG_STATE_HOME/lit_distill``, by default ``~/.local/state/lit_distill``, readable for the user
    alone.

    Args:
        content: Plain containers.
    """
    key = _key()
    text = json.dumps(_keyed(content), sort_keys=True, default=str)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() if key else ""


def is_own(content: Any, signature: Any) -> bool:
    """Tell whether ``signature`` is this user's of ``content``."""
    own = sign(content)
    return bool(own) and isinstance(signature, str) and hmac.compare_digest(own.encode(), signature.encode())


def _keyed(content: Any) -> Any:
    # JSON sorts keys of one type only.
    if isinstance(content, Mapping):
        return {str(key): _keyed(value) for key, value in content.items()}
    return [_keyed(value) for value in content] if isinstance(content, (list, tuple)) else content


def _key() -> bytes:
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lit_distill"
        path = folder / "key"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = folder / f".key.{os.getpid()}.{secrets.token_hex(4)}"
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(part, path)  # unlike a rename, keeps the key that another process has made meanwhile
            except FileExistsError:
                pass
            finally:
                part.unlink()
        return path.read_bytes()
    except (OSError, RuntimeError):  # no home, or not writable
        return b""
