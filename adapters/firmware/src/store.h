/* Models: the factory one in flash, and two slots in RAM that survive a reset (PROTOCOL.md, "Models on trial"). */
#ifndef STORE_H
#define STORE_H

#include "nn.h"

#define STORE_SLOT_BYTES 12288u
#define STORE_CHUNK_BYTES 1024u

enum source { SOURCE_FACTORY = 0, SOURCE_A = 1, SOURCE_B = 2 };
enum upload { UPLOAD_NONE = 0, UPLOAD_OPEN = 1, UPLOAD_COMMITTED = 2 };
enum rollback { ROLLBACK_TIMEOUT = 1, ROLLBACK_BOOTS = 2, ROLLBACK_ASKED = 3, ROLLBACK_DAMAGED = 4 };

/* Chooses the model of this boot: at once after identity_start, before anything is inferred. */
void store_start(void);
/* Takes back a model that was not confirmed in time. */
void store_poll(void);

const nn_header *store_model(void);
enum source store_source(void);
int store_on_trial(void);
uint32_t store_trial_boots(void);
uint32_t store_seconds_left(void);
uint32_t store_boot_count(void);
uint32_t store_highest_confirmed(void);

/* An upload, step by step; each returns a status. */
int store_begin(uint32_t size, uint32_t crc, uint32_t version);
/* Without a CRC of the whole: the one in the blob must do. */
int store_begin_unchecked(uint32_t size, uint32_t version);
int store_data(uint32_t offset, const uint8_t *bytes, size_t count);
int store_commit(void);
int store_trial(uint32_t confirm_s);
int store_confirm(void);
int store_rollback(enum rollback reason);

enum upload store_upload_state(void);
enum source store_uploaded_slot(void);
uint32_t store_next_offset(void);

#endif
