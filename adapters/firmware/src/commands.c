/* The verbs of the UART link: requests in, replies out. Each request is a row of a table: its number, the sizes it may have, its function. */
#include "commands.h"
#include "bytes.h"
#include "clock.h"
#include "hal.h"
#include "identity.h"
#include "inference.h"
#include "lines.h"
#include "link.h"
#include "sensor.h"
#include "status.h"
#include "store.h"

#define PROTOCOL_VERSION 1u
#define LINK_UART 1u
#define PING_BYTES 64u
#define LATEST_PERIODS 8u
#define REPETITION_MS 2000u

enum reset { RESET_NONE, RESET_NOW, RESET_BY_WATCHDOG };
enum what { WHAT_READINGS = 1, WHAT_INFERENCES = 2 };

typedef struct {
    const uint8_t *in;
    size_t count;
    uint8_t *out;
    uint32_t sequence;
} request;

_Alignas(4) uint8_t commands_scratch[SCRATCH_BYTES];
struct stats stats;

static enum reset reset_wanted;
static uint32_t period_ms;
static uint32_t next_event;
static uint8_t subscribed;

uint8_t *commands_put_reading(uint8_t *at)
{
    const struct reading *now = sensor_last();
    at = put32(at, now->number);
    at = put32(at, now->uptime_ms);
    at = put32(at, (uint32_t)now->milli_celsius);
    return put32(at, (uint8_t)now->status);
}

static int ping(request *r)
{
    r->out = put_bytes(r->out, r->in, r->count);
    return STATUS_OK;
}

static int hello(request *r)
{
    uint8_t *at = r->out;
    *at++ = PROTOCOL_VERSION;
    at = put_bytes(at, identity_version, 3);
    at = put_bytes(at, hal_board, 16);
    at = put32(at, identity_node());
    at = put32(at, store_boot_count());
    at = put32(at, identity_capabilities());
    at = put16(at, LINK_PAYLOAD_BYTES);
    *at++ = 1;
    *at++ = HAL_LINES;
    at = put32(at, STORE_SLOT_BYTES);
    at = put32(at, INFERENCE_ARENA_BYTES);
    *at++ = (uint8_t)hal_reset_cause();
    *at++ = LINK_UART;
    at = put16(at, SENSOR_WINDOW);
    at = put32(at, HAL_CLOCK_HZ);
    at = put_bytes(at, identity_build, 16);
    r->out = put32(at, store_highest_confirmed());
    return STATUS_OK;
}

static int model(request *r)
{
    const nn_header *m = store_model();
    uint8_t *at = r->out;
    *at++ = (uint8_t)store_source();
    *at++ = (uint8_t)store_on_trial();
    *at++ = m->rounding;
    *at++ = m->flags;
    at = put32(at, m->version);
    at = put_bytes(at, m->name, sizeof m->name);
    at = put_bytes(at, &m->in, sizeof m->in);
    at = put_bytes(at, &m->out, sizeof m->out);
    at = put_bytes(at, &m->in_scale, 16);
    at = put32(at, m->size);
    at = put32(at, m->arena);
    at = put16(at, store_seconds_left());
    *at++ = (uint8_t)store_trial_boots();
    *at++ = (uint8_t)store_upload_state();
    r->out = at;
    return STATUS_OK;
}

static int read_sensor(request *r)
{
    int status = sensor_read()->status;
    if (status == STATUS_OK)
        r->out = commands_put_reading(r->out);
    return status;
}

static int subscribe(request *r)
{
    uint32_t period = get16(r->in);
    if (period > 60000 || (period > 0 && (r->in[2] == 0 || r->in[2] > (WHAT_READINGS | WHAT_INFERENCES))))
        return STATUS_MALFORMED;
    period_ms = period;
    subscribed = r->in[2];
    next_event = clock_ms() + period;
    return STATUS_OK;
}

static int infer(request *r)
{
    return inference_run(r->in, r->count, r->out, &r->out);
}

static int actuate(request *r)
{
    int status = lines_actuate(r->in[0], r->in[1], get32(r->in + 2));
    if (status == STATUS_OK)
        *r->out++ = (uint8_t)lines_level(r->in[0]);
    return status;
}

static int lines_state(request *r)
{
    for (uint32_t line = 0; line < HAL_LINES; line++) {
        *r->out++ = (uint8_t)lines_level(line);
        *r->out++ = (uint8_t)lines_safe_level(line);
        r->out = put32(r->out, lines_left_ms(line));
    }
    return STATUS_OK;
}

