/* The CoAP resources of the node: the verbs of commands.c behind paths. */
#include "resources.h"
#include "bytes.h"
#include "clock.h"
#include "commands.h"
#include "hal.h"
#include "identity.h"
#include "inference.h"
#include "lines.h"
#include "sensor.h"
#include "status.h"
#include "store.h"
#include "text.h"
#include "upload.h"

static void fail(struct coap_answer *answer, int status)
{
    static const uint8_t codes[] = {
        [-STATUS_UNKNOWN] = COAP_NOT_FOUND,
        [-STATUS_CORRUPT] = COAP_BAD_REQUEST,
        [-STATUS_SIGNATURE] = COAP_UNAUTHORIZED,
        [-STATUS_TOO_LARGE] = COAP_TOO_LARGE,
        [-STATUS_DOWNGRADE] = COAP_CONFLICT,
        [-STATUS_STATE] = COAP_CONFLICT,
        [-STATUS_OFFSET] = COAP_INCOMPLETE,
        [-STATUS_MALFORMED] = COAP_BAD_REQUEST,
        [-STATUS_HARDWARE] = COAP_UNAVAILABLE,
        [-STATUS_UNSUPPORTED] = COAP_BAD_REQUEST,
    };
    char *at = text_number((char *)answer->bytes, status);
    *at++ = ' ';
    at = text_put(at, status_name(status));
    answer->count = (size_t)(at - (char *)answer->bytes);
    answer->code = codes[-status];
}

/* `"name":` and a comma before all but the first. */
static char *key(char *at, const char *name)
{
    if (at[-1] != '{')
        *at++ = ',';
    *at++ = '"';
    at = text_put(at, name);
    *at++ = '"';
    *at++ = ':';
    return at;
}

static char *number(char *at, const char *name, uint32_t value)
{
    return text_unsigned(key(at, name), value);
}

/* Text of at most `most` bytes; what JSON would need to escape becomes a question mark. */
static char *string(char *at, const char *name, const char *value, size_t most)
{
    at = key(at, name);
    *at++ = '"';
    for (; most > 0 && *value; most--, value++)
        *at++ = *value < ' ' || *value > '~' || *value == '"' || *value == '\\' ? '?' : *value;
    *at++ = '"';
    return at;
}

static char *model_json(char *at)
{
    const nn_header *m = store_model();
    at = string(at, "model", m->name, sizeof m->name);
    at = number(at, "version", m->version);
    at = number(at, "source", store_source());
    at = number(at, "on_trial", (uint32_t)store_on_trial());
    at = number(at, "boots", store_trial_boots());
    at = number(at, "seconds_left", store_seconds_left());
    at = number(at, "highest_confirmed", store_highest_confirmed());
    at = string(at, "rounding", m->rounding == NN_DOUBLE ? "double" : "half-even", 16);
    at = number(at, "inputs", nn_input_count(m));
    return number(at, "outputs", nn_output_count(m));
}

static void finish_json(struct coap_answer *answer, char *at)
{
    *at++ = '}';
    answer->count = (size_t)(at - (char *)answer->bytes);
    answer->format = COAP_JSON;
    answer->code = COAP_CONTENT;
}

static char *start_json(struct coap_answer *answer)
{
    answer->bytes[0] = '{';
    return (char *)answer->bytes + 1;
}

static void get_links(struct coap_answer *answer)
{
    char *at = text_put((char *)answer->bytes, "</info>;ct=50,</temp>;obs;ct=0;rt=\"temperature\";u=\"Cel\"");
    for (uint32_t line = 0; line < HAL_LINES; line++)
        at = text_put(text_unsigned(text_put(at, ",</gpio/"), line), ">;ct=0");
    at = text_put(at, ",</infer>;ct=42,</model>;ct=50,</stats>;ct=50");
    answer->count = (size_t)(at - (char *)answer->bytes);
    answer->format = COAP_LINKS;
    answer->code = COAP_CONTENT;
}

static void get_info(struct coap_answer *answer)
{
    char *at = start_json(answer);
    at = string(at, "board", hal_board, sizeof hal_board);
    at = number(at, "node", identity_node());
    at = number(at, "protocol", 1);
    at = string(at, "build", identity_build, sizeof identity_build);
    at = number(at, "boots_in_all", store_boot_count());
    at = number(at, "reset_cause", (uint32_t)hal_reset_cause());
    at = number(at, "capabilities", identity_capabilities());
    at = number(at, "slot_bytes", STORE_SLOT_BYTES);
    at = number(at, "arena_bytes", INFERENCE_ARENA_BYTES);
    at = number(at, "lines", HAL_LINES);
    finish_json(answer, model_json(at));
}

