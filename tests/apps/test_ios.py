"""The Swift package for iOS: its files, its syntax, and what it shares with Python and Kotlin. It is not compiled here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal, getcontext
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tree_sitter_swift

from snapgen_deploy.apps.ios_app import ios_package
from snapgen_deploy.apps.registry import APP_MARK, app_of, write_app
from snapgen_deploy.bundle.reader import CONFORMANCE, MANIFEST, Bundle, open_bundle
from snapgen_deploy.errors import BadInput
from snapgen_deploy.runtime import noise
from tests.apps.parsing import faults
from tests.text_encoders.folders import clip_tokenizer

PACKAGE = Path(str(resources.files("snapgen_deploy.apps"))) / "ios"
CORE = PACKAGE / "Sources/SnapGenCore"
KOTLIN = Path(str(resources.files("snapgen_deploy.apps"))) / "android/core/src/main/kotlin/snapgen/core"
ENGINES = {
    "coreml": "CoreMLEngine",
    "coreai": "CoreAIEngine",
    "executorch:xnnpack": "ExecuTorchEngine",
    "executorch:coreml": "ExecuTorchEngine",
}


def of_target(bundle: Path, target: str, **changes: Any) -> Bundle:
    """The web's bundle, whose files are said to be those of another target."""
    opened = open_bundle(bundle)
    about = {**opened.manifest["targets"]["onnx:web"], "versions": {"executorch": "9.8.7"}, **changes}
    return replace(opened, manifest={**opened.manifest, "targets": {target: about}, "target_order": [target]})


@pytest.fixture(scope="module")
def package(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_app(app_of("ios"), of_target(bundle, "coreml"), tmp_path_factory.mktemp("ios") / "app")


@pytest.mark.parametrize("target", ENGINES)
def test_a_package_has_what_it_needs(bundle: Path, target: str, tmp_path: Path) -> None:
    opened = of_target(bundle, target)
    files = ios_package(opened, target)
    text = {name: content.decode() for name, content in files.items() if isinstance(content, bytes)}
    assert [name for name, content in text.items() if re.search(r"@[A-Z_0-9]+@", content)] == []
    engines = {name.split("/")[-1].removesuffix(".swift") for name in text if name.endswith("Engine.swift")}
    assert engines == {ENGINES[target]}
    assert f"{ENGINES[target]}(bundle, told)" in text["Sources/SnapGenBundle/Shipped.swift"]
    assert [name for name in text if name.startswith("Package")] == ["Package.swift"]
    assert ("swiftpm-9.8.7" in text["Package.swift"]) == target.startswith("executorch")
    assert (f'"backend_{target.split(":")[-1]}"' in text["Package.swift"]) == target.startswith("executorch")
    inside = {name.removeprefix("Sources/SnapGenBundle/Resources/bundle/") for name in files if "/Resources/" in name}
    parts = opened.manifest["targets"][target]["components"].values()
    others = {MANIFEST, CONFORMANCE, "tokenizer.json", opened.test_vectors.name}
    assert inside == {name for part in parts for name in part["files"]} | others
    assert json.loads(text[APP_MARK])["target"] == target
    for name, content in text.items():
        if name.endswith(".swift"):
            (tmp_path / Path(name).name).write_text(content, encoding="utf-8")
    assert [fault for path in tmp_path.glob("*.swift") for fault in faults(path, tree_sitter_swift.language())] == []


@pytest.mark.parametrize(
    ("deployment", "systems"),
    [
        ("iOS18", ("18.0", "15.0")), ("macOS14", ("17.0", "14.0")), ("iOS27", ("27.0", "27.0")), ("macOS27", ("27.0", "27.0")),
        ("iOS15", ("16.0", "13.0")), (None, ("17.0", "14.0")),
    ],
)  # fmt: skip
def test_the_oldest_system(bundle: Path, deployment: str | None, systems: tuple[str, str]) -> None:
    options = {} if deployment is None else {"deployment": deployment}
    made = ios_package(of_target(bundle, "coreml", options=options), "coreml")["Package.swift"]
    assert isinstance(made, bytes)
    assert f'platforms: [.iOS("{systems[0]}"), .macOS("{systems[1]}")]' in made.decode()


def test_the_parser_sees_faults(tmp_path: Path) -> None:
    (tmp_path / "a.swift").write_text("func a( { }")
    assert list(faults(tmp_path / "a.swift", tree_sitter_swift.language())) != []


def test_only_the_package_imports_apple_s_frameworks() -> None:
    imports = {line for path in CORE.glob("*.swift") for line in re.findall(r"^import (\w+)", path.read_text(), re.M)}
    assert imports == {"Foundation", "CryptoKit"}
    begin = "#if canImport(CryptoKit)\n"
    assert f"{begin}import CryptoKit\n#endif\n" in (CORE / "SHA256.swift").read_text()
    assert f"{begin}private struct Hasher256" in (CORE / "SHA256.swift").read_text()


def swift(name: str) -> str:
    return (CORE / name).read_text(encoding="utf-8")


def kotlin(name: str) -> str:
    return (KOTLIN / name).read_text(encoding="utf-8")


def test_constants_of_the_noise() -> None:
    expected = [*noise._MULTIPLIERS, *noise._WEYL]
    assert [int(word, 16) for word in re.findall(r"UInt32 = 0x(\w{8})", swift("Noise.swift"))] == expected
    assert [int(word, 16) for word in re.findall(r"= 0x(\w{8})L", kotlin("Noise.kt"))][:4] == expected
    assert "let rounds = 10" in swift("Noise.swift")
    assert noise._ROUNDS == 10
    assert f'noiseGenerator = "{noise.PHILOX}"' in swift("Noise.swift")
    assert "unit = 1.0 / Double(1 << 24)" in swift("Noise.swift")
    tests = (PACKAGE / "Tests/SnapGenCoreTests/CoreTests.swift").read_text()
    page = (Path(__file__).parents[2] / "docs/noise.md").read_text(encoding="utf-8")
    case = next(one for one in json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[-1]) if one["seed"] == "42")
    assert f"noise(seed: 42, count: {case['count']})" in tests
    assert re.findall(r"\[(0x\w+, 0x\w+, 0x\w+, 0x\w+)\]", tests)[0] == ", ".join(f"0x{word}" for word in case["first"])
    assert f"0x{case['last']}" in tests


