/* Runs a checked model: copies the input into the arena, computes layer by layer, copies the output out. */
#include "nn.h"
#include "nn_ops.h"

const nn_layer *nn_layers(const nn_header *model)
{
    return (const nn_layer *)(const void *)((const uint8_t *)model + sizeof(nn_header));
}

static uint32_t count(nn_shape shape)
{
    return (uint32_t)shape.h * shape.w * shape.c;
}

uint32_t nn_input_count(const nn_header *model)
{
    return count(model->in);
}

uint32_t nn_output_count(const nn_header *model)
{
    return count(model->out);
}

/* Copies a tensor, turning [c][pixels] into [pixels][c] or back; `flip` is 0x80 where the outside speaks uint8. */
static void copy_in(uint8_t *to, const uint8_t *from, nn_shape shape, int channel_first, uint8_t flip)
{
    uint32_t pixels = (uint32_t)shape.h * shape.w;
    uint32_t channels = shape.c;
    for (uint32_t p = 0; p < pixels; p++)
        for (uint32_t c = 0; c < channels; c++)
            to[p * channels + c] = from[channel_first ? c * pixels + p : p * channels + c] ^ flip;
}

static void copy_out(uint8_t *to, const uint8_t *from, nn_shape shape, int channel_first, uint8_t flip)
{
    uint32_t pixels = (uint32_t)shape.h * shape.w;
    uint32_t channels = shape.c;
    for (uint32_t p = 0; p < pixels; p++)
        for (uint32_t c = 0; c < channels; c++)
            to[channel_first ? c * pixels + p : p * channels + c] = from[p * channels + c] ^ flip;
}

static void run_layer(const nn_context *at, const nn_layer *layer)
{
    switch (layer->operator_) {
    case NN_CONV:
        nn_conv(at, layer);
        break;
    case NN_DEPTHWISE:
        nn_depthwise(at, layer);
        break;
    case NN_MAX_POOL:
        nn_max_pool(at, layer);
        break;
    case NN_AVERAGE_POOL:
        nn_average_pool(at, layer);
        break;
    case NN_ADD:
        nn_add(at, layer);
        break;
    case NN_SOFTMAX:
        nn_softmax(at, layer);
        break;
    case NN_ARGMAX:
        nn_argmax(at, layer);
        break;
    default:
        nn_table(at, layer);
        break;
    }
}

void nn_run(const nn_header *model, uint8_t *arena, const uint8_t *input, uint8_t *output)
{
    nn_context at = {(const uint8_t *)model, (int8_t *)arena, model->rounding};
    const nn_layer *layers = nn_layers(model);
    uint8_t in_flip = model->flags & NN_INPUT_UINT8 ? 0x80 : 0;
    uint8_t out_flip = model->flags & NN_OUTPUT_UINT8 ? 0x80 : 0;

    copy_in(arena + model->in_at, input, model->in, model->flags & NN_INPUT_CHW, in_flip);
    for (uint32_t i = 0; i < model->layers; i++)
        run_layer(&at, &layers[i]);
    copy_out(output, arena + model->out_at, model->out, model->flags & NN_OUTPUT_CHW, out_flip);
}

uint8_t nn_top(const nn_header *model, const uint8_t *output)
{
    uint8_t flip = model->flags & NN_OUTPUT_UINT8 ? 0 : 0x80;
    uint32_t values = nn_output_count(model);
    uint32_t best = 0;
    for (uint32_t i = 1; i < values; i++)
        if ((output[i] ^ flip) > (output[best] ^ flip))
            best = i;
    return (uint8_t)(best > 255 ? 255 : best);
}
