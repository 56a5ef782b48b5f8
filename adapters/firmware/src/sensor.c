/* The temperature sensor (TMP105 at 0x48) and the node's own window of samples. */
#include "sensor.h"
#include "clock.h"
#include "hal.h"
#include "status.h"

#define ADDRESS 0x48
#define TEMPERATURE 0x00
#define CONFIGURATION 0x01
#define TWELVE_BITS 0x60

static struct reading last = {0, 0, 0, STATUS_HARDWARE};
static int configured;
static int32_t window[SENSOR_WINDOW];
static uint32_t taken;
static uint32_t next_sample;

/* 12 bits in steps of 1/16 degree, left-aligned in two bytes. */
static int read_temperature(int32_t *milli_celsius)
{
    static const uint8_t configuration[2] = {CONFIGURATION, TWELVE_BITS};
    uint8_t bytes[2];

    if (!configured && hal_i2c_write(ADDRESS, configuration, sizeof configuration) != 0)
        return STATUS_HARDWARE;
    configured = 1;
    if (hal_i2c_read(ADDRESS, TEMPERATURE, bytes, sizeof bytes) != 0) {
        configured = 0;
        return STATUS_HARDWARE;
    }
    *milli_celsius = (int16_t)((uint32_t)bytes[0] << 8 | bytes[1]) / 16 * 1000 / 16;
    return STATUS_OK;
}

const struct reading *sensor_read(void)
{
    last.status = (int8_t)read_temperature(&last.milli_celsius);
    last.uptime_ms = clock_ms();
    last.number++;
    stats.samples++;
    if (last.status != STATUS_OK)
        stats.sensor_errors++;
    return &last;
}

const struct reading *sensor_last(void)
{
    return &last;
}

void sensor_poll(void)
{
    if (clock_due(next_sample)) {
        next_sample = clock_ms() + SENSOR_PERIOD_MS;
        if (sensor_read()->status == STATUS_OK)
            window[taken++ % SENSOR_WINDOW] = last.milli_celsius;
    }
    clock_wake_at(next_sample);
}

int sensor_window(uint32_t count, int32_t *samples)
{
    if (count == 0 || count > SENSOR_WINDOW || taken < count)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        samples[i] = window[(taken - count + i) % SENSOR_WINDOW];
    return 1;
}
