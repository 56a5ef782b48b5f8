/* Milliseconds since the start, and how long the processor may sleep. No periodic tick: the next deadline is asked for. */
#include "clock.h"
#include "hal.h"

#define TICKS_PER_MS (HAL_CLOCK_HZ / 1000u)
#define LONGEST_SLEEP_MS 250u

static uint64_t counted_ticks;
static uint32_t now_ms;
static uint32_t seconds;
static uint32_t ms_of_second;
static uint32_t sleep_ms = LONGEST_SLEEP_MS;

void clock_update(void)
{
    uint64_t ticks = hal_ticks();
    while (ticks - counted_ticks >= TICKS_PER_MS) {
        counted_ticks += TICKS_PER_MS;
        now_ms++;
        if (++ms_of_second == 1000) {
            ms_of_second = 0;
            seconds++;
        }
    }
    sleep_ms = LONGEST_SLEEP_MS;
}

uint32_t clock_ms(void)
{
    return now_ms;
}

uint32_t clock_seconds(void)
{
    return seconds;
}

int clock_due(uint32_t at)
{
    return (int32_t)(now_ms - at) >= 0;
}

void clock_wake_at(uint32_t at)
{
    uint32_t left = clock_due(at) ? 0 : at - now_ms;
    if (left < sleep_ms)
        sleep_ms = left;
}

uint32_t clock_sleep_ticks(void)
{
    uint32_t past = (uint32_t)(hal_ticks() - counted_ticks);
    uint32_t wanted = sleep_ms * TICKS_PER_MS;
    return wanted > past ? wanted - past : 0;
}
