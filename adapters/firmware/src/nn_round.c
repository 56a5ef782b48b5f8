/* Rounding of sums: a float32 multiplication done in integers, and TensorFlow Lite's fixed-point multiplication.
 *
 * The first costs a sixth of the soft-float library on a processor without an FPU and gives the same bits.
 */
#include "nn_round.h"

#define SIGNIFICAND_BITS 24
#define SATURATED (1 << 30)
#define FAR (1 << 17)

static uint32_t shift_half_even(uint32_t value, uint32_t by)
{
    uint32_t kept = value >> by;
    uint32_t lost = value << (32u - by);
    uint32_t half = 0x80000000u;
    if (lost > half || (lost == half && (kept & 1u)))
        kept++;
    return kept;
}

/* The magnitude as a float32 holds it: 24 significant bits. */
static uint32_t as_float(uint32_t magnitude)
{
    uint32_t extra;
    if (magnitude < (1u << SIGNIFICAND_BITS))
        return magnitude;
    extra = (32u - SIGNIFICAND_BITS) - (uint32_t)__builtin_clz(magnitude);
    return shift_half_even(magnitude, extra) << extra;
}

/* magnitude * significand, rounded to 24 bits; *exponent grows by the bits that were cut. */
static uint32_t multiply(uint32_t magnitude, uint32_t significand, int32_t *exponent)
{
    uint64_t product = (uint64_t)magnitude * significand;
    uint32_t high = (uint32_t)(product >> 32);
    uint32_t low = (uint32_t)product;
    uint32_t leading, sticky;

    if (high == 0) {
        leading = (uint32_t)__builtin_clz(low);
        if (leading >= 32u - SIGNIFICAND_BITS)
            return low;
        *exponent += (int32_t)((32u - SIGNIFICAND_BITS) - leading);
        return shift_half_even(low, (32u - SIGNIFICAND_BITS) - leading);
    }
    leading = (uint32_t)__builtin_clz(high);
    *exponent += (int32_t)(64u - SIGNIFICAND_BITS - leading);
    if (leading > 0) {
        high = (high << leading) | (low >> (32u - leading));
        low <<= leading;
    }
    /* Bits below the kept ones matter only as "some" or "none". */
    sticky = low != 0;
    return shift_half_even(high | sticky, 32u - SIGNIFICAND_BITS);
}

int32_t round_half_even(int32_t sum, int32_t significand, int32_t exponent)
{
    uint32_t magnitude = sum < 0 ? 0u - (uint32_t)sum : (uint32_t)sum;
    uint32_t rounded;
    int32_t result;

    if (magnitude == 0 || significand <= 0)
        return 0;
    rounded = multiply(as_float(magnitude), (uint32_t)significand, &exponent);
    if (exponent >= 0)
        result = exponent > 5 ? SATURATED : (int32_t)(rounded << exponent);
    else if (exponent < -(SIGNIFICAND_BITS + 1))
        result = 0;
    else
        result = (int32_t)shift_half_even(rounded, (uint32_t)-exponent);
    if (result > SATURATED)
        result = SATURATED;
    return sum < 0 ? -result : result;
}

/* high 32 bits of 2 * a * b, rounded to nearest; halves away from zero. */
static int32_t doubling_high(int32_t a, int32_t b)
{
    int64_t product = (int64_t)a * b;
    if (a == INT32_MIN && b == INT32_MIN)
        return INT32_MAX;
    if (product >= 0)
        return (int32_t)((product + (1 << 30)) >> 31);
    return -(int32_t)((-product + (1 << 30) - 1) >> 31);
}

static int32_t divide_by_power(int32_t value, uint32_t power)
{
    int32_t mask = (int32_t)((1u << power) - 1u);
    int32_t remainder = value & mask;
    int32_t threshold = (mask >> 1) + (value < 0 ? 1 : 0);
    return (value >> power) + (remainder > threshold ? 1 : 0);
}

int32_t round_double(int32_t sum, int32_t multiplier, int32_t shift)
{
    uint32_t left = shift > 0 ? (uint32_t)shift : 0;
    uint32_t right = shift > 0 ? 0 : (uint32_t)-shift;
    int32_t shifted = (int32_t)((uint32_t)sum << left);
    return divide_by_power(doubling_high(shifted, multiplier), right);
}

static uint64_t shift_half_even_64(uint64_t value, uint32_t by)
{
    uint64_t kept = value >> by;
    uint64_t lost = value << (64u - by);
    uint64_t half = (uint64_t)1 << 63;
    if (lost > half || (lost == half && (kept & 1u)))
        kept++;
    return kept;
}

int64_t round_to_float(int64_t value)
{
    uint64_t magnitude = value < 0 ? 0u - (uint64_t)value : (uint64_t)value;
    uint32_t extra;
    if (magnitude < (1u << SIGNIFICAND_BITS))
        return value;
    extra = (64u - SIGNIFICAND_BITS) - (uint32_t)__builtin_clzll(magnitude);
    if (extra > 0)
        magnitude = shift_half_even_64(magnitude, extra) << extra;
    return value < 0 ? -(int64_t)magnitude : (int64_t)magnitude;
}

int32_t round_fixed(int64_t value)
{
    uint64_t magnitude = shift_half_even_64(value < 0 ? 0u - (uint64_t)value : (uint64_t)value, 32);
    int32_t result = magnitude > SATURATED ? SATURATED : (int32_t)magnitude;
    return value < 0 ? -result : result;
}

int32_t round_once(int32_t sum, int32_t multiplier, int32_t shift)
{
    uint64_t magnitude = sum < 0 ? 0u - (uint32_t)sum : (uint32_t)sum;
    uint32_t right = (uint32_t)(31 - shift);
    if (multiplier <= 0)
        return 0;
    magnitude = (magnitude * (uint32_t)multiplier + ((uint64_t)1 << (right - 1))) >> right;
    if (magnitude > SATURATED)
        magnitude = SATURATED;
    return sum < 0 ? -(int32_t)magnitude : (int32_t)magnitude;
}

static uint32_t bits_of_float(float value)
{
    union {
        float value;
        uint32_t bits;
    } stored = {value};
    return stored.bits;
}

float_parts parts_of_float(float value)
{
    uint32_t bits = bits_of_float(value);
    uint32_t exponent = bits >> 23 & 0xffu;
    float_parts parts = {(bits & 0x7fffffu) | 0x800000u, (int32_t)exponent - 150};
    if (exponent == 0 || exponent == 255)
        parts.significand = 0;
    return parts;
}

int32_t round_float(float value)
{
    float_parts parts = parts_of_float(value);
    int32_t result = 0;
    if (parts.exponent > -7)
        result = FAR;
    else if (parts.exponent >= -(SIGNIFICAND_BITS + 1))
        result = (int32_t)shift_half_even(parts.significand, (uint32_t)-parts.exponent);
    return bits_of_float(value) >> 31 ? -result : result;
}

int32_t cut_float(float value)
{
    float_parts parts = parts_of_float(value);
    if (bits_of_float(value) >> 31 || parts.exponent > -7 || parts.exponent < -SIGNIFICAND_BITS)
        return 0;
    return (int32_t)(parts.significand >> (uint32_t)-parts.exponent);
}

uint32_t divide_half_even(uint64_t number, uint64_t divisor)
{
    uint32_t quotient = 0;
    for (uint32_t bit = 17; bit-- > 0;)
        if (number >> bit >= divisor) {
            number -= divisor << bit;
            quotient |= 1u << bit;
        }
    if (2 * number > divisor || (2 * number == divisor && (quotient & 1u)))
        quotient++;
    return quotient;
}
