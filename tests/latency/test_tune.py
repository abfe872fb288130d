"""Kernel forms are measured where the target runs, and the plan says what was found."""

from dataclasses import replace
from types import SimpleNamespace

from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.latency.estimate import tune
from snapgen_deploy.latency.estimate.tune import Choice, TunedForms, tune_plan
from snapgen_deploy.models.presets import shapes
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.sparse.forms import FORMS
from tests.latency.estimate.conftest import quiet


def test_every_form_is_timed_in_onnxruntime(monkeypatch):
    seconds, timed = [], tune.timed

    def watched(calls, threads):
        seconds.extend(timed(calls, threads))
        return seconds

    monkeypatch.setattr(tune, "timed", watched)
    config = replace(shapes(), student=replace(shapes().student, blocks=4))
    plan = make_plan(config, load_profile("server"), width="tiny")
    found = tune_plan(config, plan, 1, quiet)
    (target,) = found.targets
    names = [f"{form}, {attention}" for form in FORMS for attention in ("operator", "spelled")]
    assert dict(target.form_ms) == {name: 1000 * s for name, s in zip(names, seconds, strict=True)}
    best = min(target.form_ms, key=lambda pair: pair[1])[0]
    assert f"{target.form}, {dict(target.options)['attention']}" == best
    assert f"form {best}" in found.reasons[-1]


def test_an_attention_that_the_options_name_is_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(tune, "prepare", lambda name, *rest: asked.append((name, rest[-1])) or SimpleNamespace(call=len))
    monkeypatch.setattr(tune, "timed", lambda calls, threads: [1.0 + i for i in range(len(calls))])
    plan = make_plan(shapes(), load_profile("server"), width="tiny")
    (target,) = plan.targets
    plan = replace(plan, targets=(replace(target, options=(*target.options, ("attention", "spelled"))),))
    (found,) = tune_plan(shapes(), plan, 1, quiet).targets
    assert asked == [(f"{form}, spelled", {"attention": "spelled"}) for form in FORMS]
    assert dict(found.options)["attention"] == "spelled"


def test_what_does_not_run_here_keeps_the_stored_choice(monkeypatch):
    monkeypatch.setattr(
        tune,
        "tune_forms",
        lambda *_: TunedForms(dict(zip(map(Choice, ("per_head", "loop", "batched")), (1.0, 1.5, 2.0), strict=True))),
    )
    plan = make_plan(shapes(), load_profile("iphone16pm"))
    found = tune_plan(shapes(), plan, 1, quiet)
    before, after = ({t.key: t.form for t in p.targets} for p in (plan, found))
    assert after["coreml"] == before["coreml"]
    assert after["executorch:xnnpack"] == after["onnx:cpu"] == "per_head"
    reasons = " ".join(found.reasons)
    assert "coreml: not tuned" in reasons
    assert "50 % ahead" in reasons


def test_a_model_without_sparse_attention_has_nothing_to_tune():
    config = shapes()
    dense = replace(config, student=replace(config.student, attention=("full", "full", "full")))
    plan = make_plan(dense, load_profile("server"))
    assert tune_plan(dense, plan, 1, quiet) is plan
