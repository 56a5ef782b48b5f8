/* The verbs of the UART link: requests in, replies out (PROTOCOL.md, "Requests"). */
#ifndef COMMANDS_H
#define COMMANDS_H

#include <stddef.h>
#include <stdint.h>

#define SCRATCH_BYTES 1056u

/* One reply at a time is built here, by this link or by CoAP. */
extern uint8_t commands_scratch[SCRATCH_BYTES];

/* Runs one request; `sequence` tells a repetition from a second one. Returns its status; `*length` becomes the bytes written to `reply`. */
int commands_run(uint8_t type, uint32_t sequence, const uint8_t *payload, size_t count, uint8_t *reply, size_t *length);

/* What may only happen once the reply is on its way: a reset. */
void commands_after_reply(void);

/* Sends the events that are subscribed to. */
void commands_poll(void);

/* Payloads that CoAP shares. They return where they end. */
uint8_t *commands_put_reading(uint8_t *at);

#endif
