"""`snapgen_deploy.open_bundle`: a bundle's ONNX files as an object that draws. docs/python.md shows it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.errors import BadInput, SnapgenError
from snapgen_deploy.runtime.conformance import ConformanceLine, Run, conformance_lines
from snapgen_deploy.runtime.exported import check_exported
from snapgen_deploy.runtime.noise import PHILOX, philox_noise
from snapgen_deploy.runtime.prompt import RuleReader
from snapgen_deploy.runtime.record import PictureRecord, PictureRefused, now, picture_line
from snapgen_deploy.system.documents import parse_json
from snapgen_deploy.system.quiet import reason_of

_SUFFIX, _PROVIDER = ".onnx", "CPUExecutionProvider"  # of components that onnxruntime runs on any processor
_SEEDS = 1 << 63
_SAMPLERS = ("euler", "linear")
Told = Callable[[int, int], object]  # calls of components that are done, and their number


class GivenUp(SnapgenError):
    """A picture was given up because the caller asked for it."""


@dataclass(frozen=True)
class DrawnPicture:
    """A picture and what it was drawn from."""

    pixels: np.ndarray  # (H, W, 3), uint8
    prompt: str
    seed: int
    seconds: float

    def save(self, path: str | Path) -> None:
        """Write it in the format of the path's suffix, such as .png."""
        from PIL import Image

        Image.fromarray(self.pixels).save(path)


