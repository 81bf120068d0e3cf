// Adds low-rank updates to stored weights: spec/tl-v1.md, section 12, to the bit.
//
// One text for every compiler. NVRTC compiles it for a GPU, one program for each dtype, rounding and rank (the macros
// DTYPE, SAFE, RANK, WHOLE below); tests compile it with a C compiler and run its threads one after another. So it is C,
// uses no barrier and no shared memory, and names every rounding: the intrinsics are never contracted.
//
// A unit of work is a tile of 4 rows by at most 16 panels of 32 columns: what the processor's kernel does between two
// flushes of its statistics. Four threads share a unit, each with 4 neighbouring lanes of 16: thread t has the columns
// j with j / 4 % 4 == t. Each lane's sums run over panels, then rows, then halves of a panel, as on the processor, so
// that statistics too are the same numbers.

#if defined(__CUDACC__)
#define KERNEL extern "C" __global__
#define INLINE static __device__ __forceinline__
#else
#define KERNEL static
#define INLINE static inline
#endif

// DTYPE: 0 F32, 1 BF16, 2 F16. SAFE: T is rounded to the dtype first. RANK: of the only update, or 0 for any list of
// updates. WHOLE: columns are a multiple of 4, so that a thread's four lie together or all beyond the edge.
#if !defined(DTYPE) || !defined(SAFE) || !defined(RANK) || !defined(WHOLE)
#error "DTYPE, SAFE, RANK and WHOLE are to be given"
#endif

#define THREADS 128
#define ROWS 4
#define PANEL 32
#define LANES 16
#define FLUSH 16
#define SHARE 4
#define VEC (LANES / SHARE)
#define HALVES (PANEL / LANES)
// Up to this rank the left factor of a tile stays in registers.
#define HELD 16
// Blocks that the registers of a multiprocessor are to hold at least.
#define MIN_BLOCKS (RANK > 0 && RANK <= 8 ? 4 : 3)

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

typedef struct __align__(16) { float v[VEC]; } Floats;
#if DTYPE == 0
typedef u32 Raw;
typedef struct __align__(16) { Raw v[VEC]; } Raws;
#else
typedef u16 Raw;
typedef struct __align__(8) { Raw v[VEC]; } Raws;
#endif

// One update: factors at offsets (in floats) into the list's buffer.
typedef struct {
    u64 left;   // all rows of the weight x rank
    u64 right;  // panel p, row k, column j at (p * rank + k) * 32 + j; zero beyond the edge
    u32 rank;
    float scale;
} Term;

typedef struct {
    const Raw *base;   // rows x cols
    Raw *out;          // rows x cols; may be base
    const float *factors;
    const Term *terms;
    float *sums;       // units x 3 x LANES: T * T, (W' - W) * T, (W' - W) * (W' - W)
    float *tops;       // units x SHARE: largest |T|
    u32 *counts;       // units x SHARE: elements whose bits changed
    u64 first_row;     // row of the weight that is row 0 here
    u32 rows;
    u32 cols;
    u32 strip;         // panels of a strip of columns
    u32 groups;        // flushes in a row of tiles
    u32 terms_len;
    u32 pad;
} Merge;

INLINE float widen(u32 raw) {
#if DTYPE == 0
    return __uint_as_float(raw);
#elif DTYPE == 1
    return __uint_as_float(raw << 16);
#else
    u32 magnitude = raw & 0x7fffu;
    // An exponent of all ones goes from 31 to 255, others from bias 15 to bias 127.
    u32 rebias = magnitude < 0x7c00u ? 112u << 23 : 224u << 23;
    float normal = __uint_as_float((magnitude << 13) + rebias);
    float subnormal = __fmul_rn((float)(int)magnitude, __uint_as_float((127u - 24u) << 23));
    float value = magnitude < 0x400u ? subnormal : normal;
    return __uint_as_float(__float_as_uint(value) | (raw & 0x8000u) << 16);
#endif
}