def test_constants_of_sha256() -> None:
    """The fractional parts of the square and cube roots of primes."""
    getcontext().prec = 40
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, n))]

    def fraction(prime: int, power: int) -> int:
        return int((Decimal(prime) ** (Decimal(1) / power)) % 1 * 2**32)

    words = [int(word, 16) for word in re.findall(r"0x(\w{8})", swift("SHA256.swift"))]
    assert words[:64] == [fraction(prime, 3) for prime in primes[:64]]
    assert words[64:72] == [fraction(prime, 2) for prime in primes[:8]]
    for line in (  # FIPS 180-4, 4.1.2
        "turned(words[i - 15], 7) ^ turned(words[i - 15], 18) ^ (words[i - 15] >> 3)",
        "turned(words[i - 2], 17) ^ turned(words[i - 2], 19) ^ (words[i - 2] >> 10)",
        "turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)",
        "turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)",
    ):
        assert line in swift("SHA256.swift")


def test_reasons_and_thermal_states_are_kotlin_s() -> None:
    reasons = re.findall(r"^        case (\w+)$", swift("Refused.swift"), re.M)
    assert reasons == [word.lower() for word in re.findall(r"^    ([A-Z]+),$", kotlin("Refused.kt"), re.M)]
    assert {"unknown", "long"} <= set(reasons)  # of conformance.json
    (states,) = re.findall(r"case (nominal, .*)", swift("Recorder.swift"))
    (theirs,) = re.findall(r"enum class Thermal \{ (.*) \}", kotlin("Recorder.kt"))
    assert states == theirs.lower()


