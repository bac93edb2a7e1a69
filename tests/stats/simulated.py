"""Adam's moments after gradients drawn at random: the models that nulls are stated for."""

import torch

BETA1, BETA2, STEPS = 0.9, 0.95, 600
CHUNK = 25_000  # stays in the cache, and is too small for torch to bring in other threads


class Gradients:
    """Draws gradients of one coordinate a place, step by step, from a seed."""

    def __init__(self, kind="gaussian", drift=0.0, seed=0):
        self.kind, self.drift = kind, drift
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, out):
        out.normal_(generator=self.generator)
        if self.kind == "t3":
            three = torch.empty(3, out.numel()).normal_(generator=self.generator)
            out.div_(three.square_().mean(0).sqrt_())
        elif isinstance(self.kind, float):  # this share of them is not zero
            seen = torch.empty_like(out).uniform_(generator=self.generator) < self.kind
            out.mul_(seen)
        return out.add_(self.drift) if self.drift else out


def moments(size, gradients, scale=None, steps=STEPS, start=None):
    """First and second moment after `steps` steps, the gradient of step t times ``scale(t)``.

    `start` holds moments to go on from. Steps are counted from 1.
    """
    m, v = (torch.zeros(size), torch.zeros(size)) if start is None else (x.clone() for x in start)
    for low in range(0, size, CHUNK):
        mine, square = m[low : low + CHUNK], v[low : low + CHUNK]
        g = torch.empty_like(mine)
        for t in range(1, steps + 1):
            gradients.draw(g)
            if scale is not None and scale(t) != 1:
                g.mul_(scale(t))
            mine.mul_(BETA1).add_(g, alpha=1 - BETA1)
            square.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
    return m, v


def walk(size, gradients, steps, lr=9e-5, weight_decay=0.1, sizes=None, before=100):
    """AdamW on gradients of noise, after `before` steps: start, end, both moments, and the decay.

    `sizes` are those of each coordinate's gradients.
    """
    start = 0.02 * torch.randn(size, generator=torch.Generator().manual_seed(99))
    weight, m, v = start.clone(), torch.zeros(size), torch.zeros(size)
    for low in range(0, size, CHUNK):
        here = slice(low, low + CHUNK)
        w, mine, square = weight[here], m[here], v[here]
        g = torch.empty_like(w)
        for t in range(before + steps):
            gradients.draw(g)
            if sizes is not None:
                g.mul_(sizes[here])
            mine.mul_(BETA1).add_(g, alpha=1 - BETA1)
            square.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            if t >= before:
                w.mul_(1 - lr * weight_decay).addcdiv_(mine, square.sqrt(), value=-lr)
    return start, weight, m, v, (1 - lr * weight_decay) ** steps
