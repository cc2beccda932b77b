// Attention of narrow heads and root-mean-square norms, forward and backward, float32, one thread.
//
// A head of at most 16 numbers is one vector: scores are made for 16 keys at a time from transposed keys, sums over
// keys go through vectors of one value each. Nothing of size queries x keys is ever stored.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));

static inline vec load(const float *p) { vec v; std::memcpy(&v, p, 64); return v; }
static inline void store(float *p, vec v) { std::memcpy(p, &v, 64); }
static inline vec all(float x) { return x - vec{}; }

// exp for arguments of at most about 0; below -87 it is 0.
static inline vec exponential(vec x) {
    x = x < -87.0f ? all(-87.0f) : x;
    // Truncation after half a step down rounds negative numbers to the nearest; adding a large constant instead would
    // be optimised away under -ffast-math.
    const ivec steps = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec);
    const vec whole = __builtin_convertvector(steps, vec);
    const vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vec p = r * 1.9875691e-4f + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * r * r + r + 1.0f;
    const ivec bits = (steps + 127) << 23;
    vec scale;
    std::memcpy(&scale, &bits, 64);
    return p * scale;
}
static inline float total(vec v) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += v[i];
    return sum;
}
static inline float largest(vec v) {
    float top = v[0];
    for (int i = 1; i < 16; i++) top = v[i] > top ? v[i] : top;
    return top;
}

struct Shape { int64_t batch, queries, keys, heads, kv_heads, width; };

// Copy one head out of [rows, heads, width] to rows of 16, and transposed to [width, padded].
static void gather(const float *from, int64_t rows, int64_t stride, int64_t width, int64_t padded, float *rows16,
                   float *columns) {
    for (int64_t j = 0; j < rows; j++)
        for (int64_t d = 0; d < width; d++) {
            const float value = from[j * stride + d];
            rows16[j * 16 + d] = value;
            columns[d * padded + j] = value;
        }
}

static inline vec scores_of(const float *query, const float *columns, int64_t width, int64_t padded, int64_t j) {
    vec even = {}, odd = {};
    int64_t d = 0;
    for (; d + 1 < width; d += 2) {
        even += query[d] * load(columns + d * padded + j);
        odd += query[d + 1] * load(columns + (d + 1) * padded + j);
    }
    if (d < width) even += query[d] * load(columns + d * padded + j);
    return even + odd;
}

extern "C" {

void attention_forward(const Shape *shape, const float *q, const float *k, const float *v, float *out, float *log_sum) {
    const auto [batch, S, J, H, G, D] = *shape;
    const int64_t padded = (J + 15) / 16 * 16;
    const float scale = 1.0f / std::sqrt((float)D);
    std::vector<float> keys(J * 16), columns(D * padded), values(J * 16 + 16), spare(D * padded), p(padded);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < H; h++) {
            const int64_t g = h / (H / G);
            if (h % (H / G) == 0) {
                gather(k + (b * J * G + g) * D, J, G * D, D, padded, keys.data(), columns.data());
                gather(v + (b * J * G + g) * D, J, G * D, D, padded, values.data(), spare.data());
            }
            for (int64_t i = 0; i < S; i++) {
                const float *query = q + ((b * S + i) * H + h) * D;
                vec top = all(-INFINITY);
                for (int64_t j = 0; j < padded; j += 16) {
                    vec s = scores_of(query, columns.data(), D, padded, j) * scale;
                    if (j + 16 > J)
                        for (int64_t l = J - j; l < 16; l++) s[l] = -1e30f;
                    store(p.data() + j, s);
                    top = s > top ? s : top;
                }
                const float m = largest(top);
                vec sums = {};
                for (int64_t j = 0; j < padded; j += 16) {
                    const vec e = exponential(load(p.data() + j) - m);
                    store(p.data() + j, e);
                    sums += e;
                }
                const float sum = total(sums);  // padded keys add exp(-87) at most, 1e-38 each
                vec o0 = {}, o1 = {}, o2 = {}, o3 = {};
                int64_t j = 0;
                for (; j + 3 < J; j += 4) {
                    o0 += p[j] * load(&values[j * 16]);
                    o1 += p[j + 1] * load(&values[j * 16 + 16]);
                    o2 += p[j + 2] * load(&values[j * 16 + 32]);
                    o3 += p[j + 3] * load(&values[j * 16 + 48]);
                }
                for (; j < J; j++) o0 += p[j] * load(&values[j * 16]);
                const vec o = (o0 + o1 + o2 + o3) * (1.0f / sum);
                float *to = out + ((b * S + i) * H + h) * D;
                for (int64_t d = 0; d < D; d++) to[d] = o[d];
                log_sum[(b * S + i) * H + h] = m + std::log(sum);
            }
        }
}