def record_fields(source: str) -> list[str]:
    """The fields of a line, in their order."""
    return re.findall(r'\("(\w+)", |"(\w+)" to ', source)


def test_lines_of_the_record_have_the_same_fields() -> None:
    ours = {a or b for a, b in record_fields(swift("Recorder.swift"))}
    theirs = {a or b for a, b in record_fields(kotlin("Recorder.kt"))} | {"memory", "thermal", "process"}
    assert ours - {"process"} == theirs - {"process"} | {"app"}


PORTS = {"latent", "time_features", "tokens", "mask", "velocity", "picture"}
RARE = {  # fields that the files of this bundle and of a CLIP tokenizer do not have
    "absent_streams", "coefficients", "timesteps", "start", "sampler",
    "guidance", "negative_prompt", "scale", "entry", "refused", "step", "data_offsets", "dtype", "shape",
    "pretokenizers", "normalizers", "processors", "prepend", "strip_left", "strip_right", "String", "Regex", "content",
    "behavior", "invert", "byte_fallback", "fuse_unk", "ignore_merges", "dropout", "cls", "sep", "use_regex", "pattern",
    "add_prefix_space", "continuing_subword_prefix", "end_of_word_suffix", "merges", "normalized", "single_word",
}  # fmt: skip
READ = re.compile(r'\["(\w+)"\]|find\("(\w+)"\)')  # one field of JSON


def keys(folder: Path, pattern: str) -> set[str]:
    """Names of JSON's fields that a core reads, one by one."""
    sources = [path.read_text(encoding="utf-8") for path in folder.glob(pattern)]
    return {a or b for source in sources for a, b in READ.findall(source)}


def fields_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from fields_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from fields_of(one)


def test_names_of_json_are_those_of_files(bundle: Path, tmp_path: Path) -> None:
    from snapgen_deploy.models.library_tokenizer import read_tokenizer

    ours = keys(CORE, "*.swift")
    assert ours - {"manifest", "conformance"} >= {"targets", "components", "time_features", "unknown_token"}
    clip_tokenizer(tmp_path)
    documents = [json.loads((bundle / name).read_text(encoding="utf-8")) for name in (MANIFEST, CONFORMANCE, "tokenizer.json")]
    documents.append(json.loads(read_tokenizer(tmp_path).backend_tokenizer.to_str()))
    known = {key for document in documents for key in fields_of(document)} | RARE
    recorded = {"memory", "process", "thermal"}  # written, not read
    assert ours - known - PORTS - recorded == set()
    assert (ours ^ keys(KOTLIN, "*.kt")) - PORTS - recorded <= {"cls", "sep"}


def test_ports_are_those_of_files(bundle: Path) -> None:
    parts = open_bundle(bundle).manifest["targets"]["onnx:web"]["components"]
    names = {port["name"] for part in parts.values() for port in part["inputs"] + part["outputs"]}
    for source in (swift("Pipeline.swift") + swift("Bundle.swift"), kotlin("Pipeline.kt") + kotlin("Bundle.kt")):
        for name in PORTS:
            assert f'"{name}"' in source
            assert name in names


def test_what_no_app_can_draw_with_is_refused(bundle: Path, package: Path, tmp_path: Path) -> None:
    kind = app_of("ios")
    with pytest.raises(BadInput, match="holds no .*coreml.*, which the app draws with: export with --target"):
        write_app(kind, open_bundle(bundle), tmp_path / "app")
    torches = of_target(bundle, "coreml")
    torches = replace(torches, manifest={**torches.manifest, "noise": {"generator": "torch"}})
    with pytest.raises(BadInput, match="with noise of torch, which an app cannot make: export with --noise philox4x32-10"):
        write_app(kind, torches, tmp_path / "app")
    with pytest.raises(BadInput, match="exists; give another place"):
        write_app(kind, of_target(bundle, "coreml"), package)
    assert write_app(kind, of_target(bundle, "coreml"), package, overwrite=True) == package
