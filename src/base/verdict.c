/*
 * verdict.c
 *		What a verify can answer.
 */
#include "postgres.h"

#include "base/verdict.h"

/* The column "code" of rk_apikeys.verdict. */
static const char *const codes[] = {
	[VERDICT_MALFORMED] = "malformed",
	[VERDICT_UNKNOWN] = "unknown",
	[VERDICT_REVOKED] = "revoked",
	[VERDICT_DISABLED] = "disabled",
	[VERDICT_EXPIRED] = "expired",
	[VERDICT_ROTATED] = "rotated",
	[VERDICT_ENVIRONMENT_MISMATCH] = "environment_mismatch",
	[VERDICT_ADDRESS_DENIED] = "address_denied",
	[VERDICT_SCOPE_MISSING] = "scope_missing",
	[VERDICT_RATE_LIMITED] = "rate_limited",
	[VERDICT_QUOTA_EXCEEDED] = "quota_exceeded",
	[VERDICT_LIMITER_UNAVAILABLE] = "limiter_unavailable",
	[VERDICT_VALID] = "valid"
};

StaticAssertDecl(lengthof(codes) == VERDICTS, "each verdict has a code");

/* Return the code of a verdict, as SQL shows it. */
const char *
verdict_code(Verdict verdict)
{
	return codes[verdict];
}
