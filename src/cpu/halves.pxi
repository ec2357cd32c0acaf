# float16 and bfloat16 from and to float: exact one way, rounded to the nearest the other.
#
# One read and one write.

cdef extern from "half.h" nogil:
    void floats_of_halves(const uint16_t *halves, float *floats, Py_ssize_t n, Py_ssize_t ahead)
    void halves_of_floats(const float *floats, uint16_t *halves, Py_ssize_t n)
    void floats_of_bfloats(const uint16_t *bfloats, float *floats, Py_ssize_t n, Py_ssize_t ahead)
    void bfloats_of_floats(const float *floats, uint16_t *bfloats, Py_ssize_t n)

cdef enum:
    # Memory is asked for so many elements ahead, or stretches that lie apart.
    AHEAD_HALVES = 1 << 12
    AHEAD_STRETCHES = 8


cdef void widen(Element element, const uint16_t *halves, Py_ssize_t step, float *floats,
                Py_ssize_t count, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t ahead = AHEAD_HALVES if count == 1 or step == n else AHEAD_STRETCHES * step, k
    for k in range(count):
        if element == FLOAT16:
            floats_of_halves(halves + k * step, floats + k * n, n, ahead)
        else:
            floats_of_bfloats(halves + k * step, floats + k * n, n, ahead)


cdef void narrow(Element element, const float *floats, uint16_t *halves, Py_ssize_t step,
                 Py_ssize_t count, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(count):
        if element == FLOAT16:
            halves_of_floats(floats + k * n, halves + k * step, n)
        else:
            bfloats_of_floats(floats + k * n, halves + k * step, n)
