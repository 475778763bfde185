/*
 * verify.c
 *		Whether a token is good, and why not.
 *
 * judge() makes all checks, in this order: the token's shape and check digits,
 * the row of its key id, the digest in constant time, the key's state, the
 * requirements of the call.  The check digits of a key that the session has kept
 * are looked at last, and only if the digest differs.  A bad token raises no
 * error, whatever its bytes.  A token with an unknown key id causes the same
 * digest and comparison as a token with a wrong secret.
 *
 * The clock is GetCurrentTimestamp(), because now() stands still during a
 * transaction.  In a long transaction now() would accept an expired key.
 *
 * Memory: a detoasted copy of a token is wiped on every exit, a digest on every
 * exit without an error.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inet.h"
#include "utils/timestamp.h"

#include "base/grant.h"
#include "base/principal.h"
#include "base/settings.h"
#include "base/stats.h"
#include "compat.h"
#include "key/cache.h"
#include "key/limit.h"
#include "key/verify.h"
#include "token/digest.h"
#include "token/pepper.h"
#include "token/shown.h"
#include "token/token.h"
#include "usage/usage.h"

/* Lengths, in bytes, of a string that may be the token of an imported key. */
#define IMPORTED_MIN_LEN 16
#define IMPORTED_MAX_LEN 512

/* The columns of the type rk_apikeys.verdict. */
enum VerdictColumn
{
	COLUMN_VALID,
	COLUMN_CODE,
	COLUMN_KEY_ID,
	COLUMN_FAMILY,
	COLUMN_TENANT,
	COLUMN_OWNER,
	COLUMN_NAME,
	COLUMN_ENVIRONMENT,
	COLUMN_SCOPES,
	COLUMN_METADATA,
	COLUMN_EXPIRES_AT,
	COLUMN_RETRY_AFTER_MS,
	COLUMN_LIMIT_NAME,
	COLUMN_LIMIT_UNITS,
	COLUMN_LIMIT_REMAINING,
	COLUMN_LIMIT_RESETS_AT,
	COLUMN_COLUMNS
};

/* The columns of the type in 0.1 and 0.2: these, and then an interval. */
static const int old_columns[] = {
	COLUMN_VALID, COLUMN_CODE, COLUMN_KEY_ID, COLUMN_TENANT, COLUMN_NAME,
	COLUMN_ENVIRONMENT, COLUMN_SCOPES, COLUMN_METADATA, COLUMN_EXPIRES_AT
};

#define OLD_COLUMNS ((int) lengthof(old_columns) + 1)

/* What a call requires of a key, besides that the key is good. */
typedef struct Request
{
	text	   *scope;			/* a list; NULL: no scope is required */
	inet	   *client_addr;	/* NULL: not given */
	text	   *environment;	/* NULL: any */
	LimitCall	limit;
} Request;

/* The arguments of verify_key() and authenticate(), by number. */
enum Argument
{
	ARG_TOKEN,
	ARG_SCOPE,
	ARG_CLIENT_ADDR,
	ARG_COST,
	ARG_ENVIRONMENT,
	ARG_LIMITS,
	ARG_CHARGE,
	ARG_RAISE
};

static void read_request(FunctionCallInfo fcinfo, Request *request);
static text *check_scope(text *scope);
static void read_limits(ArrayType *names, LimitCall *call);
static bool is_at_commit(text *charge);
static Datum verify_key(FunctionCallInfo fcinfo);
static Datum authenticate(FunctionCallInfo fcinfo, bool raise);
static void refuse(Verdict verdict, const StoredKey *key,
				   const Request *request);
static bool is_limited(Verdict verdict);
static int	retry_after_ms(const Request *request);
static Datum verdict_row(FunctionCallInfo fcinfo, Verdict verdict,
						 const StoredKey *key, const Request *request);
static void set_limit(Datum *values, bool *nulls, const LimitCall *limit);
static Verdict judge(text *token, Request *request,
						  const StoredKey **key);
