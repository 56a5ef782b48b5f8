/* Runs the current model on a given input or on the node's own window of temperatures. */
#include "inference.h"
#include "bytes.h"
#include "hal.h"
#include "link.h"
#include "sensor.h"
#include "status.h"
#include "store.h"

#define RESULT_HEADER_BYTES 8u

_Alignas(8) static uint8_t arena[INFERENCE_ARENA_BYTES];

static int32_t nearest(float value)
{
    return (int32_t)(value < 0.0f ? value - 0.5f : value + 0.5f);
}

/* Temperatures in degrees, stored as the model's input wants them. */
static void quantize(const nn_header *model, const int32_t *samples, uint32_t count, uint8_t *stored)
{
    int32_t low = model->flags & NN_INPUT_UINT8 ? 0 : -128;
    for (uint32_t i = 0; i < count; i++) {
        float steps = (float)samples[i] / (1000.0f * model->in_scale);
        int32_t value = steps > 1000.0f ? 1000 : steps < -1000.0f ? -1000 : nearest(steps);
        value += model->in_zero;
        value = value < low ? low : value > low + 255 ? low + 255 : value;
        stored[i] = (uint8_t)value;
    }
}

int inference_run(const uint8_t *input, size_t count, uint8_t *out, uint8_t **end)
{
    const nn_header *model = store_model();
    uint32_t wanted = nn_input_count(model);
    uint32_t made = nn_output_count(model);
    int32_t samples[SENSOR_WINDOW];
    uint8_t stored[SENSOR_WINDOW];
    uint64_t began;

    if (RESULT_HEADER_BYTES + made + 1 > LINK_PAYLOAD_BYTES)
        return STATUS_TOO_LARGE;
    if (count == 0) {
        if (!sensor_window(wanted, samples))
            return STATUS_STATE;
        quantize(model, samples, wanted, stored);
        input = stored;
    } else if (count != wanted) {
        return STATUS_MALFORMED;
    }
    began = hal_ticks();
    nn_run(model, arena, input, out + RESULT_HEADER_BYTES);
    stats.inference_ticks = (uint32_t)(hal_ticks() - began);
    stats.inferences++;
    out[0] = (uint8_t)store_source();
    out[1] = nn_top(model, out + RESULT_HEADER_BYTES);
    put16(out + 2, made);
    put32(out + 4, stats.inference_ticks);
    *end = out + RESULT_HEADER_BYTES + made;
    return STATUS_OK;
}
