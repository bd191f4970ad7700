"""Writing masks: whole or not at all."""

import os
from pathlib import Path
from typing import Any

from monai.data import NibabelWriter


class AtomicNiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer, to a temporary name that is renamed when the file is whole."""

    def write(self, filename: str | os.PathLike, verbose: bool = False, **options: Any) -> None:
        target = Path(filename)
        temporary = target.with_name(f".{os.getpid()}.tmp.{target.name}")  # the ending tells nibabel to compress
        try:
            super().write(temporary, verbose=verbose, **options)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
