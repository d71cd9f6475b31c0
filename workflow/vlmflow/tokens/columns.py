"""What is known of each record of a data set besides its text: one row of ``<index>.npy``."""

from __future__ import annotations

import numpy as np

ROW = np.dtype([("tokens", "<i4"), ("supervised", "<i4"), ("tiles", "<i4"), ("tile_limit", "<i4"), ("repeat", "<f8")])
"""``tokens``: of the whole record, pictures included; ``supervised``: those that are trained; ``tiles``: of all its
pictures (one each where there are no tiles); ``tile_limit``: what they share in place of the model's limit, 0 where it
was not lowered; ``repeat``: that of the record, without its data set's."""
