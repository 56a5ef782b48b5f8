/* The CoAP server: what happens to a message around the resources (resources.c). */
#ifndef COAP_SERVER_H
#define COAP_SERVER_H

#include "coap.h"
#include "net.h"

#define COAP_ANSWER_BYTES 1040u

/* A resource's answer. `bytes` is where it writes its payload, COAP_ANSWER_BYTES long. */
struct coap_answer {
    uint8_t code;
    uint8_t format;
    uint8_t *bytes;
    size_t count;
};

/* One datagram to the CoAP port. */
void coap_receive(const struct endpoint *from, const uint8_t *bytes, size_t count);

/* Notifies observers and repeats what was not acknowledged. */
void coap_poll(void);

#endif
