/* Ethernet, ARP, IPv4, ICMP echo and UDP. It answers to where a frame came from and opens nothing by itself. */
#include "net.h"
#include "bytes.h"
#include "coap_server.h"
#include "hal.h"
#include "identity.h"
#include "status.h"

#define ETHERNET_BYTES 14u
#define IP_BYTES 20u
#define UDP_BYTES 8u
#define ARP_BYTES 28u
#define TYPE_IP 0x0800u
#define TYPE_ARP 0x0806u
#define PROTOCOL_ICMP 1u
#define PROTOCOL_UDP 17u
#define PAYLOAD_AT (ETHERNET_BYTES + IP_BYTES + UDP_BYTES)
#define FRAMES_PER_TURN 8u

_Static_assert(PAYLOAD_AT + NET_UDP_BYTES <= HAL_FRAME_BYTES, "a datagram fits a frame");

static uint8_t in[HAL_FRAME_BYTES];
static uint8_t out[HAL_FRAME_BYTES];

static uint32_t big16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static void put_big16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* The Internet checksum, folded; `sum` is what other parts gave. */
static uint32_t checksum(uint32_t sum, const uint8_t *bytes, size_t count)
{
    for (; count > 1; count -= 2, bytes += 2)
        sum += big16(bytes);
    if (count)
        sum += (uint32_t)bytes[0] << 8;
    while (sum >> 16)
        sum = (sum & 0xffffu) + (sum >> 16);
    return sum;
}

/* That of a UDP datagram with its pseudo header. */
static uint32_t udp_checksum(const uint8_t *ip, const uint8_t *udp, size_t count)
{
    return checksum(checksum(PROTOCOL_UDP + (uint32_t)count, ip + 12, 8), udp, count);
}

static void put_ethernet(uint8_t *frame, const uint8_t *to, uint32_t type)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, identity_mac(), 6);
    put_big16(frame + 12, type);
}

static void send_frame(size_t count)
{
    hal_net_send(out, count);
    stats.packets_out++;
}

static void take_arp(size_t count)
{
    static const uint8_t request[8] = {0, 1, 8, 0, 6, 4, 0, 1};
    const uint8_t *arp = in + ETHERNET_BYTES;
    uint8_t *answer = out + ETHERNET_BYTES;

    if (count < ETHERNET_BYTES + ARP_BYTES || memcmp(arp, request, sizeof request) != 0 || memcmp(arp + 24, identity_ip(), 4) != 0)
        return;
    put_ethernet(out, arp + 8, TYPE_ARP);
    memcpy(answer, request, sizeof request);
    answer[7] = 2;
    memcpy(answer + 8, identity_mac(), 6);
    memcpy(answer + 14, identity_ip(), 4);
    memcpy(answer + 18, arp + 8, 10);
    send_frame(ETHERNET_BYTES + ARP_BYTES);
}

static void put_ip(const uint8_t *mac, const uint8_t *to, uint32_t protocol, size_t payload)
{
    static uint16_t identification;
    uint8_t *ip = out + ETHERNET_BYTES;

    put_ethernet(out, mac, TYPE_IP);
    memset(ip, 0, IP_BYTES);
    ip[0] = 0x45;
    put_big16(ip + 2, IP_BYTES + (uint32_t)payload);
    put_big16(ip + 4, identification++);
    ip[8] = 64;
    ip[9] = (uint8_t)protocol;
    memcpy(ip + 12, identity_ip(), 4);
    memcpy(ip + 16, to, 4);
    put_big16(ip + 10, ~checksum(0, ip, IP_BYTES));
}

/* Sends back what an echo request brought. */
static void take_icmp(const uint8_t *ip, const uint8_t *icmp, size_t count)
{
    uint8_t *answer = out + ETHERNET_BYTES + IP_BYTES;
    if (count < 8 || icmp[0] != 8 || icmp[1] != 0 || checksum(0, icmp, count) != 0xffffu)
        return;
    put_ip(in + 6, ip + 12, PROTOCOL_ICMP, count);
    memcpy(answer, icmp, count);
    answer[0] = 0;
    put_big16(answer + 2, 0);
    put_big16(answer + 2, ~checksum(0, answer, count));
    send_frame(ETHERNET_BYTES + IP_BYTES + count);
}

static int take_udp(const uint8_t *ip, const uint8_t *udp, size_t count)
{
    struct endpoint from;
    size_t length;

    if (count < UDP_BYTES)
        return 0;
    length = big16(udp + 4);
    if (length < UDP_BYTES || length > count)
        return 0;
    if (big16(udp + 6) != 0 && udp_checksum(ip, udp, length) != 0xffffu)
        return 0;
    if (big16(udp + 2) != NET_PORT)
        return 1;
    memcpy(from.mac, in + 6, 6);
    memcpy(from.ip, ip + 12, 4);
    from.port = (uint16_t)big16(udp);
    coap_receive(&from, udp + UDP_BYTES, length - UDP_BYTES);
    return 1;
}

/* 0 when the packet is damaged; one for somebody else, or of another kind, is passed over. */
static int take_ip(size_t count)
{
    const uint8_t *ip = in + ETHERNET_BYTES;
    size_t header, length;

    if (count < ETHERNET_BYTES + IP_BYTES || ip[0] >> 4 != 4)
        return 0;
    header = (size_t)(ip[0] & 15u) * 4;
    length = big16(ip + 2);
    if (header < IP_BYTES || length < header || length > count - ETHERNET_BYTES || checksum(0, ip, header) != 0xffffu)
        return 0;
    if (memcmp(ip + 16, identity_ip(), 4) != 0 || (big16(ip + 6) & 0x3fffu) != 0)
        return 1;
    if (ip[9] == PROTOCOL_ICMP)
        take_icmp(ip, ip + header, length - header);
    return ip[9] == PROTOCOL_UDP ? take_udp(ip, ip + header, length - header) : 1;
}

void net_start(void)
{
    hal_net_start(identity_mac());
}

void net_poll(void)
{
    for (uint32_t frames = 0; frames < FRAMES_PER_TURN; frames++) {
        size_t count = hal_net_receive(in);
        uint32_t type;
        if (count == 0)
            return;
        stats.packets_in++;
        type = count > ETHERNET_BYTES ? big16(in + 12) : 0;
        if (type == TYPE_ARP)
            take_arp(count);
        else if (type == 0 || (type == TYPE_IP && !take_ip(count)))
            stats.bad_packets++;
    }
}

uint8_t *net_payload(void)
{
    return out + PAYLOAD_AT;
}

void net_send(const struct endpoint *to, size_t count)
{
    uint8_t *udp = out + ETHERNET_BYTES + IP_BYTES;
    uint32_t sum;

    put_ip(to->mac, to->ip, PROTOCOL_UDP, UDP_BYTES + count);
    put_big16(udp, NET_PORT);
    put_big16(udp + 2, to->port);
    put_big16(udp + 4, UDP_BYTES + (uint32_t)count);
    put_big16(udp + 6, 0);
    sum = ~udp_checksum(out + ETHERNET_BYTES, udp, UDP_BYTES + count) & 0xffffu;
    put_big16(udp + 6, sum == 0 ? 0xffffu : sum);
    send_frame(PAYLOAD_AT + count);
}

int net_same(const struct endpoint *a, const struct endpoint *b)
{
    return a->port == b->port && memcmp(a->ip, b->ip, 4) == 0;
}
