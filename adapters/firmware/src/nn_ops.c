/* Operators without weights: pools, addition, softmax, argmax and tables.
 *
 * Where a reference computes in float32 (onnxruntime's AveragePool and Add, both softmaxes) so do these, a few operations a value, in
 * the same order and without contraction to fused multiply-adds: the bits are the reference's.
 */
#include "nn_ops.h"
#include "nn_round.h"

#define WIDE_LIMIT (1 << 18)

static uint32_t values(nn_shape shape)
{
    return (uint32_t)shape.h * shape.w * shape.c;
}

static const float *floats(const nn_context *at, uint32_t offset)
{
    return (const float *)(const void *)(at->blob + offset);
}

static const int32_t *integers(const nn_context *at, uint32_t offset)
{
    return (const int32_t *)(const void *)(at->blob + offset);
}

/* A number of 64 bits stored as two words, within the range that a sum of three cannot leave. */
static int64_t wide(const int32_t *words)
{
    int64_t high = words[1] > WIDE_LIMIT ? WIDE_LIMIT : words[1] < -WIDE_LIMIT ? -WIDE_LIMIT : words[1];
    return high * ((int64_t)1 << 32) + (uint32_t)words[0];
}

/* 128 where the reference computes in uint8, else 0. */
static int32_t clamped_offset(int32_t stored)
{
    return stored == 128 ? 128 : 0;
}

static int8_t largest_in(const nn_layer *layer, const int8_t *in, nn_span rows, nn_span columns)
{
    int32_t channels = layer->in.c;
    int8_t best = INT8_MIN;
    for (uint32_t ky = rows.first; ky < rows.last; ky++)
        for (uint32_t kx = columns.first; kx < columns.last; kx++) {
            int32_t y = rows.origin + (int32_t)(ky * layer->dilation_h);
            int32_t x = columns.origin + (int32_t)(kx * layer->dilation_w);
            int8_t value = in[(y * layer->in.w + x) * channels];
            if (value > best)
                best = value;
        }
    return best;
}

/* The sum of values minus zero point over a window that lies wholly inside. */
static int32_t sum_in(const nn_layer *layer, const int8_t *in, nn_span rows, nn_span columns)
{
    int32_t channels = layer->in.c;
    int32_t sum = 0;
    for (uint32_t ky = 0; ky < layer->kernel_h; ky++)
        for (uint32_t kx = 0; kx < layer->kernel_w; kx++) {
            int32_t y = rows.origin + (int32_t)ky;
            int32_t x = columns.origin + (int32_t)kx;
            sum += in[(y * layer->in.w + x) * channels] - layer->in_zero;
        }
    return sum;
}

/* Dequantized, summed, divided and quantized again in float32. */
static int32_t float_average(const nn_context *at, const nn_layer *layer, const int8_t *in, nn_span rows, nn_span columns)
{
    const float *scales = floats(at, layer->bias);
    int32_t offset = clamped_offset(integers(at, layer->bias)[2]);
    int32_t channels = layer->in.c;
    float sum = 0.0f;
    float mean;
    for (uint32_t ky = 0; ky < layer->kernel_h; ky++)
        for (uint32_t kx = 0; kx < layer->kernel_w; kx++) {
            int32_t y = rows.origin + (int32_t)ky;
            int32_t x = columns.origin + (int32_t)kx;
            int32_t value = in[(y * layer->in.w + x) * channels] - layer->in_zero;
            sum += (float)value * scales[0];
        }
    mean = sum / (float)((uint32_t)layer->kernel_h * layer->kernel_w);
    return round_float(mean / scales[1] + (float)(layer->out_zero + offset)) - offset;
}

static int8_t average_in(const nn_context *at, const nn_layer *layer, const int8_t *in, nn_span rows, nn_span columns)
{
    int32_t taps = (int32_t)layer->kernel_h * layer->kernel_w;
    int32_t sum;
    if (layer->variant == 2)
        return nn_clamp(layer, float_average(at, layer, in, rows, columns));
    sum = sum_in(layer, in, rows, columns);
    if (layer->variant == 0)
        return nn_result(at, layer, sum, *integers(at, layer->mult), *((const int8_t *)at->blob + layer->shift));
    sum += taps * layer->in_zero;
    return nn_clamp(layer, (sum > 0 ? sum + taps / 2 : sum - taps / 2) / taps);
}

static void pool(const nn_context *at, const nn_layer *layer, int average)
{
    const int8_t *in = at->arena + layer->in_at;
    int8_t *out = at->arena + layer->out_at;
    for (uint32_t y = 0; y < layer->out.h; y++) {
        nn_span rows = nn_window(y, layer->stride_h, layer->pad_top, layer->dilation_h, layer->kernel_h, layer->in.h);
        for (uint32_t x = 0; x < layer->out.w; x++) {
            nn_span columns = nn_window(x, layer->stride_w, layer->pad_left, layer->dilation_w, layer->kernel_w, layer->in.w);
            for (uint32_t c = 0; c < layer->out.c; c++)
                *out++ = average ? average_in(at, layer, in + c, rows, columns)
                                 : nn_clamp(layer, largest_in(layer, in + c, rows, columns));
        }
    }
}

