/* Model uploads over CoAP: the blocks of a PUT, and the commands of a POST. */
#ifndef UPLOAD_H
#define UPLOAD_H

#include "coap.h"
#include "net.h"

/* One block of PUT /model; the last one commits. Returns a status. */
int upload_block(const struct endpoint *from, struct coap_message *request);

/* `trial SECONDS`, `confirm` or `rollback`. Returns a status. */
int upload_command(const struct coap_message *request);

/* Resets into the model on trial, once the answer is on its way. */
void upload_poll(void);

#endif
