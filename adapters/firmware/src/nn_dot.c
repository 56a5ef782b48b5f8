/* The inner loops, where nearly all of the time goes: the only part that is built for speed rather than for size. */
#include "nn_ops.h"

/* Two dot products at once: each value is loaded for two output channels. */
void nn_dot_pair(const int8_t *x, const int8_t *first, const int8_t *second, uint32_t n, int32_t sums[2])
{
    int32_t a = sums[0], b = sums[1];
    for (; n >= 4; n -= 4) {
        int32_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
        a += x0 * first[0] + x1 * first[1] + x2 * first[2] + x3 * first[3];
        b += x0 * second[0] + x1 * second[1] + x2 * second[2] + x3 * second[3];
        x += 4;
        first += 4;
        second += 4;
    }
    for (; n > 0; n--) {
        int32_t value = *x++;
        a += value * *first++;
        b += value * *second++;
    }
    sums[0] = a;
    sums[1] = b;
}

/* One output channel of a depthwise convolution at one position. */
int32_t nn_depthwise_sum(const nn_layer *layer, const int8_t *in, const int8_t *weights, nn_span rows, nn_span columns)
{
    uint32_t channels = layer->in.c;
    uint32_t in_row = layer->in.w * channels;
    uint32_t step = layer->dilation_w * channels;
    int32_t sum = 0;
    for (uint32_t ky = rows.first; ky < rows.last; ky++) {
        uint32_t y = (uint32_t)(rows.origin + (int32_t)(ky * layer->dilation_h));
        uint32_t x = (uint32_t)(columns.origin + (int32_t)(columns.first * layer->dilation_w));
        const int8_t *value = in + y * in_row + x * channels;
        const int8_t *weight = weights + ky * layer->kernel_w + columns.first;
        for (uint32_t kx = columns.first; kx < columns.last; kx++) {
            sum += *value * *weight++;
            value += step;
        }
    }
    return sum;
}