void nn_max_pool(const nn_context *at, const nn_layer *layer)
{
    pool(at, layer, 0);
}

void nn_average_pool(const nn_context *at, const nn_layer *layer)
{
    pool(at, layer, 1);
}

/* a * x + (b * y + c) as two fused multiply-adds in float32 compute it; a, b and c are in steps of 2^-32, so that int64 holds each step. */
static int32_t add_fused(const int32_t *words, int32_t x, int32_t y)
{
    int64_t first = wide(words), second = wide(words + 2), moved = wide(words + 4);
    int64_t sum = round_to_float(second * y + moved);
    sum = round_to_float(first * x + sum);
    return round_fixed(sum);
}

/* bias: zero point of y; mult and shift: of x, y and the sum. */
int8_t nn_add_double(const nn_context *at, const nn_layer *layer, int32_t x, int32_t y)
{
    const int32_t *mult = integers(at, layer->mult);
    const int8_t *shift = (const int8_t *)at->blob + layer->shift;
    int32_t first = (int32_t)((uint32_t)(x - layer->in_zero) << 20);
    int32_t second = (int32_t)((uint32_t)(y - *integers(at, layer->bias)) << 20);
    uint32_t sum = (uint32_t)round_double(first, mult[0], shift[0]) + (uint32_t)round_double(second, mult[1], shift[1]);
    return nn_clamp(layer, round_double((int32_t)sum, mult[2], shift[2]) + layer->out_zero);
}

void nn_add(const nn_context *at, const nn_layer *layer)
{
    const int8_t *first = at->arena + layer->in_at;
    const int8_t *second = at->arena + layer->in2_at;
    int8_t *out = at->arena + layer->out_at;
    uint32_t n = values(layer->out);

    if (layer->variant == 0) {
        const int32_t *words = integers(at, layer->bias);
        int32_t offset = clamped_offset(words[6]);
        for (uint32_t i = 0; i < n; i++)
            out[i] = nn_clamp(layer, add_fused(words, first[i] + offset, second[i] + offset) - offset);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] = nn_add_double(at, layer, first[i], second[i]);
}

/* t * factor / sum to the nearest integer, halves to even, without rounding in between; factor is a whole number, t at most sum. */
static int32_t nearest_share(float t, float factor, float sum)
{
    float_parts top = parts_of_float(t), below = parts_of_float(sum), times = parts_of_float(factor);
    uint32_t by = (uint32_t)(below.exponent - top.exponent);
    uint32_t fraction_bits = (uint32_t)-times.exponent;
    if (by > 40 || fraction_bits < 8 || fraction_bits > 23 || below.significand == 0)
        return 0;
    return (int32_t)divide_half_even((uint64_t)top.significand * (times.significand >> fraction_bits),
                                     (uint64_t)below.significand << by);
}

/* The entry of the table for a value; of 8 bits also where a hostile layer writes over its own input. */
static uint8_t below_top(int32_t top, int32_t value)
{
    return (uint8_t)(255 - (top - value));
}

static void softmax_row(const nn_context *at, const nn_layer *layer, const int8_t *in, int8_t *out)
{
    const float *table = floats(at, layer->weights);
    float scale = *floats(at, layer->bias);
    uint32_t n = layer->in.c;
    int32_t top = INT8_MIN;
    float sum = 0.0f;
    float factor;

    for (uint32_t i = 0; i < n; i++)
        if (in[i] > top)
            top = in[i];
    for (uint32_t i = 0; i < n; i++)
        sum += table[below_top(top, in[i])];
    factor = 1.0f / (sum * scale);
    for (uint32_t i = 0; i < n; i++) {
        float share = table[below_top(top, in[i])];
        int32_t value = layer->variant == 0 ? nearest_share(share, scale, sum) : cut_float(share * factor + 0.5f);
        out[i] = nn_clamp(layer, value + layer->out_zero);
    }
}

void nn_softmax(const nn_context *at, const nn_layer *layer)
{
    const int8_t *in = at->arena + layer->in_at;
    int8_t *out = at->arena + layer->out_at;
    uint32_t rows = (uint32_t)layer->in.h * layer->in.w;
    for (uint32_t row = 0; row < rows; row++)
        softmax_row(at, layer, in + row * layer->in.c, out + row * layer->in.c);
}

void nn_argmax(const nn_context *at, const nn_layer *layer)
{
    const int8_t *in = at->arena + layer->in_at;
    int8_t *out = at->arena + layer->out_at;
    uint32_t best = 0;
    for (uint32_t i = 1; i < layer->in.c; i++)
        if (in[i] > in[best])
            best = i;
    *out = (int8_t)best;
}

void nn_table(const nn_context *at, const nn_layer *layer)
{
    const int8_t *table = (const int8_t *)at->blob + layer->weights;
    const int8_t *in = at->arena + layer->in_at;
    int8_t *out = at->arena + layer->out_at;
    uint32_t n = values(layer->out);
    for (uint32_t i = 0; i < n; i++)
        out[i] = table[in[i] + 128];
}
