/*
 * verify.c
 *		Whether a token is good, and why not.
 *
 * The whole story is judge(): parse and check digits, find the row, compare
 * the digest in constant time, look at the key's state, then at what the call
 * asks for.  A bad token never raises, whatever its bytes, and an unknown key
 * id costs what a wrong secret costs.
 *
 * The clock is GetCurrentTimestamp(): now() stands still in a long
 * transaction, and a key would outlive its end there.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/inet.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/grant.h"
#include "base/principal.h"
#include "base/stats.h"
#include "compat.h"
#include "key/cache.h"
#include "key/verify.h"
#include "token/digest.h"
#include "token/pepper.h"
#include "token/token.h"
#include "usage/usage.h"

/* Lengths, in bytes, of what may be the token of an imported key. */
#define IMPORTED_MIN_LEN 16
#define IMPORTED_MAX_LEN 512

/* The verdict's columns. */
enum VerdictColumn
{
	COLUMN_VALID,
	COLUMN_CODE,
	COLUMN_KEY_ID,
	COLUMN_TENANT,
	COLUMN_NAME,
	COLUMN_ENVIRONMENT,
	COLUMN_SCOPES,
	COLUMN_METADATA,
	COLUMN_EXPIRES_AT,
	COLUMN_RETRY_AFTER,
	COLUMN_COLUMNS
};

/* What a call asks of a key, beside being good. */
typedef struct Request
{
	text	   *scope;			/* NULL: none */
	inet	   *client_addr;	/* NULL: not told */
	int			cost;			/* taken from the rate limit */
	bool		brief;			/* the verdict alone is wanted */
	int64		retry_after;	/* result, microseconds: when it was reached */
} Request;

static Datum verdict_row(FunctionCallInfo fcinfo, Verdict verdict,
						 const StoredKey *key, const Request *request);
static Verdict judge(text *token, Request *request,
						  const StoredKey **key);
static Verdict judge_key(const StoredKey *key, Request *request,
							  TimestampTz now);
static const StoredKey *find_genuine(const char *bytes, size_t len,
									 bool brief_will_do, bool *well_formed);
static bool native_matches(const StoredKey *key, const char *token, size_t len,
						   const Pepper *current, const uint8 *digest);
static const StoredKey *find_imported(const char *token, size_t len);
static void sign_begin(DigestWork *work, const Pepper *pepper);

PG_FUNCTION_INFO_V1(rk_apikeys_verify);
PG_FUNCTION_INFO_V1(rk_apikeys_verify_key);
PG_FUNCTION_INFO_V1(rk_apikeys_authenticate);

/*
 * rk_apikeys.verify(token text) -> boolean
 *
 * Whether the token is good now.  NULL is not.
 */
Datum
rk_apikeys_verify(PG_FUNCTION_ARGS)
{
	Request		request = {.cost = 1, .brief = true};
	const StoredKey *key;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(judge((text *) PG_GETARG_POINTER(0), &request, &key) == VERDICT_VALID);
}

/*
 * rk_apikeys.verify_key(token text, scope text, client_addr inet, cost int)
 *		→ rk_apikeys.verdict
 *
 * The verdict, and the key's settings if the token is genuine.  Raises 22023
 * for a cost below 1 or above the key's rate_limit.
 */
Datum
rk_apikeys_verify_key(PG_FUNCTION_ARGS)
{
	Request		request = {.brief = false};
	const StoredKey *key = NULL;
	Verdict verdict = VERDICT_MALFORMED;

	if (!PG_ARGISNULL(3) && PG_GETARG_INT32(3) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost must be at least 1, not %d", PG_GETARG_INT32(3))));
	request.scope = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	request.client_addr = PG_ARGISNULL(2) ? NULL : PG_GETARG_INET_PP(2);
	request.cost = PG_ARGISNULL(3) ? 1 : PG_GETARG_INT32(3);
	if (!PG_ARGISNULL(0))
		verdict = judge((text *) PG_GETARG_POINTER(0), &request, &key);

	PG_RETURN_DATUM(verdict_row(fcinfo, verdict, key, &request));
}

/*
 * rk_apikeys.authenticate(token text, scope text, client_addr inet)
 *		→ rk_apikeys.verdict
 *
 * Makes the key the principal until the transaction ends.  Raises 28000, with
 * the statement and its context kept from the log, unless the token is valid.
 */
Datum
rk_apikeys_authenticate(PG_FUNCTION_ARGS)
{
	Request		request = {.cost = 1};
	const StoredKey *key = NULL;
	Verdict verdict = VERDICT_MALFORMED;
	Datum		row;

	request.scope = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	request.client_addr = PG_ARGISNULL(2) ? NULL : PG_GETARG_INET_PP(2);
	if (!PG_ARGISNULL(0))
		verdict = judge((text *) PG_GETARG_POINTER(0), &request, &key);
	if (verdict != VERDICT_VALID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("API key is not accepted: %s", verdict_code(verdict)),
				 verdict == VERDICT_RATE_LIMITED ?
				 errhint("Try again in " INT64_FORMAT " ms.",
						 (request.retry_after + 999) / 1000) : 0,
				 errhidestmt(true), errhidecontext(true)));
	WarnNoTransactionBlock(true, "rk_apikeys.authenticate()");
	row = verdict_row(fcinfo, verdict, key, &request);
	principal_set(key->key_id);
	PG_RETURN_DATUM(row);
}

