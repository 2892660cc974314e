"""Save a training so that it continues, to the bit, from where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from nn_adv.paths import as_path

_IDENTITY_FILE = "training.json"
# In the folder of each step, by the name of each other file there: its SHA-256. The arrays have no checksum of theirs.
_DIGESTS_FILE = "digests.json"
_NUM_KEPT = 2


class Checkpoints:
    """The newest saved states of one training, in a folder of its own.

    A save becomes visible only when it is complete, and the one before the last is removed afterwards: a process killed
    at any moment leaves a readable state, or none if it had not saved yet; and where the newest is damaged later, the
    one before it is there.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, str]):
        """Open or make ``folder``, and keep in it what the training is, as text by topic.

        Raises:
          ValueError: the folder is a file, or holds another training, or one that cannot be told.
          OSError: it cannot be made.
        """
        self._folder = as_path(folder, "checkpoint_dir").absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"checkpoint_dir must be a folder, {self._folder} is or goes through a file") from error
        self._check_identity(identity)
        process = jax.process_index()
        # In a cluster each process trains its own networks: it must not wait for the others when it saves.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
        )
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Named, as it would be guessed from the newest step there, damaged or not.
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_NUM_KEPT,
                enable_async_checkpointing=False,
                create=False,
                multiprocessing_options=alone,
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def _check_identity(self, identity):
        path = self._folder / _IDENTITY_FILE
        try:
            saved = dict(json.loads(path.read_bytes()))
        except FileNotFoundError as error:
            if any(step.name.isdigit() for step in self._folder.iterdir()):
                raise ValueError(
                    f"checkpoint_dir {self._folder} has checkpoints but no {_IDENTITY_FILE}, which says of what: put it"
                    " back, give a new folder or delete this one"
                ) from error
            _write_json(path, identity)
            return
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete the folder {self._folder}") from error
        different = [topic for topic, text in identity.items() if saved.get(topic) != text]
        if different:
            raise ValueError(
                f"checkpoint_dir {self._folder} holds another training (different {', '.join(different)}); "
                "give a new folder or delete it"
            )

    def save(self, num_epochs: int, state: Any) -> None:
        """Save ``state``, a pytree of arrays, as it is after ``num_epochs`` epochs.

        Raises:
          OSError: it could not be written; the save before it is intact.
        """
        try:
            self._manager.save(num_epochs, args=ocp.args.StandardSave(jax.device_get(state)))
            step = self._folder / str(num_epochs)
            files = sorted(path for path in step.rglob("*") if path.is_file())
            _write_json(step / _DIGESTS_FILE, {path.relative_to(step).as_posix(): _digest(path) for path in files})
        except (OSError, ValueError) as error:  # a full disk is a ValueError that names many files
            reason = "no space left" if "No space left" in str(error) else _first_line(error)
            raise OSError(
                f"cannot save a checkpoint in {self._folder} ({reason}): mend that and run the same again, "
                "it continues from the checkpoint before"
            ) from error

    def restore(self, like: Any) -> tuple[int, Any]:
        """Give the number of epochs of the newest intact state and the state, or 0 and ``like`` if nothing was saved.

        ``like`` has its structure, shapes and types. Newer ones that are damaged are removed, with a warning.

        Raises:
          ValueError: all are damaged.
          OSError: one cannot be read now; nothing is removed.
        """
        damaged: dict[int, str] = {}
        for num_epochs in sorted(self._manager.all_steps(), reverse=True):
            try:
                _check_files(self._folder / str(num_epochs))
                state = self._manager.restore(num_epochs, args=ocp.args.StandardRestore(jax.device_get(like)))
            except MemoryError:
                raise
            except Exception as error:  # whatever it trips over
                if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                    # Of the disk or the rights: the files may be intact.
                    reason = _first_line(error)
                    raise OSError(
                        f"cannot read a checkpoint in {self._folder} ({reason}): mend that and run the same again"
                    ) from error
                damaged[num_epochs] = _first_line(error)
                continue
            self._remove(damaged, num_epochs)
            return num_epochs, state
        if damaged:
            raise ValueError(
                f"no checkpoint in {self._folder} can be read (epoch {_listed(damaged)}): delete the folder, and the "
                "training begins anew"
            )
        return 0, like

    def _remove(self, damaged: dict[int, str], num_epochs: int) -> None:
        if not damaged:
            return
        for number in damaged:
            shutil.rmtree(self._folder / str(number))
        self._manager.reload()
        warnings.warn(
            f"checkpoint of epoch {_listed(damaged)} in {self._folder} is damaged and was removed: the training "
            f"continues from epoch {num_epochs}",
            stacklevel=4,  # the caller of `train`
        )


def _listed(damaged: dict[int, str]) -> str:
    return ", ".join(f"{number} ({reason})" for number, reason in damaged.items())


def _check_files(step: Path) -> None:
    """Raise ValueError for a file that is not as it was saved; without a list of them nothing is known."""
    path = step / _DIGESTS_FILE
    if not path.exists():
        return
    for name, digest in json.loads(path.read_bytes()).items():
        if not (step / name).is_file() or _digest(step / name) != digest:
            raise ValueError(f"{name} is gone or was changed")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, str]) -> None:
    """Write a file that is there as a whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
