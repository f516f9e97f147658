"""Where in one's own code something stands: for sentences that name the line to mend."""

import inspect
import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

INSTALLED = tuple(str(Path(place).resolve()) for place in (sys.prefix, sys.base_prefix, Path(__file__).parent))


def line_of(thing: Any) -> str:
    """`line 12 of my_module.py`, where a function or a class begins; its name where it has no source."""
    try:
        return f"line {inspect.getsourcelines(thing)[1]} of {Path(inspect.getsourcefile(thing) or '').name}"
    except (OSError, TypeError):
        return getattr(thing, "__qualname__", str(thing))


def raised_at(error: BaseException) -> str:
    """The last line of one's own that an error, or what caused it, came through; empty if there is none.

    As in `Align.training_loss, line 17 of my_module.py: z = self.projector(x)`.
    """
    frames: list[tuple[FrameType, int]] = []
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while not frames and cause is not None and cause not in seen:   # one raised again may be its own cause
        seen.append(cause)
        step = cause.__traceback__
        while step is not None:
            if is_own(step.tb_frame):
                frames.append((step.tb_frame, step.tb_lineno))
            step = step.tb_next
        cause = cause.__cause__ or cause.__context__
    if not frames:
        return ""
    frame, number = frames[-1]
    code = linecache.getline(frame.f_code.co_filename, number).strip()
    name = ".".join(part for part in frame.f_code.co_qualname.split(".") if not part.startswith("<"))
    return f"{name}, line {number} of {Path(frame.f_code.co_filename).name}: {code}"


def is_own(frame: FrameType) -> bool:
    """Whether a frame is of code that is neither ssl_zoo's nor installed."""
    name = frame.f_code.co_filename
    return not name.startswith("<") and not str(Path(name).resolve()).startswith(INSTALLED)
