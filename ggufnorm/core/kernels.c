/* Loops that read their values once, where NumPy makes a pass for each operation.
 *
 * Nothing here knows Python: ggufnorm/core/kernels.py calls it through ctypes, which lets other
 * threads run meanwhile. Sums are kept in LANES partial sums, which compilers turn into vectors
 * without being allowed to reorder anything else.
 */
#include <math.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define ALWAYS_INLINE __forceinline
#else
#define ALWAYS_INLINE inline
#endif

/* Where the C library can choose at load time: once more for processors with AVX2, and with FMA
 * where the compiler knows how to ask for a level of features. arch=haswell would ask for Intel. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#if __GNUC__ >= 12
#define KERNEL EXPORT __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define KERNEL EXPORT __attribute__((target_clones("default", "avx2")))
#endif
#else
#define KERNEL EXPORT
#endif

/* Few enough that the six rows of them in the busiest loop stay in AVX2's registers. */
#define LANES 16
/* Values after which sums in float32 are added to those in float64: whole blocks of all types. */
#define RUN 2048

/* Below that, squares of float32 are lost; row_dots.py has it, too. */
#define LEAST_SQUARES 1e-34

EXPORT int ggufnorm_kernels_version(void) { return 1; }

static ALWAYS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static ALWAYS_INLINE float larger(float a, float b) { return a > b ? a : b; }

