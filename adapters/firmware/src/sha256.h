/* HMAC-SHA256 (FIPS 180-4, RFC 2104), for the signatures of models. */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32u

/* The MAC of `count` bytes under a key of 32 bytes. */
void hmac_sha256(const uint8_t key[SHA256_BYTES], const uint8_t *bytes, size_t count, uint8_t mac[SHA256_BYTES]);

/* 1 when both are the same; takes as long whether or not. */
int same_mac(const uint8_t a[SHA256_BYTES], const uint8_t b[SHA256_BYTES]);

#endif
