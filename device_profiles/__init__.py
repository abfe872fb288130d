"""Device profiles: one TOML file per device beside this module, or a user's own file by its path.

Depends on nothing but the named errors and the records of the targets, so that listing devices starts quickly.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from snapgen_deploy.device_profiles.schema import (
    Figure,
    LatencyBasis,
    Offer,
    Profile,
    ProfileTarget,
    spaced,
)
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import in_one_line, parse_toml

__all__ = [
    "Figure", "LatencyBasis", "Offer", "Profile", "ProfileTarget", "load_profile", "profile_ids", "spaced",
]  # fmt: skip

_FOLDER = Path(__file__).parent


def profile_ids() -> tuple[str, ...]:
    """The ids of the profiles that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_profile(id_or_path: str) -> Profile:
    """The profile of a known device, or of a file if the text ends in .toml or has a slash.

    >>> load_profile("iphone16pm").name
    'iPhone 16 Pro Max'

    Raises:
        BadInput: if the id is unknown (the message has the nearest names), or the file cannot be read or has problems (one
            message for all of them).
    """
    if id_or_path.endswith(".toml") or "/" in id_or_path or "\\" in id_or_path:
        return _read(Path(id_or_path))
    known = profile_ids()
    if id_or_path in known:
        profile = _read(_FOLDER / f"{id_or_path}.toml")
        if profile.id != id_or_path:
            raise BadInput(f"profile {id_or_path}.toml: id: got '{profile.id}', expected the file's name '{id_or_path}'")
        return profile
    near = difflib.get_close_matches(id_or_path.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise BadInput(f"unknown device '{id_or_path}': {hint}known are {', '.join(known)}; or give the path of a profile .toml")


def _read(path: Path) -> Profile:
    from snapgen_deploy.device_profiles.validate import read_profile

    try:
        table = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"profile {path}: cannot be read ({error.strerror}); give a device id or a .toml file") from None
    except ValueError as error:
        raise BadInput(f"profile {path}: not a TOML file ({error})") from None
    profile, problems = read_profile(table)
    if profile is None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise BadInput(in_one_line(f"profile {path}: {count}", problems))
    return profile
