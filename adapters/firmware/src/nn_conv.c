/* Convolutions: conv1d, conv2d and fully connected as one operator, and depthwise convolution.
 *
 * The bias holds -in_zero * sum(weights), so the inner loop multiplies stored values; a window that hangs over the edge adds back
 * what its missing taps took away.
 */
#include "nn_ops.h"
#include "nn_round.h"

typedef struct {
    const int8_t *weights;
    const int32_t *bias;
    const int32_t *mult;
    const int8_t *shift;
} parameters;

static parameters parameters_of(const nn_context *at, const nn_layer *layer)
{
    parameters found = {
        (const int8_t *)at->blob + layer->weights,
        (const int32_t *)(const void *)(at->blob + layer->bias),
        (const int32_t *)(const void *)(at->blob + layer->mult),
        (const int8_t *)at->blob + layer->shift,
    };
    return found;
}

nn_span nn_window(uint32_t out, uint32_t stride, uint32_t pad, uint32_t dilation, uint32_t kernel, uint32_t size)
{
    nn_span span = {(int32_t)(out * stride) - (int32_t)pad, 0, kernel};
    while (span.first < kernel && span.origin + (int32_t)(span.first * dilation) < 0)
        span.first++;
    while (span.last > span.first && span.origin + (int32_t)((span.last - 1) * dilation) >= (int32_t)size)
        span.last--;
    return span;
}

int8_t nn_clamp(const nn_layer *layer, int32_t value)
{
    if (value < layer->low)
        return layer->low;
    return (int8_t)(value > layer->high ? layer->high : value);
}

int8_t nn_result(const nn_context *at, const nn_layer *layer, int32_t sum, int32_t mult, int32_t shift)
{
    int32_t scaled;
    if (at->rounding == NN_HALF_EVEN)
        scaled = round_half_even(sum, mult, shift);
    else
        scaled = layer->variant == NN_ONCE ? round_once(sum, mult, shift) : round_double(sum, mult, shift);
    return nn_clamp(layer, scaled + layer->out_zero);
}

static int32_t sum_of(const int8_t *weights, uint32_t n)
{
    int32_t sum = 0;
    while (n-- > 0)
        sum += *weights++;
    return sum;
}

/* The sum of the weights whose taps lie outside the input. */
static int32_t missing_weights(const nn_layer *layer, const int8_t *weights, nn_span rows, nn_span columns)
{
    uint32_t channels = layer->in.c;
    uint32_t row_values = layer->kernel_w * channels;
    int32_t sum = 0;
    for (uint32_t ky = 0; ky < layer->kernel_h; ky++) {
        const int8_t *row = weights + ky * row_values;
        if (ky < rows.first || ky >= rows.last || columns.first >= columns.last) {
            sum += sum_of(row, row_values);
            continue;
        }
        sum += sum_of(row, columns.first * channels);
        sum += sum_of(row + columns.last * channels, (layer->kernel_w - columns.last) * channels);
    }
    return sum;
}

/* Adds the taps of one row of the window to two output channels. */
static void add_row(const nn_layer *layer, const int8_t *row, const int8_t *weights[2], nn_span columns, int32_t sums[2])
{
    uint32_t channels = layer->in.c;
    uint32_t taps = columns.last - columns.first;
    uint32_t step = channels * layer->dilation_w;
    int32_t start = (columns.origin + (int32_t)(columns.first * layer->dilation_w)) * (int32_t)channels;
    const int8_t *first = weights[0] + columns.first * channels;
    const int8_t *second = weights[1] + columns.first * channels;

    if (taps == 0)
        return;
    row += start;
    if (layer->dilation_w == 1) {
        nn_dot_pair(row, first, second, taps * channels, sums);
        return;
    }
    for (; taps > 0; taps--) {
        nn_dot_pair(row, first, second, channels, sums);
        row += step;
        first += channels;
        second += channels;
    }
}

/* Two output channels at one position; the second may be the first again, for an odd last one. */
static void conv_pair(const nn_layer *layer, const int8_t *in, const int8_t *weights[2], nn_span rows, nn_span columns,
                      int32_t sums[2])
{
    uint32_t kernel_row = (uint32_t)layer->kernel_w * layer->in.c;
    uint32_t in_row = (uint32_t)layer->in.w * layer->in.c;
    for (uint32_t ky = rows.first; ky < rows.last; ky++) {
        uint32_t y = (uint32_t)(rows.origin + (int32_t)(ky * layer->dilation_h));
        const int8_t *row_weights[2] = {weights[0] + ky * kernel_row, weights[1] + ky * kernel_row};
        add_row(layer, in + y * in_row, row_weights, columns, sums);
    }
}

