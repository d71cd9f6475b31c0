"""What went wrong below a client's own error."""

from __future__ import annotations

import errno
from collections.abc import Iterator


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def out_of_space(error: BaseException) -> bool:
    """Whether a full disk or quota is behind an error."""
    return any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes(error))


def first_line(error: BaseException) -> str:
    """The error's first line of text, or its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