static int counters(request *r)
{
    stats.uptime_s = clock_seconds();
    r->out = put_bytes(r->out, &stats, sizeof stats);
    return STATUS_OK;
}

static int reset(request *r)
{
    if (r->in[0] > 1)
        return STATUS_MALFORMED;
    reset_wanted = r->in[0] == 0 ? RESET_NOW : RESET_BY_WATCHDOG;
    return STATUS_OK;
}

static int ota_begin(request *r)
{
    int status = store_begin(get32(r->in), get32(r->in + 4), get32(r->in + 8));
    if (status == STATUS_OK)
        r->out = put16(r->out, STORE_CHUNK_BYTES);
    return status;
}

static int ota_data(request *r)
{
    int status = store_data(get32(r->in), r->in + 4, r->count - 4);
    if (status == STATUS_OK || status == STATUS_OFFSET)
        r->out = put32(r->out, store_next_offset());
    return status;
}

static int ota_commit(request *r)
{
    int status = store_commit();
    if (status == STATUS_OK)
        *r->out++ = (uint8_t)store_uploaded_slot();
    return status;
}

static int ota_trial(request *r)
{
    int status = store_trial(get16(r->in));
    if (status == STATUS_OK)
        reset_wanted = RESET_NOW;
    return status;
}

static int ota_confirm(request *r)
{
    (void)r;
    return store_confirm();
}

/* A second rollback goes further back, so a repetition, whose first reply was lost, must not be taken for one. */
static int ota_rollback(request *r)
{
    static uint32_t last_sequence;
    static uint32_t repeated_until;
    int status = STATUS_OK;

    if (clock_due(repeated_until) || r->sequence != last_sequence)
        status = store_rollback(ROLLBACK_ASKED);
    if (status != STATUS_OK)
        return status;
    last_sequence = r->sequence;
    repeated_until = clock_ms() + REPETITION_MS;
    *r->out++ = (uint8_t)store_source();
    return status;
}

static const struct {
    uint8_t type;
    uint16_t least, most;
    int (*run)(request *);
} verbs[] = {
    {0x01, 0, PING_BYTES, ping},
    {0x02, 0, 0, hello},
    {0x03, 0, 0, model},
    {0x04, 0, 0, read_sensor},
    {0x05, 3, 3, subscribe},
    {0x06, 0, LINK_PAYLOAD_BYTES, infer},
    {0x07, 6, 6, actuate},
    {0x08, 0, 0, lines_state},
    {0x09, 0, 0, counters},
    {0x0a, 1, 1, reset},
    {0x10, 12, 12, ota_begin},
    {0x11, 5, 4 + STORE_CHUNK_BYTES, ota_data},
    {0x12, 0, 0, ota_commit},
    {0x13, 2, 2, ota_trial},
    {0x14, 0, 0, ota_confirm},
    {0x15, 0, 0, ota_rollback},
};

int commands_run(uint8_t type, uint32_t sequence, const uint8_t *payload, size_t count, uint8_t *reply, size_t *length)
{
    request r = {payload, count, reply, sequence};
    int status = STATUS_UNKNOWN;
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++)
        if (verbs[i].type == type)
            status = count < verbs[i].least || count > verbs[i].most ? STATUS_MALFORMED : verbs[i].run(&r);
    *length = (size_t)(r.out - reply);
    return status;
}

void commands_after_reply(void)
{
    if (reset_wanted == RESET_NONE)
        return;
    while (hal_uart_room() < HAL_UART_RING)
        continue;
    if (reset_wanted == RESET_NOW)
        hal_reset();
    for (;;)
        hal_idle(HAL_CLOCK_HZ);
}

static void send_events(void)
{
    uint8_t *payload = commands_scratch;
    uint8_t *end;

    sensor_read();
    if (subscribed & WHAT_READINGS)
        link_event(EVENT_READING, payload, (size_t)(commands_put_reading(payload) - payload));
    if ((subscribed & WHAT_INFERENCES) && inference_run(0, 0, put32(payload, sensor_last()->number), &end) == STATUS_OK)
        link_event(EVENT_INFERENCE, payload, (size_t)(end - payload));
}

/* What is a little late is made up for, one event a turn; after LATEST_PERIODS the rhythm starts anew. */
void commands_poll(void)
{
    if (period_ms == 0)
        return;
    if (clock_due(next_event)) {
        send_events();
        next_event += period_ms;
        if (clock_due(next_event + LATEST_PERIODS * period_ms))
            next_event = clock_ms() + period_ms;
    }
    clock_wake_at(next_event);
}
