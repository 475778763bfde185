/*
 * admin.c
 *		Functions that write with the owner's rights: revoke by token, import, flush,
 *		reset of a limit.
 *
 * Trust: revoke_token() checks that the token is genuine before it writes.
 * Only rk_apikeys_admin may execute the other functions.  These functions
 * refuse a caller that has authenticated as a key.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"

#include "base/caller.h"
#include "base/now.h"
#include "base/principal.h"
#include "base/store.h"
#include "key/as_owner.h"
#include "key/verify.h"
#include "token/shown.h"
#include "usage/usage.h"

/* The arguments of import_key(), in their order. */
#define IMPORT_ARGS 14
#define IMPORT_ARGS_0_1 13		/* without start */

/* A reset of a limit, or of a family's limits. */
typedef struct Reset
{
	bool		of_limit;
	Datum		what;			/* limit_id or family */
	uint64		rows;			/* result: reset */
} Reset;

static Datum import_key(FunctionCallInfo fcinfo, int nargs);
static void reset(void *arg);

PG_FUNCTION_INFO_V1(rk_apikeys_revoke_token);
PG_FUNCTION_INFO_V1(rk_apikeys_import_key);
PG_FUNCTION_INFO_V1(rk_apikeys_import_key_0_3);
PG_FUNCTION_INFO_V1(rk_apikeys_flush_usage);
PG_FUNCTION_INFO_V1(rk_apikeys_reset_limit);

/*
 * rk_apikeys.revoke_token(token text, reason text) -> boolean
 *
 * Revoke the key of a token: whoever holds a token may end its key.  Return
 * whether the token is genuine.  If it is, its key is now revoked, by this call
 * or before.
 */
Datum
rk_apikeys_revoke_token(PG_FUNCTION_ARGS)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];
	char		nulls[2] = {' ', ' '};
	const StoredKey *key;
	bool		well_formed;
	OwnerStatement query = {
		.query = "UPDATE rk_apikeys.api_keys SET revoked_at = now(), revoked_reason = $2"
		" WHERE key_id = $1 AND revoked_at IS NULL",
		.nargs = 2, .types = types, .values = values, .nulls = nulls
	};

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	key = verify_genuine((text *) PG_GETARG_POINTER(0), &well_formed);
	if (key == NULL)
		PG_RETURN_BOOL(false);
	if (!key->revoked)
	{
		values[0] = CStringGetTextDatum(key->key_id);
		values[1] = PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1);
		nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
		as_owner(&query);
	}
	PG_RETURN_BOOL(true);
}

/*
 * rk_apikeys.import_key(name, digest, digest_kind, hint, description,
 *		expires_at, environment, scopes, allowed_cidrs, rate_limit,
 *		rate_window, metadata, tenant, start) -> key_id
 *
 * Add a key that was issued elsewhere, by the digest of its full token.  Raise
 * 22023 if the digest's length does not fit its kind, and 23505 if an imported
 * key has the same digest.
 */
Datum
rk_apikeys_import_key_0_3(PG_FUNCTION_ARGS)
{
	return import_key(fcinfo, IMPORT_ARGS);
}

/* The same for SQL of 0.1 and 0.2, without start. */
Datum
rk_apikeys_import_key(PG_FUNCTION_ARGS)
{
	return import_key(fcinfo, IMPORT_ARGS_0_1);
}

