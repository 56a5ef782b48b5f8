/* Runs the current model on a given input or on the node's own window. */
#ifndef INFERENCE_H
#define INFERENCE_H

#include <stddef.h>
#include <stdint.h>

#define INFERENCE_ARENA_BYTES 5632u

/* Writes a `result` (PROTOCOL.md) to `out` and its end to `*end`; `count` 0 takes the node's own window. */
int inference_run(const uint8_t *input, size_t count, uint8_t *out, uint8_t **end);

#endif
