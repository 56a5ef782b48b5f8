/* Integer interpreter of INT8 networks, run in place over a model blob (PROTOCOL.md, "Model blob").
 *
 * No heap, no globals, no hardware: it also builds natively for the tests. A blob is used only after nn_check has accepted it;
 * after that no content of its data can make nn_run read or write outside the blob and the arena.
 */
#ifndef NN_H
#define NN_H

#include <stddef.h>
#include <stdint.h>

#define NN_MAGIC 0x314e5245u
#define NN_FORMAT 1u
#define NN_MAX_LAYERS 64u
#define NN_MAX_TAPS 32768u
#define NN_MAX_WORK 20000000u
#define NN_CRC_BYTES 4u
#define NN_HMAC_BYTES 32u
#define NN_TRAILER_BYTES (NN_CRC_BYTES + NN_HMAC_BYTES)

enum nn_rounding { NN_HALF_EVEN = 0, NN_DOUBLE = 1 };
enum nn_flags { NN_INPUT_CHW = 1, NN_OUTPUT_CHW = 2, NN_INPUT_UINT8 = 4, NN_OUTPUT_UINT8 = 8, NN_ALL_FLAGS = 15 };
enum nn_operator {
    NN_CONV = 1,
    NN_DEPTHWISE = 2,
    NN_MAX_POOL = 3,
    NN_AVERAGE_POOL = 4,
    NN_ADD = 5,
    NN_SOFTMAX = 6,
    NN_ARGMAX = 7,
    NN_TABLE = 8
};
enum nn_conv_variant { NN_AS_DECLARED = 0, NN_ONCE = 1 };
enum nn_status { NN_OK = 0, NN_CORRUPT = -2, NN_TOO_LARGE = -4, NN_UNSUPPORTED = -10 };

typedef struct {
    uint16_t h, w, c;
} nn_shape;

typedef struct {
    uint32_t magic;
    uint16_t format;
    uint8_t rounding;
    uint8_t flags;
    uint32_t size;
    uint32_t version;
    uint32_t arena;
    uint16_t layers;
    uint16_t zero0;
    nn_shape in;
    uint16_t zero1;
    nn_shape out;
    uint16_t zero2;
    float in_scale;
    int32_t in_zero;
    float out_scale;
    int32_t out_zero;
    uint32_t in_at;
    uint32_t out_at;
    char name[16];
    uint32_t macs;
    uint32_t zero3[3];
} nn_header;

typedef struct {
    uint8_t operator_;
    uint8_t variant;
    int8_t low, high;
    nn_shape in, out;
    uint16_t kernel_h, kernel_w;
    uint8_t stride_h, stride_w;
    uint8_t dilation_h, dilation_w;
    uint16_t pad_top, pad_left;
    int16_t in_zero, out_zero;
    uint32_t in_at, in2_at, out_at;
    uint32_t weights, bias, mult, shift;
    uint32_t zero;
} nn_layer;

_Static_assert(sizeof(nn_header) == 96, "the header of PROTOCOL.md");
_Static_assert(sizeof(nn_layer) == 64, "the layer of PROTOCOL.md");

/* Structure, sizes and bounds of a blob of `length` bytes at a 4-byte boundary; not its CRC and not its signature. */
int nn_check(const void *blob, size_t length, size_t arena_bytes);

/* Values of the input and of the output: h * w * c. */
uint32_t nn_input_count(const nn_header *model);
uint32_t nn_output_count(const nn_header *model);

/* One inference of a checked blob: `input` has nn_input_count bytes, `output` takes nn_output_count; the arena is 4-byte aligned.
 * Bytes are int8, or uint8 where the model's flags say so. */
void nn_run(const nn_header *model, uint8_t *arena, const uint8_t *input, uint8_t *output);

/* Index of the largest output, the first of equals, at most 255. */
uint8_t nn_top(const nn_header *model, const uint8_t *output);

/* The layers of a model, behind its header. */
const nn_layer *nn_layers(const nn_header *model);

#endif
