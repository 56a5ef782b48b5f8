/* The UART link: frames of COBS with CRC-16 and sequence numbers (PROTOCOL.md, "UART link"). */
#ifndef LINK_H
#define LINK_H

#include <stddef.h>
#include <stdint.h>

#define LINK_PAYLOAD_BYTES 1040u
#define LINK_BODY_BYTES (LINK_PAYLOAD_BYTES + 5u)

enum event { EVENT_READING = 0x40, EVENT_INFERENCE = 0x41, EVENT_LOG = 0x42, EVENT_NOTICE = 0x43 };
enum notice { NOTICE_BOOTED = 1, NOTICE_LEASE_EXPIRED = 2, NOTICE_ROLLED_BACK = 3 };

/* Takes a part of what has arrived and answers every whole request in it; what is left keeps the node awake. */
void link_poll(void);

/* Sends an event, or counts it as dropped when there is no room for it. */
void link_event(enum event type, const uint8_t *payload, size_t count);
void link_notice(enum notice what, uint8_t a, uint32_t b);

#endif
