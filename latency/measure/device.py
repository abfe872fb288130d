"""Measures a bundle on a device behind a link: prepares the files to push, and makes the record."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.bundle.vectors import port_values
from snapgen_deploy.device_profiles import load_profile, profile_ids
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Role
from snapgen_deploy.export.registry import specs
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.latency.links.base import LinkJob
from snapgen_deploy.latency.measure.session import bundle_identity
from snapgen_deploy.latency.results import Measurement, RunProfile
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.progress import Progress


def measure_device(
    bundle: Bundle,
    wanted: str | None,
    link_name: str,
    options: Sequence[str],
    *,
    profile: RunProfile,
    mode: str,
    threads: int,
    progress: Progress,
) -> Measurement:
    """Measure one target on a device.

    Args:
        bundle: The bundle.
        wanted: The target; None for the first that the device runs.
        link_name: The device, as in `--link`.
        options: `NAME=VALUE` texts, as in `--link-option`.
        profile: How long to measure.
        mode: `burst` or `sustained`.
        threads: CPU threads on the device.
        progress: Shows the stages.

    Raises:
        BadInput: if link, options or target cannot be used.
        MeasurementFailed: if the device does not deliver.
    """
    from snapgen_deploy.latency.links.registry import NEVER_RUN, open_link
    from snapgen_deploy.latency.links.session import measure_on

    key = target_for(bundle, link_name, wanted)
    link = open_link(link_name, parse_link_options(options))
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(bundle, key, threads, Path(folder))
        device_key = link.key(job)
        rounds, loads, peak = measure_on(link, job, profile, mode, progress=progress)
        environment = dict(link.environment())  # includes a Mac's placement, which is known only after `prepare`
    return Measurement(
        **bundle_identity(bundle),
        key=device_key,
        profile=profile.name,
        mode=mode,
        e2e_is=link.e2e_is,
        rounds=rounds,
        loads=loads,
        peak_bytes=peak,
        environment=environment,
        notes=(NEVER_RUN,) if link.never_run_on_hardware else (),
    )


def target_for(bundle: Bundle, link_name: str, wanted: str | None) -> str:
    """The wanted target, else the bundle's first that the link's device runs.

    Raises:
        BadInput: if the device does not run the wanted target, or none of the bundle's.
    """
    name = link_name.partition(":")[0]
    takes = [spec.key for spec in specs().values() if name in spec.links]
    fitting = [k for k in bundle.targets if k in takes and wanted in (None, k, k.partition(":")[0])]
    if takes and not fitting:
        asked = f", and {wanted} was asked for" if wanted else ""
        raise BadInput(f"{link_name} runs {' and '.join(takes)}; {bundle.name} holds {several(bundle.targets)}{asked}")
    return fitting[0] if fitting else bundle.targets[0]  # for an unknown link, which `open_link` refuses


def check_device(device: str, link: str) -> None:
    """Check that the link can reach the bundle's device: `--save` would keep the times for that device.

    Raises:
        BadInput: if the device has another operating system than the link is for.
    """
    if device not in profile_ids():
        return  # a profile of the user's own
    system, reached = load_profile(device).os, link.partition(":")[0]
    expected = {"adb": "Android", "iphone": "iOS", "mac": "macOS"}.get(reached, system)
    if expected.lower() not in (system.lower(), {"ipados": "ios"}.get(system.lower())):
        raise BadInput(f"--save keeps times as those of {device} ({system}), and --link {reached} reaches no such device")


def parse_link_options(options: Sequence[str]) -> dict[str, str]:
    """Parse `NAME=VALUE` texts.

    >>> parse_link_options(["runner=build/executor_runner"])
    {'runner': 'build/executor_runner'}

    Raises:
        BadInput: if a text has another form.
    """
    pairs = [o.partition("=") for o in options]
    if bad := [o for o, (name, sign, _) in zip(options, pairs, strict=True) if not name or not sign]:
        raise BadInput(f"--link-option: got '{bad[0]}', expected NAME=VALUE such as runner=path/to/executor_runner")
    return {name: value for name, _, value in pairs}


def make_job(bundle: Bundle, key: str, threads: int, folder: Path) -> LinkJob:
    """The files of a target, and its first test vector as raw little-endian bytes, one file per port in the ports' order."""
    artifacts = bundle.artifacts(key)
    components = bundle.manifest["targets"][key]["components"]
    values = port_values(bundle)
    inputs: dict[Role, tuple[Path, ...]] = {}
    for role in artifacts:
        paths = []
        for number, port in enumerate(components[role]["inputs"]):
            value = np.ascontiguousarray(values[role][port["name"]], dtype=port["dtype"])
            paths.append(folder / f"{role}-{number}-{port['name']}.bin")
            paths[-1].write_bytes(value.tobytes())
        inputs[role] = tuple(paths)
    steps = len(bundle.schedule.sigmas) - 1
    return LinkJob(
        target=key,
        precision=bundle.precision(key),
        threads=threads,
        components={role: a.path for role, a in artifacts.items()},
        files={role: a.files for role, a in artifacts.items()},
        inputs=inputs,
        calls={spec.name: spec.calls(steps, bundle.batch) for spec in components_of(bundle.config) if spec.name in artifacts},
    )
