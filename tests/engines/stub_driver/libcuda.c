/* A stand-in for NVIDIA's driver, over host memory: what cuda-core calls of it, and faults on demand.

   Everything queued is done at once, or recorded where the stream captures, and done when the graph is launched. As in
   the real one, a call that fails on a capturing stream invalidates the capture, and memory that the graph did not
   allocate cannot be freed on it. The functions at the end are for tests: they count what lives and order faults. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef struct Graph { struct Copy *first, **last; } Graph;
typedef struct Copy { void *target; const void *source; size_t size; struct Copy *next; } Copy;
typedef struct Stream { int capturing; Graph *graph; } Stream; /* 0: no, 1: yes, 2: invalidated */
typedef struct Pool { uint64_t threshold, used, reserved; } Pool;
typedef struct Block { void *address; size_t size; Pool *pool; struct Block *next; } Block;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_SUPPORTED = 801, ILLEGAL_ADDRESS = 700,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CONTEXT = 0x1000 };
static const size_t TOTAL = (size_t)16 << 30;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread void *current;
static Block *blocks;
static Pool default_pool;
static long events, streams, pools, graphs, execs, captures, event_flags, frees_refused;
static int version = 13000, fault_after, fault_code;
static char fault_in[64];

/* Whether this call of a function is the one that was ordered to fail. */
static Result fault(const char *name) {
    if (fault_code && !strcmp(name, fault_in) && fault_after-- <= 1) {
        Result code = fault_code;
        fault_code = 0;
        return code;
    }
    return OK;
}

static Result on(Stream *stream, Result code) { /* what an error leaves of a capture */
    if (code && stream && (uintptr_t)stream > 2 && stream->capturing) stream->capturing = 2;
    return code;
}

#define FAULT(stream) do { Result code = fault(__func__); if (code) return on(stream, code); } while (0)

Result cuInit(unsigned flags) { (void)flags; FAULT(NULL); return OK; }
Result cuDriverGetVersion(int *out) { *out = version; return OK; }
Result cuDeviceGetCount(int *out) { *out = 1; return OK; }
Result cuDeviceGet(int *out, int ordinal) { *out = ordinal; return ordinal ? 101 : OK; }
Result cuDeviceGetName(char *out, int size, int device) { (void)device; snprintf(out, size, "Stub"); return OK; }
Result cuDeviceGetAttribute(int *out, int attribute, int device) {
    (void)device;
    *out = attribute == 75 ? 8 : attribute == 76 ? 9 : 1; /* compute capability 8.9; all that is asked of is there */
    return OK;
}
Result cuDevicePrimaryCtxRetain(void **out, int device) { (void)device; *out = (void *)CONTEXT; return OK; }
Result cuDevicePrimaryCtxRelease(int device) { (void)device; return OK; }
Result cuCtxGetCurrent(void **out) { *out = current; return OK; }
Result cuCtxSetCurrent(void *context) { current = context; return OK; }
Result cuCtxPushCurrent(void *context) { current = context; return OK; }
Result cuCtxPopCurrent(void **out) { *out = current; return OK; }
Result cuCtxGetDevice(int *out) { *out = 0; return current ? OK : 201; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }
Result cuGetErrorName(Result code, const char **out) {
    *out = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
         : code == CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
         : code == CAPTURE_INVALIDATED ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
         : code == NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED" : "CUDA_ERROR_INVALID_VALUE";
    return OK;
}
Result cuGetErrorString(Result code, const char **out) { (void)code; *out = "as the test ordered"; return OK; }

/* Memory */

