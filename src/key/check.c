/*
 * check.c
 *		Which values a key's settings may have.
 *
 * The table's CHECK constraints hold for every row at all times, also for a
 * restored row.  This file checks the same first, to raise a message with the
 * value and a hint.  Only this file makes the checks that depend on the clock
 * or on a setting.
 *
 * A value may hold a token: somebody may put a token into the wrong field, or
 * quote it as the reason for a revocation.  A message shows the value masked
 * and cut.  Free text is masked before it is stored.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type_d.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/limiter.h"
#include "base/settings.h"
#include "base/store.h"
#include "compat.h"
#include "key/check.h"
#include "token/shown.h"
#include "token/token.h"
#include "usage/usage.h"

/* The same limits as in the CHECK constraints of api_keys. */
#define START_MAX_CHARS 12
#define NAME_MAX_CHARS 200
#define DESCRIPTION_MAX_CHARS 2000
#define OWNER_MAX_CHARS 200
#define REASON_MAX_CHARS 500
#define SCOPES_MAX 64
#define SCOPE_MAX_LEN 100
#define CIDRS_MAX 64
#define METADATA_MAX_LEN 8192

/* Columns that are not NULL. */
static const struct
{
	int			column;
	const char *name;
}			required[] = {
	{KEY_TENANT, "tenant"}, {KEY_NAME, "name"},
	{KEY_DESCRIPTION, "description"}, {KEY_ENVIRONMENT, "environment"},
	{KEY_SCOPES, "scopes"}, {KEY_METADATA, "metadata"}, {KEY_ENABLED, "enabled"}
};

/* The text columns of free text.  metadata is free text too, as jsonb. */
static const int free_text[] = {KEY_NAME, KEY_DESCRIPTION, KEY_REVOKED_REASON, KEY_OWNER};

static Jsonb *metadata_without_tokens(Jsonb *metadata);
static void check_length(const char *what, text *value, int min, int max);
static void check_token_part(const char *what, text *value, int max);
static void check_environment(text *value);
static void check_scopes(ArrayType *scopes);
static bool scope_ok(const char *s, int len);
static void check_cidrs(ArrayType *cidrs);
static void check_metadata(Jsonb *metadata);
static void check_rate(Datum *values, bool *nulls);
static void check_expiry(TimestampTz expires_at, bool endless,
						 TimestampTz created_at);

/*
 * Check the changed settings of a row of api_keys.  In a new key all settings
 * are changed.  A value that violates a constraint is refused here first,
 * because the constraint's message would show the row with its digest.
 *
 * In values[] trim the name, mask tokens in free text, and make an expiry at
 * infinity NULL.
 *
 * Raise 23502 for a NULL, 23514 for a wrong shape, 22023 for an impossible
 * expiry, 55000 for a rate limit where there is no limiter.
 */
void
check_settings(Datum *values, bool *nulls, const bool *changed,
			   TimestampTz created_at)
{
#define CHECKED(column) (changed[(column) - 1] && !nulls[(column) - 1])
#define TEXT(column) DatumGetTextPP(values[(column) - 1])
	for (int i = 0; i < (int) lengthof(required); i++)
		if (nulls[required[i].column - 1])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("%s of an API key cannot be null",
							required[i].name)));
	if (CHECKED(KEY_HINT))
		check_token_part("hint", TEXT(KEY_HINT), TOKEN_HINT_LEN);
	if (CHECKED(KEY_START))
		check_token_part("start", TEXT(KEY_START), START_MAX_CHARS);
	if (CHECKED(KEY_TENANT))
		check_length("tenant", TEXT(KEY_TENANT), 1, SETTINGS_TENANT_MAX_CHARS);
	if (CHECKED(KEY_NAME))
	{
		values[KEY_NAME - 1] =
			DirectFunctionCall2(btrim, PointerGetDatum(TEXT(KEY_NAME)),
								CStringGetTextDatum(" \t\n\r\f\v"));
		check_length("name", TEXT(KEY_NAME), 1, NAME_MAX_CHARS);
	}
	if (CHECKED(KEY_DESCRIPTION))
		check_length("description", TEXT(KEY_DESCRIPTION), 0,
					 DESCRIPTION_MAX_CHARS);
	if (CHECKED(KEY_OWNER))
		check_length("owner", TEXT(KEY_OWNER), 1, OWNER_MAX_CHARS);
	if (CHECKED(KEY_REVOKED_REASON))
		check_length("revoked_reason", TEXT(KEY_REVOKED_REASON), 0,
					 REASON_MAX_CHARS);
	if (CHECKED(KEY_ENVIRONMENT))
		check_environment(TEXT(KEY_ENVIRONMENT));
	if (CHECKED(KEY_SCOPES))
		check_scopes(DatumGetArrayTypeP(values[KEY_SCOPES - 1]));
	if (CHECKED(KEY_ALLOWED_CIDRS))
		check_cidrs(DatumGetArrayTypeP(values[KEY_ALLOWED_CIDRS - 1]));
	if (CHECKED(KEY_METADATA))
		check_metadata(DatumGetJsonbP(values[KEY_METADATA - 1]));
	/* Mask last, because the limits hold for the values as they were given. */
	for (int i = 0; i < (int) lengthof(free_text); i++)
		if (CHECKED(free_text[i]))
			values[free_text[i] - 1] =
				PointerGetDatum(check_without_tokens(TEXT(free_text[i])));
	if (CHECKED(KEY_METADATA))
		values[KEY_METADATA - 1] =
			JsonbPGetDatum(metadata_without_tokens(DatumGetJsonbP(values[KEY_METADATA - 1])));
	if (changed[KEY_RATE_LIMIT - 1] || changed[KEY_RATE_WINDOW - 1])
		check_rate(values, nulls);
	/* Store "never" in one way, because infinity cannot be subtracted from. */
	if (CHECKED(KEY_EXPIRES_AT) &&
		DatumGetTimestampTz(values[KEY_EXPIRES_AT - 1]) == DT_NOEND)
		nulls[KEY_EXPIRES_AT - 1] = true;
	if (changed[KEY_EXPIRES_AT - 1])
		check_expiry(DatumGetTimestampTz(values[KEY_EXPIRES_AT - 1]),
					 nulls[KEY_EXPIRES_AT - 1], created_at);
