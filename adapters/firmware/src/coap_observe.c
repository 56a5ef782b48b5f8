/* Observers of /temp: at most four, told by confirmable messages, forgotten when they are silent. */
#include "coap_observe.h"
#include "bytes.h"
#include "clock.h"
#include "coap_server.h"
#include "commands.h"
#include "resources.h"
#include "sensor.h"
#include "status.h"

#define OBSERVERS 4u
#define FIRST_TIMEOUT_MS 2000u
#define MOST_REPEATS 4u
#define REFRESH_MS 30000u
#define SEQUENCE_MASK 0xffffffu

static struct observer {
    struct endpoint at;
    uint8_t token[COAP_TOKEN_BYTES];
    uint8_t token_bytes;
    uint8_t used;
    uint8_t waiting;
    uint8_t repeats;
    uint16_t id;
    int32_t told;
    uint32_t told_at;
    uint32_t repeat_at;
} observers[OBSERVERS];

static uint32_t sequence = 1;

static struct observer *find(const struct endpoint *from)
{
    for (uint32_t i = 0; i < OBSERVERS; i++)
        if (observers[i].used && net_same(&observers[i].at, from))
            return &observers[i];
    return 0;
}

static struct observer *free_place(void)
{
    for (uint32_t i = 0; i < OBSERVERS; i++)
        if (!observers[i].used)
            return &observers[i];
    return 0;
}

int coap_observe_request(const struct endpoint *from, const struct coap_message *request)
{
    struct observer *o = find(from);
    if (request->code != COAP_GET || !resources_observable(request->path) || request->observe < 0)
        return 0;
    if (request->observe != 0) {
        if (o)
            o->used = 0;
        return 0;
    }
    if (!o)
        o = free_place();
    if (!o)
        return 0;
    memset(o, 0, sizeof *o);
    o->at = *from;
    memcpy(o->token, request->token, COAP_TOKEN_BYTES);
    o->token_bytes = request->token_bytes;
    o->used = 1;
    o->told = sensor_last()->milli_celsius;
    o->told_at = clock_ms();
    return 1;
}

void coap_observe_acknowledged(const struct endpoint *from, uint16_t id, int reset)
{
    struct observer *o = find(from);
    if (!o || o->id != id)
        return;
    o->waiting = 0;
    if (reset)
        o->used = 0;
}

uint32_t coap_observe_sequence(void)
{
    return sequence++ & SEQUENCE_MASK;
}

/* A repetition keeps its message id and says what is true now (RFC 7641, 4.5.2). */
static void notify(struct observer *o)
{
    struct coap_answer answer = {COAP_CONTENT, COAP_TEXT, commands_scratch, 0};
    struct coap_writer writer = coap_start(net_payload(), COAP_CON, COAP_CONTENT, o->id, o->token, o->token_bytes);

    resources_temperature(&answer);
    coap_number_option(&writer, COAP_OBSERVE, coap_observe_sequence());
    coap_number_option(&writer, COAP_FORMAT, COAP_TEXT);
    coap_payload(&writer, answer.bytes, answer.count);
    net_send(&o->at, (size_t)(writer.at - net_payload()));
    o->told = sensor_last()->milli_celsius;
    o->told_at = clock_ms();
}

static void repeat(struct observer *o)
{
    if (!clock_due(o->repeat_at)) {
        clock_wake_at(o->repeat_at);
        return;
    }
    if (o->repeats == MOST_REPEATS) {
        o->used = 0;
        return;
    }
    o->repeats++;
    o->repeat_at = clock_ms() + (FIRST_TIMEOUT_MS << o->repeats);
    stats.coap_retransmissions++;
    notify(o);
}

static void tell(struct observer *o, uint16_t *next_id)
{
    const struct reading *now = sensor_last();
    if (now->status != STATUS_OK || (now->milli_celsius == o->told && !clock_due(o->told_at + REFRESH_MS)))
        return;
    o->id = (*next_id)++;
    o->waiting = 1;
    o->repeats = 0;
    o->repeat_at = clock_ms() + FIRST_TIMEOUT_MS;
    notify(o);
}

void coap_observe_poll(uint16_t *next_id)
{
    for (uint32_t i = 0; i < OBSERVERS; i++) {
        if (!observers[i].used)
            continue;
        if (observers[i].waiting)
            repeat(&observers[i]);
        else
            tell(&observers[i], next_id);
    }
}