static Verdict judge_key(const StoredKey *key, Request *request,
							  TimestampTz now);
static bool environment_fits(const StoredKey *key, const Request *request);
static const StoredKey *find_genuine(const char *bytes, size_t len,
									 bool *well_formed);
static bool native_matches(const StoredKey *key, const char *token, size_t len,
						   const Pepper *current, const uint8 *digest);
static const StoredKey *find_imported(const char *token, size_t len);
static void sign_begin(DigestWork *work, const Pepper *pepper);

PG_FUNCTION_INFO_V1(rk_apikeys_verify);
PG_FUNCTION_INFO_V1(rk_apikeys_verify_0_3);
PG_FUNCTION_INFO_V1(rk_apikeys_verify_key);
PG_FUNCTION_INFO_V1(rk_apikeys_verify_key_0_3);
PG_FUNCTION_INFO_V1(rk_apikeys_authenticate);
PG_FUNCTION_INFO_V1(rk_apikeys_authenticate_0_3);

/*
 * rk_apikeys.verify(token text) -> boolean
 *
 * The function of 0.1 and 0.2.
 */
Datum
rk_apikeys_verify(PG_FUNCTION_ARGS)
{
	return rk_apikeys_verify_0_3(fcinfo);
}

/*
 * rk_apikeys.verify(token text) -> boolean
 *
 * Return whether the token is good now; false for NULL.  The library of an
 * earlier release, which does not know the type _change, lacks this name.
 */
Datum
rk_apikeys_verify_0_3(PG_FUNCTION_ARGS)
{
	Request		request = {.limit.cost = 1};
	const StoredKey *key;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(judge((text *) PG_GETARG_POINTER(0), &request, &key) == VERDICT_VALID);
}

/*
 * rk_apikeys.verify_key(token text, scope text, client_addr inet, cost int)
 *		-> rk_apikeys.verdict
 *
 * The function of 0.1 and 0.2.
 */
Datum
rk_apikeys_verify_key(PG_FUNCTION_ARGS)
{
	return verify_key(fcinfo);
}

/*
 * rk_apikeys.verify_key(token text, scope text, client_addr inet, cost int,
 *		environment text, limits text[], charge text) -> rk_apikeys.verdict
 *
 * Return the verdict, with the key's settings if the token is genuine.  Raise
 * 22023 if scope is not a list of scopes, if the cost is below 1 or above the
 * units of a limit, if limits has a name that no limit has, or if charge is
 * neither now nor commit.
 */
Datum
rk_apikeys_verify_key_0_3(PG_FUNCTION_ARGS)
{
	return verify_key(fcinfo);
}

static Datum
verify_key(FunctionCallInfo fcinfo)
{
	Request		request = {.limit.cost = 1};
	const StoredKey *key = NULL;
	Verdict		verdict = VERDICT_MALFORMED;

	read_request(fcinfo, &request);
	if (!PG_ARGISNULL(ARG_TOKEN))
		verdict = judge((text *) PG_GETARG_POINTER(ARG_TOKEN), &request, &key);
	PG_RETURN_DATUM(verdict_row(fcinfo, verdict, key, &request));
}

/*
 * rk_apikeys.authenticate(token text, scope text, client_addr inet)
 *		-> rk_apikeys.verdict
 *
 * The function of 0.1 and 0.2.
 */
Datum
rk_apikeys_authenticate(PG_FUNCTION_ARGS)
{
	return authenticate(fcinfo, true);
}

/*
 * rk_apikeys.authenticate(token text, scope text, client_addr inet, cost int,
 *		environment text, limits text[], charge text, raise boolean)
 *		-> rk_apikeys.verdict
 *
 * Make the key the principal until the transaction ends, and return the
 * verdict.  If the token is not valid, raise 28000, or, unless raise, take away
 * the principal and return the verdict.  Raise 22023 as verify_key() does.
 */
