// cuBLAS's functions that the backend calls: products of column-major matrices with sums in single precision.
#include <cstddef>
#include <cstring>
#include <vector>

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { SINGLE = 0, BRAIN = 14, COMPUTE_SINGLE = 68 };

static float read(const void *values, int type, size_t place) {
    if (type == SINGLE) return ((const float *)values)[place];
    unsigned bits = (unsigned)((const unsigned short *)values)[place] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Row by row: `rows` rows of `columns` elements of op(matrix), `stride` between its columns in memory.
static std::vector<float> gather(const void *values, int type, bool transposed, int rows, int columns, int stride) {
    std::vector<float> result((size_t)rows * columns);
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) {
            size_t place = transposed ? (size_t)row * stride + column : (size_t)column * stride + row;
            result[(size_t)row * columns + column] = read(values, type, place);
        }
    return result;
}

extern "C" {

int cublasCreate_v2(void **handle) {
    *handle = (void *)&read;
    return SUCCESS;
}

int cublasDestroy_v2(void *) { return SUCCESS; }

int cublasSetMathMode(void *, int mode) { return mode == 0 ? SUCCESS : NOT_SUPPORTED; }

int cublasSetWorkspace_v2(void *, void *workspace, size_t) {
    return (size_t)workspace % 16 == 0 ? SUCCESS : INVALID_VALUE;
}

int cublasGemmEx(void *handle, int transposed_a, int transposed_b, int m, int n, int k, const void *alpha_at,
                 const void *a, int a_type, int a_stride, const void *b, int b_type, int b_stride, const void *beta_at,
                 void *c, int c_type, int c_stride, int compute, int) {
    if (handle != (void *)&read || m < 0 || n < 0 || k < 0) return INVALID_VALUE;
    if (a_stride < (transposed_a ? k : m) || b_stride < (transposed_b ? n : k) || c_stride < m) return INVALID_VALUE;
    if (a_type != b_type || c_type != SINGLE || compute != COMPUTE_SINGLE) return NOT_SUPPORTED;
    float alpha = *(const float *)alpha_at, beta = *(const float *)beta_at;
    // Rows of Cᵀ are columns of C: op(B)ᵀ (n, k) times op(A)ᵀ (k, m).
    std::vector<float> left = gather(b, b_type, !transposed_b, n, k, b_stride);
    std::vector<float> right = gather(a, a_type, !transposed_a, k, m, a_stride);
    std::vector<float> sums(m);
    for (int row = 0; row < n; row++) {
        for (float &sum : sums) sum = 0.0f;
        for (int i = 0; i < k; i++) {
            float factor = left[(size_t)row * k + i];
            const float *other = right.data() + (size_t)i * m;
            for (int column = 0; column < m; column++) sums[column] += factor * other[column];
        }
        float *target = (float *)c + (size_t)row * c_stride;
        // With beta 0 the old contents are not read.
        for (int column = 0; column < m; column++)
            target[column] = alpha * sums[column] + (beta == 0.0f ? 0.0f : beta * target[column]);
    }
    return SUCCESS;
}

const char *cublasGetStatusString(int) { return "emulated cuBLAS error"; }
}
