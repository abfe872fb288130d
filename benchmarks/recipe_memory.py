"""Peak memory of the process that makes the recipe of mixed precision, and its prediction.

    python -m benchmarks.recipe_memory

Writes benchmarks/results/recipe_memory.txt. The networks are the embedded checkpoint at full width, and the untrained one of
about 100M parameters of `benchmarks.export_memory`, at two picture sizes. Pictures and iterations are few, since their numbers
do not change the peak. `snapgen_deploy/quantise/memory.py` has the prediction's constants.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.export_memory import Results, middle
from snapgen_deploy.checkpoint import CheckpointPlace, open_checkpoint
from snapgen_deploy.checkpoint.initial import write_initial
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.prompts import CALIBRATION, own_prompts
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.plan.mixed import mixed_settings
from snapgen_deploy.quantise.memory import predicted_peak
from snapgen_deploy.quantise.stage import RecipeTask, run_stage
from snapgen_deploy.system.host_memory import available_bytes
from snapgen_deploy.system.progress import silent


def main() -> None:
    """Measure and write."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    results = Results("recipe_memory.txt")
    profile = load_profile("iphone16pm")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_initial(middle(), root / "middle")
        prompts = own_prompts(open_checkpoint(None), CALIBRATION, ())
        settings = mixed_settings(bits=4.3, iterations=2, pictures=16, prompts=prompts, reads_prompts=True, source=CALIBRATION)
        for name, path, side in (("embedded", None, 128), ("middle", root / "middle", 256), ("middle", root / "middle", 512)):
            config = open_checkpoint(path).config
            size = (side, side)
            plan = make_plan(config, profile, width="full", targets=["coreml"], precision="mixed", resolution=size)
            plan = replace(plan, mixed=settings)
            free = available_bytes() or 0
            task = RecipeTask(CheckpointPlace(path), plan, "here", threads=1, root=root / f"{name}-{side}")
            _, peak = run_stage(task, silent)
            predicted, least = (predicted_peak(config, "full", plan.latent, free=n) / 1e6 for n in (free, 0))
            prediction = f"predicted {predicted:8.1f} MB, {least:8.1f} MB if little is free"
            results.add(f"{name:9} {side:4} pixels  peak {peak / 1e6:8.1f} MB  {prediction}")


if __name__ == "__main__":
    main()
