// Operations that treat elements or rows by themselves.

extern "C" __global__ void narrow_values(const float *source, bf16 *target, u64 n) {
    FOR_EACH(i, n) target[i] = narrow(source[i]);
}

extern "C" __global__ void widen_values(const bf16 *source, float *target, u64 n) {
    FOR_EACH(i, n) target[i] = widen(source[i]);
}

// One block a token: its row of the table, with noise of its magnitude.
__device__ inline void embed_row(float value, const float *magnitudes, u64 key, u64 place, float *x) {
    float magnitude = magnitudes[blockIdx.x];
    if (magnitude > 0.0f) value += (uniform(key, place) * 2.0f - 1.0f) * magnitude;
    x[place] = value;
}

extern "C" __global__ void embed_bf16(const bf16 *table, const u32 *tokens, const float *magnitudes, u64 key,
                                      u32 width, float *x) {
    const bf16 *row = table + (u64)tokens[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        embed_row(widen(row[i]), magnitudes, key, (u64)blockIdx.x * width + i, x);
}

extern "C" __global__ void embed_f32(const float *table, const u32 *tokens, const float *magnitudes, u64 key,
                                     u32 width, float *x) {
    const float *row = table + (u64)tokens[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        embed_row(row[i], magnitudes, key, (u64)blockIdx.x * width + i, x);
}

// One block a row: adds the row of the table that `rows` names.
extern "C" __global__ void add_table_rows_bf16(const bf16 *table, const u32 *rows, u32 width, float *target) {
    const bf16 *row = table + (u64)rows[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) target[(u64)blockIdx.x * width + i] += widen(row[i]);
}

extern "C" __global__ void add_table_rows_f32(const float *table, const u32 *rows, u32 width, float *target) {
    const float *row = table + (u64)rows[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) target[(u64)blockIdx.x * width + i] += row[i];
}

extern "C" __global__ void add_bias(float *rows, const float *bias, u32 width, u64 n) {
    FOR_EACH(i, n) rows[i] += bias[i % width];
}

extern "C" __global__ void subtract(float *target, const float *source, u64 n) {
    FOR_EACH(i, n) target[i] -= source[i];
}

// `target += source * above / below`, a factor for each column.
extern "C" __global__ void add_scaled_columns(float *target, const float *source, const float *above,
                                              const float *below, u32 width, u64 n) {
    FOR_EACH(i, n) target[i] += source[i] * (above[i % width] / below[i % width]);
}

extern "C" __global__ void scale_columns(float *target, const float *source, const float *above, const float *below,
                                         u32 width, u64 n) {
    FOR_EACH(i, n) target[i] = source[i] * (above[i % width] / below[i % width]);
}

extern "C" __global__ void silu_gate(const float *gate, const float *up, float *hidden, u64 n) {
    FOR_EACH(i, n) hidden[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

// `dhidden` turns into the gradient of `up`.
extern "C" __global__ void silu_gate_backward(const float *gate, const float *up, float *dhidden, float *dgate,
                                              u64 n) {
    FOR_EACH(i, n) {
        float sigmoid = 1.0f / (1.0f + expf(-gate[i]));
        float gradient = dhidden[i];
        dgate[i] = gradient * up[i] * sigmoid * (1.0f + gate[i] * (1.0f - sigmoid));
        dhidden[i] = gradient * gate[i] * sigmoid;
    }
}

// The normal distribution function, as in the processor's activations.
__device__ inline float normal_distribution(float z) {
    float x = z * 0.70710678f;
    float t = 1.0f / (1.0f + 0.3275911f * fabsf(x));
    float polynomial = 1.0614054f;
    polynomial = polynomial * t - 1.453152f;
    polynomial = polynomial * t + 1.4214137f;
    polynomial = polynomial * t - 0.28449674f;
    polynomial = polynomial * t + 0.2548296f;
    float tail = 0.5f * polynomial * t * expf(-x * x);
    return z > 0.0f ? 1.0f - tail : tail;
}

extern "C" __global__ void gelu(const float *input, float *output, u64 n) {
    FOR_EACH(i, n) output[i] = input[i] * normal_distribution(input[i]);
}

// `gradient` turns from that of the output into that of the input.
extern "C" __global__ void gelu_backward(const float *input, float *gradient, u64 n) {
    FOR_EACH(i, n) {
        float z = input[i];
        float density = expf(-0.5f * z * z) * 0.3989423f;
        gradient[i] *= normal_distribution(z) + z * density;
    }
}

extern "C" __global__ void dropout(const float *input, float *output, u64 key, float probability, float keep, u64 n) {
    FOR_EACH(i, n) output[i] = uniform(key, i) >= probability ? input[i] * keep : 0.0f;
}

extern "C" __global__ void add_dropout(const float *source, float *target, u64 key, float probability, float keep,
                                       u64 n) {
    FOR_EACH(i, n) {
        if (uniform(key, i) >= probability) target[i] += source[i] * keep;
    }
}

// Turns the pairs (i, i + half) of every head; one thread a pair.
extern "C" __global__ void rotate(float *x, const float *cosines, const float *sines, const u32 *positions, u32 half,
                                  u32 heads, float direction, u64 pairs) {
    FOR_EACH(pair, pairs) {
        u32 i = (u32)(pair % half);
        u64 head = pair / half;
        u64 angle = (u64)positions[head / heads] * half + i;
        float cosine = cosines[angle], sine = sines[angle] * direction;
        float *low = x + head * 2 * half + i;
        float a = low[0], b = low[half];
        low[0] = a * cosine - b * sine;
        low[half] = b * cosine + a * sine;
    }
}

extern "C" __global__ void gather_rows(const float *source, const u32 *rows, u32 width, float *target) {
    const float *row = source + (u64)rows[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) target[(u64)blockIdx.x * width + i] = row[i];
}

extern "C" __global__ void scatter_rows(const float *source, const u32 *rows, u32 width, float *target) {
    float *row = target + (u64)rows[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) row[i] = source[(u64)blockIdx.x * width + i];
}
