"""A picture from a prompt alone, at full scale: snapgenpp small with CLIP-L from a folder of transformers, seeded weights.

    python -m benchmarks.prompt_only [--device server] [--target onnx:cpu] [--resolution 1024]

Writes the checkpoint (bf16, 3.1 GB) and CLIP-L's folder to a temporary place, and runs the command line like a user: `init`,
`export --text-encoder clip=FOLDER`, `generate --prompt`. Each row is the time of a command and the peak memory of its largest
process. Writes benchmarks/results/prompt_only.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.text_encoders import write_seeded
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.models.config import TextEncoderConfig, TextStream
from snapgen_deploy.models.dit_config import DiTConfig
from snapgen_deploy.models.presets import snapgenpp
from snapgen_deploy.models.serialise import config_to_dict

RESULTS = Path(__file__).parent / "results"
PROGRAM = str(Path(sys.executable).with_name("snapgen-deploy"))
PROMPT = "a red ring on a blue square"
CLIP = TextStream("clip", 768, 77)


def ran(*words: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command with `--json`: what it printed; its seconds, and the peak bytes of its largest process."""
    start = time.monotonic()
    process = subprocess.Popen([PROGRAM, *map(str, words), "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{words[0]} failed")
    found = json.loads(said)
    peak = max(used.ru_maxrss * 1024, found.get("peak_bytes", 0))
    return found, {"seconds": round(time.monotonic() - start, 1), "peak_bytes": peak}


def _gates(row: dict[str, Any]) -> str:
    return f"{row['passed']} of {row['gates']}" if "gates" in row else "-"


def main() -> None:
    """Run the three commands and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="server")
    parser.add_argument("--target", default="onnx:cpu")
    parser.add_argument("--resolution", type=int, default=1024)
    asked = parser.parse_args()
    config = snapgenpp()
    student = DiTConfig(text_streams=(CLIP,))
    config = replace(config, student=student, text_encoder=TextEncoderConfig(width=768, heads=12, stream="clip"))
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clip = write_seeded("clip-l", folder / "clip-l")
        (folder / "config.json").write_text(json.dumps(config_to_dict(config)))
        model = folder / "model"
        _, used = ran("init", "--config", folder / "config.json", "--dtype", "bf16", "-o", model)
        rows.append({"command": "init", **used})
        made, used = ran(
            "export", "--device", asked.device, "--target", asked.target, "--width", "small", "--license", "MIT",
            "--checkpoint", model, "--resolution", asked.resolution, "--text-encoder", f"clip={clip}", "--no-cache",
            "-o", folder / "bundles",
        )  # fmt: skip
        gates = [gate["verdict"] for gate in made["gates"]]
        rows.append({"command": "export", **used, "gates": len(gates), "passed": gates.count("passed")})
        _, used = ran("generate", made["bundle"], "--prompt", PROMPT, "-o", folder / "picture.png")
        rows.append({"command": "generate", **used, "picture_bytes": (folder / "picture.png").stat().st_size})
    about = {"device": asked.device, "target": asked.target, "resolution": asked.resolution, "prompt": PROMPT}
    (RESULTS / "prompt_only.json").write_text(
        json.dumps({**about, "environment": environment(), "rows": rows}, indent=2) + "\n"
    )
    of = f"{asked.device}, {asked.target}, {asked.resolution} x {asked.resolution}"
    text = [
        "# A picture from a prompt alone, at full scale\n",
        f"`python -m benchmarks.prompt_only`; {of}, seeded weights.\n",
        "| command | seconds | peak | gates passed |",
        "|---|---|---|---|",
        *(f"| {r['command']} | {r['seconds']} | {r['peak_bytes'] / 1e9:.2f} GB | {_gates(r)} |" for r in rows),
    ]
    (RESULTS / "prompt_only.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
