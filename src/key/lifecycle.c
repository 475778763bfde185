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

#include "access/htup_details.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/now.h"
#include "compat.h"
#include "key/guard.h"
#include "token/shown.h"

/* The parameters of create_key(), in order, and the columns that they give. */
static const struct
{
	const char *column;
	Oid			type;
	bool		empty_is_default;
}			parameters[] = {
	{"name", TEXTOID, false}, {"description", TEXTOID, true},
	{"expires_at", TIMESTAMPTZOID, false}, {"environment", TEXTOID, false},
	{"scopes", TEXTARRAYOID, true}, {"allowed_cidrs", CIDRARRAYOID, false},
	{"rate_limit", INT4OID, false}, {"rate_window", INTERVALOID, false},
	{"metadata", JSONBOID, true}, {"tenant", TEXTOID, false}
};

/* A value for a column of a new key. */
typedef struct Given
{
	const char *column;
	Oid			type;
	Datum		value;
	bool		isnull;
} Given;

static bool is_empty(Oid type, Datum value);
static Datum insert_key(FunctionCallInfo fcinfo, const Given *given, int count);
static void cannot_rotate(Datum key_id);
static ArrayType *lock_children(text *key_id);
static bool is_in_result(text *key_id);
static void no_such_key(text *key_id);

PG_FUNCTION_INFO_V1(rk_apikeys_create_key);
PG_FUNCTION_INFO_V1(rk_apikeys_rotate_key);
PG_FUNCTION_INFO_V1(rk_apikeys_revoke_key);

/*
 * rk_apikeys.create_key(name, description, expires_at, environment, scopes,
 *		allowed_cidrs, rate_limit, rate_window, metadata, tenant) -> new_key
 *
 * Insert a key, and return its id and its token.  Raise the errors of the
 * INSERT.  An argument that is NULL or equals its default is not given, so the
 * caller needs no right to its column.
 */
Datum
rk_apikeys_create_key(PG_FUNCTION_ARGS)
{
	Given		given[lengthof(parameters)];
	int			count = 0;

	for (int i = 0; i < (int) lengthof(parameters); i++)
	{
		bool		isnull = PG_ARGISNULL(i);

		/* A key has a name, so the INSERT of a NULL raises. */
		if (i > 0 && (isnull || (parameters[i].empty_is_default &&
								 is_empty(parameters[i].type, PG_GETARG_DATUM(i)))))
			continue;
		given[count++] = (Given)
		{
			parameters[i].column, parameters[i].type,
				isnull ? (Datum) 0 : PG_GETARG_DATUM(i), isnull
		};
	}
	return insert_key(fcinfo, given, count);
}

/*
 * rk_apikeys.rotate_key(key_id text, grace interval, expires_at timestamptz)
 *		-> new_key
 *
 * Make a successor with the settings of a key, and return the successor's id and
 * token.  The trigger api_keys_make copies the settings, so the caller needs no
 * right to their columns, only to grace_until, replaces, and expires_at if given.
 *
 * Raise 22023 if grace is NULL or negative, 42704 if the caller sees no such
 * key, and 55000 if the key is revoked, has expired or was rotated, or if a
 * trigger of a DBA has refused the successor.  Else raise the errors of the
 * INSERT.
 */