// The nearest value of the dtype, ties to even, overflow to infinity; NaN stays NaN.
INLINE float rounded(float x) {
#if DTYPE == 0
    return x;
#elif DTYPE == 1
    u32 bits = __float_as_uint(x);
    u32 up = bits + (0x7fffu + (bits >> 16 & 1u));
    bits = x != x ? bits | 0x400000u : up;
    return __uint_as_float(bits & 0xffff0000u);
#else
    u32 bits = __float_as_uint(x);
    float magnitude = __uint_as_float(bits & 0x7fffffffu);
    float normal = __uint_as_float((__float_as_uint(magnitude) + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
    // At 0.5 the unit of f32 is 2^-24, which is that of the f16 subnormals: the sum is rounded.
    float subnormal = __fsub_rn(__fadd_rn(magnitude, 0.5f), 0.5f);
    float value = magnitude < 6.103515625e-05f ? subnormal : normal;
    value = value >= 65536.0f ? __uint_as_float(0x7f800000u) : value;
    value = x != x ? __fadd_rn(x, x) : value;
    return __uint_as_float(__float_as_uint(value) | (bits & 0x80000000u));
#endif
}

// The element whose value is x, one that rounded() returned.
INLINE Raw encode(float x) {
#if DTYPE == 0
    return __float_as_uint(x);
#elif DTYPE == 1
    return (Raw)(__float_as_uint(x) >> 16);
#else
    u32 bits = __float_as_uint(x);
    float magnitude = __uint_as_float(bits & 0x7fffffffu);
    u32 normal = (__float_as_uint(magnitude) - (112u << 23)) >> 13;
    u32 subnormal = __float_as_uint(__fadd_rn(magnitude, 0.5f)) & 0x7ffu;
    u32 value = magnitude < 6.103515625e-05f ? subnormal : normal;
    // From infinity and NaN, whose exponent is out of range, only the low bits are right.
    u32 special = __float_as_uint(magnitude) >> 13 | 0x7c00u;
    value = magnitude < 65536.0f ? value : special;
    return (Raw)((bits >> 16 & 0x8000u) | (value & 0x7fffu));
#endif
}

// What a thread sums over its lanes between two flushes.
typedef struct {
    float sums[3][VEC];
    float top;
    u32 changed;
} Lanes;

INLINE Raw fold(float t, u32 before, int lane, Lanes *lanes) {
    float old = widen(before);
#if SAFE
    float moved_by = rounded(t);
#else
    float moved_by = t;
#endif
    float now = rounded(__fadd_rn(old, moved_by));
    Raw after = encode(now);
    float moved = __fsub_rn(now, old);
    lanes->sums[0][lane] = __fmaf_rn(t, t, lanes->sums[0][lane]);
    lanes->sums[1][lane] = __fmaf_rn(moved, t, lanes->sums[1][lane]);
    lanes->sums[2][lane] = __fmaf_rn(moved, moved, lanes->sums[2][lane]);
    // A NaN is not the larger of two here either.
    lanes->top = fmaxf(lanes->top, __uint_as_float(__float_as_uint(t) & 0x7fffffffu));
    lanes->changed += before != (u32)after;
    return after;
}

// One step of the chain over k for a panel's columns of this thread.
INLINE void step(float d[ROWS][PANEL / SHARE], const float b[ROWS], const float *right) {
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        Floats a = *(const Floats *)(right + h * LANES);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int l = 0; l < VEC; l++) {
                d[i][h * VEC + l] = __fmaf_rn(b[i], a.v[l], d[i][h * VEC + l]);
            }
        }
    }
}

INLINE void scale(float d[ROWS][PANEL / SHARE], float s) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int j = 0; j < PANEL / SHARE; j++) {
            d[i][j] = __fmul_rn(s, d[i][j]);
        }
    }
}

KERNEL void
#if defined(__CUDACC__)
__launch_bounds__(THREADS, MIN_BLOCKS)
#endif
merge(const Merge m) {
    const u64 id = (u64)blockIdx.x * THREADS + threadIdx.x;
    const u64 unit = id / SHARE;
    const u32 share = (u32)(id % SHARE);
    const u32 tiles = (m.rows + ROWS - 1) / ROWS;
    if (unit >= (u64)tiles * m.groups) {
        return;
    }
    const u32 tile = (u32)(unit / m.groups);
    const u32 group = (u32)(unit % m.groups);
    const u32 panels = (m.cols + PANEL - 1) / PANEL;
    const u32 per_strip = (m.strip + FLUSH - 1) / FLUSH;
    const u32 strip = group / per_strip * m.strip;
    const u32 strip_end = strip + m.strip < panels ? strip + m.strip : panels;
    const u32 first = strip + group % per_strip * FLUSH;
    const u32 end = first + FLUSH < strip_end ? first + FLUSH : strip_end;
    const u32 row = tile * ROWS;
    const int height = m.rows - row < ROWS ? (int)(m.rows - row) : ROWS;

#if RANK > 0
    const Term term = m.terms[0];
    const float *left = m.factors + term.left + (m.first_row + row) * RANK;
#endif
#if RANK > 0 && RANK <= HELD
    float held[RANK][ROWS];
#pragma unroll
    for (int k = 0; k < RANK; k++) {
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            held[k][i] = i < height ? left[i * RANK + k] : 0.0f;
        }
    }
#endif

    Lanes lanes = {{{0.0f}}, 0.0f, 0u};
    for (u32 panel = first; panel < end; panel++) {
        const u32 col = panel * PANEL + share * VEC;
        const u64 at = (u64)row * m.cols + col;

        // Read first: the weights come from far, the factors from near.
        Raws w[ROWS][HALVES];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                const u32 j = col + h * LANES;
                const Raw *from = m.base + at + (u64)i * m.cols + h * LANES;
#if WHOLE
                const Raws none = {{(Raw)0}};
                w[i][h] = i < height && j < m.cols ? *(const Raws *)from : none;
#else
                for (int l = 0; l < VEC; l++) {
                    w[i][h].v[l] = i < height && j + l < m.cols ? from[l] : (Raw)0;
                }
#endif
            }
        }

        float t[ROWS][PANEL / SHARE];
