/* Ethernet, ARP, IPv4, ICMP echo and UDP: as much as a server at one address needs. */
#ifndef NET_H
#define NET_H

#include <stddef.h>
#include <stdint.h>

#define NET_PORT 5683u
#define NET_UDP_BYTES 1280u

/* Who sent a datagram; its MAC is kept, so that answers need no ARP. */
struct endpoint {
    uint8_t mac[6];
    uint8_t ip[4];
    uint16_t port;
};

void net_start(void);
/* Takes the frames that have come; datagrams to NET_PORT go to coap_receive. */
void net_poll(void);

/* Where the payload of the next datagram is to be written, NET_UDP_BYTES long. */
uint8_t *net_payload(void);
/* Sends what was written there. */
void net_send(const struct endpoint *to, size_t count);

int net_same(const struct endpoint *a, const struct endpoint *b);

#endif
