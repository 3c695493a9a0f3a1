"""The recurrences of the study's table and of the gated row, each written out step by step as an independent reference.

Nothing here is shared with `trailseg.networks.recurrence`: only the parts (stem, cores, head, feedback, fuses) and the
learned scalars are taken from the network under test. Every function returns the logits of three steps.
"""

import torch


def _parts(n, image):
    x = (image - n.mean[:, None, None]) / n.std[:, None, None]
    return n.stem(x).features, n.cores, n.head, n.feedback, n.fuses, n.alpha, n.beta


def iterative_v1(n, image):
    c, (first, rest), head, back, (fuse,), (a,), (b,) = _parts(n, image)
    y0 = head(h := first(c))
    y1 = head(h := rest(a * fuse(torch.cat([c, h], 1)) + b * back(y0)))
    y2 = head(rest(a * fuse(torch.cat([c, h], 1)) + b * back(y1)))
    return y0, y1, y2


def iterative_v2(n, image):
    c, (core,), head, back, (fuse,), (a,), (b,) = _parts(n, image)
    y0 = head(h := core(c))
    y1 = head(h := core(a * fuse(torch.cat([c, h], 1)) + b * back(y0)))
    y2 = head(core(a * fuse(torch.cat([c, h], 1)) + b * back(y1)))
    return y0, y1, y2


def iterative_v3(n, image):
    c, (first, rest), head, back, (fuse,), (a,), (b,) = _parts(n, image)
    y0 = head(h := first(c) + c)
    x1 = a * fuse(torch.cat([c, h], 1)) + b * back(y0)
    y1 = head(h := rest(x1) + x1)
    x2 = a * fuse(torch.cat([c, h], 1)) + b * back(y1)
    return y0, y1, head(rest(x2) + x2)


def iterative_v4(n, image):
    c, (core,), head, back, (fuse,), (a,), (b,) = _parts(n, image)
    y0 = head(h := core(c) + c)
    x1 = a * fuse(torch.cat([c, h], 1)) + b * back(y0)
    y1 = head(h := core(x1) + x1)
    x2 = a * fuse(torch.cat([c, h], 1)) + b * back(y1)
    return y0, y1, head(core(x2) + x2)


def iterative_v5(n, image):
    c, (first, rest), head, back, _, (a,), (b,) = _parts(n, image)
    y0 = head(h := first(c) + c)
    x1 = a * h + b * back(y0)
    y1 = head(h := rest(x1) + x1)
    x2 = a * h + b * back(y1)
    return y0, y1, head(rest(x2) + x2)


def iterative_v6(n, image):
    c, (core,), head, back, _, (a,), (b,) = _parts(n, image)
    y0 = head(h := core(c) + c)
    x1 = a * h + b * back(y0)
    y1 = head(h := core(x1) + x1)
    x2 = a * h + b * back(y1)
    return y0, y1, head(core(x2) + x2)


def hourglass(n, image):
    c, (one, two, three), head, back, _, (a1, a2), (b1, b2) = _parts(n, image)
    y0 = head(h := one(c))
    y1 = head(h := two(a1 * h + b1 * back(y0)))
    y2 = head(three(a2 * h + b2 * back(y1)))
    return y0, y1, y2


def hourglass_iter(n, image):
    c, (one, two, three), head, back, (fuse,), (a1, a2), (b1, b2) = _parts(n, image)
    y0 = head(h := one(c))
    y1 = head(h := two(a1 * fuse(torch.cat([c, h], 1)) + b1 * back(y0)))
    y2 = head(three(a2 * fuse(torch.cat([c, h], 1)) + b2 * back(y1)))
    return y0, y1, y2


def hourglass_iter_ex(n, image):
    c, (one, two, three), head, back, (fuse1, fuse2), (a1, a2), (b1, b2) = _parts(n, image)
    y0 = head(h := one(c))
    y1 = head(h := two(a1 * fuse1(torch.cat([c, h], 1)) + b1 * back(y0)))
    y2 = head(three(a2 * fuse2(torch.cat([c, h], 1)) + b2 * back(y1)))
    return y0, y1, y2


def res_hourglass(n, image):
    c, (one, two, three), head, back, _, (a1, a2), (b1, b2) = _parts(n, image)
    y0 = head(h := one(c) + c)
    x1 = a1 * h + b1 * back(y0)
    y1 = head(h := two(x1) + x1)
    x2 = a2 * h + b2 * back(y1)
    return y0, y1, head(three(x2) + x2)


def res_hourglass_iter(n, image):
    c, (one, two, three), head, back, (fuse,), (a1, a2), (b1, b2) = _parts(n, image)
    y0 = head(h := one(c) + c)
    x1 = a1 * fuse(torch.cat([c, h], 1)) + b1 * back(y0)
    y1 = head(h := two(x1) + x1)
    x2 = a2 * fuse(torch.cat([c, h], 1)) + b2 * back(y1)
    return y0, y1, head(three(x2) + x2)


def res_hourglass_iter_ex(n, image):
    c, (one, two, three), head, back, (fuse1, fuse2), (a1, a2), (b1, b2) = _parts(n, image)
    y0 = head(h := one(c) + c)
    x1 = a1 * fuse1(torch.cat([c, h], 1)) + b1 * back(y0)
    y1 = head(h := two(x1) + x1)
    x2 = a2 * fuse2(torch.cat([c, h], 1)) + b2 * back(y1)
    return y0, y1, head(three(x2) + x2)


def gated(n, image):
    c, (core,), head, (_, back), (fuse,), (a,), (b,) = _parts(n, image)

    def update(x):
        y = core(x)
        return x + y / (1 + torch.exp(-n.gate(torch.cat([x, y], 1))))

    y0 = head(h := update(c))
    y1 = head(h := update(a * fuse(torch.cat([c, h], 1)) + b * back(torch.softmax(y0, 1))))
    y2 = head(update(a * fuse(torch.cat([c, h], 1)) + b * back(torch.softmax(y1, 1))))
    return y0, y1, y2
