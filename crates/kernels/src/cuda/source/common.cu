// Types, rounding, random numbers and sums that the other files share.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Shared memory whose size the launch gives.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ float name[]
#endif

#define NOT_A_NUMBER __uint_as_float(0x7fc00000u)
#define MINUS_INFINITY __uint_as_float(0xff800000u)

// Visits every element of 0..n once, whatever the size of the grid.
#define FOR_EACH(index, n)                                                                   \
    for (u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x; index < (n);                \
         index += (u64)gridDim.x * blockDim.x)

__device__ inline u32 smaller(u32 left, u32 right) { return left < right ? left : right; }

__device__ inline float widen(bf16 value) { return __uint_as_float((u32)value << 16); }

// To nearest even; what is not a number stays so.
__device__ inline bf16 narrow(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The finaliser of SplitMix64, as in the processor's noise.
__device__ inline u64 mix(u64 value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

// Element `index` of stream `key`, in [0, 1).
__device__ inline float uniform(u64 key, u64 index) {
    u64 bits = mix(key + index * 0x9e3779b97f4a7c15ull);
    return (float)(u32)(bits >> 40) * (1.0f / 16777216.0f);
}

// The sum over the block in a fixed order; every thread gets it. `scratch` has one place a thread, and the number of
// threads is a power of two.
__device__ inline float block_sum(float value, float *scratch) {
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
        __syncthreads();
    }
    float sum = scratch[0];
    __syncthreads();
    return sum;
}

__device__ inline float block_maximum(float value, float *scratch) {
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            scratch[threadIdx.x] = fmaxf(scratch[threadIdx.x], scratch[threadIdx.x + half]);
        __syncthreads();
    }
    float maximum = scratch[0];
    __syncthreads();
    return maximum;
}
