"""The record of the target `coreai`."""

from __future__ import annotations

from snapgen_deploy.export.coreml.spec import STORED
from snapgen_deploy.export.spec import Cost, Memory, Runtime, TargetSpec
from snapgen_deploy.extras import Extra

COREAI = TargetSpec(
    name="coreai",
    implementation="snapgen_deploy.export.coreai.target:CoreAI",
    precisions=STORED,
    layout="channels",
    suffix=".aimodel",
    memory=Memory(
        Cost(620_000_000, 1.7),
        Cost(900_000_000, 3.0, 4.0),
        # the converter, the file's constants and their copies are each of the size of torch's weights
        at_precision={"fp32": Cost(620_000_000, 3.2)},
    ),
    tools=("coreai-torch", "coreai-core", "coreai-opt"),
    runtime=Runtime(
        package="coreai-core",
        numbers_only="Apple's runtime runs assets here for their numbers, not for their speed, and no link takes them",
    ),
    extra=Extra("coreai", ("coreai", "coreai_torch", "coreai_opt")),
    closed="Apple's runtime takes an asset as a whole and shows no value inside",
    apps={"ios": "CoreAIEngine"},
)
