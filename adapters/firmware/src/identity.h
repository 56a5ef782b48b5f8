/* Who this node is: firmware version, and what its provision page says (PROTOCOL.md, "Provision page"). */
#ifndef IDENTITY_H
#define IDENTITY_H

#include <stdint.h>

enum capability {
    CAN_READ = 1,
    CAN_STREAM = 2,
    CAN_INFER = 4,
    CAN_ACTUATE = 8,
    CAN_UPDATE = 16,
    CAN_COAP = 32,
    CAN_WATCH = 64,
    NOT_PROVISIONED = 128
};
enum provision_flag { COAP_MAY_NOT_ACTUATE = 1, COAP_MAY_NOT_UPDATE = 2 };

extern const uint8_t identity_version[3];
extern const char identity_build[16];

/* Reads the provision page, or takes the development identity when there is none. */
void identity_start(void);

uint32_t identity_node(void);
uint32_t identity_capabilities(void);
uint32_t identity_flags(void);
const uint8_t *identity_key(void);
const uint8_t *identity_mac(void);
const uint8_t *identity_ip(void);

#endif
