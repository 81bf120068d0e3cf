// The operations of a decoder around its products, fused, for rows in bf16 or f32; all arithmetic is f32, and each
// result is rounded once. With HALF, elements are bf16; THREADS is the number of threads of a block, a power of two.
//
// One block makes one row, so that no result depends on how blocks are scheduled. The same text is compiled by NVRTC
// for a GPU and, as C, for the tests (host.c), which give the few names of CUDA a meaning.

#ifndef KERNEL
#define KERNEL extern "C" __global__ void
#endif

#ifdef HALF
// A bf16 by its bits.
typedef unsigned short element;

__device__ static inline float load(element x) { return __uint_as_float((unsigned int)x << 16); }

// To the nearest, ties to even; a NaN stays one.
__device__ static inline void store(element *to, float x) {
    const unsigned int bits = __float_as_uint(x);
    const int nan = (bits & 0x7fffffffu) > 0x7f800000u;
    *to = (element)(nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
#else
typedef float element;

__device__ static inline float load(element x) { return x; }

__device__ static inline void store(element *to, float x) { *to = x; }
#endif

#define LOWEST (-3.402823466e+38f)

// The sum of the x of all threads, or the largest, given to each, in one fixed order.
__device__ static inline float together(float x, float *shared, int largest) {
    const int own = threadIdx.x;
    __syncthreads();
    shared[own] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (own < half) {
            const float a = shared[own], b = shared[own + half];
            shared[own] = largest ? fmaxf(a, b) : a + b;
        }
        __syncthreads();
    }
    return shared[0];
}

// y = x · gain / √(mean x² + eps)
KERNEL norm_forward(const element *x, const float *gain, element *y, int cols, float eps) {
    __shared__ float shared[THREADS];
    const long long at = (long long)blockIdx.x * cols;
    float squares = 0.0f;
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        float v = load(x[at + i]);
        squares += v * v;
    }
    const float scale = 1.0f / sqrtf(together(squares, shared, 0) / cols + eps);
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        store(y + at + i, load(x[at + i]) * scale * gain[i]);
    }
}

// The gradient of x, given that of y.
KERNEL norm_backward(const element *dy, const element *x, const float *gain, element *dx, int cols,
                          float eps) {
    __shared__ float shared[THREADS];
    const long long at = (long long)blockIdx.x * cols;
    float squares = 0.0f, products = 0.0f;
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        float v = load(x[at + i]);
        squares += v * v;
        products += v * load(dy[at + i]) * gain[i];
    }
    const float scale = 1.0f / sqrtf(together(squares, shared, 0) / cols + eps);
    const float along = together(products, shared, 0) * scale * scale / cols;
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        store(dx + at + i, (load(dy[at + i]) * gain[i] - load(x[at + i]) * along) * scale);
    }
}

// y = silu(g) · u of rows [g u], each `width` wide.
KERNEL gate_forward(const element *x, element *y, int width) {
    const long long at = (long long)blockIdx.x * width;
    const element *g = x + 2 * at, *u = g + width;
    for (int i = (int)threadIdx.x; i < width; i += THREADS) {
        float v = load(g[i]);
        store(y + at + i, v / (1.0f + expf(-v)) * load(u[i]));
    }
}

// The gradient of [g u], given that of y.
KERNEL gate_backward(const element *dy, const element *x, element *dx, int width) {
    const long long at = (long long)blockIdx.x * width;
    const element *g = x + 2 * at, *u = g + width;
    element *dg = dx + 2 * at, *du = dg + width;
    for (int i = (int)threadIdx.x; i < width; i += THREADS) {
        float v = load(g[i]), d = load(dy[at + i]), s = 1.0f / (1.0f + expf(-v));
        store(dg + i, d * load(u[i]) * s * (1.0f + v * (1.0f - s)));
        store(du + i, d * v * s);
    }
}

// Rows with the first `half` columns of each of the first `heads` heads turned with the next `half`, by the angle or,
// with sign −1, back; all else copied.
KERNEL rotate(const element *x, const float *cosines, const float *sines, element *y, int cols,
                   int heads, int width, int half, float sign) {
    const long long at = (long long)blockIdx.x * cols, angle = (long long)blockIdx.x * half;
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        const int head = i / width, place = i % width;
        float v = load(x[at + i]);
        if (head < heads && place < half) {
            v = v * cosines[angle + place] - load(x[at + i + half]) * sign * sines[angle + place];
        } else if (head < heads && place < 2 * half) {
            v = v * cosines[angle + place - half] + load(x[at + i - half]) * sign * sines[angle + place - half];
        }
        store(y + at + i, v);
    }
}

// The first key that a row sees; its last is its own position.
__device__ static inline int first_seen(int position, int window) {
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

// p = softmax(scale · scores) over the keys that a row sees, 0 for the others. Row r of the grid is the query at
// position keys − rows + r mod rows; window 0 is none.
KERNEL softmax(const element *scores, element *p, int rows, int keys, int window, float scale) {
    __shared__ float shared[THREADS];
    const long long at = (long long)blockIdx.x * keys;
    const int position = keys - rows + (int)(blockIdx.x % rows), first = first_seen(position, window);
    float top = LOWEST;
    for (int i = first + (int)threadIdx.x; i <= position; i += THREADS) {
        top = fmaxf(top, load(scores[at + i]) * scale);
    }
    top = together(top, shared, 1);
    float sum = 0.0f;
    for (int i = first + (int)threadIdx.x; i <= position; i += THREADS) {
        sum += expf(load(scores[at + i]) * scale - top);
    }
    sum = together(sum, shared, 0);
    for (int i = (int)threadIdx.x; i < keys; i += THREADS) {
        const int seen = first <= i && i <= position;
        store(p + at + i, seen ? expf(load(scores[at + i]) * scale - top) / sum : 0.0f);
    }
}

// The gradient of the scores: scale · p · (dp − along), along being Σ dp·p of each row.
KERNEL softmax_backward(const element *p, const element *dp, const float *along, element *ds, int keys,
                             float scale) {
    const long long at = (long long)blockIdx.x * keys;
    const float mean = along[blockIdx.x];
    for (int i = (int)threadIdx.x; i < keys; i += THREADS) {
        store(ds + at + i, load(p[at + i]) * (load(dp[at + i]) - mean) * scale);
    }
}

// The largest logit of each row and the logarithm of Σ exp(logit − largest), of which the loss is made.
KERNEL log_sums(const element *logits, float *out, int cols) {
    __shared__ float shared[THREADS];
    const long long at = (long long)blockIdx.x * cols;
    float top = LOWEST;
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        top = fmaxf(top, load(logits[at + i]));
    }
    top = together(top, shared, 1);
    float sum = 0.0f;
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        sum += expf(load(logits[at + i]) - top);
    }
    sum = together(sum, shared, 0);
    if (threadIdx.x == 0) {
        out[2 * (long long)blockIdx.x] = top;
        out[2 * (long long)blockIdx.x + 1] = logf(sum);
    }
}

// softmax(logits) − one-hot(target), given what log_sums made.
KERNEL loss_backward(const element *logits, const float *sums, const unsigned int *targets, element *out,
                          int cols) {
    const long long at = (long long)blockIdx.x * cols;
    const float top = sums[2 * (long long)blockIdx.x], log_sum = sums[2 * (long long)blockIdx.x + 1];
    const int target = (int)targets[blockIdx.x];
    for (int i = (int)threadIdx.x; i < cols; i += THREADS) {
        store(out + at + i, expf(load(logits[at + i]) - top - log_sum) - (i == target ? 1.0f : 0.0f));
    }
}
