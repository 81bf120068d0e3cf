// A CUDA driver that computes on the processor: enough of libcuda for the merge, so that everything but the GPU itself
// runs in tests. "Device" memory is memory of the host, filled with rubbish; a module is a library that compiler.c made.
//
// Work on a stream is not done when it is given, but as late as may be: when somebody waits for it. What reads a result
// too early, or overwrites an input too early, is caught by that. With SIM_CUDA=eager it is done at once, as on a GPU
// that is faster than its host.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, NOT_FOUND = 500 };

typedef struct Op {
    struct Op *next;
    void (*kernel)(const void *, unsigned, unsigned);
    void *arguments;
    unsigned blocks, threads;
    void *to;
    const void *from;
    size_t bytes;
    void *staged;
} Op;

typedef struct Stream {
    Op *first, **last;
    uint64_t given, done;
    struct Stream *next;
} Stream;

typedef struct {
    Stream *stream;
    uint64_t at;
} Event;

static Stream default_stream = {.last = &default_stream.first};
static Stream *streams = &default_stream;
static __thread void *current;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static void run(Stream *s, uint64_t until) {
    while (s->done < until && s->first) {
        Op *op = s->first;
        if (op->kernel) {
            op->kernel(op->arguments, op->blocks, op->threads);
        } else {
            memcpy(op->to, op->from, op->bytes);
        }
        s->first = op->next;
        if (!s->first) {
            s->last = &s->first;
        }
        s->done++;
        free(op->arguments);
        free(op->staged);
        free(op);
    }
}

static void run_all(void) {
    for (Stream *s = streams; s; s = s->next) {
        run(s, s->given);
    }
}

static Status give(Stream *s, Op op) {
    s = s ? s : &default_stream;
    Op *own = malloc(sizeof op);
    *own = op;
    own->next = NULL;
    *s->last = own;
    s->last = &own->next;
    s->given++;
    const char *mode = getenv("SIM_CUDA");
    if (mode && !strcmp(mode, "eager")) {
        run(s, s->given);
    }
    return OK;
}

Status cuInit(unsigned flags) { return number("SIM_CUDA_INIT", OK); }
Status cuDriverGetVersion(int *version) { *version = number("SIM_CUDA_VERSION", 13000); return OK; }
Status cuDeviceGetCount(int *count) { *count = number("SIM_CUDA_DEVICES", 1); return OK; }
Status cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
Status cuDeviceGetName(char *name, int len, int device) { snprintf(name, len, "Simulated GPU"); return OK; }

Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = number("SIM_CUDA_CAPABILITY", 90);
    switch (attribute) {
    case 75: *value = capability / 10; break; // compute capability, major
    case 76: *value = capability % 10; break; // minor
    default: *value = 0;
    }
    return OK;
}

Status cuDevicePrimaryCtxRetain(void **context, int device) { *context = &streams; return OK; }
Status cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
Status cuCtxGetCurrent(void **context) { *context = current; return OK; }
Status cuCtxSetCurrent(void *context) { current = context; return OK; }
Status cuCtxSynchronize(void) { run_all(); return OK; }

Status cuStreamCreate(Stream **stream, unsigned flags) {
    Stream *s = calloc(1, sizeof *s);
    s->last = &s->first;
    s->next = streams;
    streams = s;
    *stream = s;
    return OK;
}
// Kept: events may still point to it.
Status cuStreamDestroy_v2(Stream *s) { run(s, s->given); return OK; }
Status cuStreamSynchronize(Stream *s) { s = s ? s : &default_stream; run(s, s->given); return OK; }
Status cuStreamWaitEvent(Stream *s, Event *event, unsigned flags) {
    if (event->stream) {
        run(event->stream, event->at);
    }
    return OK;
}

Status cuEventCreate(Event **event, unsigned flags) { *event = calloc(1, sizeof **event); return OK; }
Status cuEventDestroy_v2(Event *event) { free(event); return OK; }
Status cuEventRecord(Event *event, Stream *s) { event->stream = s; event->at = s->given; return OK; }
Status cuEventSynchronize(Event *event) {
    if (event->stream) {
        run(event->stream, event->at);
    }
    return OK;
}

static size_t taken;

Status cuMemAlloc_v2(uint64_t *memory, size_t bytes) {
    size_t most = (size_t)number("SIM_CUDA_MIB", 1024) << 20;
    size_t whole = (bytes + 511) / 256 * 256;
    if (taken + whole > most) {
        return OUT_OF_MEMORY;
    }
    taken += whole;
    char *at = aligned_alloc(256, whole);
    memset(at, 0xa5, whole);
    *(size_t *)at = whole;
    *memory = (uint64_t)(at + 256);
    return OK;
}
// As on a GPU, what still runs is waited for.
Status cuMemFree_v2(uint64_t memory) {
    run_all();
    char *at = (char *)memory - 256;
    size_t whole = *(size_t *)at;
    taken -= whole;
    memset(at, 0x5a, whole);
    free(at);
    return OK;
}
Status cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    *memory = malloc(bytes);
    memset(*memory, 0xa5, bytes);
    return OK;
}
Status cuMemFreeHost(void *memory) { free(memory); return OK; }

// Returns when all is staged, which may be before it has arrived.
Status cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    void *staged = malloc(bytes);
    memcpy(staged, from, bytes);
    return give(NULL, (Op){.to = (void *)to, .from = staged, .bytes = bytes, .staged = staged});
}
Status cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *s) {
    return give(s, (Op){.to = (void *)to, .from = from, .bytes = bytes});
}
Status cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *s) {
    return give(s, (Op){.to = to, .from = (const void *)from, .bytes = bytes});
}
Status cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream *s) {
    return give(s, (Op){.to = (void *)to, .from = (const void *)from, .bytes = bytes});
}

Status cuModuleLoadData(void **module, const void *image) {
    *module = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    return *module ? OK : INVALID_IMAGE;
}
Status cuModuleUnload(void *module) { return OK; }

typedef struct {
    void (*run)(const void *, unsigned, unsigned);
    size_t size;
} Function;

Status cuModuleGetFunction(Function **function, void *module, const char *name) {
    char symbol[64];
    Function *f = malloc(sizeof *f);
    snprintf(symbol, sizeof symbol, "host_%s", name);
    f->run = (void (*)(const void *, unsigned, unsigned))dlsym(module, symbol);
    snprintf(symbol, sizeof symbol, "host_%s_size", name);
    const size_t *size = dlsym(module, symbol);
    if (!f->run || !size) {
        return NOT_FOUND;
    }
    f->size = *size;
    *function = f;
    return OK;
}

Status cuLaunchKernel(Function *f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                      unsigned shared, Stream *s, void **parameters, void **extra) {
    // What a GPU would refuse.
    if (!x || y != 1 || z != 1 || !threads || threads > 1024 || ty != 1 || tz != 1 || !parameters) {
        return INVALID_VALUE;
    }
    void *arguments = malloc(f->size);
    memcpy(arguments, parameters[0], f->size);
    return give(s, (Op){.kernel = f->run, .arguments = arguments, .blocks = x, .threads = threads});
}

Status cuGetErrorName(Status status, const char **text) { *text = "SIMULATED"; return OK; }
Status cuGetErrorString(Status status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : status == NO_DEVICE ? "no CUDA-capable device is detected"
                                                                            : "a simulated failure";
    return OK;
}
