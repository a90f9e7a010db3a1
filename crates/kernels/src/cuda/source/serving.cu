// Serving: keys and values in blocks of device memory, attention over them, and the deltas of many adapters at once.
//
// A block holds BLOCK_TOKENS tokens: for each layer and group its keys (tokens, D), then its values (tokens, D). Every
// number of a token is computed in an order that its own position gives: neither the other tokens of the step nor the
// pieces in which a prompt came matter.

#define BLOCK_TOKENS 16
// Keys that are scored at a time.
#define KEYS 32
// Tokens of one adapter that share what is read of it.
#define DELTA_TOKENS 8
// Numbers of an adapter's entry.
#define DELTA_ENTRY 5

extern "C" __global__ void add_values(float *target, const float *source, u64 n) {
    FOR_EACH(i, n) target[i] += source[i];
}

// Where the keys of a token of one group begin; its values are BLOCK_TOKENS · D behind.
__device__ inline u64 cached_place(u32 block, u32 token, u32 layers, u32 layer, u32 groups, u32 group, u32 size) {
    u64 part = ((u64)block * layers + layer) * groups + group;
    return (part * 2 * BLOCK_TOKENS + token) * size;
}

// One block a token; `slots` are block · BLOCK_TOKENS + place in the block.
extern "C" __global__ void store_cached(const float *k, const float *v, const u32 *slots, u32 groups, u32 size,
                                        u32 layers, u32 layer, float *cache) {
    u32 slot = slots[blockIdx.x], width = groups * size;
    u64 start = (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        u64 place = cached_place(slot / BLOCK_TOKENS, slot % BLOCK_TOKENS, layers, layer, groups, i / size, size);
        place += i % size;
        cache[place] = k[start + i];
        cache[place + (u64)BLOCK_TOKENS * size] = v[start + i];
    }
}

// Keys or values of up to KEYS tokens from `first` on; what is missing to a whole tile is zero.
__device__ inline void load_cached(const float *cache, const u32 *blocks, u32 first, u32 seen, u32 layers, u32 layer,
                                   u32 groups, u32 group, u32 size, u32 distance, float *tile) {
    for (u32 i = threadIdx.x; i < KEYS * size; i += blockDim.x) {
        u32 row = i / size, column = i % size, token = first + row;
        float value = 0.0f;
        if (token < seen) {
            u32 block = blocks[token / BLOCK_TOKENS];
            value = cache[cached_place(block, token % BLOCK_TOKENS, layers, layer, groups, group, size) + distance +
                          column];
        }
        tile[row * (size + 1) + column] = value;
    }
}

// Grid (tiles, groups). A row of a tile is a new token with one of the `heads / groups` heads that share a group, so
// that one reading of the keys serves them all. `tiles` has five numbers each: the first new token of the sequence in
// the step, the tile's first row among those of the sequence, their number, the tokens that the sequence had before,
// and where its blocks begin in `blocks`.
extern "C" __global__ void cached_attention(const float *q, const float *cache, const u32 *tiles, const u32 *blocks,
                                            u32 heads, u32 groups, u32 size, u32 rows, u32 layers, u32 layer,
                                            float scale, float *output) {
    DYNAMIC_SHARED(shared);
    const u32 *tile = tiles + 5 * blockIdx.x;
    u32 start = tile[0], first = tile[1], count = smaller(rows, tile[2] - first), before = tile[3];
    u32 group = blockIdx.y, shared_by = heads / groups;
    blocks += tile[4];
    Place place;
    place.rows = KEYS; // The columns of the scores.
    place.lanes = blockDim.x / rows;
    place.row = threadIdx.x / place.lanes;
    place.lane = threadIdx.x % place.lanes;
    place.stride = size + 1;
    float *queries = shared;
    float *keys = queries + rows * place.stride;
    float *own = keys + KEYS * place.stride + place.row * (KEYS + 1);
    float sums[PARTS] = {0};
    float maximum = MINUS_INFINITY, total = 0.0f;
    for (u32 i = threadIdx.x; i < rows * size; i += blockDim.x) {
        u32 row = i / size, column = i % size;
        u64 token = (u64)start + (first + row) / shared_by;
        u32 head = group * shared_by + (first + row) % shared_by;
        queries[row * place.stride + column] = row < count ? q[(token * heads + head) * size + column] : 0.0f;
    }
    u32 seen = before + (first + count - 1) / shared_by + 1;
    u32 position = before + (first + place.row) / shared_by;
    for (u32 key = 0; key < seen; key += KEYS) {
        __syncthreads();
        load_cached(cache, blocks, key, seen, layers, layer, groups, group, size, 0, keys);
        __syncthreads();
        for (u32 c = place.lane; c < KEYS; c += place.lanes)
            own[c] = key + c <= position
                         ? scale * row_product(queries + place.row * place.stride, keys + c * place.stride, size)
                         : MINUS_INFINITY;
        __syncthreads();
        // The values take the place of the keys.
        load_cached(cache, blocks, key, seen, layers, layer, groups, group, size, BLOCK_TOKENS * size, keys);
        float greatest = maximum;
        for (u32 c = 0; c < KEYS; c++) greatest = fmaxf(greatest, own[c]);
        float factor = expf(maximum - greatest);
        maximum = greatest;
        __syncthreads();
        for (u32 c = place.lane; c < KEYS; c += place.lanes) own[c] = expf(own[c] - greatest);
        __syncthreads();
        float sum = 0.0f;
        for (u32 c = 0; c < KEYS; c++) sum += own[c];
        total = total * factor + sum;
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) sums[part] *= factor;
        add_rows(own, keys, place, size, sums);
    }
    if (place.row < count) {
        u64 token = (u64)start + (first + place.row) / shared_by;
        u32 head = group * shared_by + (first + place.row) % shared_by;
        store_row(sums, 1.0f / total, (token * heads + head) * size, place, size, output);
    }
}