Datum
rk_apikeys_authenticate_0_3(PG_FUNCTION_ARGS)
{
	return authenticate(fcinfo, PG_ARGISNULL(ARG_RAISE) ||
						PG_GETARG_BOOL(ARG_RAISE));
}

static Datum
authenticate(FunctionCallInfo fcinfo, bool raise)
{
	Request		request = {.limit.cost = 1};
	const StoredKey *key = NULL;
	Verdict		verdict = VERDICT_MALFORMED;
	Datum		row;

	read_request(fcinfo, &request);
	if (!PG_ARGISNULL(ARG_TOKEN))
		verdict = judge((text *) PG_GETARG_POINTER(ARG_TOKEN), &request, &key);
	if (verdict != VERDICT_VALID && raise)
		refuse(verdict, key, &request);
	if (verdict == VERDICT_VALID)
		WarnNoTransactionBlock(true, "rk_apikeys.authenticate()");
	row = verdict_row(fcinfo, verdict, key, &request);
	if (verdict == VERDICT_VALID)
		principal_set(key->key_id);
	else
		principal_take_away();
	PG_RETURN_DATUM(row);
}

/* Raise 28000.  The log shows neither the statement nor its context. */
static void
refuse(Verdict verdict, const StoredKey *key, const Request *request)
{
	StringInfoData detail;

	initStringInfo(&detail);
	appendStringInfo(&detail, "code=%s", verdict_code(verdict));
	if (key != NULL)
		appendStringInfo(&detail, " key_id=%s", key->key_id);
	if (is_limited(verdict) && request->limit.wait >= 0)
		appendStringInfo(&detail, " retry_after_ms=%d", retry_after_ms(request));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
			 errmsg("API key is not accepted: %s", verdict_code(verdict)),
			 errdetail_internal("%s", detail.data),
			 errhidestmt(true), errhidecontext(true)));
}

/*
 * Set *request to what the arguments of a call require.  An argument that an
 * older function lacks is not required.  Raise 22023 for a cost below 1, and as
 * check_scope() does.
 */
static void
read_request(FunctionCallInfo fcinfo, Request *request)
{
#define GIVEN(arg) (PG_NARGS() > (arg) && !PG_ARGISNULL(arg))
	if (GIVEN(ARG_SCOPE))
		request->scope = check_scope((text *) PG_GETARG_POINTER(ARG_SCOPE));
	if (GIVEN(ARG_CLIENT_ADDR))
		request->client_addr = PG_GETARG_INET_PP(ARG_CLIENT_ADDR);
	if (GIVEN(ARG_COST))
		request->limit.cost = PG_GETARG_INT32(ARG_COST);
	if (request->limit.cost < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost must be at least 1, not %d", request->limit.cost)));
	if (GIVEN(ARG_ENVIRONMENT))
	{
		/* No key has the environment "", nor one of that length. */
		if (toast_raw_datum_size(PG_GETARG_DATUM(ARG_ENVIRONMENT)) - VARHDRSZ > TOKEN_NAME_MAX)
			request->environment = cstring_to_text("");
		else
			request->environment = PG_GETARG_TEXT_PP(ARG_ENVIRONMENT);
	}
	if (GIVEN(ARG_LIMITS))
		read_limits(PG_GETARG_ARRAYTYPE_P(ARG_LIMITS), &request->limit);
	if (GIVEN(ARG_CHARGE))
		request->limit.at_commit = is_at_commit(PG_GETARG_TEXT_PP(ARG_CHARGE));
#undef GIVEN
}

/* Set the names of limits that a call takes from.  Raise 22023 for NULL, or too many. */
static void
read_limits(ArrayType *names, LimitCall *call)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls,
					  &count);
	if (count > LIMIT_MAX_NAMES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%d limits are given, but at most %d are allowed",
						count, LIMIT_MAX_NAMES)));
	call->names = palloc(Max(count, 1) * sizeof(text *));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the name of a limit cannot be null")));
		call->names[i] = DatumGetTextPP(elements[i]);
	}
	call->names_count = count;
}

