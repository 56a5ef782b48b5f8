/* Numbers as text and back. */
#include "text.h"

char *text_put(char *at, const char *text)
{
    while (*text)
        *at++ = *text++;
    return at;
}

char *text_unsigned(char *at, uint32_t value)
{
    char digits[10];
    uint32_t count = 0;
    do
        digits[count++] = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

char *text_number(char *at, int32_t value)
{
    if (value < 0)
        *at++ = '-';
    return text_unsigned(at, value < 0 ? 0u - (uint32_t)value : (uint32_t)value);
}

char *text_thousandths(char *at, int32_t value)
{
    uint32_t size = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    uint32_t hundredths = (size + 5) / 10;
    if (value < 0 && hundredths > 0)
        *at++ = '-';
    at = text_unsigned(at, hundredths / 100);
    *at++ = '.';
    *at++ = (char)('0' + hundredths / 10 % 10);
    *at++ = (char)('0' + hundredths % 10);
    return at;
}

int32_t text_read_number(const char **at, const char *end)
{
    int32_t value = 0;
    const char *first;
    while (*at < end && **at == ' ')
        (*at)++;
    first = *at;
    while (*at < end && **at >= '0' && **at <= '9' && *at - first < 9)
        value = value * 10 + (*(*at)++ - '0');
    return *at == first ? -1 : value;
}

int text_same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

int text_starts(const char *text, const char *start)
{
    while (*start)
        if (*text++ != *start++)
            return 0;
    return 1;
}
