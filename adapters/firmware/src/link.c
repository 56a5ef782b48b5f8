/* The UART link: frames of COBS with CRC-16 and sequence numbers. It knows frames, not what they ask for (commands.c). */
#include "link.h"
#include "bytes.h"
#include "commands.h"
#include "hal.h"
#include "status.h"

#define HEADER_BYTES 3u
#define CRC_BYTES 2u
#define ENCODED_BYTES (LINK_BODY_BYTES + LINK_BODY_BYTES / 254u + 1u)
#define REPLY 0x80u
#define EVENT_TYPES 4u
#define LONGEST_RUN 254u
#define CRC16_START 0xffffu
#define LONGEST_SEND_TICKS (HAL_CLOCK_HZ / 4u)
#define BYTES_PER_TURN 512u

static uint8_t received[ENCODED_BYTES];
static size_t received_bytes;
static int too_long;
static int stuck;
static uint16_t event_sequence[EVENT_TYPES];

/* Undoes COBS in place: the length of the body, 0 when the bytes are none. */
static size_t decode(uint8_t *bytes, size_t count)
{
    size_t from = 0, to = 0;
    while (from < count) {
        size_t run = bytes[from++];
        if (run == 0 || from + run - 1 > count)
            return 0;
        for (size_t i = 1; i < run; i++)
            bytes[to++] = bytes[from++];
        if (run <= LONGEST_RUN && from < count)
            bytes[to++] = 0;
    }
    return to;
}

/* Waits for room as long as a frame may take; a link that stands still is waited for once, not for every byte and frame. */
static void send(uint8_t byte, uint64_t until)
{
    while (!hal_uart_write(byte)) {
        if (stuck || hal_ticks() > until) {
            stuck = 1;
            return;
        }
    }
    stuck = 0;
}

/* A body in pieces, so that a frame needs no buffer of its own. */
typedef struct {
    const uint8_t *bytes;
    size_t count;
} piece;

static uint8_t byte_at(const piece *pieces, size_t at)
{
    while (at >= pieces->count) {
        at -= pieces->count;
        pieces++;
    }
    return pieces->bytes[at];
}

/* Each run of bytes other than zero is sent behind its length; the zeros are what stands between. */
static void send_encoded(const piece *pieces, size_t count)
{
    uint64_t until = hal_ticks() + LONGEST_SEND_TICKS;
    size_t at = 0;
    for (;;) {
        size_t run = 0;
        while (at + run < count && run < LONGEST_RUN && byte_at(pieces, at + run) != 0)
            run++;
        send((uint8_t)(run + 1), until);
        for (size_t i = 0; i < run; i++)
            send(byte_at(pieces, at + i), until);
        at += run;
        if (at >= count)
            break;
        if (run < LONGEST_RUN)
            at++;
    }
    send(0, until);
}

static void send_frame(uint8_t type, uint32_t sequence, const uint8_t *payload, size_t count)
{
    uint8_t header[HEADER_BYTES] = {type, (uint8_t)sequence, (uint8_t)(sequence >> 8)};
    uint8_t crc[CRC_BYTES];
    const piece pieces[3] = {{header, HEADER_BYTES}, {payload, count}, {crc, CRC_BYTES}};

    put16(crc, crc16(crc16(CRC16_START, header, HEADER_BYTES), payload, count));
    send_encoded(pieces, HEADER_BYTES + count + CRC_BYTES);
    stats.frames_out++;
}

void link_event(enum event type, const uint8_t *payload, size_t count)
{
    uint32_t sequence = event_sequence[type - EVENT_READING]++;
    size_t body = HEADER_BYTES + count + CRC_BYTES;

    if (hal_uart_room() < body + body / LONGEST_RUN + 2)
        stats.events_dropped++;
    else
        send_frame((uint8_t)type, sequence, payload, count);
}

void link_notice(enum notice what, uint8_t a, uint32_t b)
{
    uint8_t payload[4] = {(uint8_t)what, a, (uint8_t)b, (uint8_t)(b >> 8)};
    link_event(EVENT_NOTICE, payload, sizeof payload);
}

static void answer(const uint8_t *body, size_t count)
{
    uint8_t *reply = commands_scratch;
    uint32_t sequence = get16(body + 1);
    size_t length = 0;
    int status = commands_run(body[0], sequence, body + HEADER_BYTES, count - HEADER_BYTES - CRC_BYTES, reply + 1, &length);

    reply[0] = (uint8_t)status;
    send_frame(body[0] | REPLY, sequence, reply, length + 1);
    commands_after_reply();
}

static void take_frame(void)
{
    size_t count = too_long ? 0 : decode(received, received_bytes);
    if (count < HEADER_BYTES + CRC_BYTES || count > LINK_BODY_BYTES
        || crc16(CRC16_START, received, count - CRC_BYTES) != get16(received + count - CRC_BYTES) || received[0] == 0 || received[0] >= 0x40) {
        stats.bad_frames++;
        return;
    }
    stats.frames_in++;
    answer(received, count);
}

void link_poll(void)
{
    int byte;
    for (uint32_t left = BYTES_PER_TURN; left > 0 && (byte = hal_uart_read()) >= 0; left--) {
        if (byte != 0) {
            too_long |= received_bytes == ENCODED_BYTES;
            if (!too_long)
                received[received_bytes++] = (uint8_t)byte;
            continue;
        }
        if (received_bytes > 0)
            take_frame();
        received_bytes = 0;
        too_long = 0;
    }
    stats.overruns = hal_uart_overruns();
}