/* The verdict as a row; the key is NULL if the token is not genuine. */
static Datum
verdict_row(FunctionCallInfo fcinfo, Verdict verdict,
			const StoredKey *key, const Request *request)
{
	TupleDesc	desc;
	Datum		values[COLUMN_COLUMNS] = {0};
	bool		nulls[COLUMN_COLUMNS];

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != COLUMN_COLUMNS)
		elog(ERROR, "the function does not return a verdict");
	memset(nulls, true, sizeof(nulls));
	values[COLUMN_VALID] = BoolGetDatum(verdict == VERDICT_VALID);
	values[COLUMN_CODE] = CStringGetTextDatum(verdict_code(verdict));
	nulls[COLUMN_VALID] = nulls[COLUMN_CODE] = false;
	if (key != NULL)
	{
		memset(nulls, false, sizeof(nulls));
		values[COLUMN_KEY_ID] = CStringGetTextDatum(key->key_id);
		values[COLUMN_TENANT] = PointerGetDatum(key->tenant);
		values[COLUMN_NAME] = PointerGetDatum(key->name);
		values[COLUMN_ENVIRONMENT] = PointerGetDatum(key->environment);
		values[COLUMN_SCOPES] = PointerGetDatum(key->scopes);
		values[COLUMN_METADATA] = PointerGetDatum(key->metadata);
		values[COLUMN_EXPIRES_AT] = TimestampTzGetDatum(key->expires_at);
		nulls[COLUMN_EXPIRES_AT] = key->expires_at == DT_NOEND;
		nulls[COLUMN_RETRY_AFTER] = verdict != VERDICT_RATE_LIMITED;
		if (verdict == VERDICT_RATE_LIMITED)
			values[COLUMN_RETRY_AFTER] =
				DirectFunctionCall2(timestamp_mi,
									TimestampGetDatum(request->retry_after),
									TimestampGetDatum(0));
	}
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

/*
 * Judge a token (toasted or not), count the verdict, and record the use.
 * Sets *key if the token is genuine; good until the next verify.
 */
static Verdict
judge(text *token, Request *request, const StoredKey **key)
{
	bool		well_formed;
	Verdict verdict;

	*key = verify_genuine(token, request->brief, &well_formed);
	if (*key == NULL)
		verdict = well_formed ? VERDICT_UNKNOWN : VERDICT_MALFORMED;
	else
	{
		TimestampTz now = GetCurrentTimestamp();

		verdict = judge_key(*key, request, now);
		usage_record(*key, verdict == VERDICT_VALID ? USAGE_USE : USAGE_DENIAL,
					 request->client_addr, now);
	}
	stats_count_verdict(verdict);
	return verdict;
}

/*
 * The key that a token (toasted or not) belongs to, or NULL if it is not
 * genuine; then *well_formed tells whether it has a token's shape and check
 * digits.  The key may be brief where that will do.  A string without them may
 * be the token of an imported key, found by its digest.  A key that was signed
 * with an older pepper is signed anew on the way.  Raises 58030 if the pepper
 * that it takes cannot be had.
 */
const StoredKey *
verify_genuine(text *token, bool brief_will_do, bool *well_formed)
{
	size_t		len = toast_raw_datum_size(PointerGetDatum(token)) - VARHDRSZ;
	text	   *detoasted;
	const StoredKey *volatile key = NULL;

	*well_formed = false;
	if (len < IMPORTED_MIN_LEN || len > IMPORTED_MAX_LEN)
		return NULL;
	detoasted = (text *) PG_DETOAST_DATUM_PACKED(PointerGetDatum(token));
	if (detoasted == token)
		return find_genuine(VARDATA_ANY(token), len, brief_will_do, well_formed);

	/* A copy of the token is wiped, whatever happens. */
	PG_TRY();
	{
		key = find_genuine(VARDATA_ANY(detoasted), len, brief_will_do, well_formed);
	}
	PG_FINALLY();
	{
		explicit_bzero(VARDATA_ANY(detoasted), len);
	}
	PG_END_TRY();
	return key;
}

/*
 * The same for the bytes of a token.  A native token's digest is made before
 * its row is looked for: so it is made of any token, and what the look will
 * touch in shared memory comes into the processor's cache meanwhile.
 */