#undef CHECKED
#undef TEXT
}

/* Return the value, or a copy with its tokens masked. */
text *
check_without_tokens(text *value)
{
	char	   *copy;

	if (!token_suspected(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)))
		return value;
	copy = text_to_cstring(value);
	token_redact_kept(copy, strlen(copy));
	return cstring_to_text(copy);
}

/* Do the same to metadata; a mask has no character that JSON escapes. */
static Jsonb *
metadata_without_tokens(Jsonb *metadata)
{
	char	   *as_text = JsonbToCString(NULL, &metadata->root,
										 VARSIZE(metadata));
	size_t		len = strlen(as_text);

	if (!token_suspected(as_text, len))
		return metadata;
	token_redact_kept(as_text, len);
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(as_text)));
}

/* Raise 23514 unless the value has min to max characters.  min is 0 or 1. */
static void
check_length(const char *what, text *value, int min, int max)
{
	int			chars = pg_mbstrlen_with_len(VARDATA_ANY(value),
											 VARSIZE_ANY_EXHDR(value));

	if (chars < min)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("%s of an API key is empty", what),
				 errhint("Give it 1 to %d characters.", max)));
	if (chars > max)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("%s of an API key is too long: \"%s\"", what,
						shown_text(value)),
				 errdetail("It has %d characters.", chars),
				 errhint("Shorten it to %d characters.", max)));
}

/*
 * Raise 23514 unless the value has at most max characters.  The message does not
 * show the value, which may be a whole token of any shape.
 */
static void
check_token_part(const char *what, text *value, int max)
{
	int			chars = pg_mbstrlen_with_len(VARDATA_ANY(value),
											 VARSIZE_ANY_EXHDR(value));

	if (chars > max)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("%s of an API key is too long", what),
				 errdetail("It has %d characters.", chars),
				 errhint("Give at most %d characters of the token.", max)));
}

/* Raise 23514 unless the value is a name as token_name_ok() accepts it. */
static void
check_environment(text *value)
{
	if (!token_name_ok(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)))
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("invalid environment of an API key: \"%s\"",
						shown_text(value)),
				 errhint("Use a lower-case letter, then up to 15 lower-case letters and digits, such as \"prod\".")));
}

/*
 * Raise 23514 unless the array has one dimension, at most SCOPES_MAX elements,
 * valid scopes only, and no scope twice.
 */
static void
check_scopes(ArrayType *scopes)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	int			i;
	int			j;

	deconstruct_array(scopes, TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	if (ARR_NDIM(scopes) > 1 || count > SCOPES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("invalid array of scopes of an API key: %d elements", count),
				 errhint("Use a one-dimensional array of at most %d scopes.", SCOPES_MAX)));
	for (i = 0; i < count; i++)
	{
		text	   *scope = nulls[i] ? NULL : DatumGetTextPP(elements[i]);

		if (scope == NULL ||
			!scope_ok(VARDATA_ANY(scope), VARSIZE_ANY_EXHDR(scope)))
			ereport(ERROR,
					(errcode(ERRCODE_CHECK_VIOLATION),
					 scope == NULL ?
					 errmsg("scope of an API key cannot be null") :
					 errmsg("invalid scope of an API key: \"%s\"", shown_text(scope)),
					 errhint("Use words of a-z, 0-9, \"_\", \"*\", \".\" and \"-\" with \":\" between them, such as \"records:read\", up to %d characters.",
							 SCOPE_MAX_LEN)));
		for (j = 0; j < i; j++)
			if (DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
													 elements[i], elements[j])))
				ereport(ERROR,
						(errcode(ERRCODE_CHECK_VIOLATION),
						 errmsg("scope \"%s\" is listed twice", shown_text(scope)),
						 errhint("List each scope once.")));
	}
}