static Datum
import_key(FunctionCallInfo fcinfo, int nargs)
{
	Oid			types[IMPORT_ARGS] = {
		TEXTOID, BYTEAOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TEXTOID,
		TEXTARRAYOID, CIDRARRAYOID, INT4OID, INTERVALOID, JSONBOID, TEXTOID, TEXTOID
	};
	Datum		values[IMPORT_ARGS];
	char		nulls[IMPORT_ARGS];
	char	   *kind;
	int			len;
	int			expected;
#define IMPORT(column, argument) \
	"INSERT INTO rk_apikeys.api_keys (name, digest, digest_kind, hint," \
	"  description, expires_at, environment, scopes, allowed_cidrs," \
	"  rate_limit, rate_window, metadata, tenant" column ")" \
	" VALUES ($1, $2, $3, $4, coalesce($5, ''), $6," \
	"  coalesce($7, rk_apikeys._default_environment())," \
	"  coalesce($8, '{}'), $9, $10, $11, coalesce($12, '{}')," \
	"  coalesce($13, rk_apikeys.current_tenant())" argument ")" \
	" ON CONFLICT (digest) WHERE digest_kind <> 'native' DO NOTHING" \
	" RETURNING key_id"
	OwnerStatement query = {
		.query = nargs == IMPORT_ARGS ? IMPORT(", start", ", $14") : IMPORT("", ""),
		.nargs = nargs, .types = types, .values = values, .nulls = nulls
	};

	principal_refuse();
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("digest and digest_kind of an imported API key cannot be null")));
	kind = text_to_cstring(PG_GETARG_TEXT_PP(2));
	expected = strcmp(kind, "sha256") == 0 ? DIGEST_SHA256_LEN :
		strcmp(kind, "sha512") == 0 ? DIGEST_SHA512_LEN : 0;
	if (expected == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid digest_kind: \"%s\"",
						shown_text(PG_GETARG_TEXT_PP(2))),
				 errhint("Use sha256 or sha512.")));
	len = VARSIZE_ANY_EXHDR(PG_GETARG_BYTEA_PP(1));
	if (len != expected)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a %s digest must have %d bytes, not %d", kind, expected, len),
				 errhint("Give the digest of the full token, as bytea.")));

	for (int i = 0; i < nargs; i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
	}
	as_owner(&query);
	/* ON CONFLICT, because the message of the index would show the digest. */
	if (query.processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("an imported API key with this digest already exists")));
	PG_RETURN_TEXT_P(query.first);
}

/*
 * rk_apikeys.flush_usage() -> bigint
 *
 * Write this database's pending entries to the tables now.  Return the number
 * of keys written: 0 without shared memory, while another flush is running, or
 * where the use goes to a primary.
 */
Datum
rk_apikeys_flush_usage(PG_FUNCTION_ARGS)
{
	principal_refuse();
	PG_RETURN_INT64(usage_flush_now());
}

/*
 * rk_apikeys.reset_limit(limit_id uuid, family text) -> boolean
 *
 * Note a reset in a limit, or in the keys of a family: what was used before no
 * longer counts.  Return whether there is such a limit or family.  Raise 22023
 * unless exactly one of both is given.
 */
Datum
rk_apikeys_reset_limit(PG_FUNCTION_ARGS)
{
	Reset		work = {.of_limit = !PG_ARGISNULL(0)};

	principal_refuse();
	if (PG_ARGISNULL(0) == PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 PG_ARGISNULL(0) ?
				 errmsg("reset_limit needs a limit_id or a family") :
				 errmsg("reset_limit takes a limit_id or a family, not both")));
	work.what = PG_GETARG_DATUM(work.of_limit ? 0 : 1);
	caller_run_as_owner(store_table("api_keys", false), reset, &work);
	PG_RETURN_BOOL(work.rows > 0);
}

#define OF_FAMILY " WHERE (key_id = $1 AND coalesce(family, key_id) = $1)" \
	" OR (family = $1 AND family <> key_id)"

/*
 * OwnerWork.  All keys of a family get the same time.  The lock waits for a
 * rotation, so that the successor gets it too.
 */
static void
reset(void *arg)
{
	Reset	   *work = arg;
	Oid			type = work->of_limit ? UUIDOID : TEXTOID;

	SPI_connect();
	if (!work->of_limit)
		(void) now_execute(NULL, "SELECT FROM rk_apikeys.api_keys" OF_FAMILY
						   " ORDER BY key_id FOR NO KEY UPDATE", 1, &type, &work->what);
	work->rows = now_execute(NULL, work->of_limit ?
							 "UPDATE rk_apikeys.limits SET reset_at = clock_timestamp()"
							 " WHERE limit_id = $1" :
							 "UPDATE rk_apikeys.api_keys"
							 " SET limits_reset_at = (SELECT clock_timestamp())" OF_FAMILY,
							 1, &type, &work->what);
	SPI_finish();
}
