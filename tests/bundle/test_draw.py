from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapgen_deploy.bundle.draw import WantedPicture, choose_target, draw, other_text, save_png
from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models import PRESETS
from snapgen_deploy.models.serialise import config_to_dict

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_a_picture_is_written_for_everybody_to_read(tmp_path):
    save_png(PICTURE, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), PICTURE)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o644
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    for place in (Path("/proc/out.png"), tmp_path / "nowhere" / "out.png"):
        with pytest.raises(BadInput, match="choose another place with --output"):
            save_png(PICTURE, place)


def test_text_that_the_bundle_does_not_encode_is_asked_for_and_looked_at():
    scale, embedded = PRESETS["snapgenpp"](), PRESETS["shapes"]()
    stream = next(s for s in scale.student.text_streams if s.name != scale.text_encoder.stream)
    good = {stream.name: np.zeros((1, stream.length, stream.dim)), f"{stream.name}_mask": np.ones((1, stream.length))}
    assert {(n, a.dtype.name) for n, a in other_text(scale, good).items()} == {(n, "float32") for n in good}
    assert other_text(embedded, {}) == {}
    for config, given in (
        (scale, {}),
        (embedded, good),
        (scale, good | {stream.name: np.zeros((1, 3, stream.dim))}),
    ):
        with pytest.raises(BadInput, match="--embeddings: got .*; expected"):
            other_text(config, given)
    with pytest.raises(BadInput, match="finite"):
        other_text(scale, {n: a * np.nan for n, a in good.items()})


def bundle_of(config, tmp_path):
    return Bundle(tmp_path, {"config": config_to_dict(config), "target_order": ["onnx:cpu"]})


def test_a_prompt_is_given_where_there_is_a_text_encoder_and_only_there(tmp_path):
    config = PRESETS["shapes"]()
    with pytest.raises(BadInput, match="--prompt is missing"):
        draw(bundle_of(config, tmp_path), "onnx:cpu", [WantedPicture(None, 0)], 1)
    without = bundle_of(replace(config, text_encoder=None, prompts=()), tmp_path)
    with pytest.raises(BadInput, match="has no text encoder to read --prompt with; give its text by --embeddings alone"):
        draw(without, "onnx:cpu", [WantedPicture("a red ring", 0)], 1)


@pytest.mark.parametrize(
    ("keys", "wanted", "chosen"),
    [
        (["coreml", "executorch:xnnpack", "onnx:cpu"], None, "onnx:cpu"),
        (["coreml", "executorch:xnnpack"], None, "executorch:xnnpack"),
        (["coreml"], None, "coreml"),
        (["coreml", "onnx:cpu"], "coreml", "coreml"),
    ],
)
def test_the_quickest_target_draws_unless_one_is_asked_for(tmp_path, keys, wanted, chosen):
    assert choose_target(Bundle(tmp_path, {"target_order": keys}), wanted) == chosen
