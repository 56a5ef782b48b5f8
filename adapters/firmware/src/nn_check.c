/* Accepts or refuses a model blob: every offset, size and shape is checked here once, so that nn_run need not.
 *
 * A blob comes from outside. After NN_OK no layer reads outside its blob or writes outside the arena, and one run takes a bounded number of steps.
 */
#include "nn.h"

typedef struct {
    const nn_header *model;
    uint32_t data_first, data_end;
    uint64_t macs, work;
} checker;

static int is_shape(nn_shape shape)
{
    uint64_t values = (uint64_t)shape.h * shape.w * shape.c;
    return values > 0 && values <= (1u << 20);
}

static uint32_t values(nn_shape shape)
{
    return (uint32_t)shape.h * shape.w * shape.c;
}

static int same(nn_shape a, nn_shape b)
{
    return a.h == b.h && a.w == b.w && a.c == b.c;
}

/* `bytes` at `offset` lie in the blob's data, at a multiple of `align`. */
static int in_data(const checker *check, uint32_t offset, uint64_t bytes, uint32_t align)
{
    return offset >= check->data_first && offset % align == 0 && offset + bytes <= check->data_end;
}

static int in_arena(const checker *check, uint32_t offset, nn_shape shape)
{
    return (uint64_t)offset + values(shape) <= check->model->arena;
}

/* Shifts within the range that the two roundings define. */
static int shifts_are_sane(const checker *check, uint32_t offset, uint32_t count)
{
    const int8_t *shift = (const int8_t *)check->model + offset;
    int32_t least = check->model->rounding == NN_DOUBLE ? -31 : -128;
    int32_t most = check->model->rounding == NN_DOUBLE ? 30 : 127;
    for (uint32_t i = 0; i < count; i++)
        if (shift[i] < least || shift[i] > most)
            return 0;
    return 1;
}

static int has_scales(const checker *check, const nn_layer *layer, uint32_t count)
{
    return in_data(check, layer->mult, 4ull * count, 4) && in_data(check, layer->shift, count, 1)
           && shifts_are_sane(check, layer->shift, count);
}

static int window_is_sane(const nn_layer *layer)
{
    uint32_t taps = (uint32_t)layer->kernel_h * layer->kernel_w;
    if (layer->kernel_h == 0 || layer->kernel_w == 0 || taps > NN_MAX_TAPS)
        return 0;
    if (layer->stride_h == 0 || layer->stride_w == 0 || layer->dilation_h == 0 || layer->dilation_w == 0)
        return 0;
    return layer->pad_top < 0x8000 && layer->pad_left < 0x8000;
}

/* The last position of the window along one axis stays inside: what an average needs, and what a sane convolution has. */
static int fits(uint32_t out, uint32_t stride, uint32_t dilation, uint32_t kernel, uint32_t size)
{
    return (uint64_t)(out - 1) * stride + (uint64_t)(kernel - 1) * dilation < size;
}

static int check_conv(checker *check, const nn_layer *layer, int depthwise)
{
    uint64_t taps = (uint64_t)layer->kernel_h * layer->kernel_w * (depthwise ? 1u : layer->in.c);
    uint32_t channels = layer->out.c;
    if (layer->variant > NN_ONCE || (layer->variant == NN_ONCE && check->model->rounding != NN_DOUBLE))
        return NN_UNSUPPORTED;
    if (!window_is_sane(layer) || taps > NN_MAX_TAPS)
        return NN_CORRUPT;
    if (depthwise && channels % layer->in.c != 0)
        return NN_CORRUPT;
    if (!in_data(check, layer->weights, taps * channels, 1) || !in_data(check, layer->bias, 4ull * channels, 4))
        return NN_CORRUPT;
    if (!has_scales(check, layer, channels))
        return NN_CORRUPT;
    check->macs += values(layer->out) * taps;
    check->work += values(layer->out) * taps;
    return NN_OK;
}

static int check_pool(checker *check, const nn_layer *layer)
{
    int average = layer->operator_ == NN_AVERAGE_POOL;
    if (!window_is_sane(layer) || layer->in.c != layer->out.c)
        return NN_CORRUPT;
    check->work += (uint64_t)values(layer->out) * layer->kernel_h * layer->kernel_w;
    if (!average)
        return layer->variant == 0 ? NN_OK : NN_UNSUPPORTED;
    if (layer->pad_top || layer->pad_left || layer->dilation_h != 1 || layer->dilation_w != 1)
        return NN_CORRUPT;
    if (!fits(layer->out.h, layer->stride_h, 1, layer->kernel_h, layer->in.h)
        || !fits(layer->out.w, layer->stride_w, 1, layer->kernel_w, layer->in.w))
        return NN_CORRUPT;
    if (layer->variant == 0)
        return has_scales(check, layer, 1) ? NN_OK : NN_CORRUPT;
    if (layer->variant == 2)
        return in_data(check, layer->bias, 12, 4) ? NN_OK : NN_CORRUPT;
    return layer->variant == 1 ? NN_OK : NN_UNSUPPORTED;
}

