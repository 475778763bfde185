/*
 * token_sql.c
 *		Tokens as text: the SQL functions that any role may call.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/settings.h"
#include "compat.h"
#include "token/digest.h"
#include "token/shown.h"
#include "token/token.h"

/* The result of mask() for a string that is not a token. */
#define NO_TOKEN_MASK "********"

/* The columns that find_tokens() returns. */
#define FOUND_COLUMNS 3

static char *name_argument(FunctionCallInfo fcinfo, int n, const char *what,
						   char *setting);

PG_FUNCTION_INFO_V1(rk_apikeys_generate_token);
PG_FUNCTION_INFO_V1(rk_apikeys_is_well_formed);
PG_FUNCTION_INFO_V1(rk_apikeys_mask);
PG_FUNCTION_INFO_V1(rk_apikeys_find_tokens);
PG_FUNCTION_INFO_V1(rk_apikeys_redact);
PG_FUNCTION_INFO_V1(rk_apikeys_hash_token);
PG_FUNCTION_INFO_V1(rk_apikeys_digest_equal);

/*
 * rk_apikeys.generate_token(environment text, prefix text) -> text
 *
 * Return a new token that belongs to no key.  A NULL argument stands for the
 * setting default_environment or token_prefix.  Raise 22023 if an argument is
 * not a valid name.
 */
Datum
rk_apikeys_generate_token(PG_FUNCTION_ARGS)
{
	char	   *environment = name_argument(fcinfo, 0, "environment",
											settings_default_environment);
	char	   *prefix = name_argument(fcinfo, 1, "prefix",
									   settings_token_prefix);
	char		token[TOKEN_MAX_LEN + 1];
	text	   *result;

	result = cstring_to_text_with_len(token,
									  token_make(prefix, environment, token));
	explicit_bzero(token, sizeof(token));
	PG_RETURN_TEXT_P(result);
}

/*
 * Return the n-th argument, palloc'd; the setting if the argument is NULL.
 * Raise 22023 if the argument is not a valid name.
 */
static char *
name_argument(FunctionCallInfo fcinfo, int n, const char *what, char *setting)
{
	text	   *value;
	size_t		len;

	if (PG_ARGISNULL(n))
		return setting;
	value = PG_GETARG_TEXT_PP(n);
	len = VARSIZE_ANY_EXHDR(value);
	if (!token_name_ok(VARDATA_ANY(value), len))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid %s of a token: \"%s\"", what,
						shown_text(value)),
				 errhint("Use a lower-case letter, then up to 15 lower-case letters and digits.")));
	return text_to_cstring(value);
}

/*
 * Return whether the first argument is a token, and set its parts.  A value of
 * a wrong length is not detoasted.
 */
static bool
parse_argument(FunctionCallInfo fcinfo, TokenParts *parts)
{
	Size		len = toast_raw_datum_size(PG_GETARG_DATUM(0)) - VARHDRSZ;

	if (len < TOKEN_MIN_LEN || len > TOKEN_MAX_LEN)
		return false;
	return token_parse(VARDATA_ANY(PG_GETARG_TEXT_PP(0)), len, parts);
}

/*
 * rk_apikeys.is_well_formed(token text) -> boolean
 *
 * Return whether the string has the shape and the check digits of a token.
 */
Datum
rk_apikeys_is_well_formed(PG_FUNCTION_ARGS)
{
	TokenParts	parts;

	PG_RETURN_BOOL(parse_argument(fcinfo, &parts));
}

/*
 * rk_apikeys.mask(token text) -> text
 *
 * Return the token with its secret masked; only stars if the string is not a
 * token.
 */
Datum
rk_apikeys_mask(PG_FUNCTION_ARGS)
{
	TokenParts	parts;
	char		masked[TOKEN_MAX_LEN];

	if (!parse_argument(fcinfo, &parts))
		PG_RETURN_TEXT_P(cstring_to_text(NO_TOKEN_MASK));
	PG_RETURN_TEXT_P(cstring_to_text_with_len(masked,
											  token_mask(&parts, masked)));
}

/*
 * rk_apikeys.find_tokens(document text)
 *		-> setof (token_mask text, key_id text, start int)
 *
 * Return the tokens in a text whose check digits are right.  The column start
 * is the position of the token's first character, counted from 1.
 */
Datum
rk_apikeys_find_tokens(PG_FUNCTION_ARGS)
{
	text	   *document = PG_GETARG_TEXT_PP(0);
	const char *s = VARDATA_ANY(document);
	size_t		len = VARSIZE_ANY_EXHDR(document);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	TokenParts	parts;
	size_t		at = 0;
	size_t		start;
	size_t		token_len;
	int			position = 1;	/* of byte s[at], in characters */

	InitMaterializedSRF(fcinfo, 0);
	if (result->setDesc->natts != FOUND_COLUMNS)
		elog(ERROR, "find_tokens returns another row than expected");
	while (token_find(s, len, at, &parts, &start, &token_len))
	{
		char		masked[TOKEN_MAX_LEN];
		Datum		values[FOUND_COLUMNS];
		bool		nulls[FOUND_COLUMNS] = {false, false, false};

		CHECK_FOR_INTERRUPTS();
		position += pg_mbstrlen_with_len(s + at, start - at);
		values[0] = PointerGetDatum(cstring_to_text_with_len(masked,
															 token_mask(&parts, masked)));
		values[1] = PointerGetDatum(cstring_to_text_with_len(parts.key_id,
															 TOKEN_KEY_ID_LEN));
		values[2] = Int32GetDatum(position);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		pfree(DatumGetPointer(values[0]));
		pfree(DatumGetPointer(values[1]));
		position += token_len;
		at = start + token_len;
	}
	return (Datum) 0;
}

/*
 * rk_apikeys.redact(document text) -> text
 *
 * Return the text with every part masked that looks like a token.
 */
Datum
rk_apikeys_redact(PG_FUNCTION_ARGS)
{
	text	   *copy = PG_GETARG_TEXT_P_COPY(0);
	size_t		len = token_redact(VARDATA(copy), VARSIZE(copy) - VARHDRSZ);

	SET_VARSIZE(copy, VARHDRSZ + len);
	PG_RETURN_TEXT_P(copy);
}

/*
 * rk_apikeys.hash_token(token text) -> bytea
 *
 * Return the token's SHA-256.
 */
Datum
rk_apikeys_hash_token(PG_FUNCTION_ARGS)
{
	text	   *token = PG_GETARG_TEXT_PP(0);
	bytea	   *result = palloc(VARHDRSZ + DIGEST_SHA256_LEN);

	SET_VARSIZE(result, VARHDRSZ + DIGEST_SHA256_LEN);
	digest_sha256(VARDATA_ANY(token), VARSIZE_ANY_EXHDR(token),
				  (uint8 *) VARDATA(result));
	PG_RETURN_BYTEA_P(result);
}

/*
 * rk_apikeys.digest_equal(a bytea, b bytea) -> boolean
 *
 * Return whether two digests are equal.  For digests of equal length the time
 * does not depend on their bytes.
 */
Datum
rk_apikeys_digest_equal(PG_FUNCTION_ARGS)
{
	bytea	   *a = PG_GETARG_BYTEA_PP(0);
	bytea	   *b = PG_GETARG_BYTEA_PP(1);

	if (VARSIZE_ANY_EXHDR(a) != VARSIZE_ANY_EXHDR(b))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(digest_matches((uint8 *) VARDATA_ANY(a),
								  (uint8 *) VARDATA_ANY(b),
								  VARSIZE_ANY_EXHDR(a)));
}
