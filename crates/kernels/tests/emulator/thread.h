// What CUDA C gives a kernel, for one processor thread: the threads of a block are fibres that take turns at every
// `__syncthreads`. Compiled in front of the text of the kernels.
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct Triple {
    unsigned x, y, z;
};

static Triple gridDim, blockDim, blockIdx, threadIdx;
static float *emulated_shared_memory;
#define DYNAMIC_SHARED(name) float *name = emulated_shared_memory

static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

namespace emulated {

const size_t STACK = 64 * 1024;
const unsigned MOST_THREADS = 1024;

// Fibres are made once and run a thread of one block after the other: only the first start is slow.
struct Fibre {
    jmp_buf place;
    bool begun, waiting, done;
};

static Fibre fibres[MOST_THREADS];
static char *stacks;
static jmp_buf scheduler;
static unsigned current;
static void (*work)(void **);
static void **arguments;

// Back to the scheduler, until it goes on here.
static void give_way() {
    if (_setjmp(fibres[current].place) == 0) _longjmp(scheduler, 1);
}

static void enter() {
    for (;;) {
        work(arguments);
        fibres[current].done = true;
        give_way();
    }
}

static void resume(unsigned thread) {
    current = thread;
    threadIdx = {thread, 0, 0};
    Fibre &fibre = fibres[thread];
    fibre.waiting = false;
    if (_setjmp(scheduler) != 0) return;
    if (fibre.begun) _longjmp(fibre.place, 1);
    fibre.begun = true;
    if (!stacks) stacks = (char *)malloc(MOST_THREADS * STACK);
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = stacks + thread * STACK;
    start.uc_stack.ss_size = STACK;
    start.uc_link = nullptr;
    makecontext(&start, enter, 0);
    setcontext(&start);
}

// Runs one block; false if some threads wait at a barrier that others never reach.
static bool run_block() {
    unsigned count = blockDim.x;
    for (unsigned i = 0; i < count; i++) fibres[i].waiting = fibres[i].done = false;
    for (;;) {
        unsigned waiting = 0, done = 0;
        for (unsigned i = 0; i < count; i++) {
            // A result that depends on the order lacks a barrier; tests compare both.
#ifdef REVERSED
            unsigned thread = count - 1 - i;
#else
            unsigned thread = i;
#endif
            if (!fibres[thread].done) resume(thread);
            waiting += fibres[thread].waiting;
            done += fibres[thread].done;
        }
        if (done == count) return true;
        if (waiting != count) {
            for (Fibre &fibre : fibres) fibre.begun = false;
            return false;
        }
    }
}

template <class... Types, size_t... Index>
static void call(void (*kernel)(Types...), void **values, std::index_sequence<Index...>) {
    kernel(*(Types *)values[Index]...);
}

template <class... Types> static void call(void (*kernel)(Types...), void **values) {
    call(kernel, values, std::index_sequence_for<Types...>());
}

} // namespace emulated

static inline void __syncthreads() {
    emulated::fibres[emulated::current].waiting = true;
    emulated::give_way();
}

// The emulated driver calls this: every block of a launch, one after the other.
extern "C" int emulated_launch(void (*work)(void **), void **arguments, const unsigned *grid, unsigned threads,
                               unsigned shared_bytes) {
    // One launch at a time: what a thread of a block sees is global.
    static std::mutex guard;
    std::lock_guard<std::mutex> lock(guard);
    std::vector<float> memory(shared_bytes / 4 + 1);
    emulated::work = work;
    emulated::arguments = arguments;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                // Shared memory begins with anything.
                for (float &value : memory) value = __uint_as_float(0x7fc0dead);
                emulated_shared_memory = memory.data();
                if (!emulated::run_block()) return 1;
            }
    return 0;
}

#define LAUNCHER(name)                                                                                                \
    extern "C" void launch_##name(void **values) { emulated::call(name, values); }
