"""What identifies a model's state: a commit, or a checksum of all that its vectors depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from st_distill import files

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> str | None:
    return os.getenv("SENTENCE_TRANSFORMERS_HOME")


def hub_names(name: str) -> list[str]:
    """The repositories a name may mean: sentence-transformers puts its own organisation before a bare one."""
    return [name] if "/" in name else [f"sentence-transformers/{name}", name]


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a model on the hub is at, from the hub or, where that does not answer, from its cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    for repository in hub_names(name):
        with contextlib.suppress(Exception):  # offline, no such repository, none that one may see, hub out of order
            return HfApi().model_info(repository, revision=revision, timeout=10).sha
        for file in ("modules.json", "config.json"):
            path = try_to_load_from_cache(repository, file, cache_dir=cache_folder(), revision=revision)
            if isinstance(path, str):
                return _commit_in(Path(path).parent)
    return None


def _commit_in(folder: Path) -> str | None:
    """The commit, where the folder is a snapshot in the hub's cache."""
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


_NOT_THE_MODEL = re.compile(
    r"\..*|.*\.(md|png|jpe?g|svg|onnx|log)|training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|trainer_state\.json"
    r"|rng_state.*\.pth|checkpoint-.*|runs|eval|onnx|openvino"
)


def folder_revision(folder: Path) -> str:
    """A checksum of everything in a model's folder that its vectors may depend on.

    Whole files, not samples of them: a fine-tuned bias or a single token's row must be seen. Unknown files count too:
    better an identity that changes without need than one that does not change. It takes about as long as reading the
    files, which loading the model does as well.

    Raises:
        ValueError: for what is neither file nor folder, such as a pipe, which would be waited for.
    """
    if commit := _commit_in(folder.resolve()):
        return commit
    paths = model_files(folder)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        checksums = list(pool.map(files.sha256, paths))
    digest = hashlib.sha256()
    for path, checksum in zip(paths, checksums):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{checksum}\n".encode("utf-8", "surrogatepass"))
    return f"content:{digest.hexdigest()[:40]}"


def model_files(folder: Path) -> list[Path]:
    """The files in a model's folder that its vectors may depend on.

    Raises:
        ValueError: for what is neither file nor folder.
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _NOT_THE_MODEL.fullmatch(name)]
        paths += [Path(parent) / name for name in names if not _NOT_THE_MODEL.fullmatch(name)]
    paths.sort()
    if odd := next((path for path in paths if not path.is_file()), None):
        raise ValueError(
            f"The folder {folder} of a model must hold files and folders alone. {odd} is neither: remove it."
        )
    return paths


def model_checksum(model: SentenceTransformer) -> str:
    """A checksum of a loaded model: its modules with their configuration, its tokenizer, its weights."""
    digest = hashlib.sha256()
    for module in model.modules():
        digest.update(type(module).__qualname__.encode())
        if hasattr(module, "get_config_dict"):
            digest.update(_sorted_json(module.get_config_dict(), without=()))
    configuration = getattr(getattr(model[0], "auto_model", None), "config", None)
    if configuration is not None:
        digest.update(_sorted_json(configuration.to_dict(), without=("_name_or_path",)))
    digest.update(str(model.max_seq_length).encode())
    tokenizer: Any = getattr(model[0], "tokenizer", None)
    if hasattr(tokenizer, "backend_tokenizer"):
        # Each call of the tokenizer leaves its own padding and truncation there.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        digest.update(_sorted_json(state, without=("padding", "truncation")))
    elif hasattr(tokenizer, "get_vocab"):
        digest.update(json.dumps(sorted(map(str, tokenizer.get_vocab()))).encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if model.truncate_dim is not None:
        digest.update(f"truncate_dim={model.truncate_dim}".encode())
    return f"content:{digest.hexdigest()[:40]}"


def _sorted_json(value: Mapping[str, Any], *, without: Iterable[str]) -> bytes:
    kept = {key: field for key, field in value.items() if key not in set(without)}
    return json.dumps(kept, sort_keys=True, default=str).encode()
