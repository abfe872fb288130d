import copy

from snapgen_deploy.latency.compare.guards import guard_verdict, guards_of

MANIFEST = {
    "targets": {
        "onnx:cpu": {
            "precision": "fp32",
            "attention_form": "loop",
            "versions": {"onnx": "1.23"},
            "components": {
                "student": {
                    "bytes": 1000,
                    "ops": {"MatMul": 8, "Add": 4},
                    "macs": 10**6,
                    "placement": {"CPUExecutionProvider": 12},
                    "portable_ops": {},
                    "lint": {},
                    "weight_dtypes": {"float": 20},
                }
            },
        }
    }
}


def changed(**what):
    manifest = copy.deepcopy(MANIFEST)
    manifest["targets"]["onnx:cpu"]["components"]["student"].update(what)
    return manifest


def test_the_same_export_changes_nothing():
    found = guards_of(MANIFEST, copy.deepcopy(MANIFEST), ("placement",))
    assert {g.verdict for g in found} == {"same"}
    assert {g.name for g in found} >= {"bytes", "ops", "macs", "placement", "versions"}
    assert guard_verdict(found) == "same"


def test_a_change_is_reported_and_fails_only_where_the_profile_says_so():
    after = changed(ops={"MatMul": 9, "Add": 4}, bytes=1100)
    found = {g.name: g for g in guards_of(MANIFEST, after) if g.verdict != "same"}
    assert {name: g.verdict for name, g in found.items()} == {"ops": "changed", "bytes": "changed"}
    assert found["ops"].detail == "MatMul 8 -> 9"
    assert found["bytes"].detail == "1000 -> 1100 (+10.00 %)"
    assert guard_verdict(guards_of(MANIFEST, after, ("ops",))) == "failed"


def test_an_operator_out_of_its_delegate_fails():
    after = changed(portable_ops={"expand_copy": 2})
    (guard,) = (g for g in guards_of(MANIFEST, after, ("portable_ops",)) if g.verdict == "failed")
    assert guard.component == "onnx:cpu student"
    assert guard.detail == "expand_copy absent -> 2"


def test_a_component_or_target_that_is_gone_or_new_is_a_change():
    without = copy.deepcopy(MANIFEST)
    del without["targets"]["onnx:cpu"]["components"]["student"]
    assert guard_verdict(guards_of(MANIFEST, without, ("ops",))) == "failed"
    assert guard_verdict(guards_of({"targets": {}}, MANIFEST)) == "changed"


def test_every_picture_size_is_a_graph_of_its_own():
    before, after = (changed(sizes={"64x64": {"lint": {}, "ops": {"MatMul": n}}}) for n in (8, 9))
    (guard,) = (g for g in guards_of(before, after) if g.verdict != "same")
    assert (guard.component, guard.name, guard.detail) == ("onnx:cpu student 64x64", "ops", "MatMul 8 -> 9")
    assert {g.component for g in guards_of(before, MANIFEST) if g.verdict != "same"} == {"onnx:cpu student 64x64"}
