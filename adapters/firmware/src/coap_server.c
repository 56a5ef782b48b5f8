/* The CoAP server: duplicates, errors, Block2 and the way back. Observers are kept in coap_observe.c, resources in resources.c. */
#include "coap_server.h"
#include "bytes.h"
#include "clock.h"
#include "coap_observe.h"
#include "commands.h"
#include "hal.h"
#include "resources.h"
#include "status.h"

#define REMEMBERED 8u
#define REMEMBERED_BYTES 96u
#define LIFETIME_MS 60000u

static struct remembered {
    struct endpoint from;
    uint16_t id;
    uint8_t used;
    uint8_t answer[REMEMBERED_BYTES];
    uint32_t count;
    uint32_t at;
} past[REMEMBERED];
static uint32_t next_past;

/* Starts anywhere, so that a client does not take the first after a reset for repetitions. */
static uint16_t next_id;
static int started;

/* An empty acknowledgement or reset. */
static void send_empty(const struct endpoint *to, enum coap_type type, uint16_t id)
{
    struct coap_writer writer = coap_start(net_payload(), type, COAP_EMPTY, id, 0, 0);
    net_send(to, (size_t)(writer.at - net_payload()));
}

static struct remembered *find_past(const struct endpoint *from, uint16_t id)
{
    for (uint32_t i = 0; i < REMEMBERED; i++) {
        struct remembered *r = &past[i];
        if (r->used && r->id == id && net_same(&r->from, from) && !clock_due(r->at + LIFETIME_MS))
            return r;
    }
    return 0;
}

static void remember(const struct endpoint *from, uint16_t id, const uint8_t *answer, size_t count)
{
    struct remembered *r = &past[next_past++ % REMEMBERED];
    r->from = *from;
    r->id = id;
    r->used = 1;
    r->at = clock_ms();
    r->count = count <= REMEMBERED_BYTES ? (uint32_t)count : 0;
    memcpy(r->answer, answer, r->count);
}

/* The part of a payload that a Block2 request asks for, or its first when it is longer than a block. */
static int cut(struct coap_answer *answer, struct coap_block *block)
{
    size_t size = (size_t)16 << block->exponent;
    size_t first = block->number * size;
    if (!block->present && answer->count <= 1024)
        return 1;
    if (!block->present)
        block->exponent = 6;
    size = (size_t)16 << block->exponent;
    if (first >= answer->count && block->number > 0)
        return 0;
    block->present = 1;
    block->more = answer->count - first > size;
    answer->bytes += first;
    answer->count = block->more ? size : answer->count - first;
    return 1;
}

static void send_answer(const struct endpoint *to, const struct coap_message *request, struct coap_answer *answer, int observing)
{
    enum coap_type type = request->type == COAP_CON ? COAP_ACK : COAP_NON;
    struct coap_block block2 = request->block2;
    int failed = answer->code >= COAP_BAD_REQUEST;
    struct coap_writer writer;
    size_t count;

    if (failed)
        block2.present = 0;
    else if (!cut(answer, &block2)) {
        answer->code = COAP_BAD_REQUEST;
        answer->count = 0;
        block2.present = 0;
    }
    writer = coap_start(net_payload(), type, answer->code, type == COAP_ACK ? request->id : next_id++, request->token, request->token_bytes);
    if (observing)
        coap_number_option(&writer, COAP_OBSERVE, coap_observe_sequence());
    if (answer->count > 0)
        coap_number_option(&writer, COAP_FORMAT, failed ? COAP_TEXT : answer->format);
    if (block2.present)
        coap_block_option(&writer, COAP_BLOCK2, &block2);
    if (request->block1.present)
        coap_block_option(&writer, COAP_BLOCK1, &request->block1);
    coap_payload(&writer, answer->bytes, answer->count);
    count = (size_t)(writer.at - net_payload());
    remember(to, request->id, net_payload(), count);
    net_send(to, count);
}

static void take_request(const struct endpoint *from, struct coap_message *request)
{
    struct coap_answer answer = {COAP_BAD_OPTION, COAP_TEXT, commands_scratch, 0};
    struct remembered *before = find_past(from, request->id);
    int observing = 0;

    if (before && before->count > 0) {
        memcpy(net_payload(), before->answer, before->count);
        net_send(from, before->count);
        return;
    }
    stats.coap_requests++;
    if (!request->bad_option) {
        resources_answer(from, request, &answer);
        observing = answer.code == COAP_CONTENT && coap_observe_request(from, request);
    }
    send_answer(from, request, &answer, observing);
}

void coap_receive(const struct endpoint *from, const uint8_t *bytes, size_t count)
{
    struct coap_message message;
    enum coap_parsed parsed = coap_parse(bytes, count, &message);

    if (!started)
        next_id = (uint16_t)((uint32_t)hal_ticks() * 40503u >> 8);
    started = 1;
    if (parsed != COAP_OK) {
        stats.bad_packets++;
        if (parsed == COAP_MALFORMED && message.type == COAP_CON)
            send_empty(from, COAP_RST, message.id);
    } else if (message.type == COAP_ACK || message.type == COAP_RST) {
        coap_observe_acknowledged(from, message.id, message.type == COAP_RST);
    } else if (message.code == COAP_EMPTY || message.code >= COAP_CODE(1, 0)) {
        /* A ping, or a response where a request is due. */
        if (message.type == COAP_CON)
            send_empty(from, COAP_RST, message.id);
    } else {
        take_request(from, &message);
    }
}

void coap_poll(void)
{
    coap_observe_poll(&next_id);
}
