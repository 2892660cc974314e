"""Save a training so that it continues, to the bit, from where it was stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

_IDENTITY_FILE = "training.json"


class Checkpoints:
    """The newest saved state of one training, in a folder of its own.

    A save becomes visible only when it is complete, and replaces the one before it afterwards: a process killed at
    any moment leaves a readable state, or none if it had not saved yet.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, str]):
        """Open or make ``folder``.

        Args:
          folder: where to save.
          identity: what the training is, as text by topic. It is kept beside the states.

        Raises:
          ValueError: the folder holds another training.
        """
        self._folder = Path(folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check_identity(identity)
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            enable_async_checkpointing=False,
            create=False,
            # In a cluster each process trains its own networks: it must not wait for the others when it saves.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
            ),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def _check_identity(self, identity):
        path = self._folder / _IDENTITY_FILE
        if path.exists():
            try:
                saved = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is damaged ({error}): delete the folder {self._folder}") from error
            different = [topic for topic, text in identity.items() if saved.get(topic) != text]
            if different:
                raise ValueError(
                    f"checkpoint_dir {self._folder} holds another training (different {', '.join(different)}); "
                    "give a new folder or delete it"
                )
            return
        temporary = path.with_suffix(f".{os.getpid()}")
        with temporary.open("w") as file:
            json.dump(identity, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def save(self, num_epochs: int, state: Any) -> None:
        """Save ``state``, a pytree of arrays, as it is after ``num_epochs`` epochs.

        Raises:
          OSError: it could not be written; the save before it is intact.
        """
        try:
            self._manager.save(num_epochs, args=ocp.args.StandardSave(jax.device_get(state)))
        except (OSError, ValueError) as error:  # a full disk is a ValueError that names many files
            reason = "no space left" if "No space left" in str(error) else str(error).partition("\n")[0]
            raise OSError(
                f"cannot save a checkpoint in {self._folder} ({reason}): mend that and run the same again, "
                "it continues from the checkpoint before"
            ) from error

    def restore(self, like: Any) -> tuple[int, Any]:
        """Give the number of epochs of the newest state and the state, or 0 and ``like`` if there is none.

        Args:
          like: a state of the same structure, shapes and types.
        """
        newest = self._manager.latest_step()
        if newest is None:
            return 0, like
        return newest, self._manager.restore(newest, args=ocp.args.StandardRestore(jax.device_get(like)))
