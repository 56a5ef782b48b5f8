/* Numbers as text and back, into a buffer that its user knows to be large enough. */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>
#include <stdint.h>

char *text_put(char *at, const char *text);
char *text_unsigned(char *at, uint32_t value);
char *text_number(char *at, int32_t value);
/* Thousandths with two decimals: 25500 as 25.50. */
char *text_thousandths(char *at, int32_t value);

/* A number from 0 to 999,999,999 at `*at`, which moves behind it; -1 when there is none. */
int32_t text_read_number(const char **at, const char *end);
int text_same(const char *a, const char *b);
/* 1 when `text` starts with `start`. */
int text_starts(const char *text, const char *start);

#endif