void attention_backward(const Shape *shape, const float *q, const float *k, const float *v, const float *out,
                        const float *log_sum, const float *g_out, float *g_q, float *g_k, float *g_v) {
    const auto [batch, S, J, H, G, D] = *shape;
    const int64_t padded = (J + 15) / 16 * 16;
    const float scale = 1.0f / std::sqrt((float)D);
    std::vector<float> keys(J * 16), columns(D * padded), values(J * 16), value_columns(D * padded);
    std::vector<float> p(padded), ds(padded), gk(J * 16), gv(J * 16);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < H; h++) {
            const int64_t g = h / (H / G), first = (b * J * G + g) * D;
            if (h % (H / G) == 0) {
                gather(k + first, J, G * D, D, padded, keys.data(), columns.data());
                gather(v + first, J, G * D, D, padded, values.data(), value_columns.data());
                std::fill(gk.begin(), gk.end(), 0.0f);
                std::fill(gv.begin(), gv.end(), 0.0f);
            }
            for (int64_t i = 0; i < S; i++) {
                const int64_t row = (b * S + i) * H + h;
                const float *query = q + row * D, *go = g_out + row * D;
                vec query16 = {}, go16 = {};
                float dot = 0;
                for (int64_t d = 0; d < D; d++) {
                    query16[d] = query[d];
                    go16[d] = go[d];
                    dot += go[d] * out[row * D + d];
                }
                for (int64_t j = 0; j < padded; j += 16) {
                    const vec s = scores_of(query, columns.data(), D, padded, j) * scale;
                    const vec e = exponential(s - log_sum[row]);
                    const vec dp = scores_of(go, value_columns.data(), D, padded, j);
                    store(p.data() + j, e);
                    store(ds.data() + j, e * (dp - dot) * scale);
                }
                vec q0 = {}, q1 = {};
                for (int64_t j = 0; j < J; j++) {
                    if (j & 1) q1 += ds[j] * load(&keys[j * 16]);
                    else q0 += ds[j] * load(&keys[j * 16]);
                    store(&gk[j * 16], load(&gk[j * 16]) + ds[j] * query16);
                    store(&gv[j * 16], load(&gv[j * 16]) + p[j] * go16);
                }
                const vec gq = q0 + q1;
                for (int64_t d = 0; d < D; d++) g_q[row * D + d] = gq[d];
            }
            if (h % (H / G) == H / G - 1)
                for (int64_t j = 0; j < J; j++)
                    for (int64_t d = 0; d < D; d++) {
                        g_k[first + j * G * D + d] = gk[j * 16 + d];
                        g_v[first + j * G * D + d] = gv[j * 16 + d];
                    }
        }
}
}

template <int64_t FIXED>
static void norm_forward_of(int64_t rows, int64_t any, float eps, const float *x, const float *w, float *y, float *root) {
    const int64_t E = FIXED ? FIXED : any;
    for (int64_t i = 0; i < rows; i++) {
        const float *a = x + i * E;
        float squares = 0;
        for (int64_t d = 0; d < E; d++) squares += a[d] * a[d];
        const float r = 1.0f / std::sqrt(squares / E + eps);
        root[i] = r;
        for (int64_t d = 0; d < E; d++) y[i * E + d] = a[d] * r * w[d];
    }
}
template <int64_t FIXED>
static void norm_backward_of(int64_t rows, int64_t any, const float *x, const float *w, const float *root,
                             const float *g, float *gx, float *gw) {
    const int64_t E = FIXED ? FIXED : any;
    std::vector<float> sums(E, 0.0f);
    float *sum = sums.data();
    for (int64_t i = 0; i < rows; i++) {
        const float *a = x + i * E, *b = g + i * E;
        const float r = root[i];
        float dot = 0;
        for (int64_t d = 0; d < E; d++) dot += a[d] * b[d] * w[d];
        const float c = dot * r * r * r / E;
        for (int64_t d = 0; d < E; d++) {
            gx[i * E + d] = b[d] * w[d] * r - a[d] * c;
            sum[d] += a[d] * b[d] * r;
        }
    }
    std::memcpy(gw, sum, E * sizeof(float));
}

#define BY_WIDTH(call)          \
    switch (width) {            \
        case 8: call(8);        \
        case 12: call(12);      \
        case 16: call(16);      \
        case 32: call(32);      \
        case 48: call(48);      \
        case 64: call(64);      \
        case 192: call(192);    \
        default: call(0);       \
    }

extern "C" {
void norm_forward(int64_t rows, int64_t width, float eps, const float *x, const float *w, float *y, float *root) {
#define FORWARD(n) return norm_forward_of<n>(rows, width, eps, x, w, y, root)
    BY_WIDTH(FORWARD)
}
void norm_backward(int64_t rows, int64_t width, const float *x, const float *w, const float *root, const float *g,
                   float *gx, float *gw) {
#define BACKWARD(n) return norm_backward_of<n>(rows, width, x, w, root, g, gx, gw)
    BY_WIDTH(BACKWARD)
}
}
