"""Pictures of environments: which layers ran, how sure the network would have been after each, what it spent and scored."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.convert import end_infos
from envs.core import Ends, SkipCore
from envs.episodes import on_device
from rl_skip.core.errors import UserError

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["Camera", "Frame"]

Frame = NDArray[np.uint8]
WIDTH, HEIGHT = 640, 240
MARGIN, GAP = 20, 3
BOX_TOP, BOX_HEIGHT = 70, 60
BAR_TOP, BAR_HEIGHT = 140, 50
TEXT = 16
WHITE, INK, RAN, SKIPPED, AHEAD, SURE = "#ffffff", "#1a1a1a", "#0072b2", "#ffffff", "#e4e4e4", "#e69f00"
RIGHT, WRONG = "#009e73", "#d55e00"
LEGEND = ((RAN, RAN, "ran"), (SKIPPED, RAN, "skipped"), (AHEAD, AHEAD, "ahead"), (SURE, SURE, "largest probability there, 0 to 1"))
NARROWEST_NUMBERED = 22
"""Pixels of a layer's box from which on its number fits in."""


@dataclass
class _Shot:
    """What a picture shows of one environment."""

    route: list[bool]
    position: int
    compute: float
    price: float
    confidence: NDArray[np.float64]
    """(L,), the largest probability that the network gave, or would have given, after each layer; NaN where it was not asked."""
    end: dict[str, Any] | None = None
    """The info of the episode's end."""


class Camera:
    """Follows the environments of a core, and takes a picture of each where asked.

    Args:
        core: which is told to remember how sure the network was.

    Raises:
        UserError: if Pillow is missing.
    """

    def __init__(self, core: SkipCore) -> None:
        try:
            import PIL  # noqa: F401
        except ImportError:
            raise UserError('the render mode "rgb_array" needs Pillow; pip install pillow, or set render_mode="ansi"') from None
        self.core, core.watched = core, True
        self.confidence = np.full((core.num_envs, core.stack.depth), np.nan)
        self.ended: dict[int, _Shot] = {}

    def look(self, ends: Ends | None = None, begun: NDArray[np.int64] | None = None) -> None:
        """Takes note of a step that was done: which episodes ended, and where the others are.

        Args:
            ends: the episodes that ended in it.
            begun: environments that have begun an episode by `reset`; those whose episode ended are known.
        """
        state, self.ended = self.core.state, {}
        assert state is not None
        if begun is not None:
            self.confidence[begun] = np.nan
        if ends is not None:
            assert ends.confidence is not None
            sure = ends.confidence.tolist()
            for r, (row, info) in enumerate(zip(ends.rows.tolist(), end_infos(ends, self.core), strict=True)):
                seen = self.confidence[row].copy()
                seen[np.flatnonzero(info["route"])[-1]] = sure[r]
                self.ended[row] = _Shot(info["route"].tolist(), self.core.stack.depth, info["compute"], info["price"], seen, info)
        fresh = (state.route.sum(dim=1) == 1).cpu().numpy()  # layer 0 alone has run
        self.confidence[fresh] = np.nan
        if self.core.stack.readouts is not None:
            self._ask(state)

    def frames(self) -> list[Frame]:
        """A picture (240, 640, 3) of each environment; where an episode ended in the last step, of that one."""
        state = self.core.state
        if state is None:
            raise ValueError("no episode has begun; call reset() before render()")
        position, compute, price = state.position.tolist(), state.compute.tolist(), state.price.tolist()
        under_way = [
            _Shot(route, position[n], compute[n], price[n], self.confidence[n]) for n, route in enumerate(state.route.tolist())
        ]
        return [_picture(self.ended.get(n, shot)) for n, shot in enumerate(under_way)]

    def _ask(self, state: Any) -> None:
        """Keeps how sure the readouts are of the rows that wait for a jump."""
        import torch

        waiting = on_device((~self.core.over).nonzero()[0], self.core.everyone.device)
        if waiting.shape[0] == 0:
            return
        with torch.no_grad():
            said = state.said(waiting)
        sure = said.float().softmax(dim=-1).amax(dim=-1).reshape(len(waiting), -1).mean(dim=1)
        self.confidence[waiting.cpu().numpy(), state.position[waiting].cpu().numpy()] = sure.cpu().numpy()


def _picture(shot: _Shot) -> Frame:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), WHITE)
    pen, font, small = ImageDraw.Draw(image), ImageFont.load_default(TEXT), ImageFont.load_default(TEXT - 4)
    depth = len(shot.route)
    pitch = (WIDTH - 2 * MARGIN) / depth
    gap = min(GAP, pitch / 4)
    pen.text((MARGIN, 14), f"compute {shot.compute:.3f}    price {shot.price:.3g}", INK, font)
    if shot.end is not None:
        colour = RIGHT if shot.end["is_success"] else WRONG
        told = f"score {shot.end['score']:.3f}    answer {_short(shot.end['prediction'])}, label {_short(shot.end['label'])}"
        pen.text((MARGIN, 38), told, colour, font)
    for i, ran in enumerate(shot.route):
        left, right = MARGIN + i * pitch, MARGIN + (i + 1) * pitch - gap
        fill = RAN if ran else SKIPPED if i < shot.position else AHEAD
        pen.rectangle((left, BOX_TOP, right, BOX_TOP + BOX_HEIGHT), fill=fill, outline=RAN if i < shot.position or ran else AHEAD)
        if pitch >= NARROWEST_NUMBERED:
            _centred(pen, (left + right) / 2, BOX_TOP + BOX_HEIGHT / 2, str(i), WHITE if ran else INK, small)
        if not np.isnan(shot.confidence[i]):
            height = BAR_HEIGHT * float(shot.confidence[i])
            pen.rectangle((left, BAR_TOP + BAR_HEIGHT - height, right, BAR_TOP + BAR_HEIGHT), fill=SURE)
    pen.line((MARGIN, BAR_TOP + BAR_HEIGHT, WIDTH - MARGIN, BAR_TOP + BAR_HEIGHT), fill=INK)
    _legend(pen, small)
    return np.array(image, dtype=np.uint8)


def _legend(pen: "ImageDraw", font: "FreeTypeFont | ImageFont") -> None:
    x, y = MARGIN, HEIGHT - 28
    for colour, outline, word in LEGEND:
        pen.rectangle((x, y + 2, x + 12, y + 14), fill=colour, outline=outline)
        pen.text((x + 18, y), word, INK, font)
        x += 18 + int(pen.textlength(word, font)) + 22


def _centred(pen: "ImageDraw", x: float, y: float, text: str, colour: str, font: "FreeTypeFont | ImageFont") -> None:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pen.text((x - (left + right) / 2, y - (top + bottom) / 2), text, colour, font)


def _short(value: Any) -> str:
    """A class, or the first of many tokens."""
    return f"{value[0]} …" if isinstance(value, list) and value else str(value)
