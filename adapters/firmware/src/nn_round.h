/* Rounding of 32-bit sums to INT8 results, in the two ways that a blob can declare. Integer arithmetic only. */
#ifndef NN_ROUND_H
#define NN_ROUND_H

#include <stdint.h>

/* round(float32(sum) * (significand * 2^exponent)), each step as float32 with halves to even; saturates at +-2^30. */
int32_t round_half_even(int32_t sum, int32_t significand, int32_t exponent);

/* The fixed-point way of TensorFlow Lite: sum * multiplier / 2^31 * 2^shift, rounded twice. */
int32_t round_double(int32_t sum, int32_t multiplier, int32_t shift);

/* To the 24 significant bits of a float32, halves to even. */
int64_t round_to_float(int64_t value);

/* A number in steps of 2^-32 to the nearest integer, halves to even; saturates at +-2^30. */
int32_t round_fixed(int64_t value);

/* The same in one step, halves away from zero: LiteRT's fully connected layers. Saturates at +-2^30. */
int32_t round_once(int32_t sum, int32_t multiplier, int32_t shift);

/* The magnitude of a float32 as significand * 2^exponent with 24 bits; of zero, infinity and what is no number the significand is 0. */
typedef struct {
    uint32_t significand;
    int32_t exponent;
} float_parts;
float_parts parts_of_float(float value);

/* To the nearest integer, halves to even; values from 2^17 on only stay far. */
int32_t round_float(float value);

/* Towards zero, of values from 0 to 2^17; of others 0. */
int32_t cut_float(float value);

/* number / divisor, halves to even; number below 2^40, the result below 2^17. */
uint32_t divide_half_even(uint64_t number, uint64_t divisor);

#endif
