/* Loops that read their values once, where NumPy makes a pass for each operation.
 *
 * Nothing here knows Python: ggufnorm/core/kernels.py calls it through ctypes, which lets other
 * threads run meanwhile. Sums are kept in LANES partial sums, which compilers turn into vectors
 * without being allowed to reorder anything else.
 */
#define _FILE_OFFSET_BITS 64
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#include <errno.h>
#include <unistd.h>
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

EXPORT int ggufnorm_kernels_version(void) { return 2; }

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

/* Passes by strings that lie in a buffer from *pos on, each so many bytes as the 64-bit number
 * before them says. Returns how many, at most n. */
EXPORT int64_t ggufnorm_skip_strings(const char *buffer, int64_t size, int64_t *pos, int64_t n) {
  int64_t at = *pos, done = 0;
  for (; done < n && size - at >= 8; done++) {
    uint64_t length;
    memcpy(&length, buffer + at, sizeof length);
    if (length > (uint64_t)(size - at - 8)) break;
    at += 8 + (int64_t)length;
  }
  *pos = at;
  return done;
}

/* Puts strings of such a buffer one after the other, a zero behind each, and returns how many bytes
 * that took. -1 if they are not all there, or one has a zero itself. */
EXPORT int64_t ggufnorm_join_strings(const char *buffer, int64_t size, int64_t pos, int64_t n,
                                     char *joined) {
  char *to = joined;
  for (; n > 0; n--) {
    uint64_t length;
    if (size - pos < 8) return -1;
    memcpy(&length, buffer + pos, sizeof length);
    pos += 8;
    if (length > (uint64_t)(size - pos) || memchr(buffer + pos, 0, (size_t)length)) return -1;
    memcpy(to, buffer + pos, (size_t)length);
    pos += (int64_t)length;
    to += length;
    *to++ = 0;
  }
  return to - joined;
}

/* Bytes of an open file. */
typedef struct {
  int64_t descriptor;
  int64_t offset;
} position;

/* Numbers of so many bytes, 2 or 4, that stand at some places of each block of bytes. */
typedef struct {
  int64_t block;
  int64_t width;
  int64_t n_places;
  const int64_t *places;
  int64_t infinity;
} numbers;

/* Whether all the bytes came; what went wrong is for Python to tell, which reads them again. */
static int read_at(const position *from, int64_t done, int64_t n, char *to) {
#if defined(_WIN32)
  (void)from, (void)done, (void)n, (void)to;
  return 0;
#else
  while (n > 0) {
    const ssize_t got = pread((int)from->descriptor, to, (size_t)n, from->offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    done += got;
    to += got;
    n -= got;
  }
  return 1;
#endif
}

static int all_below(const numbers *of, const char *data, int64_t n) {
  const uint16_t infinity = (uint16_t)of->infinity;
  if (of->width == 4)
    return ggufnorm_below_32((const uint32_t *)data, n / 4, (uint32_t)of->infinity);
  if (of->block == 2) return ggufnorm_below_16((const uint16_t *)data, n / 2, 1, infinity);
  uint16_t most = 0;
  for (const char *block = data; block < data + n; block += of->block)
    for (int64_t i = 0; i < of->n_places; i++) {
      const uint16_t b = *(const uint16_t *)(block + of->places[i]) & 0x7fff;
      most = b > most ? b : most;
    }
  return most < infinity;
}

/* Reads whole blocks of a file, and as many bytes of another unless that is NULL, piece by piece
 * into the buffer. Returns 1 if all numbers have an exponent below infinity's and the other file
 * has the same bytes, 0 if not, -1 if they could not be read. 32-bit numbers are blocks. */
EXPORT int ggufnorm_scan(const position *file, const position *other, int64_t n, const numbers *of,
                         char *buffer, int64_t size) {
  const int64_t piece = (other ? size / 2 : size) / of->block * of->block;
  if (piece <= 0) return -1;
  for (int64_t done = 0; done < n; done += piece) {
    const int64_t count = least(n - done, piece);
    if (!read_at(file, done, count, buffer)) return -1;
    if (other) {
      if (!read_at(other, done, count, buffer + piece)) return -1;
      if (memcmp(buffer, buffer + piece, (size_t)count)) return 0;
    }
    if (!all_below(of, buffer, count)) return 0;
  }
  return 1;
}

/* Reads rows of two files piece by piece into the buffer, and sums them as ggufnorm_sum_pairs does,
 * whose rows have no data yet. Returns how many are doubtful, -1 if they could not be read. */
EXPORT int64_t ggufnorm_sum_files(const position *file_r, const position *file_q, rows_of_values *r,
                                  rows_of_values *q, int64_t rows, int64_t n, double *row_dd,
                                  double *row_rr, char *buffer, int64_t size) {
  const int64_t apart = 64;
  const int64_t piece = (size - apart) / (r->row_bytes + q->row_bytes);
  int64_t doubtful = 0;
  if (piece <= 0) return -1;
  r->data = buffer;
  q->data = buffer + (piece * r->row_bytes + apart - 1) / apart * apart;
  for (int64_t done = 0; done < rows; done += piece) {
    const int64_t count = least(rows - done, piece);
    totals sums;
    if (!read_at(file_r, done * r->row_bytes, count * r->row_bytes, buffer) ||
        !read_at(file_q, done * q->row_bytes, count * q->row_bytes, (char *)q->data))
      return -1;
    ggufnorm_sum_pairs(r, q, count, n, row_dd + done, row_rr + done, &sums);
    doubtful += sums.doubtful;
  }
  return doubtful;
}
