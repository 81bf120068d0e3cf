// An NVRTC whose machine code is a library of the host: it compiles the kernels' text with the C compiler.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, COMPILATION = 6 };

typedef struct {
    char *source;
    char path[256];
} Program;

int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return SUCCESS; }
int nvrtcGetNumSupportedArchs(int *count) { *count = 3; return SUCCESS; }
int nvrtcGetSupportedArchs(int *list) { list[0] = 75; list[1] = 80; list[2] = 90; return SUCCESS; }

int nvrtcCreateProgram(Program **program, const char *source, const char *name, int headers, const char *const *texts,
                       const char *const *names) {
    *program = calloc(1, sizeof **program);
    (*program)->source = strdup(source);
    return SUCCESS;
}

int nvrtcDestroyProgram(Program **program) {
    free((*program)->source);
    free(*program);
    return SUCCESS;
}

int nvrtcCompileProgram(Program *program, int options, const char *const *list) {
    const char *folder = getenv("SIM_CUDA_FOLDER");
    if (!folder || getenv("SIM_CUDA_NO_COMPILER")) {
        return COMPILATION;
    }
    static int made;
    char text[200], command[2048];
    snprintf(text, sizeof text, "%s/kernel-%d-%d.c", folder, getpid(), made);
    snprintf(program->path, sizeof program->path, "%s/kernel-%d-%d.so", folder, getpid(), made++);
    FILE *file = fopen(text, "w");
    if (!file) {
        return COMPILATION;
    }
    fprintf(file, "#include \"%s/host.h\"\n%s\nHOST(merge, Merge)\nHOST(settle, Settle)\n", folder, program->source);
    fclose(file);
    int at = snprintf(command, sizeof command, "cc -O2 -std=gnu11 -ffp-contract=off -w -shared -fPIC -o %s", program->path);
    int contracts = 1;
    for (int i = 0; i < options; i++) {
        contracts &= !!strcmp(list[i], "--fmad=false");
        if (!strncmp(list[i], "-D", 2)) {
            at += snprintf(command + at, sizeof command - at, " %s", list[i]);
        }
    }
    snprintf(command + at, sizeof command - at, " %s -lm", text);
    return contracts || system(command) ? COMPILATION : SUCCESS;
}

int nvrtcGetCUBINSize(Program *program, size_t *size) { *size = strlen(program->path) + 1; return SUCCESS; }
int nvrtcGetCUBIN(Program *program, char *code) { strcpy(code, program->path); return SUCCESS; }
int nvrtcGetPTXSize(Program *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(Program *program, char *code) { return nvrtcGetCUBIN(program, code); }
int nvrtcGetProgramLogSize(Program *program, size_t *size) { *size = 18; return SUCCESS; }
int nvrtcGetProgramLog(Program *program, char *log) { strcpy(log, "simulated failure"); return SUCCESS; }
