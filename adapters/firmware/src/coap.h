/* CoAP messages (RFC 7252, 7641, 7959): bytes to a struct and back. Pure; it also builds natively for the tests. */
#ifndef COAP_H
#define COAP_H

#include <stddef.h>
#include <stdint.h>

#define COAP_TOKEN_BYTES 8u
#define COAP_PATH_BYTES 32u
#define COAP_CODE(class_, detail) ((uint8_t)((class_) << 5 | (detail)))

enum coap_type { COAP_CON = 0, COAP_NON = 1, COAP_ACK = 2, COAP_RST = 3 };
enum coap_code {
    COAP_EMPTY = 0,
    COAP_GET = 1,
    COAP_POST = 2,
    COAP_PUT = 3,
    COAP_CHANGED = COAP_CODE(2, 4),
    COAP_CONTENT = COAP_CODE(2, 5),
    COAP_CONTINUE = COAP_CODE(2, 31),
    COAP_BAD_REQUEST = COAP_CODE(4, 0),
    COAP_UNAUTHORIZED = COAP_CODE(4, 1),
    COAP_BAD_OPTION = COAP_CODE(4, 2),
    COAP_FORBIDDEN = COAP_CODE(4, 3),
    COAP_NOT_FOUND = COAP_CODE(4, 4),
    COAP_NOT_ALLOWED = COAP_CODE(4, 5),
    COAP_INCOMPLETE = COAP_CODE(4, 8),
    COAP_CONFLICT = COAP_CODE(4, 9),
    COAP_TOO_LARGE = COAP_CODE(4, 13),
    COAP_UNAVAILABLE = COAP_CODE(5, 3)
};
enum coap_format { COAP_TEXT = 0, COAP_LINKS = 40, COAP_BYTES = 42, COAP_JSON = 50 };

/* Block1 or Block2: number, more, size exponent (16 << exponent bytes). */
struct coap_block {
    uint8_t present, more, exponent;
    uint32_t number;
};

struct coap_message {
    uint8_t type, code, token_bytes;
    uint8_t bad_option;
    uint16_t id;
    uint8_t token[COAP_TOKEN_BYTES];
    char path[COAP_PATH_BYTES];
    int32_t observe;
    struct coap_block block1, block2;
    const uint8_t *payload;
    size_t payload_bytes;
};

enum coap_parsed { COAP_OK, COAP_NOT_COAP, COAP_MALFORMED };

/* Reads one datagram; `observe` is -1 without that option, `bad_option` 1 when a critical option is not known. With COAP_MALFORMED type and
 * id are set: enough for a reset. */
enum coap_parsed coap_parse(const uint8_t *bytes, size_t count, struct coap_message *message);

/* Writes a message piece by piece, options in rising order. */
struct coap_writer {
    uint8_t *at;
    uint32_t last_option;
};

struct coap_writer coap_start(uint8_t *at, enum coap_type type, uint8_t code, uint16_t id, const uint8_t *token, size_t token_bytes);
void coap_number_option(struct coap_writer *writer, uint32_t option, uint32_t value);
void coap_block_option(struct coap_writer *writer, uint32_t option, const struct coap_block *block);
void coap_payload(struct coap_writer *writer, const uint8_t *bytes, size_t count);

#define COAP_OBSERVE 6u
#define COAP_FORMAT 12u
#define COAP_MAX_AGE 14u
#define COAP_BLOCK2 23u
#define COAP_BLOCK1 27u

#endif
