/* The CoAP resources of the node (PROTOCOL.md, "CoAP"). */
#ifndef RESOURCES_H
#define RESOURCES_H

#include "coap_server.h"

void resources_answer(const struct endpoint *from, struct coap_message *request, struct coap_answer *answer);

int resources_observable(const char *path);
/* The payload of /temp. */
void resources_temperature(struct coap_answer *answer);

#endif