// The delta of one adapter in one linear layer: addresses of A (rank, inputs), of B transposed (rank, outputs) and of
// the factors of the outputs or 0, the rank with a bit for each matrix in bf16, and the scale.
struct Delta {
    u64 a, b;
    const float *factors;
    u32 rank, first, count;
    bool is_a_narrow, is_b_narrow;
    float scale;
};

// `tiles` has three numbers each: the first token, the number of tokens, the adapter.
__device__ inline Delta delta_of(const u64 *entries, const u32 *tiles) {
    const u32 *tile = tiles + 3 * blockIdx.x;
    const u64 *entry = entries + (u64)DELTA_ENTRY * tile[2];
    Delta delta;
    delta.first = tile[0];
    delta.count = tile[1];
    delta.a = entry[0];
    delta.b = entry[1];
    delta.factors = (const float *)entry[2];
    delta.rank = (u32)entry[3];
    delta.is_a_narrow = entry[3] >> 32 & 1;
    delta.is_b_narrow = entry[3] >> 33 & 1;
    delta.scale = __uint_as_float((u32)entry[4]);
    return delta;
}

__device__ inline float element(u64 values, bool is_narrow, u64 i) {
    return is_narrow ? widen(((const bf16 *)values)[i]) : ((const float *)values)[i];
}

// Grid (tiles, greatest rank): `low (T, stride) = s · x · Aᵀ`.
extern "C" __global__ void delta_down(const float *x, const u64 *entries, const u32 *tiles, u32 inputs, u32 stride,
                                      float *low) {
    __shared__ float scratch[1024];
    Delta delta = delta_of(entries, tiles);
    u32 index = blockIdx.y;
    if (index >= delta.rank) return;
    float sums[DELTA_TOKENS] = {0};
    for (u32 i = threadIdx.x; i < inputs; i += blockDim.x) {
        float value = element(delta.a, delta.is_a_narrow, (u64)index * inputs + i);
#pragma unroll
        for (u32 token = 0; token < DELTA_TOKENS; token++)
            if (token < delta.count) sums[token] += value * x[(u64)(delta.first + token) * inputs + i];
    }
#pragma unroll
    for (u32 token = 0; token < DELTA_TOKENS; token++) {
        if (token >= delta.count) break;
        float sum = block_sum(sums[token], scratch);
        if (threadIdx.x == 0) low[(u64)(delta.first + token) * stride + index] = sum * delta.scale;
    }
}

// Grid (tiles, pieces of the outputs): `y += low · B`, then `y = (y - bias) · factor + bias` where there are factors.
extern "C" __global__ void delta_up(const float *low, const u64 *entries, const u32 *tiles, const float *bias,
                                    u32 outputs, u32 stride, float *y) {
    Delta delta = delta_of(entries, tiles);
    u32 output = blockIdx.y * blockDim.x + threadIdx.x;
    if (output >= outputs || delta.rank == 0) return;
    float sums[DELTA_TOKENS] = {0};
    for (u32 index = 0; index < delta.rank; index++) {
        float value = element(delta.b, delta.is_b_narrow, (u64)index * outputs + output);
#pragma unroll
        for (u32 token = 0; token < DELTA_TOKENS; token++)
            if (token < delta.count) sums[token] += low[(u64)(delta.first + token) * stride + index] * value;
    }
    float offset = bias ? bias[output] : 0.0f;
#pragma unroll
    for (u32 token = 0; token < DELTA_TOKENS; token++) {
        if (token >= delta.count) break;
        float *place = y + (u64)(delta.first + token) * outputs + output;
        float sum = *place + sums[token];
        *place = delta.factors ? (sum - offset) * delta.factors[output] + offset : sum;
    }
}
