/* The operators of nn.c, one function each. They trust a layer that nn_check has accepted. */
#ifndef NN_OPS_H
#define NN_OPS_H

#include "nn.h"

typedef struct {
    const uint8_t *blob;
    int8_t *arena;
    uint8_t rounding;
} nn_context;

/* The part of one axis of a window that lies inside its input: taps first..last-1. */
typedef struct {
    int32_t origin;
    uint32_t first, last;
} nn_span;

void nn_conv(const nn_context *at, const nn_layer *layer);
void nn_depthwise(const nn_context *at, const nn_layer *layer);
void nn_max_pool(const nn_context *at, const nn_layer *layer);
void nn_average_pool(const nn_context *at, const nn_layer *layer);
void nn_add(const nn_context *at, const nn_layer *layer);
void nn_softmax(const nn_context *at, const nn_layer *layer);
void nn_argmax(const nn_context *at, const nn_layer *layer);
void nn_table(const nn_context *at, const nn_layer *layer);

/* Window position `out` along an axis of `size` values. */
nn_span nn_window(uint32_t out, uint32_t stride, uint32_t pad, uint32_t dilation, uint32_t kernel, uint32_t size);

/* Adds two dot products of n values with the same x to sums. */
void nn_dot_pair(const int8_t *x, const int8_t *first, const int8_t *second, uint32_t n, int32_t sums[2]);

/* One output channel of a depthwise convolution at one position; `in` starts at its channel. */
int32_t nn_depthwise_sum(const nn_layer *layer, const int8_t *in, const int8_t *weights, nn_span rows, nn_span columns);

/* sum * mult * 2^shift in the model's rounding, plus zero point, clamped to the layer's low..high. */
int8_t nn_result(const nn_context *at, const nn_layer *layer, int32_t sum, int32_t mult, int32_t shift);

/* x + y in TensorFlow Lite's fixed point: both shifted left by 20 bits, scaled, summed, scaled again. */
int8_t nn_add_double(const nn_context *at, const nn_layer *layer, int32_t x, int32_t y);

int8_t nn_clamp(const nn_layer *layer, int32_t value);

#endif
