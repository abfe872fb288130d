"""Cuts a bundle's preview.png into single pictures, so that they fit a phone's screen and a screen reader can name them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from snapgen_deploy.bundle.preview import CAPTION, CELL, MARGIN
from snapgen_deploy.errors import BadInput
from snapgen_deploy.report.views import Picture, PromptRow
from snapgen_deploy.system.files import stays_inside


def preview_rows(
    path: Path, prompts: Sequence[str], titles: Sequence[str], resolution: tuple[int, int]
) -> tuple[tuple[PromptRow, ...], Picture | None]:
    """Cut a preview into pictures.

    Returns:
        One row per prompt and None; or no rows and the whole sheet, if it does not have the expected grid. Neither if there is
        no file.

    Raises:
        BadInput: if the file is not a readable picture.
    """
    if not path.is_file():
        return (), None
    if not stays_inside(path, path.parent):
        raise BadInput(f"{path} is a link that leaves the bundle; export the bundle again")
    try:
        with Image.open(path) as file:
            sheet = file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        raise BadInput(f"{path} is not a readable picture; export the bundle again") from None
    size = (MARGIN + len(titles) * (CELL + MARGIN), CAPTION + MARGIN + len(prompts) * (CELL + CAPTION + MARGIN))
    if sheet.size != size or not prompts:
        return (), _picture("preview", sheet)
    scale = CELL / max(resolution)
    width, height = round(resolution[1] * scale), round(resolution[0] * scale)
    rows = []
    for r, prompt in enumerate(prompts):
        top = CAPTION + MARGIN + r * (CELL + CAPTION + MARGIN)
        lefts = [MARGIN + c * (CELL + MARGIN) for c in range(len(titles))]
        cells = [sheet.crop((left, top, left + width, top + height)) for left in lefts]
        rows.append(PromptRow(prompt, tuple(_picture(t, c) for t, c in zip(titles, cells, strict=True))))
    return tuple(rows), None


def _picture(title: str, image: Image.Image) -> Picture:
    memory = io.BytesIO()
    image.save(memory, format="PNG")
    data = base64.b64encode(memory.getvalue()).decode("ascii")
    return Picture(title, f"data:image/png;base64,{data}", image.width, image.height)
