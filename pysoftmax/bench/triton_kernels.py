"""A row's softmax and the fused loss, as one writes them in Triton: the peer of that name.

A row to a program. Rows of up to BLOCK elements are kept; longer ones are read twice, with a
running maximum (Milakov & Gimelshein, arXiv 1805.02867).
"""

import triton
import triton.language as tl

MOST = 65536  # elements that a program keeps


def _load(x, columns, n: tl.constexpr, REAL: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(x + columns, mask=columns < n, other=-float("inf")).to(REAL)


def _peak_and_total(  # type: ignore[no-untyped-def]
    x, n: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr
):
    peak = tl.full((), -float("inf"), REAL)
    total = tl.full((), 0.0, REAL)
    for begin in range(0, n, BLOCK):
        v = load(x, begin + tl.arange(0, BLOCK), n, REAL)
        higher = tl.maximum(peak, tl.max(v, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(v - higher), 0)
        peak = higher
    return peak, total


def _softmax(  # type: ignore[no-untyped-def]
    out, x, n: tl.constexpr, LOG: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * n
    if n <= BLOCK:
        columns = tl.arange(0, BLOCK)
        v = load(x + row, columns, n, REAL)
        v = v - tl.max(v, 0)
        e = tl.exp(v)
        total = tl.sum(e, 0)
        if LOG:
            v = v - tl.log(total)
        else:
            v = e / total
        tl.store(out + row + columns, v, mask=columns < n)
    else:
        peak, total = peak_and_total(x + row, n, REAL, BLOCK)
        for begin in range(0, n, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            v = load(x + row, columns, n, REAL) - peak
            if LOG:
                v = v - tl.log(total)
            else:
                v = tl.exp(v) / total
            tl.store(out + row + columns, v, mask=columns < n)


def _cross_entropy(  # type: ignore[no-untyped-def]
    grad, loss, x, target, rows, n: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr
):
    number = tl.program_id(0).to(tl.int64)
    row = number * n
    label = tl.load(target + number)
    at_label = tl.load(x + row + label).to(REAL)
    if n <= BLOCK:
        columns = tl.arange(0, BLOCK)
        v = load(x + row, columns, n, REAL)
        peak = tl.max(v, 0)
        e = tl.exp(v - peak)
        total = tl.sum(e, 0)
        v = (e / total - tl.where(columns == label, 1.0, 0.0)) / rows
        tl.store(grad + row + columns, v, mask=columns < n)
    else:
        peak, total = peak_and_total(x + row, n, REAL, BLOCK)
        for begin in range(0, n, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            e = tl.exp(load(x + row, columns, n, REAL) - peak)
            v = (e / total - tl.where(columns == label, 1.0, 0.0)) / rows
            tl.store(grad + row + columns, v, mask=columns < n)
    tl.store(loss + number, peak + tl.log(total) - at_label)


load = triton.jit(_load)
peak_and_total = triton.jit(_peak_and_total)
softmax = triton.jit(_softmax)
cross_entropy = triton.jit(_cross_entropy)


def options(n: int) -> dict[str, int]:
    """Return the block for rows of n elements, and how many warps work on it."""
    block = min(triton.next_power_of_2(n), MOST)
    return {"BLOCK": block, "num_warps": min(32, max(4, block // 1024))}
