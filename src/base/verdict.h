/*
 * verdict.h
 *		What a verify can answer.
 */
#ifndef VERDICT_H
#define VERDICT_H

/* In the order in which the checks are made. */
typedef enum Verdict
{
	VERDICT_MALFORMED,
	VERDICT_UNKNOWN,
	VERDICT_REVOKED,
	VERDICT_DISABLED,
	VERDICT_EXPIRED,
	VERDICT_ROTATED,
	VERDICT_ENVIRONMENT_MISMATCH,
	VERDICT_ADDRESS_DENIED,
	VERDICT_SCOPE_MISSING,
	VERDICT_RATE_LIMITED,
	VERDICT_QUOTA_EXCEEDED,
	VERDICT_LIMITER_UNAVAILABLE,
	VERDICT_VALID
} Verdict;

#define VERDICTS (VERDICT_VALID + 1)

extern const char *verdict_code(Verdict verdict);

#endif