Datum
rk_apikeys_rotate_key(PG_FUNCTION_ARGS)
{
	Interval	zero = {0, 0, 0};
	Oid			types[2] = {TEXTOID, INTERVALOID};
	Datum		values[2];
	Given		given[2];
	GuardRotation before = guard_rotation;
	Datum		result;

	if (PG_ARGISNULL(1) ||
		DatumGetBool(DirectFunctionCall2(interval_lt, PG_GETARG_DATUM(1),
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("grace cannot be %s", PG_ARGISNULL(1) ? "null" :
						DatumGetCString(DirectFunctionCall1(interval_out,
															PG_GETARG_DATUM(1)))),
				 errhint("Give an interval from 0 (the old key ends at once) up.")));
	if (PG_ARGISNULL(0))
		no_such_key(NULL);
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);

	/* Of two rotations at once, the second waits here, and finds no row. */
	SPI_connect();
	SPI_execute_with_args("UPDATE rk_apikeys.api_keys"
						  " SET grace_until = least(now() + $2, expires_at)"
						  " WHERE key_id = $1 AND revoked_at IS NULL AND grace_until IS NULL"
						  "  AND (expires_at IS NULL OR expires_at > clock_timestamp())",
						  2, types, values, NULL, false, 0);
	if (SPI_processed == 0)
		cannot_rotate(values[0]);
	SPI_finish();

	given[0] = (Given)
	{
		"replaces", TEXTOID, values[0], false
	};
	given[1] = (Given)
	{
		"expires_at", TIMESTAMPTZOID, PG_GETARG_DATUM(2), false
	};
	PG_TRY();
	{
		guard_rotation.key_id = text_to_cstring(DatumGetTextPP(values[0]));
		guard_rotation.has_expires_at = !PG_ARGISNULL(2);
		guard_rotation.successor[0] = '\0';
		result = insert_key(fcinfo, given, PG_ARGISNULL(2) ? 1 : 2);
	}
	PG_FINALLY();
	{
		guard_rotation = before;
	}
	PG_END_TRY();
	if (fcinfo->isnull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("API key \"%s\" cannot be rotated: a trigger refused its successor",
						TextDatumGetCString(values[0])),
				 errhint("Look at the triggers of table rk_apikeys.api_keys.")));
	return result;
}

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

/* Return whether a value is '', '{}' of an array, or '{}' of jsonb. */
static bool
is_empty(Oid type, Datum value)
{
	if (type == TEXTOID)
		return VARSIZE_ANY_EXHDR(DatumGetTextPP(value)) == 0;
	if (type == TEXTARRAYOID)
		return ARR_NDIM(DatumGetArrayTypeP(value)) == 0;
	return JB_ROOT_IS_OBJECT(DatumGetJsonbP(value)) &&
		JB_ROOT_COUNT(DatumGetJsonbP(value)) == 0;
}

/*
 * Insert a key with these columns into the view keys.  Return the row of type
 * new_key; NULL if a trigger of a DBA has refused the row.
 */
static Datum
insert_key(FunctionCallInfo fcinfo, const Given *given, int count)
{
	StringInfoData columns;
	StringInfoData places;
	Oid			types[lengthof(parameters)];
	Datum		values[lengthof(parameters)];
	char		nulls[lengthof(parameters)];
	TupleDesc	desc;
	Datum		result = (Datum) 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != 2)
		elog(ERROR, "function returns another row than expected");
	BlessTupleDesc(desc);
	initStringInfo(&columns);
	initStringInfo(&places);
	for (int i = 0; i < count; i++)
	{
		appendStringInfo(&columns, "%s%s", i > 0 ? ", " : "", given[i].column);
		appendStringInfo(&places, "%s$%d", i > 0 ? ", " : "", i + 1);
		types[i] = given[i].type;
		values[i] = given[i].value;
		nulls[i] = given[i].isnull ? 'n' : ' ';
	}

	SPI_connect();
	SPI_execute_with_args(psprintf("INSERT INTO rk_apikeys.keys (%s) VALUES (%s)"
								   " RETURNING key_id, secret",
								   columns.data, places.data),
						  count, types, values, nulls, false, 0);
	if (SPI_processed == 0)
		fcinfo->isnull = true;
	else
		result = HeapTupleHeaderGetDatum(SPI_returntuple(SPI_tuptable->vals[0], desc));
	SPI_finish();
	return result;
}

/* Raise the error of a key that cannot be rotated, or that is not there. */
static void
cannot_rotate(Datum key_id)
{
	Oid			type = TEXTOID;
	bool		revoked;
	bool		rotated;
	bool		isnull;

	SPI_execute_with_args("SELECT revoked_at IS NOT NULL, grace_until IS NOT NULL"
						  " FROM rk_apikeys.api_keys WHERE key_id = $1",
						  1, &type, &key_id, NULL, false, 0);
	if (SPI_processed == 0)
		no_such_key(DatumGetTextPP(key_id));
	revoked = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
	rotated = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 2, &isnull));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("API key \"%s\" cannot be rotated: it %s",
					TextDatumGetCString(key_id),
					revoked ? "is revoked" : rotated ? "was rotated already" :
					"has expired"),
			 !revoked && rotated ?
			 errhint("Rotate its successor, which is the key that replaces it.") :
			 errhint("Create a new key.")));
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