Result cuMemGetInfo(size_t *free_bytes, size_t *total) {
    pthread_mutex_lock(&lock);
    size_t taken = default_pool.reserved;
    for (Block *block = blocks; block; block = block->next) taken += block->pool == &default_pool ? 0 : block->size;
    pthread_mutex_unlock(&lock);
    *free_bytes = TOTAL - taken;
    *total = TOTAL;
    FAULT(NULL);
    return OK;
}
Result cuMemPoolCreate(Pool **out, const void *properties) {
    (void)properties;
    FAULT(NULL);
    *out = calloc(1, sizeof(Pool));
    __atomic_add_fetch(&pools, 1, __ATOMIC_SEQ_CST);
    return OK;
}
Result cuMemPoolDestroy(Pool *pool) { (void)pool; __atomic_sub_fetch(&pools, 1, __ATOMIC_SEQ_CST); return OK; }
Result cuMemPoolSetAccess(Pool *pool, const void *map, size_t count) { (void)pool, (void)map, (void)count; return OK; }
Result cuDeviceGetDefaultMemPool(Pool **out, int device) { (void)device; *out = &default_pool; return OK; }
Result cuDeviceGetMemPool(Pool **out, int device) { (void)device; *out = &default_pool; return OK; }
Result cuMemGetMemPool(Pool **out, void *location, int type) { (void)location, (void)type; *out = &default_pool; return OK; }
Result cuMemPoolGetAttribute(Pool *pool, int attribute, uint64_t *out) {
    *out = attribute == 4 ? pool->threshold : attribute == 5 ? pool->reserved : attribute == 7 ? pool->used : 0;
    return OK;
}
Result cuMemPoolSetAttribute(Pool *pool, int attribute, const uint64_t *value) {
    if (attribute == 4) pool->threshold = *value;
    return OK;
}
Result cuMemAllocFromPoolAsync(void **out, size_t size, Pool *pool, Stream *stream) {
    FAULT(stream);
    if (size > TOTAL) return on(stream, OUT_OF_MEMORY);
    Block *block = malloc(sizeof(Block));
    *block = (Block){aligned_alloc(512, (size + 511) / 512 * 512), size, pool, NULL};
    memset(block->address, 0xFF, size);
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pool->used += size;
    if (pool->reserved < pool->used) pool->reserved = pool->used;
    pthread_mutex_unlock(&lock);
    *out = block->address;
    return OK;
}
Result cuMemFreeAsync(void *address, Stream *stream) {
    FAULT(stream);
    if (stream->capturing) {
        __atomic_add_fetch(&frees_refused, 1, __ATOMIC_SEQ_CST);
        return on(stream, INVALID_VALUE);
    }
    pthread_mutex_lock(&lock);
    Block **place = &blocks;
    while (*place && (*place)->address != address) place = &(*place)->next;
    Block *block = *place;
    if (block) {
        *place = block->next;
        block->pool->used -= block->size;
        if (!block->pool->threshold) block->pool->reserved = block->pool->used;
        memset(block->address, 0xFF, block->size);
        free(block->address);
        free(block);
    }
    pthread_mutex_unlock(&lock);
    return block ? OK : INVALID_VALUE;
}
Result cuMemcpyAsync(void *target, const void *source, size_t size, Stream *stream) {
    FAULT(stream);
    if (stream->capturing == 2) return CAPTURE_INVALIDATED;
    if (!stream->capturing) {
        memmove(target, source, size);
        return OK;
    }
    Copy *copy = malloc(sizeof(Copy));
    *copy = (Copy){target, source, size, NULL};
    *stream->graph->last = copy;
    stream->graph->last = &copy->next;
    return OK;
}
/* 2: of a device, in its memory or on its stream; 1: the host's */
Result cuPointerGetAttribute(int *ordinal, int attribute, void *address) { /* all memory is of device 0 */
    (void)address;
    if (attribute != 9) return INVALID_VALUE; /* CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL */
    *ordinal = 0;
    return OK;
}
Result cuPointerGetAttributes(unsigned count, const int *attributes, void **out, void *address) {
    pthread_mutex_lock(&lock);
    Block *block = blocks;
    while (block && ((char *)address < (char *)block->address || (char *)address >= (char *)block->address + block->size))
        block = block->next;
    pthread_mutex_unlock(&lock);
    for (unsigned index = 0; index < count; index++) /* memory type, whether managed, ordinal */
        *(int *)out[index] = attributes[index] == 2 ? (block ? 2 : 0) : 0;
    return OK;
}

/* Streams and events */

