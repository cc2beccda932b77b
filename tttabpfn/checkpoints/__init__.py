"""The bundled base checkpoint: trained on synthetic tables alone, loaded without network or licence."""

from __future__ import annotations

from pathlib import Path

BUNDLED_NAME = "tttabpfn-base-v1.safetensors"


def bundled_model_path() -> Path:
    """Path of the base checkpoint that comes with the package.

    Returns
    -------
    pathlib.Path
        A safetensors file that plain ``tabpfn.TabPFNClassifier(model_path=...)`` loads.

    Raises
    ------
    FileNotFoundError
        If the package was installed without its checkpoint.

    Examples
    --------
    >>> from tttabpfn.checkpoints import bundled_model_path
    >>> bundled_model_path().suffix
    '.safetensors'
    """
    path = Path(__file__).resolve().parent / BUNDLED_NAME
    if not path.is_file():
        raise FileNotFoundError(f"the bundled checkpoint is missing: {path}; reinstall tttabpfn")
    return path