static ALWAYS_INLINE double sum_of(const float *lanes) {
  double sums[4] = {0};
  for (int k = 0; k < LANES; k += 4)
    for (int i = 0; i < 4; i++) sums[i] += lanes[k + i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* The largest magnitude so far, and the first row in which it stands. */
typedef struct {
  double value;
  int64_t row;
} peak;

/* Of all rows. Those are doubtful that are not finite, or where the square of q's length, which is
 * rr + 2 dr + dd, cancels, or squares are lost. */
typedef struct {
  double dd, dr, rr;
  int64_t doubtful;
  peak d, r, q;
} totals;

/* A row's largest magnitude, taken in. */
static ALWAYS_INLINE float raise_peak(peak *p, const float *lanes, int64_t row) {
  float most[4] = {0};
  for (int k = 0; k < LANES; k += 4)
    for (int i = 0; i < 4; i++) most[i] = larger(lanes[k + i], most[i]);
  const float value = larger(larger(most[0], most[1]), larger(most[2], most[3]));
  if (value > p->value) {
    p->value = value;
    p->row = row;
  }
  return value;
}

/* How values are stored; kernels.py numbers them alike. */
enum { F32, F16, BF16, OTHER };

/* Turns so many values into float32: to_float of struct ggml_type_traits. */
typedef void (*to_float)(const void *stored, float *values, int64_t n);

/* Rows of values, so many bytes apart; the last field is read of those of no known kind. */
typedef struct {
  const char *data;
  int64_t row_bytes;
  int64_t kind;
  to_float convert;
} rows_of_values;

/* Whether this thread takes small numbers for zero, and so would read small halves wrongly. */
static ALWAYS_INLINE int flushes_to_zero(void) {
  volatile float least_half = 0x1p-136f;
  return least_half * 0x1p112f == 0;
}

/* Values of a row from start on, in place or in a buffer. A run of a type with blocks begins with
 * one. Infinities and NaN of F16 come out as 2^16 and more: a half's exponent lacks 112. */
static ALWAYS_INLINE const float *values_of(const rows_of_values *rows, int64_t row, int64_t start,
                                            int64_t count, int64_t n, float *buffer) {
  const char *data = rows->data + row * rows->row_bytes;
  const uint16_t *bits = (const uint16_t *)data + start;
  union {
    uint32_t bits;
    float value;
  } wide;
  switch (rows->kind) {
    case F32:
      return (const float *)data + start;
    case F16:
      for (int64_t j = 0; j < count; j++) {
        wide.bits = (uint32_t)(bits[j] & 0x8000) << 16 | (uint32_t)(bits[j] & 0x7fff) << 13;
        buffer[j] = wide.value * 0x1p112f;
      }
      return buffer;
    case BF16:
      for (int64_t j = 0; j < count; j++) {
        wide.bits = (uint32_t)bits[j] << 16;
        buffer[j] = wide.value;
      }
      return buffer;
    default:
      rows->convert(data + start * rows->row_bytes / n, buffer, count);
      return buffer;
  }
}

/* Of rows of r and q, with d = q - r: the sums of d*d, d*r and r*r, and the largest |d|, |r| and
 * |q|, among which a NaN does not count. The sums of each row go to row_dd and row_rr unless those
 * are NULL. */
KERNEL void ggufnorm_sum_pairs(const rows_of_values *r, const rows_of_values *q, int64_t rows,
                               int64_t n, double *row_dd, double *row_rr, totals *out) {
  float of_r[RUN], of_q[RUN];
  totals t = {0};
  for (int64_t i = 0; i < rows; i++) {
    double sum_dd = 0, sum_dr = 0, sum_rr = 0;
    float most_d[LANES] = {0}, most_r[LANES] = {0}, most_q[LANES] = {0};
    for (int64_t start = 0; start < n; start += RUN) {
      const int64_t count = least(n - start, RUN);
      const float *a = values_of(r, i, start, count, n, of_r);
      const float *b = values_of(q, i, start, count, n, of_q);
      float part_dd[LANES] = {0}, part_dr[LANES] = {0}, part_rr[LANES] = {0};
      int64_t j = 0;
#define PAIR(k)                                       \
  const float x = a[j + k], y = b[j + k], d = y - x;  \
  part_dd[k] += d * d;                                \
  part_dr[k] += d * x;                                \
  part_rr[k] += x * x;                                \
  most_d[k] = larger(fabsf(d), most_d[k]);            \
  most_r[k] = larger(fabsf(x), most_r[k]);            \
  most_q[k] = larger(fabsf(y), most_q[k]);
      for (; j + LANES <= count; j += LANES)
        for (int k = 0; k < LANES; k++) { PAIR(k) }
      for (int k = 0; j + k < count; k++) { PAIR(k) }
#undef PAIR
      sum_dd += sum_of(part_dd);
      sum_dr += sum_of(part_dr);
      sum_rr += sum_of(part_rr);
    }
    if (row_dd) row_dd[i] = sum_dd;
    if (row_rr) row_rr[i] = sum_rr;
    const double qq = sum_rr + 2 * sum_dr + sum_dd;
    t.dd += sum_dd;
    t.dr += sum_dr;
    t.rr += sum_rr;
    const float of_d = raise_peak(&t.d, most_d, i), of_r = raise_peak(&t.r, most_r, i);
    raise_peak(&t.q, most_q, i);
    const int lost = (of_d > 0 && sum_dd < LEAST_SQUARES) || (of_r > 0 && sum_rr < LEAST_SQUARES);
    t.doubtful += lost || !(qq >= sum_rr / 2 && isfinite(qq));
  }
  if ((r->kind == F16 && (t.r.value >= 65536 || flushes_to_zero())) ||
      (q->kind == F16 && (t.q.value >= 65536 || flushes_to_zero())))
    t.doubtful = rows;
  *out = t;
}

/* Adds to each column's sums of r*r and d*d. */
KERNEL void ggufnorm_sum_columns(const float *r, int64_t r_stride, const float *q,
                                 int64_t q_stride, int64_t rows, int64_t n, double *rr,
                                 double *dd) {
  for (int64_t start = 0; start < n; start += LANES) {
    const int64_t width = least(n - start, LANES);
    double sum_rr[LANES] = {0}, sum_dd[LANES] = {0};
#define COLUMN(k)                                           \
  const float x = r[i * r_stride + start + k];              \
  const float d = q[i * q_stride + start + k] - x;          \
  sum_rr[k] += (double)x * x;                               \
  sum_dd[k] += (double)d * d;
    if (width == LANES)
      for (int64_t i = 0; i < rows; i++)
        for (int k = 0; k < LANES; k++) { COLUMN(k) }
    else
      for (int64_t i = 0; i < rows; i++)
        for (int k = 0; k < width; k++) { COLUMN(k) }
#undef COLUMN
    for (int k = 0; k < width; k++) {
      rr[start + k] += sum_rr[k];
      dd[start + k] += sum_dd[k];
    }
  }
}

/* Whether all 16-bit numbers, so many of them apart, have an exponent below infinity's. */
KERNEL int ggufnorm_below_16(const uint16_t *bits, int64_t n, int64_t stride, uint16_t infinity) {
  uint16_t most = 0;
  if (stride == 1)
    for (int64_t i = 0; i < n; i++) {
      const uint16_t b = bits[i] & 0x7fff;
      most = b > most ? b : most;
    }
  else
    for (int64_t i = 0; i < n; i++) {
      const uint16_t b = bits[i * stride] & 0x7fff;
      most = b > most ? b : most;
    }
  return most < infinity;
}

/* The same of 32-bit numbers, one after the other. */
KERNEL int ggufnorm_below_32(const uint32_t *bits, int64_t n, uint32_t infinity) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t b = bits[i] & 0x7fffffff;
    most = b > most ? b : most;
  }
  return most < infinity;
}
