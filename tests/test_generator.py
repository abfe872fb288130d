from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapgen_deploy.errors import BadInput
from snapgen_deploy.generator import save_png

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
