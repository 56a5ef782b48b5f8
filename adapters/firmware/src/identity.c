/* Who this node is: firmware version, and what its provision page says. */
#include "identity.h"
#include "bytes.h"
#include "hal.h"

#ifndef FIRMWARE_BUILD
#define FIRMWARE_BUILD "dev"
#endif

#define MAGIC 0x564f5250u
#define KEY_BYTES 32u
#define CHECKED_BYTES 60u
#define NODE_AT 4u
#define MAC_AT 8u
#define IP_AT 14u
#define KEY_AT 24u
#define FLAGS_AT 56u

const uint8_t identity_version[3] = {1, 0, 0};
const char identity_build[16] = FIRMWARE_BUILD;

static const uint8_t development_mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
static const uint8_t development_ip[4] = {10, 0, 2, 15};
static uint8_t development_key[KEY_BYTES];
static const uint8_t *page;

void identity_start(void)
{
    const uint8_t *found = hal_provision_page();
    for (uint32_t i = 0; i < KEY_BYTES; i++)
        development_key[i] = (uint8_t)i;
    if (get32(found) == MAGIC && crc32(0, found, CHECKED_BYTES) == get32(found + CHECKED_BYTES))
        page = found;
}

uint32_t identity_node(void)
{
    return page ? get32(page + NODE_AT) : 0;
}

uint32_t identity_capabilities(void)
{
    uint32_t all = CAN_READ | CAN_STREAM | CAN_INFER | CAN_ACTUATE | CAN_UPDATE | CAN_COAP | CAN_WATCH;
    return page ? all : all | NOT_PROVISIONED;
}

uint32_t identity_flags(void)
{
    return page ? get32(page + FLAGS_AT) : 0;
}

const uint8_t *identity_key(void)
{
    return page ? page + KEY_AT : development_key;
}

const uint8_t *identity_mac(void)
{
    return page ? page + MAC_AT : development_mac;
}

const uint8_t *identity_ip(void)
{
    return page ? page + IP_AT : development_ip;
}
