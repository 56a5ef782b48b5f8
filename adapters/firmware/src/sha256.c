/* HMAC-SHA256 (FIPS 180-4, RFC 2104), for the signatures of models. Small rather than fast: 8 KB take a few milliseconds on a Cortex-M3. */
#include "sha256.h"
#include "bytes.h"

#define BLOCK 64u

typedef struct {
    uint32_t state[8];
    uint8_t block[BLOCK];
    uint32_t used;
    uint32_t total;
} sha256;

static const uint32_t constants[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u,
};
static const uint32_t first_state[8] = {
    0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u,
};

static uint32_t turn(uint32_t value, uint32_t by)
{
    return value >> by | value << (32u - by);
}

static uint32_t big_endian(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* The schedule is kept as the last 16 words only. */
static uint32_t schedule(uint32_t words[16], const uint8_t *block, uint32_t round)
{
    uint32_t low, high;
    if (round < 16)
        return words[round] = big_endian(block + 4 * round);
    low = words[(round + 1) & 15];
    high = words[(round + 14) & 15];
    low = turn(low, 7) ^ turn(low, 18) ^ low >> 3;
    high = turn(high, 17) ^ turn(high, 19) ^ high >> 10;
    return words[round & 15] += low + words[(round + 9) & 15] + high;
}

static void compress(sha256 *hash)
{
    uint32_t words[16];
    uint32_t v[8];
    memcpy(v, hash->state, sizeof v);
    for (uint32_t round = 0; round < 64; round++) {
        uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        uint32_t sum1 = turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25);
        uint32_t sum0 = turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22);
        uint32_t first = v[7] + sum1 + choice + constants[round] + schedule(words, hash->block, round);
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += first;
        v[0] = first + sum0 + majority;
    }
    for (uint32_t i = 0; i < 8; i++)
        hash->state[i] += v[i];
    hash->used = 0;
}

static void start(sha256 *hash)
{
    memcpy(hash->state, first_state, sizeof first_state);
    hash->used = 0;
    hash->total = 0;
}

static void add(sha256 *hash, const uint8_t *bytes, size_t count)
{
    hash->total += (uint32_t)count;
    while (count-- > 0) {
        hash->block[hash->used++] = *bytes++;
        if (hash->used == BLOCK)
            compress(hash);
    }
}

static void finish(sha256 *hash, uint8_t digest[SHA256_BYTES])
{
    static const uint8_t end = 0x80, zero = 0;
    uint32_t bits = hash->total << 3;
    uint8_t length[8] = {0, 0, 0, (uint8_t)(hash->total >> 29), (uint8_t)(bits >> 24), (uint8_t)(bits >> 16), (uint8_t)(bits >> 8),
                         (uint8_t)bits};
    add(hash, &end, 1);
    while (hash->used != BLOCK - 8)
        add(hash, &zero, 1);
    add(hash, length, sizeof length);
    for (uint32_t i = 0; i < SHA256_BYTES; i++)
        digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

static void start_keyed(sha256 *hash, const uint8_t *key, uint8_t pad)
{
    uint8_t block[BLOCK];
    memset(block, pad, BLOCK);
    for (uint32_t i = 0; i < SHA256_BYTES; i++)
        block[i] ^= key[i];
    start(hash);
    add(hash, block, BLOCK);
}

void hmac_sha256(const uint8_t key[SHA256_BYTES], const uint8_t *bytes, size_t count, uint8_t mac[SHA256_BYTES])
{
    sha256 hash;
    start_keyed(&hash, key, 0x36);
    add(&hash, bytes, count);
    finish(&hash, mac);
    start_keyed(&hash, key, 0x5c);
    add(&hash, mac, SHA256_BYTES);
    finish(&hash, mac);
}

int same_mac(const uint8_t a[SHA256_BYTES], const uint8_t b[SHA256_BYTES])
{
    uint8_t different = 0;
    for (uint32_t i = 0; i < SHA256_BYTES; i++)
        different |= a[i] ^ b[i];
    return different == 0;
}
