/* Model uploads over CoAP: the blocks of a PUT, and the commands of a POST. The size comes with the first block: it is in the blob's header. */
#include "upload.h"
#include "bytes.h"
#include "clock.h"
#include "hal.h"
#include "status.h"
#include "store.h"
#include "text.h"

#define COMMAND_BYTES 16u
#define SMALLEST_BLOCK 16u
#define RESET_DELAY_MS 50u

static struct endpoint uploader;
static uint32_t next_block;
static uint8_t exponent;
static uint8_t open;
static int reset_pending;
static uint32_t reset_at;

/* Even the smallest first block tells how large the blob is and which version. The CRC that `begin` wants is in the blob too. */
static int begin(const struct coap_message *request)
{
    const uint8_t *header = request->payload;
    if (request->payload_bytes < SMALLEST_BLOCK)
        return STATUS_MALFORMED;
    if (get32(header) != NN_MAGIC)
        return STATUS_CORRUPT;
    return store_begin_unchecked(get32(header + offsetof(nn_header, size)), get32(header + offsetof(nn_header, version)));
}

int upload_block(const struct endpoint *from, struct coap_message *request)
{
    struct coap_block *block = &request->block1;
    int status = STATUS_OK;

    if (block->number == 0) {
        open = 0;
        status = begin(request);
        if (status != STATUS_OK)
            return status;
        uploader = *from;
        next_block = 0;
        exponent = block->exponent;
        open = 1;
    }
    if (!open || !net_same(from, &uploader) || block->number != next_block || block->exponent != exponent)
        return STATUS_OFFSET;
    if (block->present && block->more && request->payload_bytes != (size_t)16 << exponent)
        return STATUS_MALFORMED;
    status = store_data(store_next_offset(), request->payload, request->payload_bytes);
    next_block++;
    if (status == STATUS_OK && !block->more) {
        status = store_commit();
        /* The blob is shorter than its header says. */
        if (status == STATUS_STATE)
            status = STATUS_CORRUPT;
    }
    if (status != STATUS_OK || !block->more)
        open = 0;
    return status;
}

int upload_command(const struct coap_message *request)
{
    char text[COMMAND_BYTES + 1] = {0};
    const char *at = text + sizeof "trial" - 1;
    int32_t confirm_s;
    int status;

    if (request->payload_bytes > COMMAND_BYTES)
        return STATUS_MALFORMED;
    memcpy(text, request->payload, request->payload_bytes);
    if (text_same(text, "confirm"))
        return store_confirm();
    if (text_same(text, "rollback"))
        return store_rollback(ROLLBACK_ASKED);
    if (!text_starts(text, "trial "))
        return STATUS_MALFORMED;
    confirm_s = text_read_number(&at, text + request->payload_bytes);
    status = at == text + request->payload_bytes ? store_trial((uint32_t)confirm_s) : STATUS_MALFORMED;
    if (status == STATUS_OK) {
        reset_pending = 1;
        reset_at = clock_ms() + RESET_DELAY_MS;
    }
    return status;
}

void upload_poll(void)
{
    if (!reset_pending)
        return;
    if (clock_due(reset_at))
        hal_reset();
    clock_wake_at(reset_at);
}