static void conv_position(const nn_context *at, const nn_layer *layer, nn_span rows, nn_span columns, int8_t *out)
{
    parameters p = parameters_of(at, layer);
    const int8_t *in = at->arena + layer->in_at;
    uint32_t filter = (uint32_t)layer->kernel_h * layer->kernel_w * layer->in.c;
    uint32_t channels = layer->out.c;
    int inside = rows.last - rows.first == layer->kernel_h && columns.last - columns.first == layer->kernel_w;

    for (uint32_t c = 0; c < channels; c += 2) {
        uint32_t other = c + 1 < channels ? c + 1 : c;
        const int8_t *weights[2] = {p.weights + c * filter, p.weights + other * filter};
        int32_t sums[2] = {p.bias[c], p.bias[other]};
        if (!inside && layer->in_zero != 0) {
            sums[0] += layer->in_zero * missing_weights(layer, weights[0], rows, columns);
            sums[1] += layer->in_zero * missing_weights(layer, weights[1], rows, columns);
        }
        conv_pair(layer, in, weights, rows, columns, sums);
        out[c] = nn_result(at, layer, sums[0], p.mult[c], p.shift[c]);
        if (other != c)
            out[other] = nn_result(at, layer, sums[1], p.mult[other], p.shift[other]);
    }
}

void nn_conv(const nn_context *at, const nn_layer *layer)
{
    int8_t *out = at->arena + layer->out_at;
    for (uint32_t y = 0; y < layer->out.h; y++) {
        nn_span rows = nn_window(y, layer->stride_h, layer->pad_top, layer->dilation_h, layer->kernel_h, layer->in.h);
        for (uint32_t x = 0; x < layer->out.w; x++) {
            nn_span columns = nn_window(x, layer->stride_w, layer->pad_left, layer->dilation_w, layer->kernel_w, layer->in.w);
            conv_position(at, layer, rows, columns, out);
            out += layer->out.c;
        }
    }
}

static int32_t missing_taps(const nn_layer *layer, const int8_t *weights, nn_span rows, nn_span columns)
{
    int32_t sum = 0;
    for (uint32_t ky = 0; ky < layer->kernel_h; ky++)
        for (uint32_t kx = 0; kx < layer->kernel_w; kx++)
            if (ky < rows.first || ky >= rows.last || kx < columns.first || kx >= columns.last)
                sum += weights[ky * layer->kernel_w + kx];
    return sum;
}

static void depthwise_position(const nn_context *at, const nn_layer *layer, nn_span rows, nn_span columns, int8_t *out)
{
    parameters p = parameters_of(at, layer);
    const int8_t *in = at->arena + layer->in_at;
    uint32_t filter = (uint32_t)layer->kernel_h * layer->kernel_w;
    uint32_t multiplier = layer->out.c / layer->in.c;
    int inside = rows.last - rows.first == layer->kernel_h && columns.last - columns.first == layer->kernel_w;
    uint32_t c = 0;

    for (uint32_t from = 0; from < layer->in.c; from++)
        for (uint32_t copy = 0; copy < multiplier; copy++, c++) {
            const int8_t *weights = p.weights + c * filter;
            int32_t sum = p.bias[c];
            if (columns.first < columns.last)
                sum += nn_depthwise_sum(layer, in + from, weights, rows, columns);
            if (!inside && layer->in_zero != 0)
                sum += layer->in_zero * missing_taps(layer, weights, rows, columns);
            out[c] = nn_result(at, layer, sum, p.mult[c], p.shift[c]);
        }
}

void nn_depthwise(const nn_context *at, const nn_layer *layer)
{
    int8_t *out = at->arena + layer->out_at;
    for (uint32_t y = 0; y < layer->out.h; y++) {
        nn_span rows = nn_window(y, layer->stride_h, layer->pad_top, layer->dilation_h, layer->kernel_h, layer->in.h);
        for (uint32_t x = 0; x < layer->out.w; x++) {
            nn_span columns = nn_window(x, layer->stride_w, layer->pad_left, layer->dilation_w, layer->kernel_w, layer->in.w);
            depthwise_position(at, layer, rows, columns, out);
            out += layer->out.c;
        }
    }
}
