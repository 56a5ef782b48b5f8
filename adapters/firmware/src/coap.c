/* CoAP messages: bytes to a struct and back. */
#include "coap.h"
#include "bytes.h"

#define HEADER_BYTES 4u
#define PAYLOAD_MARKER 0xffu

enum { URI_HOST = 3, URI_PORT = 7, URI_PATH = 11, URI_QUERY = 15, ACCEPT = 17 };

typedef struct {
    const uint8_t *at, *end;
} reader;

/* The 4-bit delta or length of an option with its extension; -1 when it does not end or is reserved. */
static int32_t extended(reader *in, uint32_t nibble)
{
    if (nibble < 13)
        return (int32_t)nibble;
    if (nibble == 13 && in->end - in->at >= 1)
        return 13 + *in->at++;
    if (nibble == 14 && in->end - in->at >= 2) {
        in->at += 2;
        return 269 + ((int32_t)in->at[-2] << 8 | in->at[-1]);
    }
    return -1;
}

static int number(const uint8_t *value, size_t count, size_t most, uint32_t *found)
{
    if (count > most)
        return 0;
    *found = 0;
    while (count-- > 0)
        *found = *found << 8 | *value++;
    return 1;
}

/* Adds "/segment". A path that is too long becomes one that no resource has. */
static void add_segment(struct coap_message *message, const uint8_t *value, size_t count)
{
    size_t used = 0;
    while (message->path[used] != 0)
        used++;
    if (used + 1 + count >= COAP_PATH_BYTES) {
        message->path[0] = '?';
        message->path[1] = 0;
        return;
    }
    message->path[used++] = '/';
    memcpy(message->path + used, value, count);
    message->path[used + count] = 0;
}

static int take_block(struct coap_block *block, const uint8_t *value, size_t count)
{
    uint32_t found;
    if (!number(value, count, 3, &found) || (found & 7u) == 7u)
        return 0;
    block->present = 1;
    block->number = found >> 4;
    block->more = (found >> 3) & 1u;
    block->exponent = found & 7u;
    return 1;
}

/* 0 when the value has no sense. */
static int take_option(struct coap_message *message, uint32_t option, const uint8_t *value, size_t count)
{
    uint32_t found;
    switch (option) {
    case URI_PATH:
        add_segment(message, value, count);
        return 1;
    case COAP_OBSERVE:
        if (!number(value, count, 3, &found))
            return 0;
        message->observe = (int32_t)found;
        return 1;
    case COAP_BLOCK1:
        return take_block(&message->block1, value, count);
    case COAP_BLOCK2:
        return take_block(&message->block2, value, count);
    case URI_HOST:
    case URI_PORT:
    case URI_QUERY:
    case ACCEPT:
        return 1;
    default:
        message->bad_option |= option & 1u;
        return 1;
    }
}

static enum coap_parsed take_options(struct coap_message *message, reader *in)
{
    uint32_t option = 0;
    while (in->at < in->end && *in->at != PAYLOAD_MARKER) {
        uint32_t head = *in->at++;
        int32_t delta = extended(in, head >> 4);
        int32_t length = delta < 0 ? -1 : extended(in, head & 15u);
        if (delta < 0 || length < 0 || in->end - in->at < length)
            return COAP_MALFORMED;
        option += (uint32_t)delta;
        if (!take_option(message, option, in->at, (size_t)length))
            message->bad_option |= option & 1u;
        in->at += length;
    }
    if (in->at == in->end)
        return COAP_OK;
    in->at++;
    message->payload = in->at;
    message->payload_bytes = (size_t)(in->end - in->at);
    return message->payload_bytes > 0 ? COAP_OK : COAP_MALFORMED;
}

enum coap_parsed coap_parse(const uint8_t *bytes, size_t count, struct coap_message *message)
{
    reader in = {bytes + HEADER_BYTES, bytes + count};
    memset(message, 0, sizeof *message);
    message->observe = -1;
    if (count < HEADER_BYTES || bytes[0] >> 6 != 1)
        return COAP_NOT_COAP;
    message->type = (bytes[0] >> 4) & 3u;
    message->code = bytes[1];
    message->id = (uint16_t)((uint32_t)bytes[2] << 8 | bytes[3]);
    message->token_bytes = bytes[0] & 15u;
    if (message->token_bytes > COAP_TOKEN_BYTES || count < HEADER_BYTES + message->token_bytes) {
        message->token_bytes = 0;
        return COAP_MALFORMED;
    }
    if (message->code == COAP_EMPTY)
        return count == HEADER_BYTES ? COAP_OK : COAP_MALFORMED;
    memcpy(message->token, in.at, message->token_bytes);
    in.at += message->token_bytes;
    return take_options(message, &in);
}

struct coap_writer coap_start(uint8_t *at, enum coap_type type, uint8_t code, uint16_t id, const uint8_t *token, size_t token_bytes)
{
    struct coap_writer writer = {at, 0};
    *writer.at++ = (uint8_t)(0x40u | (uint32_t)type << 4 | (uint32_t)token_bytes);
    *writer.at++ = code;
    *writer.at++ = (uint8_t)(id >> 8);
    *writer.at++ = (uint8_t)id;
    writer.at = put_bytes(writer.at, token, token_bytes);
    return writer;
}

void coap_number_option(struct coap_writer *writer, uint32_t option, uint32_t value)
{
    uint32_t delta = option - writer->last_option;
    uint32_t bytes = value > 0xffffu ? 3 : value > 0xffu ? 2 : value > 0 ? 1 : 0;

    *writer->at++ = (uint8_t)((delta < 13 ? delta : 13u) << 4 | bytes);
    if (delta >= 13)
        *writer->at++ = (uint8_t)(delta - 13);
    while (bytes-- > 0)
        *writer->at++ = (uint8_t)(value >> (8 * bytes));
    writer->last_option = option;
}

void coap_block_option(struct coap_writer *writer, uint32_t option, const struct coap_block *block)
{
    coap_number_option(writer, option, block->number << 4 | (uint32_t)(block->more << 3) | block->exponent);
}

void coap_payload(struct coap_writer *writer, const uint8_t *bytes, size_t count)
{
    if (count == 0)
        return;
    *writer->at++ = PAYLOAD_MARKER;
    writer->at = put_bytes(writer->at, bytes, count);
}