/* Return whether the argument charge is "commit".  Raise 22023 if it is not "now" either. */
static bool
is_at_commit(text *charge)
{
	const char *word = VARDATA_ANY(charge);
	Size		len = VARSIZE_ANY_EXHDR(charge);

	if (len == strlen("commit") && memcmp(word, "commit", len) == 0)
		return true;
	if (len != strlen("now") || memcmp(word, "now", len) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for charge: \"%s\"", shown_text(charge)),
				 errhint("Use now or commit.")));
	return false;
}

/*
 * Return the list of scopes (toasted or not) that a call requires, detoasted.
 * Raise 22023 if it is too long, or not a list.
 */
static text *
check_scope(text *scope)
{
	Size		len = toast_raw_datum_size(PointerGetDatum(scope)) - VARHDRSZ;

	if (len > GRANT_SCOPES_MAX_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("scope has %zu bytes, but at most %d are allowed",
						len, GRANT_SCOPES_MAX_LEN),
				 errhint("Require fewer scopes.")));
	scope = DatumGetTextPP(PointerGetDatum(scope));
	if (!grant_is_list(scope))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid list of scopes: \"%s\"", shown_text(scope)),
				 errhint("Separate scopes with one space, and alternatives with \"|\".")));
	return scope;
}

/* Return whether a limit refused. */
static bool
is_limited(Verdict verdict)
{
	return verdict == VERDICT_RATE_LIMITED || verdict == VERDICT_QUOTA_EXCEEDED;
}

/* Return the milliseconds until a refused call may succeed, at most INT_MAX. */
static int
retry_after_ms(const Request *request)
{
	return (int) Min((request->limit.wait + 999) / 1000, INT_MAX);
}

/*
 * Return the verdict as a row, of the type of 0.3 or of earlier releases.  The
 * key is NULL if the token is not genuine.
 */
