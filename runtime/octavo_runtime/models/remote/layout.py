"""Which of the files that have arrived are the model, and whether it is complete."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress
from octavo_runtime.models.remote.files import is_module_folder, is_pickle

# A folder with one of these, or with a GGUF file, is a model or an adapter.
_CONFIGS = ("config.json", "adapter_config.json")


@dataclass
class Tree:
    """Files by the path that they had at their source, kept in numbered folders: no path of a
    stranger is ever used on this machine.
    """

    root: Path
    _folders: dict[PurePosixPath, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()

    def place(self, path: str) -> Path:
        """Where to write the file that is at `path` in its source.

        Raises `ConfigError` for a path that leads out of it.
        """
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.name:
            raise ConfigError(f"the source holds a file {path!r}: such paths are not taken")
        folder = self._folders.setdefault(pure.parent, self.root / str(len(self._folders)))
        folder.mkdir(exist_ok=True)
        return folder / pure.name

    def take(self, path: str, file: Path) -> None:
        """Moves `file` to the place of `path`."""
        file.replace(self.place(path))

    def move_model(self, target: Path, source: str) -> None:
        """Moves the files of the one model folder into `target`, with the folders of
        sentence-transformers' modules in it, and forgets the others.

        Of several, the one that is nearest to the top. Raises `ConfigError` when there is none, or
        more than one there.
        """
        models = [pure for pure, folder in self._folders.items() if _is_model(folder)]
        depth = min((len(pure.parts) for pure in models), default=0)
        nearest = sorted(pure for pure in models if len(pure.parts) == depth)
        if not nearest:
            raise ConfigError(
                f"{source} has no model in it: neither config.json, adapter_config.json nor a "
                ".gguf file"
            )
        if len(nearest) > 1:
            names = ", ".join(str(pure) for pure in nearest)
            raise ConfigError(f"{source} has several models in it: {names}. Name one of them.")
        for pure, folder in self._folders.items():
            if pure == nearest[0]:
                _move_files(folder, target)
            elif pure.parent == nearest[0] and is_module_folder(pure.name):
                (target / pure.name).mkdir()
                _move_files(folder, target / pure.name)
        shutil.rmtree(self.root)


def _move_files(folder: Path, target: Path) -> None:
    for file in sorted(folder.iterdir()):
        file.replace(target / file.name)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _CONFIGS) or any(folder.glob("*.gguf"))


def complete(folder: Path, source: str, progress: Progress) -> None:
    """Makes `folder` what the loader takes: a lone GGUF file is converted.

    Raises `ConfigError` when the weights are missing.
    """
    if any(folder.glob("*.safetensors")):
        if not any((folder / name).is_file() for name in _CONFIGS):
            raise ConfigError(f"{source} has weights and no config.json")
        return
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1:
        names = ", ".join(path.name for path in ggufs)
        raise ConfigError(f"{source} has several GGUF files: {names}. Name one of them.")
    if ggufs:
        _convert(ggufs[0], folder, progress)
    elif not any(is_pickle(path.name) for path in folder.iterdir()):
        raise ConfigError(
            f"{source} has no safetensors weights. Pickled ones (*.bin, *.pt) are not fetched, as "
            "reading them runs the code in them: look for a converted copy of the model."
        )


def _convert(gguf: Path, folder: Path, progress: Progress) -> None:
    from octavo_runtime.models.gguf import convert_gguf

    for path in folder.iterdir():
        if path.is_file() and path != gguf and not path.name.startswith("LICENSE"):
            path.unlink()
    convert_gguf(gguf, folder, progress=progress)
    gguf.unlink()
