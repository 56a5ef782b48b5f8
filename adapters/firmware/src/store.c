/* Models: the factory one in flash, and two slots in RAM that survive a reset.
 *
 * What must survive lies in .noinit under a CRC; after a power cut that CRC is wrong and the factory model runs. The slot that runs is never
 * written to, so that every step may be cut off at any moment.
 */
#include "store.h"
#include "bytes.h"
#include "clock.h"
#include "factory_model.h"
#include "identity.h"
#include "inference.h"
#include "link.h"
#include "sha256.h"
#include "status.h"

#define TRIAL_BOOTS 2u
#define CONFIRM_MAX_S 3600u
#define NOINIT __attribute__((section(".noinit")))

struct kept {
    uint32_t boot_count;
    uint32_t highest_confirmed;
    uint32_t size[2];
    uint16_t confirm_s;
    uint8_t confirmed;
    uint8_t trial;
    uint8_t boots;
    uint8_t zero[3];
    uint32_t crc;
};

static struct kept kept NOINIT;
_Alignas(8) static uint8_t slots[2][STORE_SLOT_BYTES] NOINIT;

static const nn_header *model;
static enum source source;
static uint32_t confirm_until;
static struct {
    enum upload state;
    enum source slot;
    uint32_t size, crc, next;
    uint8_t has_crc;
} upload;

static uint32_t kept_crc(void)
{
    return crc32(0x6b657074u, (const uint8_t *)&kept, offsetof(struct kept, crc));
}

static void keep(void)
{
    kept.crc = kept_crc();
}

static const nn_header *factory(void)
{
    return (const nn_header *)(const void *)factory_model;
}

/* Size, CRC and structure of a blob; its signature is judged once, at commit. */
static int examine(const uint8_t *blob, uint32_t size)
{
    if (size < NN_TRAILER_BYTES || size > STORE_SLOT_BYTES || size % 4 != 0)
        return STATUS_CORRUPT;
    if (crc32(0, blob, size - NN_TRAILER_BYTES) != get32(blob + size - NN_TRAILER_BYTES))
        return STATUS_CORRUPT;
    return nn_check(blob, size, INFERENCE_ARENA_BYTES);
}

static int use(enum source wanted)
{
    const uint8_t *blob = wanted == SOURCE_FACTORY ? factory_model : slots[wanted - 1];
    if (wanted != SOURCE_FACTORY && examine(blob, kept.size[wanted - 1]) != STATUS_OK)
        return 0;
    model = (const nn_header *)(const void *)blob;
    source = wanted;
    return 1;
}

static void use_confirmed(void)
{
    if (use((enum source)kept.confirmed))
        return;
    kept.confirmed = SOURCE_FACTORY;
    keep();
    use(SOURCE_FACTORY);
    link_notice(NOTICE_ROLLED_BACK, SOURCE_FACTORY, ROLLBACK_DAMAGED);
}

static void end_trial(enum rollback reason)
{
    kept.trial = 0;
    kept.boots = 0;
    keep();
    use_confirmed();
    link_notice(NOTICE_ROLLED_BACK, (uint8_t)source, reason);
}

static void start_trial(void)
{
    kept.boots++;
    keep();
    if (kept.boots > TRIAL_BOOTS)
        end_trial(ROLLBACK_BOOTS);
    else if (!use((enum source)kept.trial))
        end_trial(ROLLBACK_DAMAGED);
    else
        confirm_until = clock_ms() + 1000u * kept.confirm_s;
}

/* The model that runs is the one on trial: not yet so between `trial` and the reset that follows. */
static int trial_runs(void)
{
    return kept.trial != 0 && source == (enum source)kept.trial;
}

void store_start(void)
{
    if (kept.crc != kept_crc() || kept.confirmed > SOURCE_B || kept.trial > SOURCE_B) {
        memset(&kept, 0, sizeof kept);
        kept.highest_confirmed = factory()->version;
    }
    kept.boot_count++;
    keep();
    if (kept.trial)
        start_trial();
    else
        use_confirmed();
}

void store_poll(void)
{
    if (!trial_runs())
        return;
    if (clock_due(confirm_until))
        end_trial(ROLLBACK_TIMEOUT);
    else
        clock_wake_at(confirm_until);
}

