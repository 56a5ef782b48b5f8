/* Memory, checksums and little-endian numbers for a program without a C library. */
#ifndef BYTES_H
#define BYTES_H

#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
void *memmove(void *to, const void *from, size_t count);
int memcmp(const void *a, const void *b, size_t count);

/* CRC-16, polynomial 0x1021; `so_far` continues one, 0xffff at the start. */
uint16_t crc16(uint32_t so_far, const uint8_t *bytes, size_t count);
/* CRC-32 of zlib; `so_far` continues one, 0 at the start. */
uint32_t crc32(uint32_t so_far, const uint8_t *bytes, size_t count);

/* Little-endian numbers at any address; put_* return where the next one goes. */
uint32_t get16(const uint8_t *at);
uint32_t get32(const uint8_t *at);
uint8_t *put16(uint8_t *at, uint32_t value);
uint8_t *put32(uint8_t *at, uint32_t value);
uint8_t *put_bytes(uint8_t *at, const void *bytes, size_t count);

#endif
