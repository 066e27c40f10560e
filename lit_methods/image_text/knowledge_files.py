"""Knowledge on disk: safetensors and JSON, and the authors' array and vocabulary."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_methods.image_text.knowledge import KnowledgeBase

_TENSORS, _WORDS = "prototypes.safetensors", "words.json"
_TABLES = ("prototypes", "counts", "head_counts", "modifier_counts")


def save(knowledge: KnowledgeBase, folder: str | Path) -> None:
    """Writes a base into a folder, which is made if it is missing."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: getattr(knowledge, name).contiguous().cpu() for name in _TABLES}, folder / _TENSORS)
    (folder / _WORDS).write_text(json.dumps(list(knowledge.words), ensure_ascii=False), encoding="utf-8")


def load(folder: str | Path) -> KnowledgeBase:
    """Reads a base from a folder.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the files are damaged or disagree.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors, words = (_require(Path(folder) / name) for name in (_TENSORS, _WORDS))
    try:
        tables = load_file(tensors)
    except SafetensorError as error:
        raise ValueError(f"{tensors} is cut short or no safetensors file: {error}") from error
    if missing := [name for name in _TABLES if name not in tables]:
        raise ValueError(f"{tensors} lacks {missing}; save the knowledge again.")
    return KnowledgeBase(_read_json(words), *(tables[name] for name in _TABLES))


def from_published(prototypes: str | Path, vocabulary: str | Path) -> KnowledgeBase:
    """Reads the authors' layout; they publish no counts, so every word counts as one region and as a head.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the array is pickled, or the two files disagree.
    """
    path = _require(Path(prototypes))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"prototypes={path} is pickled or cut short; save a plain float array: {error}") from error
    content = _read_json(_require(Path(vocabulary)))
    if not (isinstance(content, list) and len(content) == 2 and isinstance(content[0], dict)):
        raise ValueError(f"vocabulary={vocabulary} must be a JSON pair of word to id and id to word.")
    ids: dict[str, int] = content[0]
    if array.ndim != 2 or sorted(ids.values()) != list(range(len(array))):
        raise ValueError(
            f"vocabulary={vocabulary} numbers {len(ids)} words and prototypes={prototypes} is {array.shape}; "
            "they must be 0 to K - 1 and (K, D)."
        )
    return KnowledgeBase(sorted(ids, key=ids.__getitem__), torch.from_numpy(np.array(array, np.float32)))


def _require(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"Knowledge not found: {path} is no file. Build it with KnowledgeBuilder and save it.")
    return path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is cut short or no JSON: {error}") from error
