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

static uint8_t received[ENCODED_BYTES];
static size_t received_bytes;
static int too_long;
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

static void send(uint8_t byte)
{
    while (!hal_uart_write(byte))
        hal_watchdog_feed();
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
    size_t at = 0;
    for (;;) {
        size_t run = 0;
        while (at + run < count && run < LONGEST_RUN && byte_at(pieces, at + run) != 0)
            run++;
        send((uint8_t)(run + 1));
        for (size_t i = 0; i < run; i++)
            send(byte_at(pieces, at + i));
        at += run;
        if (at >= count)
            break;
        if (run < LONGEST_RUN)
            at++;
    }
    send(0);
}

/* The CRC over pieces needs them in a row: the header is put before the payload, which has room there. */
static void send_frame(uint8_t type, uint32_t sequence, uint8_t *payload, size_t count)
{
    uint8_t *body = payload - HEADER_BYTES;
    uint8_t crc[CRC_BYTES];
    piece pieces[2];

    body[0] = type;
    put16(body + 1, sequence);
    put16(crc, crc16(body, HEADER_BYTES + count));
    pieces[0] = (piece){body, HEADER_BYTES + count};
    pieces[1] = (piece){crc, CRC_BYTES};
    send_encoded(pieces, HEADER_BYTES + count + CRC_BYTES);
    stats.frames_out++;
}

void link_event(enum event type, const uint8_t *payload, size_t count)
{
    uint8_t body[HEADER_BYTES + 64];
    uint32_t sequence = event_sequence[type - EVENT_READING]++;

    if (count > 64)
        count = 64;
    if (hal_uart_room() < HEADER_BYTES + count + CRC_BYTES + 3) {
        stats.events_dropped++;
        return;
    }
    memcpy(body + HEADER_BYTES, payload, count);
    send_frame((uint8_t)type, sequence, body + HEADER_BYTES, count);
}

void link_notice(enum notice what, uint8_t a, uint32_t b)
{
    uint8_t payload[4] = {(uint8_t)what, a, (uint8_t)b, (uint8_t)(b >> 8)};
    link_event(EVENT_NOTICE, payload, sizeof payload);
}

static void answer(const uint8_t *body, size_t count)
{
    uint8_t *reply = commands_scratch + HEADER_BYTES;
    uint32_t sequence = get16(body + 1);
    size_t length = 1;
    int status = commands_run(body[0], body + HEADER_BYTES, count - HEADER_BYTES - CRC_BYTES, reply + 1, &length);

    reply[0] = (uint8_t)status;
    send_frame(body[0] | REPLY, sequence, reply, length + 1);
    commands_after_reply();
}

static void take_frame(void)
{
    size_t count = too_long ? 0 : decode(received, received_bytes);
    if (count < HEADER_BYTES + CRC_BYTES || count > LINK_BODY_BYTES
        || crc16(received, count - CRC_BYTES) != get16(received + count - CRC_BYTES) || received[0] == 0 || received[0] >= 0x40) {
        stats.bad_frames++;
        return;
    }
    stats.frames_in++;
    answer(received, count);
}

void link_poll(void)
{
    int byte;
    while ((byte = hal_uart_read()) >= 0) {
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
