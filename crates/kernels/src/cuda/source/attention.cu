// Attention with grouped queries over packed segments, in tiles: no matrix of scores is ever in device memory. It is
// causal, or every token sees its `whole` segment.
//
// `table` has three numbers for each tile of at most `rows` tokens: the first token of its segment, the tile's place in
// the segment, and the segment's length. A block has `rows · lanes` threads; a row of a tile belongs to `lanes` of them,
// which share its scores and its elements, at most PARTS elements each. Sums are in a fixed order.

#define PARTS 8

struct Place {
    u32 rows, lanes, row, lane, stride, start, first, length, count;
    // Tokens of the segment, from its first, that the thread's row sees, and that some row of the tile sees.
    u32 sight, seen;
    // The first tokens of the segment that see the thread's row, and some row of the tile.
    u32 seen_from, tile_seen_from;
};

__device__ inline Place place_of(const u32 *table, u32 rows, u32 size, u32 whole) {
    Place place;
    place.rows = rows;
    place.lanes = blockDim.x / rows;
    place.row = threadIdx.x / place.lanes;
    place.lane = threadIdx.x % place.lanes;
    place.stride = size + 1; // Odd distances keep rows in different banks.
    place.start = table[3 * blockIdx.x];
    place.first = table[3 * blockIdx.x + 1];
    place.length = table[3 * blockIdx.x + 2];
    place.count = smaller(rows, place.length - place.first);
    place.sight = whole ? place.length : place.first + place.row + 1;
    place.seen = whole ? place.length : place.first + place.count;
    place.seen_from = whole ? 0 : place.first + place.row;
    place.tile_seen_from = whole ? 0 : place.first;
    return place;
}

// One head of `count` tokens; what is missing to a whole tile is zero.
__device__ inline void load_tile(const float *source, u64 token, u32 count, u32 width, u32 offset, u32 size, u32 rows,
                                 float *tile) {
    for (u32 i = threadIdx.x; i < rows * size; i += blockDim.x) {
        u32 row = i / size, column = i % size;
        tile[row * (size + 1) + column] = row < count ? source[(token + row) * width + offset + column] : 0.0f;
    }
}

__device__ inline float row_product(const float *left, const float *right, u32 size) {
    float sum = 0.0f;
    for (u32 i = 0; i < size; i++) sum += left[i] * right[i];
    return sum;
}

// `sums += Σ factors[c] · tile[c]`, for the elements of this thread.
__device__ inline void add_rows(const float *factors, const float *tile, const Place &place, u32 size, float *sums) {
    for (u32 column = 0; column < place.rows; column++) {
        float factor = factors[column];
        const float *row = tile + column * place.stride;
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            u32 i = place.lane + part * place.lanes;
            if (i < size) sums[part] += factor * row[i];
        }
    }
}

__device__ inline void store_row(const float *sums, float factor, u64 start, const Place &place, u32 size,
                                 float *target) {
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        u32 i = place.lane + part * place.lanes;
        if (i < size) target[start + i] = sums[part] * factor;
    }
}

// Grid (tiles, heads). Logarithms of the softmax sums are (T, heads).
extern "C" __global__ void attention_forward(const float *q, const float *k, const float *v, const u32 *table,
                                             u32 heads, u32 groups, u32 size, u32 rows, float scale, u32 whole,
                                             float *output, float *log_sums) {
    DYNAMIC_SHARED(shared);
    Place place = place_of(table, rows, size, whole);
    u32 head = blockIdx.y, group = head * groups / heads;
    u32 query_width = heads * size, key_width = groups * size;
    float *queries = shared;
    float *keys = queries + rows * place.stride;
    float *scores = keys + rows * place.stride;
    float *own = scores + place.row * (rows + 1);
    float sums[PARTS] = {0};
    float maximum = MINUS_INFINITY, total = 0.0f;
    load_tile(q, (u64)place.start + place.first, place.count, query_width, head * size, size, rows, queries);
    for (u32 key = 0; key < place.seen; key += rows) {
        u32 count = smaller(rows, place.seen - key);
        u64 token = (u64)place.start + key;
        __syncthreads();
        load_tile(k, token, count, key_width, group * size, size, rows, keys);
        __syncthreads();
        for (u32 c = place.lane; c < rows; c += place.lanes) {
            own[c] = key + c < place.sight
                         ? scale * row_product(queries + place.row * place.stride, keys + c * place.stride, size)
                         : MINUS_INFINITY;
        }
        __syncthreads();
        // The values take the place of the keys.
        load_tile(v, token, count, key_width, group * size, size, rows, keys);
        float greatest = maximum;
        for (u32 c = 0; c < rows; c++) greatest = fmaxf(greatest, own[c]);
        float factor = expf(maximum - greatest);
        maximum = greatest;
        __syncthreads();
        for (u32 c = place.lane; c < rows; c += place.lanes) own[c] = expf(own[c] - greatest);
        __syncthreads();
        float sum = 0.0f;
        for (u32 c = 0; c < rows; c++) sum += own[c];
        total = total * factor + sum;
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) sums[part] *= factor;
        add_rows(own, keys, place, size, sums);
    }
    if (place.row < place.count) {
        u64 token = (u64)place.start + place.first + place.row;
        store_row(sums, 1.0f / total, token * query_width + head * size, place, size, output);
        if (place.lane == 0) log_sums[token * heads + head] = maximum + logf(total);
    }
}

