# float16 and bfloat16 from and to float: exact one way, rounded to the nearest the other.
#
# One read and one write.

cdef extern from "half.h" nogil:
    void floats_of_halves(const uint16_t *halves, float *floats, Py_ssize_t n)
    void halves_of_floats(const float *floats, uint16_t *halves, Py_ssize_t n)
    float float_of_bfloat(uint16_t bfloat)
    void bfloats_of_floats(const float *floats, uint16_t *bfloats, Py_ssize_t n)


cdef void widen(Element element, const uint16_t *halves, float *floats,
                Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if element == FLOAT16:
        floats_of_halves(halves, floats, n)
        return
    for i in range(n):
        floats[i] = float_of_bfloat(halves[i])


cdef void narrow(Element element, const float *floats, uint16_t *halves,
                 Py_ssize_t n) noexcept nogil:
    if element == FLOAT16:
        halves_of_floats(floats, halves, n)
    else:
        bfloats_of_floats(floats, halves, n)