static const StoredKey *
find_genuine(const char *bytes, size_t len, bool brief_will_do,
			 bool *well_formed)
{
	TokenParts	parts;
	CacheLook	look;
	const StoredKey *key = NULL;

	if (token_split(bytes, len, &parts))
	{
		/*
		 * A digest covers the check digits too.  They are looked at before a
		 * table is read, and to tell what a token that matches nothing is.
		 */
		cache_look(&look, parts.key_id);
		if (look.kept != NULL || (*well_formed = token_check(bytes, len)))
		{
			const Pepper *pepper = pepper_current();
			DigestWork	work;
			uint8		digest[DIGEST_SHA256_LEN];

			sign_begin(&work, pepper);
			cache_recall(&look);
			digest_end(&work, bytes, len, digest);
			key = cache_get(&look, brief_will_do);
			if (!native_matches(key, bytes, len, pepper, digest))
				key = NULL;
			explicit_bzero(digest, sizeof(digest));
		}
		if (look.kept != NULL)
			*well_formed = key != NULL || token_check(bytes, len);
	}
	if (!*well_formed && cache_has_imported())
		key = find_imported(bytes, len);
	return key;
}

/*
 * Whether a token, of which the digest with the pepper of today is given, is
 * that of a key; never that of none (NULL), which takes as long to find out.
 */
static bool
native_matches(const StoredKey *key, const char *token, size_t len,
			   const Pepper *current, const uint8 *digest)
{
	/* What a token with an unknown key id is compared with. */
	static const uint8 nobody[DIGEST_SHA256_LEN] = {0};
	int			current_id = current == NULL ? 0 : current->id;
	DigestWork	work;
	uint8		older[DIGEST_SHA256_LEN];
	bool		matches;

	if (key == NULL || key->digest_kind != DIGEST_NATIVE ||
		key->digest_len != DIGEST_SHA256_LEN)
	{
		(void) digest_matches(nobody, digest, DIGEST_SHA256_LEN);
		return false;
	}
	if (key->pepper_id == current_id)
		return digest_matches(key->digest, digest, DIGEST_SHA256_LEN);

	sign_begin(&work, key->pepper_id == 0 ? NULL :
			   pepper_find(key->pepper_id, key->key_id));
	digest_end(&work, token, len, older);
	matches = digest_matches(key->digest, older, DIGEST_SHA256_LEN);
	explicit_bzero(older, sizeof(older));
	if (matches && key->pepper_id < current_id)
		usage_resign(key, current_id, digest);
	return matches;
}

/* The imported key whose token this is, or NULL. */
static const StoredKey *
find_imported(const char *token, size_t len)
{
	uint8		digest[DIGEST_SHA512_LEN];
	const StoredKey *key;

	digest_sha256(token, len, digest);
	key = cache_find_imported(DIGEST_KIND_SHA256, digest, DIGEST_SHA256_LEN);
	if (key == NULL)
	{
		digest_sha512(token, len, digest);
		key = cache_find_imported(DIGEST_KIND_SHA512, digest,
								  DIGEST_SHA512_LEN);
	}
	if (key != NULL && !digest_matches(key->digest, digest, key->digest_len))
		key = NULL;
	explicit_bzero(digest, sizeof(digest));
	return key;
}

/* Begin the digest of a native token, with a pepper or (NULL) without. */
static void
sign_begin(DigestWork *work, const Pepper *pepper)
{
	digest_begin(work, pepper == NULL ? NULL : pepper->secret,
				 pepper == NULL ? 0 : pepper->len);
}

/*
 * The state of a genuine token's key, and what the call asks of it, in the
 * order in which a refusal is told.
 */
static Verdict
judge_key(const StoredKey *key, Request *request, TimestampTz now)
{
	Verdict state = grant_state(key, now);

	if (state != VERDICT_VALID)
		return state;
	if (key->allowed_cidrs != NULL &&
		!grant_address(key->allowed_cidrs, request->client_addr))
		return VERDICT_ADDRESS_DENIED;
	if (request->scope != NULL && !grant_scope(key->scopes, request->scope))
		return VERDICT_SCOPE_MISSING;
	if (key->rate_limit > 0)
	{
		if (request->cost > key->rate_limit)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cost %d is above the rate limit of API key \"%s\", %d",
							request->cost, key->key_id, key->rate_limit)));
		switch (usage_limit(key, request->cost, now, &request->retry_after))
		{
			case LIMIT_PASSED:
				break;
			case LIMIT_REACHED:
				return VERDICT_RATE_LIMITED;
			case LIMIT_UNAVAILABLE:
				return VERDICT_LIMITER_UNAVAILABLE;
		}
	}
	return VERDICT_VALID;
}
