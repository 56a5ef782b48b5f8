/* Actuator lines: away from their safe level only as long as a lease lasts. */
#ifndef LINES_H
#define LINES_H

#include <stdint.h>

#define LEASE_MAX_MS 600000u

/* All lines to their safe level; before anything else runs. */
void lines_start(void);

/* Starts or renews a lease, 0 ms gives it back. STATUS_OK, STATUS_UNKNOWN or STATUS_MALFORMED. */
int lines_actuate(uint32_t line, uint32_t level, uint32_t lease_ms);

int lines_level(uint32_t line);
int lines_safe_level(uint32_t line);
uint32_t lines_left_ms(uint32_t line);

/* Ends leases that have run out. */
void lines_poll(void);

#endif
