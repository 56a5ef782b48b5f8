/* Status codes and counters that all parts of the node share (PROTOCOL.md). */
#ifndef STATUS_H
#define STATUS_H

#include <stdint.h>

enum status {
    STATUS_OK = 0,
    STATUS_UNKNOWN = -1,
    STATUS_CORRUPT = -2,
    STATUS_SIGNATURE = -3,
    STATUS_TOO_LARGE = -4,
    STATUS_DOWNGRADE = -5,
    STATUS_STATE = -6,
    STATUS_OFFSET = -7,
    STATUS_MALFORMED = -8,
    STATUS_HARDWARE = -9,
    STATUS_UNSUPPORTED = -10
};

/* In the order of the `stats` reply. */
struct stats {
    uint32_t uptime_s, frames_in, frames_out, bad_frames, overruns, samples, sensor_errors, inferences, inference_ticks;
    uint32_t leases_expired, events_dropped, packets_in, packets_out, bad_packets, coap_requests, coap_retransmissions;
};

extern struct stats stats;

/* The name of a status, as error answers of CoAP say it. */
const char *status_name(int status);

#endif
