"""Keys from a directory, one file each: ``<kid>.pem`` a public key, ``<kid>.secret`` an HMAC secret.

As Kubernetes mounts a Secret. The directory is read again every few seconds, so keys come and go without a
restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from backplane.errors import ConfigurationError
from backplane.log import Logger
from gateway.signing_keys import Key, file_key

_LOOK_EVERY_S = 2.0
_MOST_FILES = 100
_MOST_BYTES = 64 * 1024


class KeyFiles:
    """The keys of one directory.

    Args:
        directory: where they are.
        on_keys: told when there are others than before.
        log: for operators.

    Attributes:
        keys: as last read.

    Raises:
        ConfigurationError: it cannot be read, or a file in it is no usable key.
    """

    def __init__(self, directory: Path, on_keys: Callable[[], None], log: Logger) -> None:
        self._directory = directory
        self._on_keys = on_keys
        self._log = log
        self._told = ""
        self._contents = _read(directory)
        self.keys = _keys(self._contents)

    async def run(self) -> None:
        """Look for changes until cancelled; files that cannot be used leave the keys as they are."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                contents = await asyncio.to_thread(_read, self._directory)
                if contents != self._contents:
                    self.keys = _keys(contents)
                    self._contents = contents
                    self._log.info("keys_read", kids=[key.kid for key in self.keys])
                    self._on_keys()
                self._told = ""
            except ConfigurationError as error:
                if str(error) != self._told:
                    self._log.error("keys_not_read", reason=str(error), keys_kept=len(self.keys))
                self._told = str(error)


def _read(directory: Path) -> dict[str, bytes]:
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix in (".pem", ".secret"))
        if len(files) > _MOST_FILES:
            raise ConfigurationError(f"JWT_KEYS_DIR has more than {_MOST_FILES} keys")
        large = [path.name for path in files if path.stat().st_size > _MOST_BYTES]
        if large:
            raise ConfigurationError(f"JWT_KEYS_DIR: {large[0]} is over {_MOST_BYTES} bytes")
        return {path.name: path.read_bytes() for path in files if path.is_file()}
    except OSError as error:
        raise ConfigurationError(f"JWT_KEYS_DIR {directory} cannot be read: {error.strerror}") from None


def _keys(contents: dict[str, bytes]) -> list[Key]:
    found = [file_key(name, content) for name, content in contents.items()]
    return [key for key in found if key is not None]
