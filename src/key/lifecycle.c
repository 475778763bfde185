/*
 * lifecycle.c
 *		The lifecycle of a key as function calls.
 *
 * Trust: the functions run with the rights of their caller.  Privileges and
 * policies decide, as for the same INSERT or UPDATE.
 *
 * Locking: a cascade locks the rows of all the keys that it will end, and then
 * ends them.  guard.c locks the row of a principal when a key that the
 * principal made is committed.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "base/now.h"
#include "compat.h"
#include "token/shown.h"

static ArrayType *lock_children(text *key_id);
static bool is_in_result(text *key_id);
static void no_such_key(text *key_id);

PG_FUNCTION_INFO_V1(rk_apikeys_revoke_key);

/*
 * rk_apikeys.revoke_key(key_id text, reason text, cascade boolean) -> boolean
 *
 * End a key for good, and with cascade the keys that it made, and the keys that
 * those made.  Return whether this call ended the key itself.  Raise 42704 if
 * the caller sees no such key.
 *
 * Without a reason the caller needs no right to the column revoked_reason.
 */
Datum
rk_apikeys_revoke_key(PG_FUNCTION_ARGS)
{
	bool		has_reason = !PG_ARGISNULL(1);
	bool		cascade = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	Oid			types[2] = {TEXTARRAYOID, TEXTOID};
	Datum		values[2];
	Datum		key_id;
	const char *query = has_reason ?
		"UPDATE rk_apikeys.api_keys SET revoked_at = now(), revoked_reason = $2"
		" WHERE key_id = ANY ($1) AND revoked_at IS NULL RETURNING key_id" :
		"UPDATE rk_apikeys.api_keys SET revoked_at = now()"
		" WHERE key_id = ANY ($1) AND revoked_at IS NULL RETURNING key_id";
	bool		revoked;

	if (PG_ARGISNULL(0))
		no_such_key(NULL);
	key_id = PointerGetDatum(PG_GETARG_TEXT_PP(0));
	values[1] = has_reason ? PG_GETARG_DATUM(1) : (Datum) 0;

	SPI_connect();
	if (cascade)
	{
		values[0] = PointerGetDatum(lock_children(DatumGetTextPP(key_id)));
		now_execute(NULL, query, has_reason ? 2 : 1, types, values);
	}
	else
	{
		values[0] = PointerGetDatum(construct_array(&key_id, 1, TEXTOID, -1,
													false, TYPALIGN_INT));
		SPI_execute_with_args(query, has_reason ? 2 : 1, types, values, NULL,
							  false, 0);
	}
	revoked = is_in_result(DatumGetTextPP(key_id));
	if (!revoked && !cascade)
	{
		types[0] = TEXTOID;
		SPI_execute_with_args("SELECT FROM rk_apikeys.api_keys WHERE key_id = $1",
							  1, types, &key_id, NULL, false, 0);
		if (SPI_processed == 0)
			no_such_key(DatumGetTextPP(key_id));
	}
	SPI_finish();
	PG_RETURN_BOOL(revoked);
}

/*
 * Lock the rows of a key, of the keys that it made, and of the keys that those
 * made, whether they are ended or not.  Return their key ids, text[].  Raise
 * 42704 if the caller sees no such key.
 *
 * Look again until no key is new.  Then no key of the result can get another
 * child, because the rows were locked before the last look.
 */
static ArrayType *
lock_children(text *key_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = TEXTOID;
	Datum		value = PointerGetDatum(key_id);
	uint64		before;
	uint64		count = 0;
	Datum	   *ids;

	do
	{
		before = count;
		/* UNION ends at a circle, which only a restored table may have. */
		count = now_execute(&plan,
							"WITH RECURSIVE tree AS ("
							" SELECT $1 COLLATE \"C\" AS key_id"
							" UNION SELECT k.key_id FROM rk_apikeys.api_keys k"
							"  JOIN tree t ON k.parent = t.key_id)"
							" SELECT k.key_id FROM rk_apikeys.api_keys k"
							"  WHERE k.key_id IN (SELECT t.key_id FROM tree t)"
							"  ORDER BY k.key_id FOR NO KEY UPDATE OF k",
							1, &type, &value);
	} while (count > before);
	if (!is_in_result(key_id))
		no_such_key(key_id);

	ids = palloc(count * sizeof(Datum));
	for (uint64 i = 0; i < count; i++)
	{
		bool		isnull;

		ids[i] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1,
							   &isnull);
	}
	return construct_array(ids, (int) count, TEXTOID, -1, false, TYPALIGN_INT);
}

/* Return whether the last statement returned that key id in its first column. */
static bool
is_in_result(text *key_id)
{
	char	   *wanted = text_to_cstring(key_id);

	for (uint64 i = 0; i < SPI_processed; i++)
		if (strcmp(SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1),
				   wanted) == 0)
			return true;
	return false;
}

/*
 * Raise 42704.  The error is the same for another tenant's key as for a key that
 * does not exist.  The key id may be a token, so the message shows it masked.
 */
static void
no_such_key(text *key_id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("API key \"%s\" does not exist",
					key_id == NULL ? "null" : shown_text(key_id)),
			 errhint("The key id is the third part of the token; see the view rk_apikeys.keys.")));
}
