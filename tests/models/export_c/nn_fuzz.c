/* Damages model blobs and runs what nn_check accepts, each in memory of exactly its size: built with sanitizers, it dies at the first access outside.
 *
 * nn_fuzz ROUNDS BLOB...: every byte of each blob changed in six ways, then ROUNDS blobs with one to four fields of header and layers set to
 * values that hurt. `macs` is set right again each time, so that damage gets past its check. Prints how many were accepted and refused.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nn.h"

#define MOST_BYTES (1 << 16)
#define ARENA_BYTES (1 << 14)
#define MOST_MACS 100000u

static unsigned long accepted, refused, heavy;
static uint32_t state = 1;

static uint32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static uint64_t values(nn_shape shape)
{
    return (uint64_t)shape.h * shape.w * shape.c;
}

static void set_macs(uint8_t *blob, size_t size)
{
    nn_header *model = (nn_header *)(void *)blob;
    const nn_layer *layers = nn_layers(model);
    uint64_t macs = 0;
    for (uint32_t i = 0; i < model->layers && (i + 1) * sizeof(nn_layer) + sizeof(nn_header) <= size; i++) {
        uint64_t taps = (uint64_t)layers[i].kernel_h * layers[i].kernel_w;
        if (layers[i].operator_ == NN_CONV)
            macs += values(layers[i].out) * taps * layers[i].in.c;
        if (layers[i].operator_ == NN_DEPTHWISE)
            macs += values(layers[i].out) * taps;
    }
    model->macs = (uint32_t)macs;
}

static void *copy(const void *from, size_t size)
{
    void *made = malloc(size ? size : 1);
    if (made == NULL)
        abort();
    if (from != NULL)
        memcpy(made, from, size);
    else
        memset(made, 0x5a, size);
    return made;
}

static void attempt(const uint8_t *damaged, size_t size)
{
    uint8_t *blob = copy(damaged, size);
    const nn_header *model = (const nn_header *)(const void *)blob;
    uint8_t *arena, *input, *output;

    set_macs(blob, size);
    if (nn_check(blob, size, ARENA_BYTES) != NN_OK) {
        refused++;
        free(blob);
        return;
    }
    accepted++;
    if (model->macs > MOST_MACS) {
        heavy++;
        free(blob);
        return;
    }
    arena = copy(NULL, model->arena);
    input = copy(NULL, nn_input_count(model));
    output = copy(NULL, nn_output_count(model));
    nn_run(model, arena, input, output);
    (void)nn_top(model, output);
    free(output);
    free(input);
    free(arena);
    free(blob);
}

static void change_every_byte(uint8_t *blob, size_t size)
{
    static const uint8_t flips[] = {0x01, 0x80, 0xff};
    for (size_t at = 0; at < size; at++) {
        uint8_t was = blob[at];
        for (size_t i = 0; i < sizeof flips; i++) {
            blob[at] = was ^ flips[i];
            attempt(blob, size);
        }
        blob[at] = 0;
        attempt(blob, size);
        blob[at] = (uint8_t)(was + 1);
        attempt(blob, size);
        blob[at] = (uint8_t)next();
        attempt(blob, size);
        blob[at] = was;
    }
}

static void set_field(uint8_t *blob, size_t described)
{
    static const uint32_t hurting[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 0x7fffffff, 0x80000000, 0xffffffff};
    uint32_t value = next() % 3 ? hurting[next() % (sizeof hurting / sizeof *hurting)] : next() % 300;
    size_t width = (size_t)1 << next() % 3;
    size_t at = next() % (described / width) * width;
    memcpy(blob + at, &value, width);
}

static void change_fields(const uint8_t *blob, size_t size, unsigned long rounds)
{
    const nn_header *model = (const nn_header *)(const void *)blob;
    size_t described = sizeof(nn_header) + model->layers * sizeof(nn_layer);
    for (unsigned long round = 0; round < rounds; round++) {
        uint8_t *damaged = copy(blob, size);
        for (uint32_t i = next() % 4 + 1; i > 0; i--)
            set_field(damaged, described);
        if (next() % 2)
            ((nn_header *)(void *)damaged)->arena = ARENA_BYTES;
        attempt(damaged, size);
        free(damaged);
    }
}

/* Shorter ones, with a header that agrees. */
static void cut(const uint8_t *blob, size_t size)
{
    for (size_t shorter = 0; shorter < size; shorter += 4) {
        uint8_t *damaged = copy(blob, shorter);
        if (shorter >= sizeof(nn_header)) {
            ((nn_header *)(void *)damaged)->size = (uint32_t)shorter;
            attempt(damaged, shorter);
        } else if (nn_check(damaged, shorter, ARENA_BYTES) != NN_OK)
            refused++;
        free(damaged);
    }
}

int main(int argc, char **argv)
{
    for (int i = 2; i < argc; i++) {
        static uint64_t room[MOST_BYTES / 8];
        uint8_t *blob = (uint8_t *)room;
        FILE *file = fopen(argv[i], "rb");
        size_t size = file ? fread(blob, 1, MOST_BYTES, file) : 0;
        if (file == NULL || nn_check(blob, size, ARENA_BYTES) != NN_OK) {
            fprintf(stderr, "%s: not a good blob to begin with\n", argv[i]);
            return 2;
        }
        fclose(file);
        change_every_byte(blob, size);
        change_fields(blob, size, strtoul(argv[1], NULL, 10));
        cut(blob, size);
    }
    printf("%lu %lu %lu\n", accepted, refused, heavy);
    return 0;
}
