/* Stands in for libcuda.so.1 on a machine without a GPU: it checks what it is given, and writes every
   call that loads or launches a kernel to the file STUB_CUDA_LOG, one JSON object a line.

   STUB_CUDA_CAPABILITY (10 * major + minor), STUB_CUDA_MULTIPROCESSORS and STUB_CUDA_CONTEXT (0: none
   is current) set the device; STUB_CUDA_FAIL="cuLaunchKernel:700" lets a function fail. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
#define POINTERS 9
#define INTEGERS 10
#define SCRATCH 2

static long setting(char const* name, long fallback) {
    char const* text = getenv(name);
    return text ? atol(text) : fallback;
}

static Result outcome(char const* function) {
    char const* fail = getenv("STUB_CUDA_FAIL");
    size_t length = strlen(function);
    return fail && !strncmp(fail, function, length) && fail[length] == ':' ? atoi(fail + length + 1) : 0;
}

static FILE* entry(void) { return fopen(getenv("STUB_CUDA_LOG"), "a"); }

Result cuInit(unsigned flags) { return flags ? 1 : outcome("cuInit"); }

Result cuGetErrorString(Result code, char const** text) {
    *text = code == 700 ? "an illegal memory access was encountered" : NULL;
    return *text ? 0 : 1;
}

Result cuCtxGetCurrent(void** context) {
    *context = (void*)setting("STUB_CUDA_CONTEXT", 0xC0);
    return 0;
}

Result cuCtxGetDevice(int* device) {
    *device = 3;
    return 0;
}

Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    long capability = setting("STUB_CUDA_CAPABILITY", 90);
    if (device != 3) return 101; /* CUDA_ERROR_INVALID_DEVICE */
    switch (attribute) {
    case 16: *value = (int)setting("STUB_CUDA_MULTIPROCESSORS", 132); return 0;
    case 75: *value = (int)(capability / 10); return 0;
    case 76: *value = (int)(capability % 10); return 0;
    case 97: *value = 101376; return 0;
    default: return 1;
    }
}

Result cuModuleLoadData(void** module, unsigned char const* image) {
    Result result = outcome("cuModuleLoadData");
    if (result) return result;
    if (memcmp(image, "\177ELF", 4)) return 200; /* CUDA_ERROR_INVALID_IMAGE */
    *module = (void*)image;
    return 0;
}

Result cuModuleGetFunction(void** function, void* module, char const* name) {
    /* A handle of its own for each; the image of an embedded kernel never moves, that of ctypes may. */
    static uintptr_t count = 0x1000;
    FILE* log = entry();
    if (!module || strcmp(name, "otter_linear")) return 500; /* CUDA_ERROR_NOT_FOUND */
    *function = (void*)++count;
    fprintf(log, "{\"call\": \"load\", \"function\": %lu}\n", (unsigned long)count);
    fclose(log);
    return 0;
}

Result cuFuncSetAttribute(void* function, int attribute, int value) {
    FILE* log = entry();
    fprintf(log, "{\"call\": \"attribute\", \"function\": %lu, \"attribute\": %d, \"value\": %d}\n",
            (unsigned long)(uintptr_t)function, attribute, value);
    fclose(log);
    return 0;
}

Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned shared, void* stream, void** arguments, void** extra) {
    Result result = outcome("cuLaunchKernel");
    FILE* log = entry();
    int i;
    if (result || extra) return result ? result : 1;
    fprintf(log, "{\"call\": \"launch\", \"function\": %lu, \"grid\": [%u, %u, %u], ",
            (unsigned long)(uintptr_t)function, gx, gy, gz);
    fprintf(log, "\"block\": [%u, %u, %u], \"shared\": %u, \"stream\": %lu, \"pointers\": [", bx, by, bz,
            shared, (unsigned long)(uintptr_t)stream);
    for (i = 0; i < POINTERS + SCRATCH + INTEGERS; ++i) {
        if (i >= POINTERS && i < POINTERS + INTEGERS)
            fprintf(log, "%s%d", i == POINTERS ? "], \"integers\": [" : ", ", *(int32_t*)arguments[i]);
        else
            fprintf(log, "%s%lu", i == 0 ? "" : i == POINTERS + INTEGERS ? "], \"scratch\": [" : ", ",
                    (unsigned long)*(uintptr_t*)arguments[i]);
    }
    fprintf(log, "]}\n");
    fclose(log);
    return 0;
}

/* How cuda-bindings finds the functions of a driver; those that are not here do not exist. */
Result cuGetProcAddress_v2(char const* name, void** function, int version, uint64_t flags, int* status) {
    static struct {
        char const* name;
        void* function;
    } const known[] = {
        {"cuInit", (void*)cuInit},
        {"cuGetErrorString", (void*)cuGetErrorString},
        {"cuCtxGetCurrent", (void*)cuCtxGetCurrent},
        {"cuCtxGetDevice", (void*)cuCtxGetDevice},
        {"cuDeviceGetAttribute", (void*)cuDeviceGetAttribute},
        {"cuModuleLoadData", (void*)cuModuleLoadData},
        {"cuModuleGetFunction", (void*)cuModuleGetFunction},
        {"cuFuncSetAttribute", (void*)cuFuncSetAttribute},
        {"cuLaunchKernel", (void*)cuLaunchKernel},
        {"cuGetProcAddress", (void*)cuGetProcAddress_v2},
        {"cuGetProcAddress_v2", (void*)cuGetProcAddress_v2},
    };
    size_t i;
    (void)version, (void)flags;
    *function = NULL;
    for (i = 0; i < sizeof known / sizeof *known; ++i)
        if (!strcmp(name, known[i].name)) *function = known[i].function;
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500; /* CUDA_ERROR_NOT_FOUND */
}