class Drawable:
    """An opened bundle. Its methods may be called from several threads at once."""

    record: PictureRecord | None = None  # where it writes a line for each picture

    def __init__(self, path: Path, manifest: Mapping[str, Any], target: str, sessions: Mapping[str, Any]) -> None:
        self.path, self.manifest, self.target = path, manifest, target
        self._sessions = sessions
        self._parts = parts = manifest["targets"][target]["components"]
        self._student, self._decoder = _role(parts, "velocity"), _role(parts, "picture")
        self._ports = parts[self._student]["inputs"]
        self.cases = _read(path / "conformance.json")
        self.readers: Sequence[RuleReader] = [RuleReader(rule, path / rule["file"]) for rule in self.cases["tokenizers"]]
        self._negative: tuple[str, dict[str, np.ndarray]] | None = None  # the last negative prompt, encoded
        self._lock = threading.Lock()
        read = {reader.rule["stream"] for reader in self.readers}
        self._absent = set(manifest["config"].get("absent_streams", ()))
        streams = [port["name"].removesuffix("_mask") for port in self._ports if port["name"].endswith("_mask")]
        left = [stream for stream in streams if stream not in read | self._absent]
        if left:
            raise BadInput(f"{path}: no tokenizer of it reads a prompt for the text stream {left[0]}")

    @property
    def _runtime(self) -> dict[str, Any]:
        import onnxruntime

        return {"provider": "cpu", "onnxruntime": onnxruntime.__version__}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        height, width = self.manifest["resolution"]
        return height, width

    @property
    def steps(self) -> int:
        """Calls of the student for a picture."""
        return len(self.manifest["schedule"]["sigmas"]) - 1

    def draw(
        self,
        prompt: str,
        seed: int = 0,
        *,
        negative_prompt: str | None = None,
        guidance: float | None = None,
        progress: Told | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> DrawnPicture:
        """Draw a picture; the same prompt and seed give what `generate` draws.

        Args:
            prompt: What to draw.
            seed: Of the noise, in 0 ... 2^63 - 1.
            negative_prompt: With guidance: what to draw away from. Default: the bundle's own.
            guidance: With guidance: its scale. Default: the bundle's own.
            progress: Called with the number of finished calls of components and their number, from this thread.
            stop: Asked before every call; once it says yes, the picture is given up.

        Raises:
            BadInput: if the prompt, the seed or guidance cannot be used, or the picture is not finite.
            GivenUp: if `stop` said so.
        """
        begun, began, spans = time.perf_counter(), now(), list[tuple[str, float]]()

        def watched(role: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
            if stop is not None and stop():
                raise GivenUp("the picture was given up")
            start = time.perf_counter()
            made = self.run(role, **inputs)
            spans.append((role, 1000 * (time.perf_counter() - start)))
            if progress is not None:
                progress(len(spans), len(self.readers) + self.steps + 1)
            return made

        about = {"time": began, "seed": str(seed), "steps": self.steps}
        try:
            pixels = self._pixels(prompt, seed, negative_prompt, guidance, watched)
        except SnapgenError as error:
            why = "cancelled" if isinstance(error, GivenUp) else getattr(error, "why", "failed")
            self._tell(about, ok=False, why=why)
            raise
        seconds = time.perf_counter() - begun
        self._tell(about, ok=True, ms=self._milliseconds(spans, seconds))
        return DrawnPicture(pixels, prompt, seed, seconds)

    def conformance(self) -> list[ConformanceLine]:
        """Hold this runner to the bundle's conformance.json: a line for each case, in the file's order (docs/formats.md).

        Raises:
            BadInput: if the test vectors are not the exported ones.
        """
        return list(conformance_lines(self))

    def _tell(self, about: Mapping[str, Any], **rest: Any) -> None:
        if self.record is not None:
            self.record.add(picture_line(self.manifest, self.target, self._runtime, **about, **rest))

    def _milliseconds(self, spans: Sequence[tuple[str, float]], seconds: float) -> dict[str, Any]:
        of = {role: [round(ms) for one, ms in spans if one == role] for role in (self._student, self._decoder)}
        encode = sum(ms for role, ms in spans if role not in of)
        return {
            "encode": round(encode),
            "steps": of[self._student],
            "decode": sum(of[self._decoder]),
            "all": round(1000 * seconds),
        }

    def _pixels(
        self,
        prompt: str,
        seed: int,
        negative_prompt: str | None,
        guidance: float | None,
        run: Run,
    ) -> np.ndarray:
        """The picture (H, W, 3), uint8; `run` runs a component."""
        guided = self.manifest.get("guidance")
        if not prompt.strip():
            raise PictureRefused("empty", "prompt: got an empty text, expected what to draw")
        if not 0 <= seed < _SEEDS:
            raise BadInput(f"seed: got {seed}, expected a whole number below 2^63")
        if guided is None and (negative_prompt is not None or guidance is not None):
            raise BadInput("negative_prompt and guidance: this bundle's model has no guidance")
        picture = self.picture(self.condition(prompt, negative_prompt, run), seed, guidance, run)[0]
        if not np.isfinite(picture).all():
            said = "the decoder returned values that are not finite: this model does not draw on this runtime"
            raise PictureRefused("finite", said)
        pixels: np.ndarray = np.rint((np.clip(picture, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8).transpose(1, 2, 0)
        return pixels

    def condition(self, prompt: str, negative_prompt: str | None, run: Run) -> dict[str, np.ndarray]:
        """The student's text inputs: a row of the prompt, and with guidance one of the negative prompt."""
        text, guided = self._text(prompt, run), self.manifest.get("guidance")
        if guided is None:
            return text
        away = self._away(guided["negative_prompt"] if negative_prompt is None else negative_prompt)
        return {name: np.concatenate([value, away[name]]) for name, value in text.items()}

    def picture(self, text: Mapping[str, np.ndarray], seed: int, guidance: float | None, run: Run) -> np.ndarray:
        """What the decoder returns, (1, 3, H, W), from the student's text inputs and the noise of a seed."""
        schedule, guided = self.manifest["schedule"], self.manifest.get("guidance")
        rows, steps = 1 if guided is None else 2, self.coefficients
        features = np.array(schedule["time_features"]["values"], np.float32)
        drawn = iter(self.noise(seed, 1 + sum(bool(noise) for *_, noise in steps)))
        latent = next(drawn) * np.float32(schedule.get("start", 1.0))
        for (keep, scale, noise), row in zip(steps, features, strict=False):
            inputs = {"latent": np.repeat(latent, rows, axis=0), "time_features": np.repeat(row[None], rows, axis=0), **text}
            velocity = run(self._student, **inputs)["velocity"]
            if guided is not None:
                toward = np.float32(guided["scale"] if guidance is None else guidance)
                velocity = velocity[1:] + toward * (velocity[:1] - velocity[1:])
            latent = latent * np.float32(keep) + np.float32(scale) * velocity
            if noise:
                latent = latent + np.float32(noise) * next(drawn)
        return run(self._decoder, latent=latent)["picture"]

    @property
    def coefficients(self) -> list[tuple[float, float, float]]:
        """What each step keeps of the latent, and takes of the student's output and of new noise."""
        schedule = self.manifest["schedule"]
        if schedule["sampler"] != "euler":
            return [(keep, scale, noise) for keep, scale, noise in schedule["coefficients"]]
        return [(1.0, following - level, 0.0) for level, following in itertools.pairwise(schedule["sigmas"])]

    def noise(self, seed: int, draws: int) -> np.ndarray:
        """(draws, 1, C, h, w), as docs/noise.md has it."""
        shape = (1, *self.manifest["latent"]["shape"])
        if self.manifest["noise"]["generator"] == PHILOX:
            return philox_noise(seed, (draws, *shape))
        import torch  # where it is installed, a bundle of torch's noise draws, too

        generator = torch.Generator().manual_seed(seed)
        return np.stack([torch.randn(shape, generator=generator).numpy() for _ in range(draws)])

    def _away(self, prompt: str) -> dict[str, np.ndarray]:
        """The text inputs of a negative prompt, which are kept: they are mostly the same."""
        with self._lock:
            kept = self._negative
        if kept is None or kept[0] != prompt:
            kept = prompt, self._text(prompt, self.run)
            with self._lock:
                self._negative = kept
        return kept[1]

    def run(self, role: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of a component, by name."""
        names = [port["name"] for port in self._parts[role]["outputs"]]
        return dict(zip(names, self._sessions[role].run(names, inputs), strict=True))

    def _text(self, prompt: str, run: Run) -> dict[str, np.ndarray]:
        """The student's text inputs of a prompt, one row each."""
        found: dict[str, np.ndarray] = {}
        for reader in self.readers:
            tokens, mask = reader.read(prompt)
            found |= run(reader.rule["encoder"], tokens=tokens, mask=mask)  # embeddings, and perhaps a pooled vector
            found[f"{reader.rule['stream']}_mask"] = mask[:, reader.rule["dropped"] :]
        for port in self._ports:
            if port["name"].removesuffix("_mask").removesuffix("_pooled") in self._absent:
                found[port["name"]] = np.zeros((1, *port["shape"][1:]), np.float32)
        return found


def open_for_drawing(
    path: str | Path,
    *,
    target: str | None = None,
    threads: int = 0,
    check: bool = True,
    record: str | Path | None = None,
) -> Drawable:
    """Open a bundle to draw with its ONNX files.

    Args:
        path: The bundle's folder.
        target: One of the bundle's targets that onnxruntime runs on the processor. Default: the first of them.
        threads: CPU threads within an operator; 0 takes onnxruntime's own choice.
        check: Hold every file that is used against its SHA-256 in the manifest.
        record: A file that gets a line for each picture, without its prompt, and keeps the last 500 (docs/formats.md).

    Raises:
        BadInput: if it is no bundle with such files and conformance.json, a file is not the exported one, its noise needs a
            package that is not installed, or onnxruntime cannot load a file.
    """
    root = Path(path)
    manifest = _read(root / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("schema_version") != 1:
        raise BadInput(f"{root} is not a bundle that this release reads")
    key = next((k for k in manifest["target_order"] if target in (None, k) and _runs(manifest["targets"][k])), None)
    if key is None:
        asked = f"target {target}" if target else "target"
        raise BadInput(f"{root} holds no {asked} that onnxruntime runs on the processor; export with --device web or server")
    parts = manifest["targets"][key]["components"]
    if not _role(parts, "picture") or manifest.get("batch", 1) != 1:
        raise BadInput(f"{root} has no decoder, or draws several pictures in a call; use `generate`")
    if manifest.get("noise", {}).get("generator") != PHILOX:
        _need_torch(root)
    if (sampler := manifest["schedule"]["sampler"]) not in _SAMPLERS:
        raise BadInput(
            f"{root} is sampled by {sampler!r}, which this release does not know; it draws {' and '.join(_SAMPLERS)}"
        )
    if check:
        _check(root, manifest, parts)
    sessions = {role: _session(root / part["path"], threads) for role, part in parts.items()}
    opened = Drawable(root, manifest, key, sessions)
    opened.record = None if record is None else PictureRecord(Path(record))
    return opened


def _runs(target: Mapping[str, Any]) -> bool:
    """Whether onnxruntime runs a target's components on the processor, as their placement says."""
    parts = target["components"].values()
    return all(part["path"].endswith(_SUFFIX) and set(part["placement"]) == {_PROVIDER} for part in parts)


def _role(parts: Mapping[str, Any], output: str) -> str:
    """The component that has an output of this name; "" if none has."""
    return next((role for role, part in parts.items() if output in [port["name"] for port in part["outputs"]]), "")


def _need_torch(root: Path) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise BadInput(f"{root} begins pictures with noise of torch, which is not installed: export with --noise {PHILOX}")


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); export the bundle again") from None
    except ValueError as error:
        raise BadInput(f"{path} is not readable JSON ({error}); export the bundle again") from None


def _check(root: Path, manifest: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    used = {name: entry for part in parts.values() for name, entry in part["files"].items()}
    used |= {name: e for name, e in manifest["files"].items() if name.startswith("tokenizer") or name == "conformance.json"}
    for name, entry in used.items():
        check_exported(root / name, entry)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.force_spinning_stop", "1")  # sessions take turns
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[_PROVIDER])
    except Exception as error:
        raise BadInput(f"{path}: onnxruntime cannot load it: {reason_of(error)}") from None
