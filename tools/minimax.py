"""Derive the polynomial coefficients of ``src/cpu/exp_log.pxi``.

Remez exchange in 60 digits, then each coefficient is rounded to the kernel's
precision, lowest degree first, and the remaining ones are fitted again, so that
rounding an early coefficient is made good by the later ones. Prints the
coefficients as hexadecimal floats and the relative error that is left.

Run as ``python tools/minimax.py`` (needs mpmath and NumPy).
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 60


def remez(function, weight, degree, low, high, rounds=12):
    """Minimax polynomial of `function` on [low, high] for errors scaled by `weight`."""
    count = degree + 2
    middle, half = (mp.mpf(high) + low) / 2, (mp.mpf(high) - low) / 2
    nodes = [middle - half * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]
    for _ in range(rounds):
        rows = mp.matrix(count, count)
        values = mp.matrix(count, 1)
        for i, x in enumerate(nodes):
            for k in range(degree + 1):
                rows[i, k] = x**k
            rows[i, degree + 1] = (-1) ** i / weight(x)
            values[i] = function(x)
        solution = mp.lu_solve(rows, values)
        coefficients = list(solution[: degree + 1])

        def error(x, c=coefficients):
            return (mp.polyval(c[::-1], x) - function(x)) * weight(x)

        grid = [low + (mp.mpf(high) - low) * i / 1500 for i in range(1501)]
        errors = [error(x) for x in grid]
        nodes = []
        start = 0
        for i in range(1, len(grid) + 1):
            if i == len(grid) or mp.sign(errors[i]) != mp.sign(errors[start]):
                best = max(range(start, i), key=lambda j: abs(errors[j]))
                nodes.append(grid[best])
                start = i
        if len(nodes) != count:
            break
    return coefficients, max(abs(e) for e in errors)


def exp_tail(r):
    """(exp(r) - 1 - r) / r**2, by its series where the difference would cancel."""
    return mp.nsum(lambda k: r**k / mp.factorial(k + 2), [0, 40]) if r else mp.mpf(1) / 2


def atanh_tail(w):
    """(atanh(sqrt(w)) / sqrt(w) - 1) / w."""
    if w == 0:
        return mp.mpf(1) / 3
    s = mp.sqrt(w)
    return (mp.atanh(s) / s - 1) / w


def eighths(real):
    """2^(j/8) in `real`, its bits less j in the upper bits of the significand; what it lacks.

    The kernels add j there, in one addition with the exponent. What a power lacks is given by
    ratio, and in half the bits of a double, because AVX2 then looks up one half only.
    """
    whole, significand = (np.uint32, 23) if real is np.float32 else (np.uint64, 52)
    for j in range(8):
        exact = mp.mpf(2) ** (mp.mpf(j) / 8)
        power = real(float(exact))
        rest = np.float64(np.float32(float(exact / mp.mpf(float(power)) - 1)))
        if real is np.float64:
            rest = (rest.view(np.uint64) >> np.uint64(32) << np.uint64(32)).view(np.float64)
        lowered = (power.view(whole) - whole(j << (significand - 3))).view(real)
        yield float(lowered).hex(), float(rest).hex()


def report(name, function, weight, degree, low, high, real):
    unit = mp.mpf(2) ** (-24 if real is np.float32 else -53)
    coefficients, ideal = remez(function, weight, degree, low, high)
    nearest = [mp.mpf(float(real(float(c)))) for c in coefficients]
    grid = [low + (mp.mpf(high) - low) * (i + mp.mpf(1) / 3) / 3000 for i in range(3000)]
    error = max(abs((mp.polyval(nearest[::-1], x) - function(x)) * weight(x)) for x in grid)
    print(
        f"{name}: degree {degree}, ideal {mp.nstr(ideal / unit, 3)} u, "
        f"rounded {mp.nstr(error / unit, 3)} u (u = half an ULP of 1)"
    )
    for k, c in enumerate(nearest):
        print(f"  [{k}] {float(c).hex():>26}  {mp.nstr(c, 18)}")


if __name__ == "__main__":
    for real, reach, exp_degree, log_degree in (
        (np.float32, 0.0438, 1, 3),
        (np.float64, 0.0434, 5, 9),
    ):
        reach = mp.mpf(reach)
        report(
            f"exp {real.__name__}",
            exp_tail,
            lambda r: r * r / mp.exp(r) + mp.mpf(10) ** -9,
            exp_degree,
            -reach,
            reach,
            real,
        )
        report(
            f"atanh {real.__name__}",
            atanh_tail,
            lambda w: w * (mp.sqrt(w) / mp.atanh(mp.sqrt(w)) if w else 1),
            log_degree,
            mp.mpf(10) ** -6,
            mp.mpf(1) / 9,
            real,
        )
    report(
        "logarithm of a row",
        atanh_tail,
        lambda w: w * (mp.sqrt(w) / mp.atanh(mp.sqrt(w)) if w else 1),
        6,
        mp.mpf(10) ** -6,
        mp.mpf(1) / 25,
        np.float64,
    )
    ln2, log2e = mp.log(2), 1 / mp.log(2)
    for real in (np.float32, np.float64):
        high = float(real(float(ln2)))
        for j, (lowered, rest) in enumerate(eighths(real)):
            print(f"  2^({j}/8) {lowered:>24} {rest:>26}")
        print(
            real.__name__,
            "ln2",
            high.hex(),
            float(real(float(ln2 - high))).hex(),
            "log2e",
            float(real(float(log2e))).hex(),
        )