static int check_add(checker *check, const nn_layer *layer)
{
    if (!same(layer->in, layer->out) || !in_arena(check, layer->in2_at, layer->in))
        return NN_CORRUPT;
    if (layer->variant > 1)
        return NN_UNSUPPORTED;
    if (layer->variant == 0)
        return in_data(check, layer->bias, 28, 4) ? NN_OK : NN_CORRUPT;
    if (check->model->rounding != NN_DOUBLE)
        return NN_CORRUPT;
    return in_data(check, layer->bias, 4, 4) && has_scales(check, layer, 3) ? NN_OK : NN_CORRUPT;
}

static int check_softmax(checker *check, const nn_layer *layer)
{
    if (!same(layer->in, layer->out))
        return NN_CORRUPT;
    if (layer->variant > 1)
        return NN_UNSUPPORTED;
    return in_data(check, layer->weights, 1024, 4) && in_data(check, layer->bias, 4, 4) ? NN_OK : NN_CORRUPT;
}

static int check_argmax(const nn_layer *layer)
{
    int vector = layer->in.h == 1 && layer->in.w == 1 && layer->in.c <= 128;
    return vector && values(layer->out) == 1 ? NN_OK : NN_CORRUPT;
}

static int check_table(checker *check, const nn_layer *layer)
{
    return same(layer->in, layer->out) && in_data(check, layer->weights, 256, 1) ? NN_OK : NN_CORRUPT;
}

static int check_layer(checker *check, const nn_layer *layer)
{
    if (!is_shape(layer->in) || !is_shape(layer->out))
        return NN_CORRUPT;
    if (!in_arena(check, layer->in_at, layer->in) || !in_arena(check, layer->out_at, layer->out))
        return NN_CORRUPT;
    if (layer->in_zero < -128 || layer->in_zero > 127 || layer->out_zero < -128 || layer->out_zero > 127)
        return NN_CORRUPT;
    check->work += values(layer->out);
    switch (layer->operator_) {
    case NN_CONV:
    case NN_DEPTHWISE:
        return check_conv(check, layer, layer->operator_ == NN_DEPTHWISE);
    case NN_MAX_POOL:
    case NN_AVERAGE_POOL:
        return check_pool(check, layer);
    case NN_ADD:
        return check_add(check, layer);
    case NN_SOFTMAX:
        return check_softmax(check, layer);
    case NN_ARGMAX:
        return check_argmax(layer);
    case NN_TABLE:
        return check_table(check, layer);
    default:
        return NN_UNSUPPORTED;
    }
}

static int check_header(const nn_header *model, size_t length, size_t arena_bytes)
{
    if (length < sizeof(nn_header) + sizeof(nn_layer) + NN_TRAILER_BYTES || model->magic != NN_MAGIC)
        return NN_CORRUPT;
    if (model->size != length || length % 4 != 0)
        return NN_CORRUPT;
    if (model->format != NN_FORMAT || model->rounding > NN_DOUBLE || (model->flags & ~NN_ALL_FLAGS) != 0)
        return NN_UNSUPPORTED;
    if (model->layers == 0 || model->layers > NN_MAX_LAYERS)
        return NN_CORRUPT;
    if (sizeof(nn_header) + model->layers * sizeof(nn_layer) + NN_TRAILER_BYTES > length)
        return NN_CORRUPT;
    if (!is_shape(model->in) || !is_shape(model->out))
        return NN_CORRUPT;
    return model->arena > arena_bytes ? NN_TOO_LARGE : NN_OK;
}

int nn_check(const void *blob, size_t length, size_t arena_bytes)
{
    const nn_header *model = blob;
    checker check = {model, 0, 0, 0, 0};
    int status = check_header(model, length, arena_bytes);

    if (status != NN_OK)
        return status;
    check.data_first = (uint32_t)(sizeof(nn_header) + model->layers * sizeof(nn_layer));
    check.data_end = (uint32_t)(length - NN_TRAILER_BYTES);
    if (!in_arena(&check, model->in_at, model->in) || !in_arena(&check, model->out_at, model->out))
        return NN_CORRUPT;
    for (uint32_t i = 0; i < model->layers && status == NN_OK; i++) {
        status = check_layer(&check, &nn_layers(model)[i]);
        if (check.work > NN_MAX_WORK)
            return NN_TOO_LARGE;
    }
    if (status == NN_OK && check.macs != model->macs)
        return NN_CORRUPT;
    return status;
}
