/* Names of the status codes. */
#include "status.h"

const char *status_name(int status)
{
    static const char *const names[] = {
        "ok", "unknown", "corrupt", "signature", "too_large", "downgrade", "state", "offset", "malformed", "hardware", "unsupported",
    };
    return status <= 0 && status >= STATUS_UNSUPPORTED ? names[-status] : "?";
}
