"""preview.png: pictures drawn by the exported files, beside those of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 192  # longer side of a picture in the grid, pixels
MARGIN = 8
CAPTION = 18


def write_preview(path: Path, prompts: Sequence[str], columns: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write a grid with one row per prompt and one column per runtime. Pictures are (H, W, 3), uint8."""
    font = ImageFont.load_default(12)
    width = MARGIN + len(columns) * (CELL + MARGIN)
    height = CAPTION + MARGIN + len(prompts) * (CELL + CAPTION + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for c, (title, pictures) in enumerate(columns.items()):
        x = MARGIN + c * (CELL + MARGIN)
        draw.text((x, 4), title, fill="black", font=font)
        for r, picture in enumerate(pictures):
            y = CAPTION + MARGIN + r * (CELL + CAPTION + MARGIN)
            sheet.paste(_fit(picture), (x, y))
    for r, prompt in enumerate(prompts):
        y = CAPTION + MARGIN + r * (CELL + CAPTION + MARGIN) + CELL + 2
        shown = prompt.encode("ascii", "backslashreplace").decode()  # the font has no other letters
        draw.text((MARGIN, y), _clip(draw, shown, font, width - 2 * MARGIN), fill="black", font=font)
    sheet.save(path, format="PNG", optimize=False)


def _fit(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    scale = CELL / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _clip(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
