// The driver's functions that the backend calls, over the processor's memory. Stricter than a GPU: device memory begins
// as NaN, ends at a page that must not be touched, and copies outside an allocation fail.
#include <cstdint>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

static const size_t TOTAL = size_t(1) << 31;
static std::mutex guard;
static size_t used;

struct Allocation {
    void *map;
    size_t mapped, bytes;
};

static std::map<uint64_t, Allocation> allocations;

static bool holds(uint64_t address, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard);
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return false;
    --next;
    return address + bytes <= next->first + next->second.bytes;
}

typedef int (*Launch)(void (*)(void **), void **, const unsigned *, unsigned, unsigned);

struct Function {
    Launch launch;
    void (*work)(void **);
};

extern "C" {

int cuInit(unsigned) { return SUCCESS; }

int cuDriverGetVersion(int *version) {
    *version = 12040;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetName(char *name, int length, int) {
    strncpy(name, "emulated device", length);
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == 75 ? 9 : 0;
    return attribute == 75 || attribute == 76 ? SUCCESS : INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &used;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuCtxSetCurrent(void *context) { return context == &used ? SUCCESS : INVALID_VALUE; }

int cuCtxSynchronize() { return SUCCESS; }

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    std::lock_guard<std::mutex> lock(guard);
    *free = TOTAL - used;
    *total = TOTAL;
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    std::lock_guard<std::mutex> lock(guard);
    if (used + bytes > TOTAL) return OUT_OF_MEMORY;
    size_t page = sysconf(_SC_PAGESIZE);
    size_t rounded = (bytes + 15) / 16 * 16;
    size_t mapped = (rounded + page - 1) / page * page + page;
    char *map = (char *)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(map + mapped - page, page, PROT_NONE);
    char *start = map + mapped - page - rounded;
    memset(start, 0xff, rounded);
    *address = (uint64_t)start;
    allocations[*address] = {map, mapped, bytes};
    used += bytes;
    return SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
    std::lock_guard<std::mutex> lock(guard);
    auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    used -= found->second.bytes;
    munmap(found->second.map, found->second.mapped);
    allocations.erase(found);
    return SUCCESS;
}

int cuMemcpyHtoD_v2(uint64_t target, const void *source, size_t bytes) {
    if (!holds(target, bytes)) return INVALID_VALUE;
    memcpy((void *)target, source, bytes);
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *target, uint64_t source, size_t bytes) {
    if (!holds(source, bytes)) return INVALID_VALUE;
    memcpy(target, (const void *)source, bytes);
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t bytes, void *) {
    if (!holds(target, bytes) || !holds(source, bytes)) return INVALID_VALUE;
    memcpy((void *)target, (const void *)source, bytes);
    return SUCCESS;
}

int cuMemsetD8Async(uint64_t target, unsigned char value, size_t bytes, void *) {
    if (!holds(target, bytes)) return INVALID_VALUE;
    memset((void *)target, value, bytes);
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
    // The emulated compiler's image is the path of a library.
    *module = dlopen((const char *)image, RTLD_NOW | RTLD_LOCAL);
    return *module ? SUCCESS : INVALID_IMAGE;
}

int cuModuleUnload(void *module) { return dlclose(module) == 0 ? SUCCESS : INVALID_VALUE; }

int cuModuleGetFunction(void **function, void *module, const char *name) {
    // Functions live as long as the process, as there are few.
    Function *found = new Function;
    found->launch = (Launch)dlsym(module, "emulated_launch");
    found->work = (void (*)(void **))dlsym(module, (std::string("launch_") + name).c_str());
    *function = found;
    return found->launch && found->work ? SUCCESS : NOT_FOUND;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared_bytes, void *, void **arguments, void **) {
    if (!x || x > 0x7fffffff || !y || y > 65535 || !z || z > 65535) return INVALID_VALUE;
    if (!threads || threads > 1024 || threads_y != 1 || threads_z != 1 || shared_bytes > 48 * 1024) return INVALID_VALUE;
    unsigned grid[3] = {x, y, z};
    Function *known = (Function *)function;
    return known->launch(known->work, arguments, grid, threads, shared_bytes) ? LAUNCH_FAILED : SUCCESS;
}

int cuGetErrorName(int error, const char **name) {
    switch (error) {
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    default: *name = "CUDA_ERROR_OTHER";
    }
    return SUCCESS;
}
}
