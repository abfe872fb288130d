"""The grammar, its parser, the split and the detector."""

from dataclasses import replace

import numpy as np
import pytest

from examples.shapes.detector import detect, judge
from examples.shapes.prompts import ObjectSpec, PromptSpec, is_held_out, parse
from examples.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, render
from examples.shapes.score import score_pictures
from examples.shapes.stages import scenes, tokenizer

DRAWN = scenes(3, 150, held_out=True)


def test_every_prompt_parses_back():
    for held_out in (False, True):
        for spec, _ in scenes(4, 300, held_out):
            assert parse(spec.text()) == spec


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red ring",
        "a red ring on a pink background",
        "a ring on a gray background",
        "a red ring near a blue square on a gray background",
    ],
)
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="expected"):
        parse(prompt)


def test_commas_may_touch_words():
    spec = parse(
        "A pink cross at the left, a green diamond at the center and an orange square at the right on a white background"
    )
    assert [o.place for o in spec.objects] == ["left", "center", "right"]


def test_the_split_is_disjoint_and_about_one_in_sixteen():
    training = {s.text() for s, _ in scenes(0, 400)}
    assert not any(map(is_held_out, training))
    assert all(is_held_out(s.text()) for s, _ in DRAWN)


def test_every_prompt_fits_the_text_encoder():
    words = tokenizer()
    longest = max(sum(words.encode(s.text(), 40)[1]) for s, _ in scenes(9, 500))
    assert 25 < longest <= 40
    assert words.embedding_rows <= 64


def test_ground_truth_is_entirely_right():
    result = score_pictures([s.text() for s, _ in DRAWN], [render(scene) for _, scene in DRAWN])
    assert result["objects"] == result["entirely"] == result["background"] == 1.0
    assert result["objects_interval"] == [1.0, 1.0]


def entirely(scene: Scene, spec: PromptSpec) -> bool:
    return judge(render(scene), spec).entirely


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_shape_and_colour_is_told_from_all_others(colour, background):
    for half in (11.0, 13.0, 18.0, 20.0):
        for shape in SHAPES:
            _, found = detect(render(Scene(background, (Thing(colour, shape, 60.3, 70.7, half),))))
            size = "small" if half < 15 else "large"
            assert [(f.colour, f.shape, f.size) for f in found] == [(colour, shape, size)]


def test_wrong_pictures_are_found_wrong():
    for spec, scene in DRAWN[:40]:
        thing, *rest = scene.things
        other_colour = next(c for c in COLOURS if c != thing.colour and all(c != t.colour for t in rest))
        other_shape = SHAPES[(SHAPES.index(thing.shape) + 1) % len(SHAPES)]
        other_background = next(b for b in BACKGROUNDS if b != scene.background)
        assert not entirely(replace(scene, things=(replace(thing, colour=other_colour), *rest)), spec)
        assert not entirely(replace(scene, things=(replace(thing, shape=other_shape), *rest)), spec)
        assert not entirely(replace(scene, background=other_background), spec)
        assert not entirely(replace(scene, things=tuple(rest)), spec)
        if spec.objects[0].size:
            half = 19.0 if thing.half < 15 else 12.0
            assert not entirely(replace(scene, things=(replace(thing, half=half),)), replace(spec, objects=spec.objects[:1]))


def test_swapped_objects_and_relations_are_found_wrong():
    left = ObjectSpec("red", "ring")
    right = ObjectSpec("blue", "square")
    spec = PromptSpec("gray", (left, right), "left of")
    ring, square = Thing("red", "ring", 30, 60, 19), Thing("blue", "square", 90, 66, 12)
    assert entirely(Scene("gray", (ring, square)), spec)
    assert not entirely(Scene("gray", (replace(ring, x=90, half=12), replace(square, x=30))), spec)
    assert not entirely(Scene("gray", (replace(ring, colour="blue"), replace(square, colour="red"))), spec)
    assert not entirely(Scene("gray", (replace(ring, x=60, y=30), replace(square, x=66, y=90))), spec)


def test_a_surplus_object_counts_against_the_picture():
    spec = PromptSpec("white", (ObjectSpec("red", "circle", "large", "center"),))
    scene = Scene("white", (Thing("red", "circle", 64, 64, 19), Thing("green", "cross", 20, 20, 12)))
    verdict = judge(render(scene), spec)
    assert verdict.objects == (True,)
    assert not verdict.entirely
    assert score_pictures([spec.text()], [render(scene)])["objects"] == 0.5


def test_place_is_checked():
    spec = PromptSpec("navy", (ObjectSpec("yellow", "triangle", None, "top left"),))
    assert entirely(Scene("navy", (Thing("yellow", "triangle", 28, 22, 12),)), spec)
    assert not entirely(Scene("navy", (Thing("yellow", "triangle", 64, 22, 12),)), spec)


def test_blurred_noisy_and_empty_pictures_do_not_pass():
    rng = np.random.default_rng(0)
    for spec, scene in DRAWN[:20]:
        picture = render(scene).astype(np.float32)
        noisy = np.clip(picture + rng.normal(0, 90, picture.shape), 0, 255).astype(np.uint8)
        half_way = ((picture + picture[::-1, ::-1]) / 2).astype(np.uint8)
        blank = np.zeros_like(noisy)
        assert not any(judge(p, spec).entirely for p in (noisy, half_way, blank))
