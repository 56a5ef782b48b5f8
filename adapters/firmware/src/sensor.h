/* The temperature sensor (TMP105 at 0x48) and the node's own window of samples. */
#ifndef SENSOR_H
#define SENSOR_H

#include <stdint.h>

#define SENSOR_WINDOW 64u
#define SENSOR_PERIOD_MS 200u

struct reading {
    uint32_t number;
    uint32_t uptime_ms;
    int32_t milli_celsius;
    int8_t status;
};

/* Reads the sensor now. */
const struct reading *sensor_read(void);
/* What was read last. */
const struct reading *sensor_last(void);

/* Takes the node's own samples, one every SENSOR_PERIOD_MS. */
void sensor_poll(void);

/* The last `count` samples of the node's own window in millidegrees, oldest first; 0 when there are fewer. */
int sensor_window(uint32_t count, int32_t *samples);

#endif
