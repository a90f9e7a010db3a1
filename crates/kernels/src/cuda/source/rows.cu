// Operations that sum over rows or columns. One block treats one row, unless said otherwise; it has at most 1024
// threads, a power of two.

extern "C" __global__ void rms_norm(const float *x, const float *weight, float epsilon, u32 width, float *y) {
    __shared__ float scratch[1024];
    u64 start = (u64)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += x[start + i] * x[start + i];
    float factor = 1.0f / sqrtf(block_sum(sum, scratch) / (float)width + epsilon);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[start + i] = x[start + i] * factor * weight[i];
}

// Adds to `dx`, or overwrites it; then it may be `dy` itself.
extern "C" __global__ void rms_norm_backward(const float *x, const float *weight, float epsilon, const float *dy,
                                             u32 width, float *dx, u32 add) {
    __shared__ float scratch[1024];
    u64 start = (u64)blockIdx.x * width;
    float squares = 0.0f, products = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = x[start + i];
        squares += value * value;
        products += dy[start + i] * weight[i] * value;
    }
    float factor = 1.0f / sqrtf(block_sum(squares, scratch) / (float)width + epsilon);
    float mean = block_sum(products, scratch) * factor * factor * factor / (float)width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float gradient = factor * (dy[start + i] * weight[i]) - x[start + i] * mean;
        dx[start + i] = add ? dx[start + i] + gradient : gradient;
    }
}

// Mean of a row, and one over the root of its variance.
struct Moments {
    float mean, factor;
};

__device__ inline Moments moments_of(const float *row, u32 width, float epsilon, float *scratch) {
    Moments moments;
    float sum = 0.0f, squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += row[i];
    moments.mean = block_sum(sum, scratch) / (float)width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = row[i] - moments.mean;
        squares += value * value;
    }
    moments.factor = 1.0f / sqrtf(block_sum(squares, scratch) / (float)width + epsilon);
    return moments;
}

extern "C" __global__ void layer_norm(const float *x, const float *weight, const float *bias, float epsilon, u32 width,
                                      float *y) {
    __shared__ float scratch[1024];
    u64 start = (u64)blockIdx.x * width;
    Moments moments = moments_of(x + start, width, epsilon, scratch);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        y[start + i] = (x[start + i] - moments.mean) * moments.factor * weight[i] + bias[i];
}

// Overwrites `dx`.
extern "C" __global__ void layer_norm_backward(const float *x, const float *weight, float epsilon, const float *dy,
                                               u32 width, float *dx) {
    __shared__ float scratch[1024];
    u64 start = (u64)blockIdx.x * width;
    Moments moments = moments_of(x + start, width, epsilon, scratch);
    float sum = 0.0f, products = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float gradient = dy[start + i] * weight[i];
        sum += gradient;
        products += gradient * ((x[start + i] - moments.mean) * moments.factor);
    }
    float mean = block_sum(sum, scratch) / (float)width;
    float slope = block_sum(products, scratch) / (float)width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float standard = (x[start + i] - moments.mean) * moments.factor;
        dx[start + i] = moments.factor * (dy[start + i] * weight[i] - mean - standard * slope);
    }
}

// The product of row `b` of `left` and `right`.
extern "C" __global__ void row_products(const float *left, const float *right, u32 width, float *products) {
    __shared__ float scratch[1024];
    u64 start = (u64)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += left[start + i] * right[start + i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) products[blockIdx.x] = sum;
}

// Loss of one row of logits, which turn into their gradient if that is wanted.
extern "C" __global__ void cross_entropy(float *logits, const u32 *targets, const float *weights, u32 vocabulary,
                                         u32 want_gradient, double *losses) {
    __shared__ float scratch[1024];
    float *row = logits + (u64)blockIdx.x * vocabulary;
    u32 target = targets[blockIdx.x];
    float logit = row[target];
    float maximum = MINUS_INFINITY;
    bool is_number = true;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        is_number = is_number && row[i] == row[i];
        maximum = fmaxf(maximum, row[i]);
    }
    // `fmaxf` passes over what is not a number; the sum must not.
    maximum = block_maximum(maximum, scratch);
    float sum = is_number ? 0.0f : NOT_A_NUMBER;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(row[i] - maximum);
    sum = block_sum(sum, scratch);
    if (want_gradient) {
        float weight = weights[blockIdx.x];
        float factor = weight / sum;
        for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
            float gradient = expf(row[i] - maximum) * factor;
            row[i] = i == target ? gradient - weight : gradient;
        }
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = (double)maximum + log((double)sum) - (double)logit;
}

// Lengths of the rows of W + s·B·A; one thread a row. `crossed` is A·Wᵀ (rank, outputs), `gram` is A·Aᵀ.
extern "C" __global__ void adapted_lengths(const float *squares, const float *crossed, const float *gram,
                                           const float *b, u32 rank, double scale, u32 outputs, float *lengths) {
    FOR_EACH(output, outputs) {
        double mixed = 0.0, own = 0.0;
        for (u32 left = 0; left < rank; left++) {
            double factor = b[output * rank + left];
            mixed += factor * (double)crossed[(u64)left * outputs + output];
            for (u32 right = 0; right < rank; right++)
                own += factor * (double)b[output * rank + right] * (double)gram[left * rank + right];
        }
        double square = (double)squares[output] + 2.0 * scale * mixed + scale * scale * own;
        lengths[output] = (float)sqrt(square > 0.0 ? square : 0.0);
    }
}

// The gradient of trained lengths, the sum of dy · product over the rows divided by the length; one thread a column.
extern "C" __global__ void lengths_gradient(const float *dy, const float *product, const float *lengths, u32 rows,
                                            u32 width, float *gradient) {
    FOR_EACH(column, width) {
        double sum = 0.0;
        for (u32 row = 0; row < rows; row++) {
            u64 place = (u64)row * width + column;
            sum += (double)(dy[place] * product[place]);
        }
        gradient[column] = (float)(sum / (double)lengths[column]);
    }
}
