"""Retrains the embedded checkpoint: `python -m examples.shapes.train`.

Every stage writes one file in the run's folder and is skipped if that file exists, so that an interrupted training continues at
the stage that was interrupted. `--minutes flow=30` changes a budget; `--again flow` discards a stage and all after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from examples.shapes import autoencoder, distill, flow, latents, reward, text
from examples.shapes.evaluate import curves, evaluate
from examples.shapes.ship import SHIPPED, ship, shipped_student
from examples.shapes.stages import Clock
from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.checkpoint.networks import load_decoder, load_text_encoder
from snapgen_deploy.models import PRESETS, DecoderConfig, ElasticDiT, TextEncoder, TextEncoderConfig, TinyDecoder, sigmas
from snapgen_deploy.models.dit_config import dit_of

MINUTES = {"autoencoder": 17.0, "text": 2.5, "latents": 0.0, "flow": 150.0, "distill": 60.0, "reward": 90.0, "score": 0.0}
SHARDS = 14


@dataclasses.dataclass
class Run:
    """The folder of a training run, and the results of its stages."""

    folder: Path
    minutes: dict[str, float]
    results: Path
    shipped: Path
    compiled: bool = True
    steps: int | None = None  # steps of every stage, for a quick try
    shard: int = latents.SHARD
    shards: int = SHARDS
    batch: int = 48
    warm: bool = False  # start from the shipped file

    def clock(self, stage: str) -> Clock:
        """The budget of a stage."""
        return Clock(self.minutes[stage], self.steps)

    @property
    def log(self) -> Path:
        """The losses of all stages."""
        return self.folder / "losses.jsonl"

    def decoder(self) -> TinyDecoder:
        """The trained decoder."""
        saved = torch.load(self.folder / "autoencoder.pt", weights_only=True)
        decoder = TinyDecoder(DecoderConfig(**saved["config"]))
        decoder.load_state_dict(saved["decoder"])
        return decoder.eval()

    def text_encoder(self) -> TextEncoder:
        """The trained text encoder."""
        config = PRESETS["shapes"]().text_encoder
        assert isinstance(config, TextEncoderConfig)
        encoder = TextEncoder(config)
        encoder.load_state_dict(torch.load(self.folder / "text.pt", weights_only=True))
        return encoder.eval().requires_grad_(False)

    def pairs(self) -> latents.Pairs:
        """The training set in latent space."""
        return latents.load(self.folder / "latents", self.text_encoder())

    def base(self) -> ElasticDiT:
        """The student before distillation."""
        return flow.restore(dit_of(PRESETS["shapes"]()), torch.load(self.folder / "flow.pt", weights_only=True))

    def student(self) -> ElasticDiT:
        """The student of the shipped file."""
        return shipped_student(self.shipped)


def unpack(run: Run) -> None:
    """Take decoder and text encoder from the shipped file instead of training them."""
    checkpoint = open_checkpoint(run.shipped)
    decoder = load_decoder(checkpoint)
    saved = {"decoder": decoder.state_dict(), "config": dataclasses.asdict(decoder.config)}
    torch.save(saved, run.folder / "autoencoder.pt")
    torch.save(load_text_encoder(checkpoint).state_dict(), run.folder / "text.pt")
    shutil.copy(Path(__file__).parent / "results" / "losses.jsonl", run.log)  # continue the history


def run_autoencoder(run: Run) -> None:
    """Stage 1."""
    config = PRESETS["shapes"]().decoder
    assert isinstance(config, DecoderConfig)
    decoder = autoencoder.train(config, run.clock("autoencoder"), run.log)
    saved = {"decoder": decoder.state_dict(), "config": dataclasses.asdict(decoder.config)}
    torch.save(saved, run.folder / "autoencoder.pt")


def run_text(run: Run) -> None:
    """Stage 2."""
    config = PRESETS["shapes"]().text_encoder
    assert isinstance(config, TextEncoderConfig)
    torch.save(text.train(config, run.clock("text"), run.log).state_dict(), run.folder / "text.pt")


def run_latents(run: Run) -> None:
    """Stage 3."""
    for number in range(run.shards):
        path = run.folder / "latents" / f"shard{number:02d}.pt"
        if not path.exists():
            latents.make_shard(number, path, run.decoder().config, run.text_encoder(), run.shard)


def run_flow(run: Run) -> None:
    """Stage 4."""
    net = run.student() if run.warm else flow.initial(dit_of(PRESETS["shapes"]()), seed=3)
    flow.train(net, run.pairs(), run.clock("flow"), run.log, run.folder / "flow.unfinished", run.batch, run.compiled)
    (run.folder / "flow.unfinished").rename(run.folder / "flow.pt")


def run_distill(run: Run) -> None:
    """Stage 5, and the shipped file."""
    base, levels = run.base(), sigmas(4, PRESETS["shapes"]().shift)
    net = run.student() if run.warm else run.base()
    keep = run.folder / "distill.unfinished"
    state = distill.train(net, base, run.pairs(), run.clock("distill"), run.log, keep, levels, run.batch, compiled=run.compiled)
    keep.rename(run.folder / "distill.pt")
    ship(flow.restore(net.config, state), run.decoder(), run.text_encoder(), run.shipped)


def run_reward(run: Run) -> None:
    """Stage 6, from the shipped file and into it."""
    net, decoder, encoder = run.student(), run.decoder(), run.text_encoder()
    keep, levels = run.folder / "reward.unfinished", sigmas(4, PRESETS["shapes"]().shift)
    state = reward.train(net, decoder.config, encoder, run.clock("reward"), run.log, keep, levels, compiled=run.compiled)
    keep.rename(run.folder / "reward.pt")
    ship(flow.restore(net.config, state), decoder, encoder, run.shipped)


def run_score(run: Run) -> None:
    """Stage 7."""
    run.results.mkdir(parents=True, exist_ok=True)
    shutil.copy(run.log, run.results / "losses.jsonl")
    curves(run.log, run.results / "curves.png")
    evaluate(run.shipped, run.base() if (run.folder / "flow.pt").exists() else None, run.results)


STAGES: dict[str, tuple[Callable[[Run], None], str]] = {
    "autoencoder": (run_autoencoder, "autoencoder.pt"),
    "text": (run_text, "text.pt"),
    "latents": (run_latents, f"latents/shard{SHARDS - 1:02d}.pt"),
    "flow": (run_flow, "flow.pt"),
    "distill": (run_distill, "distill.pt"),
    "reward": (run_reward, "reward.pt"),
    "score": (run_score, "never"),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/shapes/default"), help="folder of the intermediate files")
    parser.add_argument("--minutes", nargs="*", default=[], metavar="STAGE=MINUTES", help=f"budgets; default {MINUTES}")
    parser.add_argument("--again", choices=STAGES, help="discard this stage and those after it")
    parser.add_argument("--warm", action="store_true", help="start from the shipped file instead of untrained weights")
    parser.add_argument("--until", choices=STAGES, default="score", help="stop after this stage")
    parser.add_argument(
        "--only", choices=STAGES, help="run this stage only; `--warm --only reward` needs nothing but the shipped file"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shipped", type=Path, default=SHIPPED, help="checkpoint to write")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="scores, losses and plots")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    minutes = MINUTES | {stage: float(value) for stage, value in (item.split("=") for item in options.minutes)}
    if set(minutes) != set(MINUTES):
        parser.error(f"--minutes: got {sorted(set(minutes) - set(MINUTES))}, expected stages out of {', '.join(MINUTES)}")
    options.run.mkdir(parents=True, exist_ok=True)
    run = Run(options.run, minutes, options.results, options.shipped, warm=options.warm)
    if run.warm and not (run.folder / "autoencoder.pt").exists():
        unpack(run)
    names = list(STAGES)
    for name in names[names.index(options.again) :] if options.again else []:
        target = run.folder / STAGES[name][1]
        shutil.rmtree(target.parent) if "/" in STAGES[name][1] and target.parent.exists() else target.unlink(missing_ok=True)
    for name in [options.only] if options.only else names[: names.index(options.until) + 1]:
        function, product = STAGES[name]
        if (run.folder / product).exists():
            print(f"{name}: exists, skipped", flush=True)
        else:
            print(f"{name}: {minutes[name] or 'as many as needed'} minutes", flush=True)
            function(run)


if __name__ == "__main__":
    main()
