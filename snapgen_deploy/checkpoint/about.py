"""What a checkpoint says of itself: configuration, tokenizers and licence, in a header, a config.json or a file of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint.sources import KEYS, Source
from snapgen_deploy.checkpoint.tensors import json_object
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import DECODER, STUDENT, TEXT_ENCODER
from snapgen_deploy.families.registry import components_of, student_types
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.serialise import config_from_dict, config_from_json
from snapgen_deploy.system.documents import parse_json, parse_toml
from snapgen_deploy.system.lfs import refuse_pointer

ABSENT = (DECODER, TEXT_ENCODER)  # components that TOML, which has no null, leaves out


def read_about(path: Path, source: Source, given: Path | None = None) -> tuple[Mapping[str, Any], Path | None]:
    """The entries of `KEYS`, and the file beside the tensors that some of them came from (None: all from the header).

    `given` is a file named by the caller, in the place of a config.json.

    Raises:
        BadInput: if there is no configuration, a file is damaged, or it says something else than the header.
    """
    if given is None:
        return _about(path, source)
    held = {key: source.metadata[key] for key in KEYS if key in source.metadata}
    data = read_config_file(given)
    for key in KEYS:
        if _differs(key, held, data):
            raise BadInput(
                f"{given}: its {key} is not that of the tensors' header; leave out --config, or give a file without it"
            )
    return data | held, given


def read_configuration(path: Path) -> tuple[ModelConfig, list[str]]:
    """The configuration in a file of its own, and the tokenizers beside it: one for each text encoder, or none.

    Raises:
        BadInput: if the file cannot be read, the configuration is invalid, or tokenizers are there for some encoders only.
    """
    data = read_config_file(path)
    document = data["snapgen_config"]
    read = config_from_json if isinstance(document, str) else config_from_dict
    config = read(document, student_types(), f"{path}: snapgen_config")
    texts = [text_of(data.get(spec.reads.key)) for spec in components_of(config).encoders]
    given = [text for text in texts if text is not None]
    if given and len(given) < len(texts):
        raise BadInput(f"{path}: has {len(given)} tokenizers for {len(texts)} text encoders; give one for each, or none")
    return config, given


def config_table(path: Path) -> dict[str, Any]:
    """The configuration in a file, JSON or `.toml`, by itself or as `snapgen_config`; some of its fields may be missing.

    Raises:
        BadInput: if it cannot be read, or is no table.
    """
    data = _toml(path) if path.suffix.lower() == ".toml" else json_object(path)
    table = data.get("snapgen_config", data)
    if not isinstance(table, dict):
        raise BadInput(f"{path}: snapgen_config: got a {type(table).__name__}, expected a table")
    return table


def read_config_file(path: Path) -> dict[str, Any]:
    """The entries of a configuration file, JSON or `.toml`: an object with `snapgen_config`, or the configuration itself.

    Raises:
        BadInput: if it cannot be read, or is neither.
    """
    data = _toml(path) if path.suffix.lower() == ".toml" else json_object(path)
    if "snapgen_config" not in data:
        if STUDENT not in data:
            got = ", ".join(map(str, data))[:100] or "nothing"
            raise BadInput(
                f"{path}: got the keys {got}, expected a configuration with student, decoder, text_encoder and so on"
            )
        data = {"snapgen_config": data}
    strange = [key for key in data if key not in KEYS]
    if strange:
        raise BadInput(f"{path}: got the keys {', '.join(strange)[:200]}, expected snapgen_config, {' and '.join(KEYS[1:3])}")
    config = data["snapgen_config"]
    if path.suffix.lower() == ".toml" and isinstance(config, dict):
        data = data | {"snapgen_config": dict.fromkeys(ABSENT) | config}
    return data


def _toml(path: Path) -> dict[str, Any]:
    refuse_pointer(path)
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a JSON or TOML file") from None
    except ValueError as error:
        raise BadInput(f"{path}: not TOML ({error})") from None


def _about(path: Path, source: Source) -> tuple[Mapping[str, Any], Path | None]:
    """Configuration, tokenizer and licence, and the config.json that some of them came from (None: all from the header).

    If the header has a configuration, a config.json with other keys than ours is not ours and ignored; so is one with another
    configuration if the path names the tensors' file and not its directory.
    """
    held = {key: source.metadata[key] for key in KEYS if key in source.metadata}
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if not beside.is_file():
        if "snapgen_config" in held:
            return held, None
        raise BadInput(
            f"checkpoint {path}: has no configuration: expected 'snapgen_config' in the header's metadata or in {beside}; "
            "or name its file with --config"
        )
    data = json_object(beside)
    strange = bool(set(data) - set(KEYS))
    if "snapgen_config" in held:
        named_itself = not path.is_dir() and path.suffix != ".json"
        if strange or (named_itself and _differs("snapgen_config", held, data)):
            return held, None
    elif strange or "snapgen_config" not in data:
        got = ", ".join(data) or "nothing"
        raise BadInput(f"{beside}: got the keys {got[:200]}, expected snapgen_config and perhaps {' and '.join(KEYS[1:3])}")
    for key in KEYS:
        if _differs(key, held, data):
            raise BadInput(f"{beside}: its {key} is not that of the tensors' header; keep one of them")
    return data | held, beside if set(data) - set(held) else None


def _differs(key: str, held: Mapping[str, str], data: Mapping[str, Any]) -> bool:
    """Whether both have the key with different values; one may have as JSON text what the other has as an object."""
    return key in held and key in data and _parsed(held[key]) != _parsed(data[key])


def _parsed(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def text_of(value: object) -> str | None:
    """A string as it is; an object (a tokenizer written out in config.json) as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)