#if RANK > 0
        const float *right = m.factors + term.right + (u64)panel * RANK * PANEL + share * VEC;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int j = 0; j < PANEL / SHARE; j++) {
                t[i][j] = 0.0f;
            }
        }
#if RANK <= HELD
#pragma unroll
        for (int k = 0; k < RANK; k++) {
            step(t, held[k], right + k * PANEL);
        }
#else
#pragma unroll 4
        for (int k = 0; k < RANK; k++) {
            float b[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                b[i] = i < height ? left[i * RANK + k] : 0.0f;
            }
            step(t, b, right + k * PANEL);
        }
#endif
        scale(t, term.scale);
#else
        for (u32 n = 0; n < m.terms_len; n++) {
            const Term term = m.terms[n];
            const float *left = m.factors + term.left + (m.first_row + row) * term.rank;
            const float *right = m.factors + term.right + (u64)panel * term.rank * PANEL + share * VEC;
            float d[ROWS][PANEL / SHARE] = {{0.0f}};
            for (u32 k = 0; k < term.rank; k++) {
                float b[ROWS];
#pragma unroll
                for (int i = 0; i < ROWS; i++) {
                    b[i] = i < height ? left[(u64)i * term.rank + k] : 0.0f;
                }
                step(d, b, right + (u64)k * PANEL);
            }
            scale(d, term.scale);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
#pragma unroll
                for (int j = 0; j < PANEL / SHARE; j++) {
                    t[i][j] = n == 0 ? d[i][j] : __fadd_rn(t[i][j], d[i][j]);
                }
            }
        }
#endif

#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                const u32 j = col + h * LANES;
                Raw *to = m.out + at + (u64)i * m.cols + h * LANES;
                Raws after;
                // Beyond the edge weights and update are zero, and so is what they add to the sums.
#pragma unroll
                for (int l = 0; l < VEC; l++) {
                    after.v[l] = fold(t[i][h * VEC + l], w[i][h].v[l], l, &lanes);
                }
#if WHOLE
                if (i < height && j < m.cols) {
                    *(Raws *)to = after;
                }
#else
                for (int l = 0; l < VEC; l++) {
                    if (i < height && j + l < m.cols) {
                        to[l] = after.v[l];
                    }
                }
#endif
            }
        }
    }

#pragma unroll
    for (int s = 0; s < 3; s++) {
        Floats sum;
#pragma unroll
        for (int l = 0; l < VEC; l++) {
            sum.v[l] = lanes.sums[s][l];
        }
        *(Floats *)(m.sums + (unit * 3 + s) * LANES + share * VEC) = sum;
    }
    m.tops[unit * SHARE + share] = lanes.top;
    m.counts[unit * SHARE + share] = lanes.changed;
}

typedef struct {
    const float *sums;
    const float *tops;
    const u32 *counts;
    double *totals;      // chunks x 3 x LANES
    float *chunk_tops;   // chunks x SHARE
    u32 *chunk_counts;   // chunks x SHARE
    u32 tiles;
    u32 groups;
    u32 per_strip;       // flushes in a strip of a row of tiles
    u32 chunk_tiles;     // rows of tiles in a chunk
    u32 chunks;
    u32 pad;
} Settle;

// Sums the units of each chunk of rows, lane by lane, in the processor's order: strips, then rows of tiles, then flushes.
KERNEL void
#if defined(__CUDACC__)
__launch_bounds__(THREADS)
#endif
settle(const Settle s) {
    const u64 id = (u64)blockIdx.x * THREADS + threadIdx.x;
    const u64 chunk = id / (3 * LANES);
    const u32 place = (u32)(id % (3 * LANES));
    if (chunk >= s.chunks) {
        return;
    }
    const u64 first = chunk * s.chunk_tiles;
    const u64 end = first + s.chunk_tiles < s.tiles ? first + s.chunk_tiles : s.tiles;
    double total = 0.0;
    for (u32 strip = 0; strip < s.groups; strip += s.per_strip) {
        const u32 strip_end = strip + s.per_strip < s.groups ? strip + s.per_strip : s.groups;
        for (u64 tile = first; tile < end; tile++) {
            const float *from = s.sums + tile * s.groups * 3 * LANES + place;
#pragma unroll 8
            for (u32 group = strip; group < strip_end; group++) {
                total += (double)from[(u64)group * 3 * LANES];
            }
        }
    }
    s.totals[chunk * 3 * LANES + place] = total;
    if (place < SHARE) {
        float top = 0.0f;
        u32 count = 0;
#pragma unroll 8
        for (u64 unit = first * s.groups; unit < end * s.groups; unit++) {
            top = fmaxf(top, s.tops[unit * SHARE + place]);
            count += s.counts[unit * SHARE + place];
        }
        s.chunk_tops[chunk * SHARE + place] = top;
        s.chunk_counts[chunk * SHARE + place] = count;
    }
}
