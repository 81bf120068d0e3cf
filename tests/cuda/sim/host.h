// What the kernels' text takes from CUDA, for a C compiler: threads run one after another.

#include <math.h>
#include <stddef.h>
#include <string.h>

#define __align__(n) __attribute__((aligned(n)))

static struct { unsigned x; } blockIdx, threadIdx;

static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }

#define HOST(kernel, Arguments)                                                             \
    const size_t host_##kernel##_size = sizeof(Arguments);                                  \
    void host_##kernel(const void *arguments, unsigned blocks, unsigned threads) {          \
        for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)                             \
            for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)                     \
                kernel(*(const Arguments *)arguments);                                      \
    }
