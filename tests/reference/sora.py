"""SoRA's gate, literally: the proximal step of an L1 penalty after every step of the optimizer."""


def soft_threshold(g: float, xi: float) -> float:
    """sign(g) · max(|g| - ξ, 0). The published code zeroes (ξ, 2ξ) too, and keeps |g| = ξ."""
    if g > xi:
        return g - xi
    if g < -xi:
        return g + xi
    return 0.0


def threshold(t: int, total: int, stages: int, top: float) -> float:
    """ξ at step t: the run has so many equal stages, whose thresholds are evenly spaced from 0 to the top."""
    if stages == 1:
        return top
    stage = 0
    while stage + 1 < stages and t >= total * (stage + 1) / stages:
        stage += 1
    return top * stage / (stages - 1)