Result cuStreamCreateWithPriority(Stream **out, unsigned flags, int priority) {
    (void)flags, (void)priority;
    FAULT(NULL);
    *out = calloc(1, sizeof(Stream));
    __atomic_add_fetch(&streams, 1, __ATOMIC_SEQ_CST);
    return OK;
}
Result cuStreamDestroy(Stream *stream) { (void)stream; __atomic_sub_fetch(&streams, 1, __ATOMIC_SEQ_CST); return OK; }
Result cuStreamGetCtx(Stream *stream, void **out) { (void)stream; *out = (void *)CONTEXT; return OK; }
Result cuStreamGetDevice(Stream *stream, int *out) { (void)stream; *out = 0; return OK; }
Result cuStreamSynchronize(Stream *stream) { FAULT(stream); return stream->capturing ? on(stream, CAPTURE_UNSUPPORTED) : OK; }
Result cuStreamWaitEvent(Stream *stream, void *event, unsigned flags) { (void)event, (void)flags; FAULT(stream); return OK; }
Result cuEventCreate(void **out, unsigned flags) {
    FAULT(NULL);
    *out = malloc(1);
    event_flags = flags;
    __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
    return OK;
}
Result cuEventDestroy(void *event) { free(event); __atomic_sub_fetch(&events, 1, __ATOMIC_SEQ_CST); return OK; }
Result cuEventRecord(void *event, Stream *stream) { (void)event; FAULT(stream); return OK; }
Result cuEventSynchronize(void *event) { (void)event; FAULT(NULL); return OK; }

/* Graphs */

static Graph *new_graph(void) {
    Graph *graph = calloc(1, sizeof(Graph));
    graph->last = &graph->first;
    __atomic_add_fetch(&graphs, 1, __ATOMIC_SEQ_CST);
    return graph;
}
Result cuStreamBeginCapture(Stream *stream, int mode) {
    (void)mode;
    FAULT(NULL);
    if (stream->capturing) return INVALID_VALUE;
    *stream = (Stream){1, new_graph()};
    __atomic_add_fetch(&captures, 1, __ATOMIC_SEQ_CST);
    return OK;
}
Result cuStreamIsCapturing(Stream *stream, int *out) { *out = stream->capturing; return OK; }
Result cuStreamGetCaptureInfo(Stream *stream, int *status, uint64_t *id, Graph **graph, const void **nodes,
                              const void **edges, size_t *count) {
    (void)nodes, (void)edges;
    if (status) *status = stream->capturing;
    if (id) *id = 1;
    if (graph) *graph = stream->graph;
    if (count) *count = 0;
    return OK;
}
Result cuStreamEndCapture(Stream *stream, Graph **out) {
    Result code = fault(__func__);
    if (!stream->capturing) return INVALID_VALUE;
    if (stream->capturing == 2) code = CAPTURE_INVALIDATED;
    if (out) *out = code ? NULL : stream->graph;
    *stream = (Stream){0, NULL};
    __atomic_sub_fetch(&captures, 1, __ATOMIC_SEQ_CST);
    return code;
}
Result cuGraphDestroy(Graph *graph) { (void)graph; __atomic_sub_fetch(&graphs, 1, __ATOMIC_SEQ_CST); return OK; }
Result cuGraphInstantiateWithParams(Graph **out, Graph *graph, void *parameters) {
    FAULT(NULL);
    memset((char *)parameters + 24, 0, sizeof(int)); /* result_out: success */
    *out = graph; /* what was recorded stays, though the graph is destroyed */
    __atomic_add_fetch(&execs, 1, __ATOMIC_SEQ_CST);
    return OK;
}
Result cuGraphExecDestroy(Graph *exec) { (void)exec; __atomic_sub_fetch(&execs, 1, __ATOMIC_SEQ_CST); return OK; }
Result cuGraphLaunch(Graph *exec, Stream *stream) {
    FAULT(stream);
    for (Copy *copy = exec->first; copy; copy = copy->next) memmove(copy->target, copy->source, copy->size);
    return OK;
}

