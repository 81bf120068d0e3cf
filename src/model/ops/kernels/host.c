// Runs one kernel of kernels.cu on the processor. Blocks come one after another; the threads of a block take turns, each
// until the next barrier, which all of them have to reach.
//
//     host KERNEL BLOCKS ARGUMENT… <INPUTS >OUTPUT
//
// An argument is e:N, f:N or u:N for N elements, floats or unsigned integers of the input, in turn; o:N or O:N for an
// output of N elements or floats; i:X for an integer, s:X for a float.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static struct {
    unsigned int x;
} threadIdx, blockIdx;

static ucontext_t turns, threads[THREADS];
static char stacks[THREADS][1 << 16];
static int finished[THREADS];

static void wait_for_all(void) { swapcontext(&threads[threadIdx.x], &turns); }

static float __uint_as_float(unsigned int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static unsigned int __float_as_uint(float x) {
    unsigned int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

#define __device__
#define __shared__ static
#define __syncthreads() wait_for_all()
#define KERNEL static void
#include "kernels.cu"

typedef union {
    void *at;
    int i;
    float s;
} argument;

static const char *kernel;
static unsigned int blocks;
static argument a[16];

static void call(void) {
#define IS(name) (strcmp(kernel, name) == 0)
#define P(n) a[n].at
    if (IS("norm_forward")) norm_forward(P(0), P(1), P(2), a[3].i, a[4].s);
    else if (IS("norm_backward")) norm_backward(P(0), P(1), P(2), P(3), a[4].i, a[5].s);
    else if (IS("gate_forward")) gate_forward(P(0), P(1), a[2].i);
    else if (IS("gate_backward")) gate_backward(P(0), P(1), P(2), a[3].i);
    else if (IS("rotate")) rotate(P(0), P(1), P(2), P(3), a[4].i, a[5].i, a[6].i, a[7].i, a[8].s);
    else if (IS("softmax")) softmax(P(0), P(1), a[2].i, a[3].i, a[4].i, a[5].s);
    else if (IS("softmax_backward")) softmax_backward(P(0), P(1), P(2), P(3), a[4].i, a[5].s);
    else if (IS("log_sums")) log_sums(P(0), P(1), a[2].i);
    else if (IS("loss_backward")) loss_backward(P(0), P(1), P(2), P(3), a[4].i);
    else exit(3);
}

static void thread(void) {
    call();
    finished[threadIdx.x] = 1;
}

static void run_block(void) {
    for (unsigned int n = 0; n < THREADS; n++) {
        getcontext(&threads[n]);
        threads[n].uc_stack.ss_sp = stacks[n];
        threads[n].uc_stack.ss_size = sizeof stacks[n];
        threads[n].uc_link = &turns;
        makecontext(&threads[n], thread, 0);
        finished[n] = 0;
    }
    while (!finished[0]) {
        for (threadIdx.x = 0; threadIdx.x < THREADS; threadIdx.x++) swapcontext(&turns, &threads[threadIdx.x]);
        for (unsigned int n = 1; n < THREADS; n++) {
            // A barrier that some threads do not reach hangs a GPU.
            if (finished[n] != finished[0]) exit(4);
        }
    }
}

int main(int argc, char **argv) {
    void *out = NULL;
    size_t out_bytes = 0;
    if (argc < 3 || argc - 3 > 16) return 2;
    kernel = argv[1];
    blocks = (unsigned int)atoi(argv[2]);
    for (int n = 3; n < argc; n++) {
        const char kind = argv[n][0], *value = argv[n] + 2;
        argument *to = &a[n - 3];
        if (kind == 'i') {
            to->i = atoi(value);
            continue;
        }
        if (kind == 's') {
            to->s = strtof(value, NULL);
            continue;
        }
        const size_t width = kind == 'e' || kind == 'o' ? sizeof(element) : sizeof(float);
        const size_t bytes = width * strtoul(value, NULL, 10);
        to->at = malloc(bytes);
        if (to->at == NULL) return 2;
        if (kind == 'o' || kind == 'O') {
            out = to->at;
            out_bytes = bytes;
        } else if (fread(to->at, 1, bytes, stdin) != bytes) {
            return 2;
        }
    }
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) run_block();
    return fwrite(out, 1, out_bytes, stdout) == out_bytes ? 0 : 2;
}
