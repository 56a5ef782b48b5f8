/* Milliseconds since the start, taken once per turn of the main loop; they wrap after 49 days, so compare with `due`. */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>

void clock_update(void);
uint32_t clock_ms(void);
uint32_t clock_seconds(void);

/* 1 when the moment `at` has come. */
int clock_due(uint32_t at);

/* Asks that the main loop turn again at `at`; kept until the next turn. */
void clock_wake_at(uint32_t at);
/* Ticks that the processor may sleep now. */
uint32_t clock_sleep_ticks(void);

#endif