static Datum
verdict_row(FunctionCallInfo fcinfo, Verdict verdict,
			const StoredKey *key, const Request *request)
{
	const ReturnSetInfo *caller = (const ReturnSetInfo *) fcinfo->resultinfo;
	TupleDesc	desc;
	Datum		values[COLUMN_COLUMNS] = {0};
	bool		nulls[COLUMN_COLUMNS];
	bool		limited = is_limited(verdict) && request->limit.wait >= 0;

	/* A call in FROM has the type at hand. */
	if (caller != NULL && IsA(caller, ReturnSetInfo) &&
		caller->expectedDesc != NULL && caller->expectedDesc->tdtypeid != RECORDOID)
		desc = caller->expectedDesc;
	else if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		desc = NULL;
	if (desc == NULL ||
		(desc->natts != COLUMN_COLUMNS && desc->natts != OLD_COLUMNS))
		elog(ERROR, "the function does not return a verdict");
	memset(nulls, true, sizeof(nulls));
	values[COLUMN_VALID] = BoolGetDatum(verdict == VERDICT_VALID);
	values[COLUMN_CODE] = CStringGetTextDatum(verdict_code(verdict));
	nulls[COLUMN_VALID] = nulls[COLUMN_CODE] = false;
	if (key != NULL)
	{
		memset(nulls, false, COLUMN_RETRY_AFTER_MS * sizeof(bool));
		values[COLUMN_KEY_ID] = CStringGetTextDatum(key->key_id);
		values[COLUMN_FAMILY] = CStringGetTextDatum(key->family);
		values[COLUMN_TENANT] = PointerGetDatum(key->tenant);
		values[COLUMN_OWNER] = PointerGetDatum(key->owner);
		nulls[COLUMN_OWNER] = key->owner == NULL;
		values[COLUMN_NAME] = PointerGetDatum(key->name);
		values[COLUMN_ENVIRONMENT] = PointerGetDatum(key->environment);
		values[COLUMN_SCOPES] = PointerGetDatum(key->scopes);
		values[COLUMN_METADATA] = PointerGetDatum(key->metadata);
		values[COLUMN_EXPIRES_AT] = TimestampTzGetDatum(key->expires_at);
		nulls[COLUMN_EXPIRES_AT] = key->expires_at == DT_NOEND;
		if (limited)
			values[COLUMN_RETRY_AFTER_MS] = Int32GetDatum(retry_after_ms(request));
		nulls[COLUMN_RETRY_AFTER_MS] = !limited;
		if (request->limit.name != NULL && (is_limited(verdict) || verdict == VERDICT_VALID))
			set_limit(values, nulls, &request->limit);
	}
	if (desc->natts == OLD_COLUMNS)
	{
		for (int i = 0; i < OLD_COLUMNS - 1; i++)
		{
			values[i] = values[old_columns[i]];
			nulls[i] = nulls[old_columns[i]];
		}
		if (limited)
			values[OLD_COLUMNS - 1] =
				DirectFunctionCall2(timestamp_mi,
									TimestampGetDatum(request->limit.wait),
									TimestampGetDatum(0));
		nulls[OLD_COLUMNS - 1] = !limited;
	}
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

/* Set the columns of the limit that refused, or that has the fewest units left. */
static void
set_limit(Datum *values, bool *nulls, const LimitCall *limit)
{
	values[COLUMN_LIMIT_NAME] = CStringGetTextDatum(limit->name);
	values[COLUMN_LIMIT_UNITS] = Int64GetDatum(limit->units);
	values[COLUMN_LIMIT_REMAINING] = Int64GetDatum(limit->remaining);
	values[COLUMN_LIMIT_RESETS_AT] = TimestampTzGetDatum(limit->resets_at);
	for (int column = COLUMN_LIMIT_NAME; column <= COLUMN_LIMIT_RESETS_AT; column++)
		nulls[column] = false;
	nulls[COLUMN_LIMIT_RESETS_AT] = limit->resets_at == DT_NOEND;
}

/*
 * Return the verdict on a token (toasted or not), count the verdict, and record
 * the use.  Set *key to the token's key; NULL if the token is not genuine.  The
 * pointer is good until the next verify.  Raise 22023 as limit_take() does, and
 * 58030 as verify_genuine() does.
 */
static Verdict
judge(text *token, Request *request, const StoredKey **key)
{
	bool		well_formed;
	Verdict verdict;

	*key = verify_genuine(token, &well_formed);
	if (*key == NULL)
		verdict = well_formed ? VERDICT_UNKNOWN : VERDICT_MALFORMED;
	else
	{
		TimestampTz now = GetCurrentTimestamp();

		verdict = judge_key(*key, request, now);
		usage_record(*key, verdict == VERDICT_VALID ? USAGE_USE :
					 verdict == VERDICT_REVOKED || verdict == VERDICT_EXPIRED ||
					 verdict == VERDICT_ROTATED ? USAGE_AFTER_END : USAGE_DENIAL,
					 request->client_addr, now);
	}
	stats_count_verdict(verdict);
	return verdict;
}

/*
 * Return the key of a token (toasted or not); NULL if the token is not genuine.
 * The pointer is good until the next verify.
 * Set *well_formed to whether the token has the shape and the check digits of a
 * token of ours.  A string that is not well-formed may be the token of an
 * imported key, which is found by its digest.
 *
 * If a native key was signed with an older pepper, leave its digest with the
 * current pepper for a flush to store.  Raise 58030 if a pepper that the token
 * needs cannot be read.
 */
const StoredKey *
verify_genuine(text *token, bool *well_formed)
{
	size_t		len = toast_raw_datum_size(PointerGetDatum(token)) - VARHDRSZ;
	text	   *detoasted;
	const StoredKey *volatile key = NULL;

	*well_formed = false;
	if (len < IMPORTED_MIN_LEN || len > IMPORTED_MAX_LEN)
		return NULL;
	detoasted = (text *) PG_DETOAST_DATUM_PACKED(PointerGetDatum(token));
	if (detoasted == token)
		return find_genuine(VARDATA_ANY(token), len, well_formed);

	/* The detoasted copy of the token is ours, so we must wipe it. */
	PG_TRY();
	{
		key = find_genuine(VARDATA_ANY(detoasted), len, well_formed);
	}
	PG_FINALLY();
	{
		explicit_bzero(VARDATA_ANY(detoasted), len);
	}
	PG_END_TRY();
	return key;
}

/*
 * Do the same as verify_genuine() for the bytes of a token.
 *
 * The digest of a well-formed token is computed before the key is looked up,
 * for two reasons.  A token with an unknown key id then costs a digest too.
 * And the processor fetches the shared memory that the look-up will read while
 * the digest is computed.
 */
static const StoredKey *
find_genuine(const char *bytes, size_t len, bool *well_formed)
{
	TokenParts	parts;
	CacheLook	look;
	const StoredKey *key = NULL;

	if (token_split(bytes, len, &parts))
	{
		/*
		 * A matching digest proves the check digits too.  So for a key that
		 * this backend keeps, they are checked only after a mismatch, to
		 * decide between "malformed" and "unknown".  For any other key they
		 * are checked first, because a bad token must not cause a table read.
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
			key = cache_get(&look);
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
 * Return whether a token is the token of a native key.  The digest is the
 * token's, with the current pepper (NULL: without one).  For no key (NULL)
 * return false, after a comparison that takes as long as that with a key.
 *
 * If the token matches a digest with an older pepper, leave the given digest
 * for a flush to store.  Raise 58030 if the key's pepper is missing.
 */
static bool
native_matches(const StoredKey *key, const char *token, size_t len,
			   const Pepper *current, const uint8 *digest)
{
	/* A token with an unknown key id is compared with these bytes. */
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

/*
 * Return the imported key of a token; NULL if there is no such key.  The pointer
 * is good until the next verify.
 */
const StoredKey *
verify_imported(const char *token, size_t len)
{
	TokenParts	parts;

	if (len < IMPORTED_MIN_LEN || len > IMPORTED_MAX_LEN ||
		token_parse(token, len, &parts) || !cache_has_imported())
		return NULL;
	return find_imported(token, len);
}

/* Do the same for a token that may be an imported key's, if there are any. */
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

/* Begin the digest of a native token.  Without a pepper, pass NULL. */
static void
sign_begin(DigestWork *work, const Pepper *pepper)
{
	digest_begin(work, pepper == NULL ? NULL : pepper->secret,
				 pepper == NULL ? 0 : pepper->len);
}

/*
 * Return the verdict on the key of a genuine token: the first check that fails
 * decides, in the order of verdict.h.  Take the cost from the limits after all
 * other checks.  Raise 22023 as limit_take() does.
 */
static Verdict
judge_key(const StoredKey *key, Request *request, TimestampTz now)
{
	Verdict state = grant_state(key, now);

	if (state != VERDICT_VALID)
		return state;
	if (!environment_fits(key, request))
		return VERDICT_ENVIRONMENT_MISMATCH;
	if (key->allowed_cidrs != NULL &&
		!grant_address(key->allowed_cidrs, request->client_addr))
		return VERDICT_ADDRESS_DENIED;
	if (request->scope != NULL && !grant_scopes(key->scopes, request->scope))
		return VERDICT_SCOPE_MISSING;
	return limit_take(key, &request->limit, now);
}

/*
 * Return whether a key has the environment that the call requires, and the one
 * that the setting required_environment requires.
 */
static bool
environment_fits(const StoredKey *key, const Request *request)
{
	const char *environment = VARDATA_ANY(key->environment);
	Size		len = VARSIZE_ANY_EXHDR(key->environment);
	const char *required = settings_required_environment;

	return (required[0] == '\0' ||
			(strlen(required) == len && memcmp(required, environment, len) == 0)) &&
		(request->environment == NULL ||
		 (VARSIZE_ANY_EXHDR(request->environment) == len &&
		  memcmp(VARDATA_ANY(request->environment), environment, len) == 0));
}