/* Return whether s is [a-z0-9_*.-]+(:[a-z0-9_*.-]+)*, up to SCOPE_MAX_LEN. */
static bool
scope_ok(const char *s, int len)
{
	bool		in_word = false;
	int			i;

	if (len > SCOPE_MAX_LEN)
		return false;
	for (i = 0; i < len; i++)
	{
		if ((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= '0' && s[i] <= '9') ||
			s[i] == '_' || s[i] == '*' || s[i] == '.' || s[i] == '-')
			in_word = true;
		else if (s[i] == ':' && in_word)
			in_word = false;
		else
			return false;
	}
	return in_word;
}

/* Raise 23514 unless the array lists 1 to CIDRS_MAX networks, and no NULL. */
static void
check_cidrs(ArrayType *cidrs)
{
	int			count = ArrayGetNItems(ARR_NDIM(cidrs), ARR_DIMS(cidrs));

	if (count < 1 || count > CIDRS_MAX || ARR_NDIM(cidrs) > 1 ||
		array_contains_nulls(cidrs))
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("invalid allowed_cidrs of an API key: %d elements",
						count),
				 errhint("List 1 to %d networks and no null, or use NULL instead of the list to allow any address.",
						 CIDRS_MAX)));
}

/* Raise 23514 unless it is a JSON object of at most METADATA_MAX_LEN bytes. */
static void
check_metadata(Jsonb *metadata)
{
	char	   *as_text;

	if (!JB_ROOT_IS_OBJECT(metadata))
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("metadata of an API key is not a JSON object"),
				 errhint("Use an object, such as {\"team\": \"sales\"}.")));
	as_text = JsonbToCString(NULL, &metadata->root, VARSIZE(metadata));
	if (strlen(as_text) > METADATA_MAX_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("metadata of an API key is too long: %zu bytes",
						strlen(as_text)),
				 errhint("Keep it to %d bytes.", METADATA_MAX_LEN)));
}

/*
 * Check rate_limit and rate_window: both or neither is set, both are positive,
 * and the window is at most LIMITER_MAX_WINDOW.  Raise 23514 if not, and 55000
 * without shared memory, where there is no limiter.
 */
static void
check_rate(Datum *values, bool *nulls)
{
	Interval   *window = nulls[KEY_RATE_WINDOW - 1] ? NULL :
		DatumGetIntervalP(values[KEY_RATE_WINDOW - 1]);
	Interval	zero = {0, 0, 0};

	if (nulls[KEY_RATE_LIMIT - 1] != (window == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("rate_limit and rate_window of an API key must be set together"),
				 errhint("Set both, or set both to NULL.")));
	if (window == NULL)
		return;
	if (DatumGetInt32(values[KEY_RATE_LIMIT - 1]) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("rate_limit of an API key must be positive, not %d",
						DatumGetInt32(values[KEY_RATE_LIMIT - 1]))));
	if (!DatumGetBool(DirectFunctionCall2(interval_gt,
										  IntervalPGetDatum(window),
										  IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("rate_window of an API key must be positive")));
	if (limiter_window(window) > LIMITER_MAX_WINDOW)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("rate_window of an API key is too long"),
				 errhint("Use at most 366 days.")));
	if (!usage_is_shared())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("rate limits need rk_apikeys to be preloaded"),
				 errhint("Add rk_apikeys to shared_preload_libraries and restart the server.")));
}

/*
 * Return the latest end that max_lifetime allows a key of that time; DT_NOEND if
 * there is no such setting.
 */
TimestampTz
check_latest_end(TimestampTz created_at)
{
	Interval	longest;

	settings_interval(settings_max_lifetime, &longest);
	if (longest.time == 0 && longest.day == 0 && longest.month == 0)
		return DT_NOEND;
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(created_at),
												   IntervalPGetDatum(&longest)));
}

/*
 * Check an expiry that is set now.  Raise 22023 unless the expiry is in the
 * future and at most created_at + max_lifetime.
 */
static void
check_expiry(TimestampTz expires_at, bool endless, TimestampTz created_at)
{
	TimestampTz latest = check_latest_end(created_at);

	if (!endless && expires_at <= GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expires_at of an API key is in the past: %s",
						timestamptz_to_str(expires_at)),
				 errhint("To end a key at once, revoke or disable it.")));

	if (latest != DT_NOEND && (endless || expires_at > latest))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 endless ? errmsg("expires_at of an API key is required") :
				 errmsg("expires_at of an API key is too far in the future: %s",
						timestamptz_to_str(expires_at)),
				 errdetail("rk_apikeys.max_lifetime is %s.",
						   settings_max_lifetime),
				 errhint("Set expires_at to %s or earlier.",
						 timestamptz_to_str(latest))));
}
