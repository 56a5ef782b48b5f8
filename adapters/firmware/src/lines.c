/* Actuator lines: away from their safe level only as long as a lease lasts. */
#include "lines.h"
#include "clock.h"
#include "hal.h"
#include "link.h"
#include "status.h"

#define SAFE_LEVEL 0

static struct {
    uint8_t leased;
    uint32_t until;
} lines[HAL_LINES];

void lines_start(void)
{
    for (uint32_t line = 0; line < HAL_LINES; line++)
        hal_line_set(line, SAFE_LEVEL);
}

static void give_back(uint32_t line)
{
    lines[line].leased = 0;
    hal_line_set(line, SAFE_LEVEL);
}

int lines_actuate(uint32_t line, uint32_t level, uint32_t lease_ms)
{
    if (line >= HAL_LINES)
        return STATUS_UNKNOWN;
    if (level > 1 || lease_ms > LEASE_MAX_MS)
        return STATUS_MALFORMED;
    if (lease_ms == 0) {
        give_back(line);
        return STATUS_OK;
    }
    lines[line].leased = 1;
    lines[line].until = clock_ms() + lease_ms;
    hal_line_set(line, (int)level);
    return STATUS_OK;
}

int lines_level(uint32_t line)
{
    return hal_line_get(line);
}

int lines_safe_level(uint32_t line)
{
    (void)line;
    return SAFE_LEVEL;
}

uint32_t lines_left_ms(uint32_t line)
{
    return lines[line].leased ? lines[line].until - clock_ms() : 0;
}

void lines_poll(void)
{
    for (uint32_t line = 0; line < HAL_LINES; line++) {
        if (!lines[line].leased)
            continue;
        if (clock_due(lines[line].until)) {
            give_back(line);
            stats.leases_expired++;
            link_notice(NOTICE_LEASE_EXPIRED, (uint8_t)line, (uint32_t)hal_line_get(line));
        } else {
            clock_wake_at(lines[line].until);
        }
    }
}
