"""FusedScoreMask: what is added to attention scores, from which places hold tokens. Vaswani et al. 2017, section 3.2.3.

    attention_mask [B, S] bool, int or float, not zero where there is a token; low, a finite number -> [B, 1, 1, S] float32

0 where a place may be attended to, low elsewhere. The paper writes -inf; a finite low keeps a row with no place finite: its
softmax is then uniform.
"""

from __future__ import annotations

import numpy as np


def reference(attention_mask: np.ndarray, low: float) -> np.ndarray:
    """The score mask."""
    made = np.zeros(attention_mask.shape, np.float32)
    made[attention_mask == 0] = low
    return made[:, None, None, :]