int store_begin(uint32_t size, uint32_t crc, uint32_t version)
{
    if (kept.trial)
        return STATUS_STATE;
    if (size > STORE_SLOT_BYTES)
        return STATUS_TOO_LARGE;
    if (size < NN_TRAILER_BYTES)
        return STATUS_MALFORMED;
    if (version <= kept.highest_confirmed)
        return STATUS_DOWNGRADE;
    upload.state = UPLOAD_OPEN;
    upload.slot = source == SOURCE_A ? SOURCE_B : SOURCE_A;
    upload.size = size;
    upload.crc = crc;
    upload.has_crc = 1;
    upload.next = 0;
    return STATUS_OK;
}

int store_begin_unchecked(uint32_t size, uint32_t version)
{
    int status = store_begin(size, 0, version);
    if (status == STATUS_OK)
        upload.has_crc = 0;
    return status;
}

int store_data(uint32_t offset, const uint8_t *bytes, size_t count)
{
    if (upload.state != UPLOAD_OPEN)
        return STATUS_STATE;
    /* A chunk that came already is taken as done: its reply was lost. */
    if (offset + count == upload.next && count <= upload.next)
        return STATUS_OK;
    if (offset != upload.next)
        return STATUS_OFFSET;
    if (count > upload.size - offset)
        return STATUS_TOO_LARGE;
    memcpy(slots[upload.slot - 1] + offset, bytes, count);
    upload.next = offset + (uint32_t)count;
    return STATUS_OK;
}

static int judge(const uint8_t *blob, uint32_t size)
{
    uint8_t mac[SHA256_BYTES];
    int arrived = !upload.has_crc || crc32(0, blob, size) == upload.crc;
    int status = arrived ? examine(blob, size) : STATUS_CORRUPT;
    if (status != STATUS_OK)
        return status;
    hmac_sha256(identity_key(), blob, size - NN_HMAC_BYTES, mac);
    if (!same_mac(mac, blob + size - NN_HMAC_BYTES))
        return STATUS_SIGNATURE;
    return ((const nn_header *)(const void *)blob)->version > kept.highest_confirmed ? STATUS_OK : STATUS_DOWNGRADE;
}

int store_commit(void)
{
    int status;
    if (upload.state == UPLOAD_COMMITTED)
        return STATUS_OK;
    if (upload.state != UPLOAD_OPEN || upload.next != upload.size)
        return STATUS_STATE;
    status = judge(slots[upload.slot - 1], upload.size);
    upload.state = status == STATUS_OK ? UPLOAD_COMMITTED : UPLOAD_NONE;
    kept.size[upload.slot - 1] = upload.size;
    keep();
    return status;
}

int store_trial(uint32_t confirm_s)
{
    if (confirm_s < 1 || confirm_s > CONFIRM_MAX_S)
        return STATUS_MALFORMED;
    if (upload.state != UPLOAD_COMMITTED || kept.trial)
        return STATUS_STATE;
    kept.trial = (uint8_t)upload.slot;
    kept.boots = 0;
    kept.confirm_s = (uint16_t)confirm_s;
    keep();
    return STATUS_OK;
}

int store_confirm(void)
{
    if (!trial_runs())
        return source == SOURCE_FACTORY || kept.trial ? STATUS_STATE : STATUS_OK;
    kept.confirmed = kept.trial;
    kept.highest_confirmed = model->version;
    kept.trial = 0;
    kept.boots = 0;
    keep();
    return STATUS_OK;
}

int store_rollback(enum rollback reason)
{
    if (kept.trial) {
        end_trial(reason);
        return STATUS_OK;
    }
    if (source == SOURCE_FACTORY)
        return STATUS_STATE;
    kept.confirmed = SOURCE_FACTORY;
    keep();
    use_confirmed();
    link_notice(NOTICE_ROLLED_BACK, (uint8_t)source, reason);
    return STATUS_OK;
}

const nn_header *store_model(void)
{
    return model;
}

enum source store_source(void)
{
    return source;
}

int store_on_trial(void)
{
    return trial_runs();
}

uint32_t store_trial_boots(void)
{
    return kept.boots;
}

uint32_t store_seconds_left(void)
{
    return trial_runs() && !clock_due(confirm_until) ? (confirm_until - clock_ms() + 999u) / 1000u : 0;
}

uint32_t store_boot_count(void)
{
    return kept.boot_count;
}

uint32_t store_highest_confirmed(void)
{
    return kept.highest_confirmed;
}

enum upload store_upload_state(void)
{
    return upload.state;
}

enum source store_uploaded_slot(void)
{
    return upload.slot;
}

uint32_t store_next_offset(void)
{
    return upload.next;
}