static void get_stats(struct coap_answer *answer)
{
    static const char *const names[] = {
        "uptime_s", "frames_in", "frames_out", "bad_frames", "overruns", "samples", "sensor_errors", "inferences", "inference_ticks",
        "leases_expired", "events_dropped", "packets_in", "packets_out", "bad_packets", "coap_requests", "coap_retransmissions",
    };
    const uint32_t *values = (const uint32_t *)(const void *)&stats;
    char *at = start_json(answer);
    stats.uptime_s = clock_seconds();
    for (uint32_t i = 0; i < sizeof names / sizeof names[0]; i++)
        at = number(at, names[i], values[i]);
    finish_json(answer, at);
}

void resources_temperature(struct coap_answer *answer)
{
    char *end = text_thousandths((char *)answer->bytes, sensor_last()->milli_celsius);
    answer->count = (size_t)(end - (char *)answer->bytes);
}

static void get_temperature(struct coap_answer *answer)
{
    int status = sensor_read()->status;
    if (status != STATUS_OK) {
        fail(answer, status);
        return;
    }
    resources_temperature(answer);
    answer->code = COAP_CONTENT;
}

static void gpio(const struct coap_message *request, struct coap_answer *answer)
{
    const char *at = (const char *)request->payload;
    const char *end = at + request->payload_bytes;
    uint32_t line = (uint32_t)(request->path[6] - '0');
    int32_t level, lease_ms;
    int status = STATUS_OK;

    if (line >= HAL_LINES || request->path[7] != 0) {
        fail(answer, STATUS_UNKNOWN);
        return;
    }
    if (request->code == COAP_PUT) {
        if (identity_flags() & COAP_MAY_NOT_ACTUATE) {
            answer->code = COAP_FORBIDDEN;
            return;
        }
        level = text_read_number(&at, end);
        lease_ms = text_read_number(&at, end);
        status = level < 0 || lease_ms < 0 || at != end ? STATUS_MALFORMED : lines_actuate(line, (uint32_t)level, (uint32_t)lease_ms);
    }
    if (status != STATUS_OK) {
        fail(answer, status);
        return;
    }
    answer->count = (size_t)(text_number((char *)answer->bytes, lines_level(line)) - (char *)answer->bytes);
    answer->code = request->code == COAP_PUT ? COAP_CHANGED : COAP_CONTENT;
}

static void infer(const struct coap_message *request, struct coap_answer *answer)
{
    uint8_t *end = answer->bytes;
    int status = inference_run(request->payload, request->payload_bytes, answer->bytes, &end);
    if (status != STATUS_OK) {
        fail(answer, status);
        return;
    }
    answer->count = (size_t)(end - answer->bytes);
    answer->format = COAP_BYTES;
    answer->code = COAP_CHANGED;
}

static void change_model(const struct endpoint *from, struct coap_message *request, struct coap_answer *answer)
{
    int status;
    if (identity_flags() & COAP_MAY_NOT_UPDATE) {
        answer->code = COAP_FORBIDDEN;
        return;
    }
    status = request->code == COAP_PUT ? upload_block(from, request) : upload_command(request);
    if (status != STATUS_OK)
        fail(answer, status);
    else
        answer->code = request->code == COAP_PUT && request->block1.more ? COAP_CONTINUE : COAP_CHANGED;
}

static void get_model(struct coap_answer *answer)
{
    finish_json(answer, model_json(start_json(answer)));
}

static const struct {
    const char *path;
    void (*get)(struct coap_answer *);
} readable[] = {
    {"/.well-known/core", get_links}, {"/info", get_info}, {"/temp", get_temperature}, {"/model", get_model}, {"/stats", get_stats},
};

int resources_observable(const char *path)
{
    return text_same(path, "/temp");
}

void resources_answer(const struct endpoint *from, struct coap_message *request, struct coap_answer *answer)
{
    int writes = request->code == COAP_PUT || request->code == COAP_POST;

    answer->code = COAP_NOT_ALLOWED;
    if (text_starts(request->path, "/gpio/")) {
        if (request->code == COAP_GET || request->code == COAP_PUT)
            gpio(request, answer);
        return;
    }
    if (text_same(request->path, "/infer")) {
        if (request->code == COAP_POST)
            infer(request, answer);
        return;
    }
    if (text_same(request->path, "/model") && writes) {
        change_model(from, request, answer);
        return;
    }
    for (uint32_t i = 0; i < sizeof readable / sizeof readable[0]; i++) {
        if (!text_same(request->path, readable[i].path))
            continue;
        if (request->code == COAP_GET)
            readable[i].get(answer);
        return;
    }
    fail(answer, STATUS_UNKNOWN);
}
