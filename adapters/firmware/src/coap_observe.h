/* Observers of /temp (RFC 7641): at most four, told by confirmable messages, forgotten when they are silent. */
#ifndef COAP_OBSERVE_H
#define COAP_OBSERVE_H

#include "coap.h"
#include "net.h"

/* Adds (Observe 0) or removes (1) the sender of an answered GET of /temp. 1 when it observes now. */
int coap_observe_request(const struct endpoint *from, const struct coap_message *request);

void coap_observe_acknowledged(const struct endpoint *from, uint16_t id, int reset);

/* The sequence number of the state that is sent now. */
uint32_t coap_observe_sequence(void);

void coap_observe_poll(uint16_t *next_id);

#endif