/* What cuda-core ties to a graph, to be told of its end: nothing here ends by itself */
Result cuUserObjectCreate(void **out, void *what, void (*destroy)(void *), unsigned references, unsigned flags) {
    (void)what, (void)destroy, (void)references, (void)flags;
    *out = (void *)CONTEXT;
    return OK;
}
Result cuUserObjectRelease(void *object, unsigned count) { (void)object, (void)count; return OK; }
Result cuGraphRetainUserObject(Graph *graph, void *object, unsigned count, unsigned flags) {
    (void)graph, (void)object, (void)count, (void)flags;
    return OK;
}
Result cuGraphReleaseUserObject(Graph *graph, void *object, unsigned count) {
    (void)graph, (void)object, (void)count;
    return OK;
}

/* How cuda-bindings finds all of the above */

static Result not_here(void) { return NOT_SUPPORTED; }

#define ROW(name) {#name, (void *)name}
static const struct { const char *name; void *function; } table[] = {
    ROW(cuInit), ROW(cuDriverGetVersion), ROW(cuDeviceGetCount), ROW(cuDeviceGet), ROW(cuDeviceGetName),
    ROW(cuDeviceGetAttribute), ROW(cuDevicePrimaryCtxRetain), ROW(cuDevicePrimaryCtxRelease), ROW(cuCtxGetCurrent),
    ROW(cuCtxSetCurrent), ROW(cuCtxPushCurrent), ROW(cuCtxPopCurrent), ROW(cuCtxGetDevice),
    ROW(cuCtxGetStreamPriorityRange), ROW(cuGetErrorName), ROW(cuGetErrorString), ROW(cuMemGetInfo),
    ROW(cuMemPoolCreate), ROW(cuMemPoolDestroy), ROW(cuMemPoolSetAccess), ROW(cuDeviceGetDefaultMemPool),
    ROW(cuDeviceGetMemPool), ROW(cuMemGetMemPool), ROW(cuMemPoolGetAttribute), ROW(cuMemPoolSetAttribute),
    ROW(cuMemAllocFromPoolAsync), ROW(cuMemFreeAsync), ROW(cuMemcpyAsync), ROW(cuPointerGetAttributes),
    ROW(cuPointerGetAttribute),
    ROW(cuStreamCreateWithPriority), ROW(cuStreamDestroy), ROW(cuStreamGetCtx), ROW(cuStreamGetDevice),
    ROW(cuStreamSynchronize), ROW(cuStreamWaitEvent), ROW(cuEventCreate), ROW(cuEventDestroy), ROW(cuEventRecord),
    ROW(cuEventSynchronize), ROW(cuStreamBeginCapture), ROW(cuStreamIsCapturing), ROW(cuStreamGetCaptureInfo),
    ROW(cuStreamEndCapture), ROW(cuGraphDestroy), ROW(cuGraphInstantiateWithParams), ROW(cuGraphExecDestroy),
    ROW(cuGraphLaunch), ROW(cuUserObjectCreate), ROW(cuUserObjectRelease), ROW(cuGraphRetainUserObject),
    ROW(cuGraphReleaseUserObject),
};

Result cuGetProcAddress_v2(const char *name, void **out, int cuda_version, uint64_t flags, int *status) {
    (void)cuda_version, (void)flags;
    if (status) *status = 0;
    *out = (void *)not_here;
    for (size_t row = 0; row < sizeof(table) / sizeof(*table); row++)
        if (!strcmp(table[row].name, name)) *out = table[row].function;
    return OK;
}

/* For tests */

void stub_fail(const char *function, int call, Result code) { /* the call-th call from now on gives this code */
    snprintf(fault_in, sizeof fault_in, "%s", function);
    fault_after = call;
    fault_code = code;
}
int stub_fault_is_pending(void) { return fault_code; }
void stub_set_version(int of) { version = of; }
uint64_t stub_default_threshold(void) { return default_pool.threshold; }
long stub_count(const char *what) {
    long live = 0;
    if (!strcmp(what, "allocations")) for (Block *block = blocks; block; block = block->next) live++;
    else live = !strcmp(what, "events") ? events : !strcmp(what, "captures") ? captures
              : !strcmp(what, "graphs") ? execs : !strcmp(what, "streams") ? streams : !strcmp(what, "pools") ? pools
              : !strcmp(what, "event flags") ? event_flags : !strcmp(what, "refused frees") ? frees_refused : -1;
    return live;
}
