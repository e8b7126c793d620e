"""The SHA-256 of a file: by it a result knows its sources."""

import hashlib
from pathlib import Path

from nnunet_softseg.errors import UserError

_CHUNK_BYTES = 1 << 20


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises:
        UserError: if it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise UserError(
            f"{file}: expected a file that can be read, found: {error.strerror or error}: check its path and "
            "permissions"
        ) from error
    return digest.hexdigest()