// Grid (tiles, heads): gradients of the queries of a tile. `deltas (T, heads)` are the products of output and gradient.
extern "C" __global__ void attention_backward_queries(const float *q, const float *k, const float *v,
                                                      const float *doutput, const float *log_sums,
                                                      const float *deltas, const u32 *table, u32 heads, u32 groups,
                                                      u32 size, u32 rows, float scale, u32 whole, float *dq) {
    DYNAMIC_SHARED(shared);
    Place place = place_of(table, rows, size, whole);
    u32 head = blockIdx.y, group = head * groups / heads;
    u32 query_width = heads * size, key_width = groups * size;
    u32 tile = rows * place.stride;
    float *queries = shared, *gradients = queries + tile, *keys = gradients + tile, *values = keys + tile;
    float *own = values + tile + place.row * (rows + 1);
    float sums[PARTS] = {0};
    u64 query = (u64)place.start + place.first;
    load_tile(q, query, place.count, query_width, head * size, size, rows, queries);
    load_tile(doutput, query, place.count, query_width, head * size, size, rows, gradients);
    float log_sum = 0.0f, delta = 0.0f;
    if (place.row < place.count) {
        log_sum = log_sums[(query + place.row) * heads + head];
        delta = deltas[(query + place.row) * heads + head];
    }
    for (u32 key = 0; key < place.seen; key += rows) {
        u32 count = smaller(rows, place.seen - key);
        u64 token = (u64)place.start + key;
        __syncthreads();
        load_tile(k, token, count, key_width, group * size, size, rows, keys);
        load_tile(v, token, count, key_width, group * size, size, rows, values);
        __syncthreads();
        for (u32 c = place.lane; c < rows; c += place.lanes) {
            float gradient = 0.0f;
            if (place.row < place.count && key + c < place.sight) {
                const float *query_row = queries + place.row * place.stride;
                const float *gradient_row = gradients + place.row * place.stride;
                float score = row_product(query_row, keys + c * place.stride, size);
                float product = row_product(gradient_row, values + c * place.stride, size);
                gradient = expf(score * scale - log_sum) * (product - delta) * scale;
            }
            own[c] = gradient;
        }
        __syncthreads();
        add_rows(own, keys, place, size, sums);
    }
    if (place.row < place.count)
        store_row(sums, 1.0f, (query + place.row) * query_width + head * size, place, size, dq);
}

// Grid (tiles, groups): gradients of the keys and values of a tile, from all queries that see them.
extern "C" __global__ void attention_backward_keys(const float *q, const float *k, const float *v,
                                                   const float *doutput, const float *log_sums, const float *deltas,
                                                   const u32 *table, u32 heads, u32 groups, u32 size, u32 rows,
                                                   float scale, u32 whole, float *dk, float *dv) {
    DYNAMIC_SHARED(shared);
    Place place = place_of(table, rows, size, whole);
    u32 group = blockIdx.y, shared_by = heads / groups;
    u32 query_width = heads * size, key_width = groups * size;
    u32 tile = rows * place.stride;
    float *keys = shared, *values = keys + tile, *queries = values + tile, *gradients = queries + tile;
    float *probabilities = gradients + tile + place.row * (rows + 1);
    float *slopes = probabilities + rows * (rows + 1);
    float key_sums[PARTS] = {0}, value_sums[PARTS] = {0};
    u64 own = (u64)place.start + place.first;
    load_tile(k, own, place.count, key_width, group * size, size, rows, keys);
    load_tile(v, own, place.count, key_width, group * size, size, rows, values);
    for (u32 head = group * shared_by; head < (group + 1) * shared_by; head++) {
        for (u32 query = place.tile_seen_from; query < place.length; query += rows) {
            u32 count = smaller(rows, place.length - query);
            u64 token = (u64)place.start + query;
            __syncthreads();
            load_tile(q, token, count, query_width, head * size, size, rows, queries);
            load_tile(doutput, token, count, query_width, head * size, size, rows, gradients);
            __syncthreads();
            for (u32 c = place.lane; c < rows; c += place.lanes) {
                float probability = 0.0f, slope = 0.0f;
                if (place.row < place.count && c < count && place.seen_from <= query + c) {
                    float score = row_product(keys + place.row * place.stride, queries + c * place.stride, size);
                    float product = row_product(values + place.row * place.stride, gradients + c * place.stride, size);
                    probability = expf(score * scale - log_sums[(token + c) * heads + head]);
                    slope = probability * (product - deltas[(token + c) * heads + head]) * scale;
                }
                probabilities[c] = probability;
                slopes[c] = slope;
            }
            __syncthreads();
            add_rows(probabilities, gradients, place, size, value_sums);
            add_rows(slopes, queries, place, size, key_sums);
        }
    }
    if (place.row < place.count) {
        u64 start = (own + place.row) * key_width + group * size;
        store_row(key_sums, 1.0f, start, place, size, dk);
        store_row(value_sums, 1.0f, start, place, size, dv);
    }
}
