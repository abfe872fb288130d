"""Writes a checkpoint directory atomically."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from snapgen_deploy.checkpoint.tensors import INDEX, SINGLE_FILE
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import exchange_names, folder_for_results, is_old


@contextmanager
def new_directory(final: Path, needed: int, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write in, which becomes `final` if the block ends without an error and is removed otherwise.

    With `overwrite` the old directory is removed last.

    Raises:
        BadInput: if `final` exists (with `overwrite`: if it is not a checkpoint's directory), its parent cannot be written
            to, or the disk has fewer than `needed` bytes free.
    """
    final = final.absolute()
    _check_place(final, overwrite)
    with ExitStack() as places:
        try:
            places.enter_context(folder_for_results(final.parent))
            free = shutil.disk_usage(final.parent).free
            if free < needed:
                raise BadInput(
                    f"the disk of {final.parent} has {free / 1e9:.2f} GB free, the checkpoint takes {needed / 1e9:.2f} GB; "
                    "free space or choose another place with --output-dir"
                )
            prefix = f".{final.name}.partial-"
            _remove_abandoned(final.parent, prefix)
            root = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
        except OSError as error:
            raise BadInput(
                f"cannot write to {final.parent} ({error.strerror}); choose another place with --output-dir"
            ) from None
        places.callback(shutil.rmtree, root, ignore_errors=True)
        yield root
        root.chmod(0o755)  # mkdtemp makes it private
        _check_place(final, overwrite)
        if final.exists() and exchange_names(root, final):
            shutil.rmtree(root)
        elif final.exists():
            old = root.with_name(root.name + ".old")
            final.rename(old)
            root.rename(final)
            shutil.rmtree(old)
        else:
            root.rename(final)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the leftovers of a killed run if nothing in them has changed for a day."""
    for left in parent.glob(f"{prefix}*"):
        if all(map(is_old, (left, *left.rglob("*")))):
            shutil.rmtree(left, ignore_errors=True)


def _check_place(final: Path, overwrite: bool) -> None:
    try:
        if not final.exists():
            return
        if not overwrite:
            raise BadInput(f"{final} is already there; pass --overwrite to replace it, or --output-dir for another place")
        if not final.is_dir():
            raise BadInput(f"{final} is a file, expected a directory; choose another place with --output-dir")
        ours = (".safetensors", INDEX)
        strange = sorted(p.name for p in final.iterdir() if not p.name.endswith(ours))
    except OSError as error:
        raise BadInput(f"{final} cannot be read ({error.strerror}); choose another place with --output-dir") from None
    if strange or not ((final / INDEX).is_file() or (final / SINGLE_FILE).is_file() or not any(final.iterdir())):
        what = strange[0] if strange else "no checkpoint"
        raise BadInput(f"{final} holds {what}, --overwrite replaces only a checkpoint's directory; choose another with -o")
